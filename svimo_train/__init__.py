"""Learning and measuring: the synthetic world, the trainer with its stages, the judges, and evaluation."""
