"""Training: of SViMo itself, and of the networks that judge its motion."""
