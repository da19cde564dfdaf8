from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from bookserve.training import run
from bookserve.training.errors import DivergedError, TrainingError
from bookserve.training.loop.batches import row_order
from bookserve.training.loop.callbacks import StopOnNan
from bookserve.training.loop.checkpoint import NO_CHECKPOINT, Checkpoint, unpack
from bookserve.training.loop.fit import fit

ROWS, BATCH, EPOCHS = 60, 10, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 5)).astype(np.float32)
Y = (X.sum(axis=1, keepdims=True) > 0).astype(np.float32)


class StoppedError(Exception):
    """What a kill is in these tests."""


class StopIn(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._stop, self._epoch = epoch, -1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._epoch == self._stop and batch == 2:
            raise StoppedError


def train(
    checkpoint: Checkpoint, stop: int | None = None, figures: list[float] | None = None, **options: Any
) -> tuple[keras.Model, dict[str, list[float]]]:
    """A small network with dropout, so that the state of its random layer matters."""
    run.make_repeatable(0)
    layers = [keras.Input((5,)), keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss=keras.losses.BinaryCrossentropy(from_logits=True))

    def batches(first_epoch: int) -> tf.data.Dataset:
        order = row_order(ROWS, BATCH, 0, first_epoch, EPOCHS)
        return order.map(lambda rows, _: (tf.gather(X, rows), tf.gather(Y, rows)))

    valid = tf.data.Dataset.from_tensor_slices((X, Y)).batch(ROWS)
    callbacks: list[keras.callbacks.Callback] = [] if stop is None else [StopIn(stop)]
    if figures is not None:
        callbacks.append(
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(figure=figures[epoch]))
        )
    history = fit(model, batches, EPOCHS, ROWS // BATCH, valid, callbacks, checkpoint, **options)
    return model, history


@pytest.mark.parametrize("stop", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_stopped_training_ends_as_one_that_ran_through(tmp_path: Path, stop: int) -> None:
    model, history = train(NO_CHECKPOINT)
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz")
    with pytest.raises(StoppedError):
        train(checkpoint, stop)
    saved = checkpoint.load()
    assert (saved.epoch if saved else 0) == stop
    resumed, resumed_history = train(checkpoint)
    assert resumed_history == history
    for value, expected in zip(resumed.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_a_complete_training_is_not_trained_again(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz")
    model, history = train(checkpoint, best="val_loss")
    again, again_history = train(checkpoint, stop=0, best="val_loss")
    assert again_history == history
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


@pytest.mark.parametrize(
    ("figures", "higher", "best_epoch"),
    [pytest.param([3.0, 1.0, 2.0, 1.0], False, 2, marks=pytest.mark.slow), ([1.0, 3.0, 3.0, 2.0], True, 2)],
)
def test_the_first_best_weights_are_kept(tmp_path: Path, figures: list[float], higher: bool, best_epoch: int) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz")
    with pytest.raises(StoppedError):
        train(checkpoint, best_epoch, figures=figures, best="figure", higher_is_better=higher)
    saved = checkpoint.load()
    assert saved is not None
    model, history = train(checkpoint, figures=figures, best="figure", higher_is_better=higher)
    assert history["figure"] == figures
    np.testing.assert_array_equal(model.get_weights()[0], unpack("state", saved.arrays)[0])


@pytest.mark.slow
def test_patience_ends_the_training_also_after_a_stop(tmp_path: Path) -> None:
    figures = [1.0, 2.0, 2.0, 0.5]
    history = train(NO_CHECKPOINT, figures=figures, best="figure", patience=2)[1]
    assert history["figure"] == figures[:3]
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz")
    with pytest.raises(StoppedError):
        train(checkpoint, 2, figures=figures, best="figure", patience=2)
    assert train(checkpoint, figures=figures, best="figure", patience=2)[1] == history
    assert train(checkpoint, figures=figures, best="figure", patience=2)[1] == history


def test_callbacks_get_the_figures_of_a_step_unread_and_a_step_is_traced_once() -> None:
    figures: list[Any] = []
    watcher = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: figures.append(logs["loss"]))
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    rows = tf.data.Dataset.from_tensors((X, Y)).repeat()
    traced: list[Any] = []
    step = model.train_step
    model.train_step = lambda data: (traced.append(data), step(data))[1]
    fit(model, lambda _: rows, 2, 3, rows.take(1), [watcher], NO_CHECKPOINT)
    assert len(traced) == 1
    assert len(figures) == 6
    assert all(isinstance(figure, tf.Tensor) for figure in figures)


@pytest.mark.parametrize(("bad", "named"), [(4, "step 2 of epoch 2"), (5, "step 3 of epoch 2")])
def test_an_epoch_with_a_loss_that_is_no_number_is_not_saved(tmp_path: Path, bad: int, named: str) -> None:
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    steps = np.repeat(X[None], 9, axis=0)
    steps[bad, 0, 0] = np.nan
    rows = tf.data.Dataset.from_tensor_slices((steps, np.repeat(Y[None], 9, axis=0)))
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz")
    with pytest.raises(DivergedError, match=f"the loss became nan in {named}"):
        fit(model, lambda _: rows, 3, 3, rows.take(1), [StopOnNan()], checkpoint)
    saved = checkpoint.load()
    assert saved is not None
    assert saved.epoch == 1


def test_a_checkpoint_of_another_network_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz")
    train(checkpoint)
    saved = checkpoint.load()
    assert saved is not None
    checkpoint.save(1, {name: array for name, array in saved.arrays.items() if name != "state/0"}, saved.notes)
    with pytest.raises(TrainingError, match=r"checkpoint\.npz is not of this network .*--fresh"):
        train(checkpoint)
