"""What can go wrong between a run folder and the model store."""


class ExportError(Exception):
    """A run cannot be published; the message says what is wrong with it and what to do."""


class StoreError(Exception):
    """The model store does not hold what was asked for, what it holds is damaged, or it cannot be written to."""


class ConfigError(StoreError):
    """A version is published, and `models.config` does not tell of it."""
