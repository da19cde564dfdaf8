"""What can go wrong between a run folder, or a model made elsewhere, and the model store."""


class ExportError(Exception):
    """A run or a model cannot be published; the message says what is wrong with it and what to do."""


class NoGainError(ExportError):
    """No smaller graph is good, fast or small enough to be published; the message says what came out."""


class WorseError(ExportError):
    """A version is worse than the served one by more than chance; the message has both figures."""


class ConfinedError(ExportError):
    """A file could not be tried in its child process; the message goes on from the file's name."""


class StoreError(Exception):
    """The model store does not hold what was asked for, what it holds is damaged, or it cannot be written to."""


class ConfigError(StoreError):
    """A version is published, and `models.config` does not tell of it."""
