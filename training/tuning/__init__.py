"""Hyperparameter tuning: the search, its study on disk, and the processes that train."""
