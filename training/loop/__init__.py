"""The training loop: fit, checkpoints, callbacks, the order of the rows and the learning rate."""
