"""What watches a training from outside: the progress bar, the check that the loss is a number, and the list of both."""

import math
import time
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bookserve.training.errors import DivergedError

STEPS_UNREAD = 20  # at most, before their losses are looked at
LINE_SECONDS = 60  # from one line of a long epoch to the next, where there is no terminal


class Watchers(keras.callbacks.CallbackList):  # type: ignore[misc]
    """Keras's list of callbacks, but the figures of a step come as the tensors that they are.

    Keras reads them in every step, for which the program has to wait until a GPU has done the step. Then the next one
    is not prepared meanwhile.
    """

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Tell all callbacks, one after another."""
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class StopOnNan(keras.callbacks.Callback):  # type: ignore[misc]
    """Raises DivergedError where the loss is not finite; names the step where the training tells its loss.

    Losses that come as tensors are read together, `STEPS_UNREAD` steps later at the latest and before the epoch is
    validated, kept or saved. Losses that come as numbers are looked at at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0
        self._unread: dict[int, Any] = {}  # step, counted from 0 -> loss

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch
        self._unread = {}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the loss of the step, or the mean of the epoch so far, which one bad step is enough to spoil."""
        if not logs or "loss" not in logs:
            return
        self._unread[batch] = logs["loss"]
        if isinstance(logs["loss"], float) or len(self._unread) >= STEPS_UNREAD:
            self._read()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Look at the losses of the last steps before the validation rows are."""
        self._read()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Check the validation loss before other callbacks compute with a network that is broken."""
        _check("val_loss", (logs or {}).get("loss", 0.0), f"epoch {self._epoch + 1}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check the losses of the epoch."""
        self._read()
        for name in ("loss", "val_loss"):
            _check(name, (logs or {}).get(name, 0.0), f"epoch {epoch + 1}")

    def _read(self) -> None:
        steps, self._unread = self._unread, {}
        if steps:
            losses = np.asarray(keras.ops.convert_to_numpy(keras.ops.stack(list(steps.values()))))  # in one transfer
            for step, loss in zip(steps, losses.tolist(), strict=True):
                _check("loss", loss, f"step {step + 1} of epoch {self._epoch + 1}")


class ProgressBar(keras.callbacks.Callback):  # type: ignore[misc]
    """One bar for the running epoch, or in a file a line a minute; and one with the figures of every finished epoch."""

    def __init__(self, console: Console, label: str) -> None:
        super().__init__()
        self._console = console
        self._label = label
        self._progress: Progress | None = None
        self._task: Any = None
        self._name = label
        self._began = self._told = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Open the bar."""
        self._began = self._told = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        )
        self._name = f"{self._label} epoch {epoch + 1}/{self.params.get('epochs', 0)}"
        self._task = self._progress.add_task(self._name, total=self.params.get("steps"))
        self._progress.start()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Advance the bar, or tell how far it is."""
        if self._progress is not None:
            self._progress.update(self._task, completed=batch + 1)
        if not self._console.is_terminal and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            self._print(f"step {batch + 1}/{self.params.get('steps')}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Close the bar and print the epoch's figures."""
        self.close()
        figures = "  ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        self._print(figures)

    def close(self) -> None:
        """Take the bar off the terminal; also after a failure, so that the error stands on a clean line."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _print(self, told: str) -> None:
        seconds = time.monotonic() - self._began
        self._console.print(f"{self._name}  {told}  {seconds:.0f} s", highlight=False, soft_wrap=True)


def _check(name: str, loss: float, when: str) -> None:
    """Raise DivergedError if the loss is not finite."""
    if not math.isfinite(loss):
        raise DivergedError(
            f"the {'loss' if name == 'loss' else 'validation loss'} became {loss} in {when}: the training diverged. "
            "Lower the learning rate, or look for rows that are not finite in the data."
        )
