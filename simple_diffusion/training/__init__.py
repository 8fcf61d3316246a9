"""The training loop and what it keeps: weights, averages, checkpoints, metrics and pictures."""
