"""Where a training runs: GPUs or CPU, one host or many, and the precision."""
