"""What can go wrong in a training, beyond its data."""


class TrainingError(Exception):
    """A training cannot go on or its result must not be used; the message says what to change."""


class DivergedError(TrainingError):
    """The loss is not finite any more."""
