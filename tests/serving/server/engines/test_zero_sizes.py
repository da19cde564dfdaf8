"""Requests without values: the empty answer where it follows, else a refusal, and no engine that sees them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from fuzz_models import write_onnx_models

from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.engines.onnx_engine import OnnxEngine
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensors import Array


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_onnx_models(folder)
    return folder


def run(root: Path, model: str, inputs: Mapping[str, Array], outputs: tuple[str, ...] = ()) -> list[Array]:
    folder = root / model / "1"
    engine = OnnxEngine(folder / "model.onnx", folder / "saved_model.pb", EngineOptions())
    (signature,) = engine.signatures.values()
    return engine.run(signature, signature.complete(inputs), outputs or tuple(signature.outputs))


@pytest.mark.parametrize("model", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize(("steps", "rows"), [(5, 0), (0, 2), (0, 0)])
def test_a_recurrent_layer_without_rows_or_steps_answers_nothing(root: Path, model: str, steps: int, rows: int) -> None:
    inputs = {"x": np.empty((steps, rows, 3), np.float32), "lengths": np.zeros(rows, np.int32)}
    (y,) = run(root, model, inputs)
    assert (y.shape, y.dtype) == ((steps, 1, rows, 4), np.float32)


def test_sizes_with_one_name_must_agree(root: Path) -> None:
    inputs = {"x": np.empty((5, 0, 3), np.float32), "lengths": np.zeros(2, np.int32)}
    with pytest.raises(ServingError, match="dimension 'rows'") as caught:
        run(root, "lstm", inputs)
    assert caught.value.code == tensorflow_error_pb2.INVALID_ARGUMENT


def test_an_output_that_does_not_follow_is_refused(root: Path) -> None:
    inputs = {"x": np.empty((1, 0), np.float32), "repeats": np.int64([2, 3])}
    with pytest.raises(ServingError, match="input 'x' has no values, its shape is") as caught:
        run(root, "lengths", inputs)
    assert caught.value.code == tensorflow_error_pb2.INVALID_ARGUMENT


def test_every_type_has_its_empty_answer(root: Path) -> None:
    folder = root / "echo" / "1"
    engine = OnnxEngine(folder / "model.onnx", folder / "saved_model.pb", EngineOptions())
    (signature,) = engine.signatures.values()
    inputs = {name: np.empty((0, 2), spec.dtype) for name, spec in signature.inputs.items()}
    names = tuple(signature.outputs)
    for name, array in zip(names, engine.run(signature, inputs, names), strict=True):
        assert (array.shape, array.dtype) == ((0, 2), signature.outputs[name].dtype)
