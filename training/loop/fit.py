"""Keras's `model.fit` with what every training here needs around it: it goes on after a kill, stops when nothing gets
better, and keeps the best weights.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from bookserve.training.devices import exactness, hosts
from bookserve.training.loop.callbacks import Watchers
from bookserve.training.loop.checkpoint import Checkpoint, Saved, pack, unpack
from bookserve.training.loop.step_losses import LOSS_IS_MEAN


def fit(
    model: keras.Model,
    batches: Callable[[int], tf.data.Dataset],
    epochs: int,
    steps: int,
    valid: tf.data.Dataset,
    callbacks: Sequence[keras.callbacks.Callback],
    checkpoint: Checkpoint,
    best: str | None = None,
    higher_is_better: bool = False,
    patience: int | None = None,
) -> dict[str, list[float]]:
    """Train a compiled model in place, from its last checkpoint on if it has one. Returns figure -> epochs.

    `batches` gives all batches from the start of an epoch, counted from 0, to the end of the training: `steps` an
    epoch. With `best`, a figure such as "val_loss", the weights of the epoch in which it was best are kept, and after
    `patience` epochs without a better one the training stops; without it the last weights are kept.

    Raises:
        TrainingError: the checkpoint is damaged, or a callback found the loss not finite.
        OSError: a checkpoint cannot be written.
    """
    model.jit_compile = exactness.xla()
    model.optimizer.build(model.trainable_variables)
    state = _TrainingState(checkpoint, best, higher_is_better, patience)
    saved = checkpoint.load()
    if saved is not None:
        state.restore(model, saved)
    if not state.ended(epochs):
        watchers = [*callbacks, state]
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:  # Keras's fit fails on batches of odd size
            hosts.fit(model, batches(state.epoch), range(state.epoch, epochs), steps, valid, watchers)
        else:
            _build_metrics(model, valid)
            params = {"epochs": epochs, "steps": steps, LOSS_IS_MEAN: True}
            model.fit(
                batches(state.epoch),
                initial_epoch=state.epoch,
                epochs=epochs,
                steps_per_epoch=steps,
                validation_data=valid,
                callbacks=Watchers(watchers, add_history=True, model=model, **params),
                shuffle=False,
                verbose=0,
            )
    if state.best_weights is not None:
        model.set_weights(state.best_weights)
    return state.history


def _build_metrics(model: keras.Model, rows: tf.data.Dataset) -> None:
    """Make the variables of the metrics, else the first step does, and TensorFlow then traces the step a second time.

    `rows` have the form of those that are trained with.
    """

    def one(spec: tf.TensorSpec) -> tf.Tensor:
        return tf.zeros([1, *(size or 1 for size in spec.shape[1:])], spec.dtype)

    x, y, weight = keras.utils.unpack_x_y_sample_weight(tf.nest.map_structure(one, rows.element_spec))
    model.compute_metrics(x, y, model(x, training=False), weight)
    model.reset_metrics()


class _TrainingState(keras.callbacks.Callback):  # type: ignore[misc]
    """History, best weights and the decision to stop; all of it is in the checkpoint. Must stand last of all."""

    def __init__(self, checkpoint: Checkpoint, best: str | None, higher_is_better: bool, patience: int | None) -> None:
        super().__init__()
        self.epoch = 0  # epochs that are done
        self.history: dict[str, list[float]] = {}
        self.best_weights: list[npt.NDArray[Any]] | None = None
        self._checkpoint = checkpoint
        self._best = best
        self._sign = -1.0 if higher_is_better else 1.0
        self._patience = math.inf if patience is None else patience
        self._best_epoch = 0

    def restore(self, model: keras.Model, saved: Saved) -> None:
        """Take everything over from a checkpoint.

        Raises:
            TrainingError: the checkpoint is of another network or optimizer.
        """
        self._checkpoint.restore("state", _state(model), saved)
        self.epoch, self.history = saved.epoch, saved.notes["history"]
        self._best_epoch = saved.notes["best_epoch"]
        self.best_weights = unpack("best", saved.arrays) or None

    def ended(self, epochs: int) -> bool:
        """Whether there is nothing left to train."""
        return self.epoch >= epochs or self.epoch - self._best_epoch >= self._patience

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the figures, keep the weights if they are the best so far, save, and stop if it is time."""
        self.epoch = epoch + 1
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        if self._best is not None:
            values = self._sign * np.asarray(self.history[self._best])
            if values[-1] < np.min(values[:-1], initial=math.inf):
                self._best_epoch, self.best_weights = self.epoch, self.model.get_weights()
        arrays = pack("state", _state(self.model)) | pack("best", self.best_weights or [])
        self._checkpoint.save(self.epoch, arrays, {"history": self.history, "best_epoch": self._best_epoch})
        if self.epoch - self._best_epoch >= self._patience:
            self.model.stop_training = True


def _state(model: keras.Model) -> list[Any]:
    """Weights, the states of random layers, and the optimizer's variables."""
    passing = {id(variable) for variable in model.metrics_variables}
    own = [variable for variable in model.variables if id(variable) not in passing]
    return [*own, *model.optimizer.variables]
