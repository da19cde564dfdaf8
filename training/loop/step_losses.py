"""The loss of every step, for TensorBoard: Keras's own callback has only the mean of the epoch so far."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

STEPS_UNREAD = 100  # at most, before their losses are written
TAG = "loss_of_step"
LOSS_IS_MEAN = "loss_is_mean"  # a callback's parameter: the loss of a step comes as the mean of the epoch so far


class StepLosses(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes the loss of every step into the folder, numbered through all epochs from 0.

    Losses that come as tensors are read together, `STEPS_UNREAD` steps later at the latest. A training on many devices
    tells no losses of steps, so nothing is written there.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._writer: Any = None
        self._epoch = 0
        self._unread: list[Any] = []
        self._steps, self._mean = 0, 0.0  # written in this epoch, and their mean loss

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch, self._unread, self._steps, self._mean = epoch, [], 0, 0.0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the loss."""
        if logs and "loss" in logs:
            self._unread.append(logs["loss"])
            if len(self._unread) >= STEPS_UNREAD:
                self._write()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the last losses of the epoch."""
        self._write()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self) -> None:
        if not self._unread:
            return
        told = np.array(keras.ops.convert_to_numpy(keras.ops.stack(self._unread)), np.float64)  # in one transfer
        losses = of_means(told, self._steps, self._mean) if self.params.get(LOSS_IS_MEAN) else told
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self._folder))
        first = self._epoch * self.params["steps"] + self._steps
        with self._writer.as_default():
            for step, loss in enumerate(losses.tolist(), first):
                tf.summary.scalar(TAG, loss, step=step)
        self._writer.flush()
        self._unread, self._steps, self._mean = [], self._steps + len(told), float(told[-1])


def of_means(means: npt.NDArray[np.float64], steps: int, mean: float) -> npt.NDArray[np.float64]:
    """The losses [n] of steps from their running means [n]; before them there were `steps` steps of mean `mean`."""
    counts = steps + np.arange(1, len(means) + 1)
    return np.diff(np.concatenate([[steps * mean], counts * means]))
