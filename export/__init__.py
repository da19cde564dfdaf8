"""Export: from a run folder to an immutable numbered version in the model store."""
