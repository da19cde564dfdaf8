"""What a training ends with, the network with its serving layers, can be written and read, for every configuration."""

import importlib
from pathlib import Path

import keras
import numpy as np
import pytest

from bookserve.training.models import MODELS


@pytest.mark.parametrize(("model", "profile"), [*((model, "smoke") for model in MODELS), ("cifar10", "full")])
def test_the_served_network_of_every_configuration_answers_as_before_it_was_written(
    model: str, profile: str, tmp_path: Path
) -> None:
    module = importlib.import_module(MODELS[model])
    rows = np.random.default_rng(7)

    def drawn(tensor: keras.KerasTensor) -> np.ndarray:
        return rows.integers(0, 3, [3 if side is None else side for side in tensor.shape]).astype(tensor.dtype)

    for configuration, profiles in module.CONFIGS.items():
        served = module.serving_model(module.build_model(profiles[profile]))
        served.save(tmp_path / f"{configuration}.keras")
        read = keras.models.load_model(tmp_path / f"{configuration}.keras", compile=False)
        for expected, actual in zip(served.weights, read.weights, strict=True):
            np.testing.assert_array_equal(actual.numpy(), expected.numpy())
        inputs = keras.tree.map_structure(drawn, served.input)
        outputs = served(inputs)
        assert any(np.unique(output).size > 1 for output in outputs.values())
        for name, actual in read(inputs).items():
            np.testing.assert_array_equal(actual, outputs[name])
