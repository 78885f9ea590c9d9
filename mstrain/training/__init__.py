"""The training loop and what it keeps: steps, checkpoints, ranks, logs."""
