from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bookserve.training.loop.step_losses import LOSS_IS_MEAN, STEPS_UNREAD, TAG, StepLosses

STEPS = STEPS_UNREAD + 30  # an epoch is written in two parts


def written(folder: Path) -> dict[int, float]:
    """Step -> loss, as TensorBoard reads them."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(TAG)}


@pytest.mark.parametrize("mean", [True, False])
def test_the_loss_of_every_step_is_written(tmp_path: Path, mean: bool) -> None:
    losses = np.random.default_rng(0).uniform(0.5, 1.5, (2, STEPS))
    watcher = StepLosses(tmp_path)
    watcher.set_params({"epochs": 2, "steps": STEPS} | ({LOSS_IS_MEAN: True} if mean else {}))
    for epoch in range(2):
        watcher.on_epoch_begin(epoch)
        for step in range(STEPS):
            told: Any = losses[epoch, : step + 1].mean() if mean else losses[epoch, step]
            watcher.on_train_batch_end(step, {"loss": keras.ops.convert_to_tensor(told, "float32")})
        watcher.on_epoch_end(epoch, {"loss": losses[epoch].mean()})
    watcher.on_train_end()
    found = written(tmp_path)
    assert list(found) == list(range(2 * STEPS))
    np.testing.assert_allclose(list(found.values()), losses.ravel(), atol=1e-4)


def test_without_losses_of_steps_there_is_no_file(tmp_path: Path) -> None:
    watcher = StepLosses(tmp_path / "steps")
    watcher.set_params({"epochs": 1, "steps": 2})
    watcher.on_epoch_begin(0)
    for step in range(2):
        watcher.on_train_batch_end(step)
    watcher.on_epoch_end(0, {"loss": 1.0})
    watcher.on_train_end()
    assert not (tmp_path / "steps").exists()
