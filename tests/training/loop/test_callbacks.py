import io
import time
from collections.abc import Callable

import keras
import pytest
import tensorflow as tf
from rich.console import Console

from bookserve.training.errors import TrainingError
from bookserve.training.loop import callbacks
from bookserve.training.loop.callbacks import ProgressBar, StopOnNan, Watchers


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops(loss: float) -> None:
    with pytest.raises(TrainingError, match="in epoch 3"):
        StopOnNan().on_epoch_end(2, {"loss": loss})


def test_the_step_is_named_where_the_training_tells_its_loss() -> None:
    watcher = StopOnNan()
    watcher.on_epoch_begin(1)
    watcher.on_train_batch_end(0, {"loss": 0.5})
    watcher.on_train_batch_end(1)
    with pytest.raises(TrainingError, match="the loss became nan in step 3 of epoch 2"):
        watcher.on_train_batch_end(2, {"loss": float("nan")})


def test_a_validation_loss_that_is_no_number_stops() -> None:
    with pytest.raises(TrainingError, match="the validation loss became inf in epoch 1"):
        StopOnNan().on_epoch_end(0, {"loss": 0.5, "val_loss": float("inf")})


def test_losses_that_a_device_computes_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "STEPS_UNREAD", 4)
    read = []
    convert = keras.ops.convert_to_numpy
    monkeypatch.setattr(keras.ops, "convert_to_numpy", lambda x: read.append(x.shape[0]) or convert(x))
    watcher = StopOnNan()
    watchers = Watchers([watcher])
    watchers.on_epoch_begin(0)
    for step in range(10):
        watchers.on_train_batch_end(step, {"loss": tf.constant(0.5)})
    assert read == [4, 4]
    watchers.on_test_begin()
    assert read == [4, 4, 2]
    watchers.on_epoch_end(0, {"loss": 0.5})
    assert read == [4, 4, 2]


@pytest.mark.parametrize(
    "read",
    [
        lambda watcher: watcher.on_train_batch_end(3, {"loss": tf.constant(float("nan"))}),
        lambda watcher: watcher.on_test_begin(),
        lambda watcher: watcher.on_epoch_end(1, {"loss": float("nan")}),
    ],
    ids=["more steps", "validation", "the end of the epoch"],
)
def test_a_loss_that_is_read_late_is_named_by_its_own_step(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[StopOnNan], None]
) -> None:
    monkeypatch.setattr(callbacks, "STEPS_UNREAD", 4)
    watcher = StopOnNan()
    watcher.on_epoch_begin(1)
    for step, loss in enumerate((0.5, 0.5, float("nan"))):
        watcher.on_train_batch_end(step, {"loss": tf.constant(loss)})
    with pytest.raises(TrainingError, match="the loss became nan in step 3 of epoch 2"):
        read(watcher)


def test_a_validation_loss_is_looked_at_before_the_epoch_ends() -> None:
    watcher = StopOnNan()
    watcher.on_epoch_begin(2)
    watcher.on_test_end({"loss": 0.5})
    with pytest.raises(TrainingError, match="the validation loss became nan in epoch 3"):
        watcher.on_test_end({"loss": float("nan")})


def test_a_finite_loss_goes_on() -> None:
    StopOnNan().on_epoch_end(0, {"loss": 0.5})
    StopOnNan().on_epoch_end(0, None)


@pytest.mark.parametrize("terminal", [True, False])
def test_every_epoch_prints_one_line_of_figures(terminal: bool) -> None:
    text = io.StringIO()
    bar = ProgressBar(Console(file=text, force_terminal=terminal, width=60), "mnist")
    bar.set_params({"epochs": 2, "steps": 3})
    for epoch in range(2):
        bar.on_epoch_begin(epoch)
        for batch in range(3):
            bar.on_train_batch_end(batch)
        bar.on_epoch_end(epoch, {"loss": 0.25, "val_accuracy": 0.9875, "val_loss": 0.5})
    assert "mnist epoch 1/2  loss 0.2500  val_accuracy 0.9875  val_loss 0.5000  0 s\n" in text.getvalue()
    assert text.getvalue().count("val_accuracy") == 2


def test_a_long_epoch_tells_where_it_is_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    text = io.StringIO()
    bar = ProgressBar(Console(file=text, force_terminal=False), "ptb")
    bar.set_params({"epochs": 16, "steps": 830})
    bar.on_epoch_begin(0)
    for batch in range(100):
        clock[0] += 1.5
        bar.on_train_batch_end(batch)
    bar.on_epoch_end(0, {"loss": 6.0})
    assert text.getvalue().splitlines() == [
        "ptb epoch 1/16  step 40/830  60 s",
        "ptb epoch 1/16  step 80/830  120 s",
        "ptb epoch 1/16  loss 6.0000  150 s",
    ]


def test_closing_twice_is_no_error() -> None:
    bar = ProgressBar(Console(file=io.StringIO(), force_terminal=True), "mnist")
    bar.set_params({"epochs": 1, "steps": 3})
    bar.on_epoch_begin(0)
    bar.close()
    bar.close()
