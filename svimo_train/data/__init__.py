"""What there is to learn from."""
