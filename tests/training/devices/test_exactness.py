from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf

from bookserve.training.devices import exactness
from bookserve.training.loop.checkpoint import NO_CHECKPOINT
from bookserve.training.loop.fit import fit


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = exactness.mode()
    yield
    exactness.switch(before)


@pytest.mark.parametrize(
    ("mode", "gpus", "compiled"),
    [("exact", ["a GPU"], False), ("fast", [], False), ("fast", ["a GPU"], True)],
)
def test_xla_compiles_the_steps_of_fast_trainings_on_a_gpu(
    mode: str, gpus: list[str], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = tf.config.list_physical_devices()
    monkeypatch.setattr(exactness.tf.config, "list_physical_devices", lambda kind=None: gpus if kind else devices)
    exactness.switch(mode)
    assert exactness.mode() == mode
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    rows = np.ones((8, 3), np.float32), np.ones((8, 1), np.float32)
    data = tf.data.Dataset.from_tensors(rows)
    history = fit(model, lambda _: data.repeat(), 1, 2, data, [], NO_CHECKPOINT)
    assert model.jit_compile is compiled
    assert len(history["loss"]) == 1
