"""Requests without values: the empty answer where it follows, else a refusal, and no engine that sees them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from fuzz_models import write_onnx_models
from onnx import TensorProto, helper, numpy_helper

from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.engines.onnx_engine import OnnxEngine
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensors import Array
from model_servers import write_graph


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


def write_joining_model(base: Path, *, also_summed: bool) -> None:
    """Relu(x @ w) beside `extra` and `more`, which may have no columns, then the sum of each row."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Relu", ["product"], ["hidden"]),
        helper.make_node("Cast", ["extra"], ["features"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["features", "more"], ["both"], axis=1),
        helper.make_node("Concat", ["hidden", "features", "both"], ["all"], axis=1),
        helper.make_node("ReduceSum", ["all", "columns"], ["y"], keepdims=0),
    ]
    if also_summed:
        nodes.append(helper.make_node("ReduceSum", ["features", "columns"], ["sum"], keepdims=0))
    infos = {"x": (TensorProto.FLOAT, 4), "extra": (TensorProto.DOUBLE, "f"), "more": (TensorProto.FLOAT, "g")}
    graph = helper.make_graph(
        nodes,
        "joining",
        [helper.make_tensor_value_info(name, kind, ["n", width]) for name, (kind, width) in infos.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("y", "sum")[: 1 + also_summed]],
        [
            numpy_helper.from_array(np.linspace(-1, 2, 12, dtype=np.float32).reshape(4, 3), "w"),
            numpy_helper.from_array(np.int64([1]), "columns"),
        ],
    )
    write_graph(base, 1, graph)


X = np.array([[0.5, -1.0, 2.0, 0.25], [1.5, 0.0, -0.5, 3.0]], np.float32)
HIDDEN = np.maximum(X @ np.linspace(-1, 2, 12, dtype=np.float32).reshape(4, 3), 0).sum(1)


def test_an_input_that_is_only_laid_beside_others_may_be_empty(tmp_path: Path) -> None:
    write_joining_model(tmp_path / "joining", also_summed=False)
    more = np.array([[2.0], [-4.0]], np.float32)
    (y,) = run(tmp_path, "joining", {"x": X, "extra": np.empty((2, 0)), "more": more})
    np.testing.assert_allclose(y, HIDDEN + more[:, 0], rtol=1e-6)
    (y,) = run(tmp_path, "joining", {"x": X, "extra": np.float64([[1.0], [8.0]]), "more": np.empty((2, 0), "f4")})
    np.testing.assert_allclose(y, HIDDEN + np.array([2.0, 16.0]), rtol=1e-6)


def test_empty_inputs_that_are_laid_beside_each_other_alone_are_refused(tmp_path: Path) -> None:
    """What comes of them is empty, and goes into an operation that may not know it."""
    write_joining_model(tmp_path / "joining", also_summed=False)
    with pytest.raises(ServingError, match="input 'extra' has no values"):
        run(tmp_path, "joining", {"x": X, "extra": np.empty((2, 0)), "more": np.empty((2, 0), "f4")})


def test_an_empty_input_with_another_use_is_refused(tmp_path: Path) -> None:
    write_joining_model(tmp_path / "joining", also_summed=True)
    more = np.array([[2.0], [-4.0]], np.float32)
    with pytest.raises(ServingError, match="input 'extra' has no values"):
        run(tmp_path, "joining", {"x": X, "extra": np.empty((2, 0)), "more": more})
