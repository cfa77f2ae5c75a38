"""Training: recipe, data order, the loop, moving average, checkpoints."""
