"""What watches a training from outside: the progress bar and the check that the loss is still a number."""

import math
import time
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bookserve.training.errors import DivergedError


class StopOnNan(keras.callbacks.Callback):  # type: ignore[misc]
    """Raises DivergedError as soon as the loss is not finite: after the step, where the training tells its loss."""

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Check the mean loss of the epoch so far, which one bad step is enough to spoil."""
        _check("loss", logs, f"step {batch + 1} of epoch {self._epoch + 1}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check the losses of the epoch."""
        for name in ("loss", "val_loss"):
            _check(name, logs, f"epoch {epoch + 1}")


class ProgressBar(keras.callbacks.Callback):  # type: ignore[misc]
    """One bar for the running epoch, on a terminal; and one line with the figures of every finished epoch."""

    def __init__(self, console: Console, label: str) -> None:
        super().__init__()
        self._console = console
        self._label = label
        self._progress: Progress | None = None
        self._task: Any = None
        self._began = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Open the bar."""
        self._began = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        )
        epochs = self.params.get("epochs", 0)
        self._task = self._progress.add_task(
            f"{self._label} epoch {epoch + 1}/{epochs}", total=self.params.get("steps")
        )
        self._progress.start()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Advance the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=batch + 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Close the bar and print the epoch's figures."""
        self.close()
        figures = "  ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        seconds = time.monotonic() - self._began
        epochs = self.params.get("epochs", 0)
        line = f"{self._label} epoch {epoch + 1}/{epochs}  {figures}  {seconds:.0f} s"
        self._console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar off the terminal; also after a failure, so that the error stands on a clean line."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _check(name: str, logs: dict[str, Any] | None, when: str) -> None:
    """Raise DivergedError if the figure is among the logs and not finite."""
    loss = float((logs or {}).get(name, 0.0))
    if not math.isfinite(loss):
        raise DivergedError(
            f"the {'loss' if name == 'loss' else 'validation loss'} became {loss} in {when}: the training diverged. "
            "Lower the learning rate, or look for rows that are not finite in the data."
        )
