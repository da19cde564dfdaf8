"""Keras files of others: Sequential networks, code in Lambda layers, and layers whose code is elsewhere."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from bookserve.export.contracts import from_json
from bookserve.export.converters import trial
from bookserve.export.errors import ExportError

SUFFIXES = ("keras", pytest.param("h5", marks=pytest.mark.slow))


def network(*layers: Any) -> Any:
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((3,), name="x"), *layers, keras.layers.Dense(2, name="scores")])


def added(path: Path, folder: Path, *, trust: bool = False) -> dict[str, Any]:
    folder.mkdir()
    job = {"path": str(path), "folder": str(folder), "model": "score", "task": None, "labels": None}
    result: dict[str, Any] = trial.run({**job, "example": None, "trust": trust})
    return result


def marking(mark: Path) -> Any:
    """The function of a Lambda layer, x -> 2 x + 1, that leaves a file when it runs."""
    return eval(f"lambda x: [x * 2.0 + 1.0, open({str(mark)!r}, 'a').close()][0]")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_lambda_layer_is_code_that_runs_only_where_it_is_trusted(tmp_path: Path, suffix: str) -> None:
    mark = tmp_path / "ran"
    made = network(keras.layers.Lambda(marking(mark)))
    x = np.array([[0.5, -1.0, 2.0]], np.float32)
    expected = np.asarray(made(x))
    path = tmp_path / f"model.{suffix}"
    made.save(path)
    mark.unlink()
    with pytest.raises(ExportError) as refused:
        added(path, tmp_path / "refused")
    assert str(refused.value) == (
        f"{path} holds a Lambda layer, which is Python code of whoever made the file. --trust loads it: the code then"
        " runs with your rights, on this machine"
    )
    assert not mark.exists()
    result = added(path, tmp_path / "version", trust=True)
    assert mark.exists()
    assert result["graphs"] == ["assets.extra/model.onnx", "saved_model.pb"]
    contract = from_json(result["contract"])
    assert [(tensor.name, tensor.shape) for tensor in contract.outputs] == [("scores", (None, 2))]
    assert contract.example is not None
    kernel, bias = made.get_layer("scores").get_weights()
    asked = np.array(contract.example.inputs["x"], np.float32)
    np.testing.assert_allclose(contract.example.outputs["scores"], (2 * asked + 1) @ kernel + bias, rtol=1e-5)
    np.testing.assert_allclose(expected, (2 * x + 1) @ kernel + bias, rtol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "holds weights alone: where the network is built, save it whole with model.save"),
        (
            {"keras_version": b"2.1.5", "model_config": '{"class_name": "Sequential", "config": []}'},
            "which Keras 2.1.5",
        ),
    ],
)
def test_an_hdf5_file_without_a_network_or_of_an_old_keras_says_so(
    tmp_path: Path, attributes: dict[str, Any], message: str
) -> None:
    import h5py

    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs.update(attributes)
    with pytest.raises(ExportError, match=message):
        added(tmp_path / "model.h5", tmp_path / "version")


class Doubled(keras.layers.Layer):
    """A layer of whoever made the model."""

    def call(self, x: Any) -> Any:
        return 2 * x


def tripled(x: Any) -> Any:
    return 3 * x


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("trust", [False, True])
def test_code_that_is_not_in_the_file_is_named_with_the_way_round(tmp_path: Path, suffix: str, trust: bool) -> None:
    path = tmp_path / f"model.{suffix}"
    network(Doubled()).save(path)
    with pytest.raises(ExportError) as refused:
        added(path, tmp_path / "layer", trust=trust)
    assert str(refused.value) == (
        f"{path} needs the {'layer' if suffix == 'h5' else 'class'} 'Doubled', which is Python code that is not in the"
        " file: where that code is, write a SavedModel with model.export('FOLDER'), and add FOLDER"
    )
    network(keras.layers.Lambda(tripled, output_shape=(3,))).save(path)
    with pytest.raises(ExportError, match="needs the function 'tripled', which is Python code that is not in the file"):
        added(path, tmp_path / "function", trust=trust)


def test_an_operation_that_hdf5_does_not_bring_back_is_told_from_code_of_others(tmp_path: Path) -> None:
    x = keras.Input((4,))
    made = keras.Model(x, keras.ops.where(x > 0, x, -x))
    path = tmp_path / "model.h5"
    made.save(path)
    with pytest.raises(ExportError) as refused:
        added(path, tmp_path / "version")
    assert str(refused.value) == (
        f"{path} holds Keras's operation 'Greater', which is not brought back from HDF5: save the network with"
        " model.save('model.keras'), and add that file"
    )
    made.save(tmp_path / "model.keras")
    assert added(tmp_path / "model.keras", tmp_path / "version_2")["graphs"] == [
        "assets.extra/model.onnx",
        "saved_model.pb",
    ]
