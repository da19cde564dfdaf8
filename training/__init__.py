"""Training: from a data set to a trained network in a run folder."""
