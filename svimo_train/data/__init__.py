"""Clips to learn from: a synthetic hand-object world made on the fly, and readers of recorded ones."""
