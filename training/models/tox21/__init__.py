"""Tox21 (chapters 4 and 5): a multitask network, and a memory of the training molecules."""
