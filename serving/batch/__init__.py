"""Predictions for a whole file: `bookserve batch`."""
