"""Training: one epoch, the optimizer, the hardware, checkpoints, weights to start from."""
