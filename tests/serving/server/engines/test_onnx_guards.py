"""Values and sizes over which ONNX Runtime would end its process, made inside the graph from innocent requests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bookserve.serving.server.engines import onnx_guards
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.engines.onnx_engine import OnnxEngine
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto
from bookserve.serving.wire.tensors import Array
from model_servers import write_graph

F, I32, I64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64
Node = onnx.NodeProto
HIDDEN = 4


def load(
    base: Path,
    nodes: Sequence[Node],
    inputs: Mapping[str, tuple[int, list[Any] | None]],
    outputs: Mapping[str, tuple[int, int]],  # type and rank
    constants: Mapping[str, Any] | None = None,
) -> OnnxEngine:
    graph = helper.make_graph(
        nodes,
        "guarded",
        [helper.make_tensor_value_info(name, *info) for name, info in inputs.items()],
        [
            helper.make_tensor_value_info(name, kind, [f"{name}{axis}" for axis in range(rank)])
            for name, (kind, rank) in outputs.items()
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    folder = write_graph(base, 1, graph)
    return OnnxEngine(folder / "model.onnx", folder / "saved_model.pb", EngineOptions())


def run(engine: OnnxEngine, **inputs: Array) -> list[Array]:
    (signature,) = engine.signatures.values()
    return engine.run(signature, inputs, tuple(signature.outputs))


def refuses(engine: OnnxEngine, **inputs: Array) -> None:
    with pytest.raises(ServingError, match="the model refuses the request") as caught:
        run(engine, **inputs)
    assert caught.value.code == tensorflow_error_pb2.INVALID_ARGUMENT


def recurrent(base: Path, name: str, gates: int, axis: int) -> OnnxEngine:
    """Of the rows of `x` where `keep` is true, laid on that axis of the steps, rows and features."""
    random = np.random.default_rng(3)
    weights = {
        key: random.normal(size=(1, gates * HIDDEN, size)).astype(np.float32) for key, size in (("w", 3), ("r", HIDDEN))
    }
    nodes = [
        helper.make_node("Compress", ["x", "keep"], ["kept"], axis=0),
        helper.make_node("Unsqueeze", ["kept", "axis"], ["laid"]),
        helper.make_node(name, ["laid", "w", "r"], ["y"], hidden_size=HIDDEN),
    ]
    inputs: dict[str, tuple[int, list[Any] | None]] = {"x": (F, ["n", 3]), "keep": (TensorProto.BOOL, ["n"])}
    return load(base, nodes, inputs, {"y": (F, 4)}, {**weights, "axis": np.int64([axis])})


@pytest.mark.parametrize(("name", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_a_recurrent_layer_that_is_left_without_rows_is_refused(tmp_path: Path, name: str, gates: int) -> None:
    engine = recurrent(tmp_path, name, gates, 0)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    refuses(engine, x=x, keep=np.zeros(5, bool))
    assert run(engine, x=x, keep=np.array([1, 0, 1, 0, 0], bool))[0].shape == (1, 1, 2, HIDDEN)


def test_a_recurrent_layer_that_is_left_without_steps(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    refuses(recurrent(tmp_path / "gru", "GRU", 3, 1), x=x, keep=np.zeros(5, bool))
    (y,) = run(recurrent(tmp_path / "lstm", "LSTM", 4, 1), x=x, keep=np.zeros(5, bool))
    assert y.shape == (0, 1, 1, HIDDEN)


@pytest.mark.parametrize(("kind", "dtype"), [(I32, np.int32), (I64, np.int64)])
def test_the_smallest_integer_by_minus_one_is_itself(tmp_path: Path, kind: int, dtype: type[np.signedinteger]) -> None:
    """As numpy has it, and ONNX Runtime for shorter integers."""
    nodes = [
        helper.make_node("Sub", ["b", "one"], ["below"]),
        helper.make_node("Div", ["a", "below"], ["y"]),
        helper.make_node("Div", ["a", "minus"], ["z"]),
    ]
    constants = {"one": dtype(1), "minus": np.array([-1, 3], dtype)}
    engine = load(
        tmp_path, nodes, {"a": (kind, ["n", 2]), "b": (kind, ["n", 2])}, {"y": (kind, 2), "z": (kind, 2)}, constants
    )
    least = np.iinfo(dtype).min
    a = np.array([[least, least], [7, -9], [-7, 40]], dtype)
    y, z = run(engine, a=a, b=np.array([[0, 3], [0, 0], [3, 8]], dtype))
    np.testing.assert_array_equal(y, np.array([[least, least // 2], [-7, 9], [-3, 5]], dtype))
    np.testing.assert_array_equal(z, np.array([[least, -((-int(least)) // 3)], [-7, -3], [7, 13]], dtype))
    refuses(engine, a=a, b=np.ones_like(a))  # a division by 0


def test_a_division_inside_a_branch_is_guarded(tmp_path: Path) -> None:
    least = np.int64([np.iinfo(np.int64).min])
    branch = [
        helper.make_graph([helper.make_node(*call)], name, [], [helper.make_tensor_value_info(call[2][0], I64, [1])])
        for name, call in (("then", ("Div", ["a", "b"], ["quotient"])), ("else", ("Identity", ["a"], ["same"])))
    ]
    engine = load(
        tmp_path,
        [helper.make_node("If", ["divide"], ["y"], then_branch=branch[0], else_branch=branch[1])],
        {"divide": (TensorProto.BOOL, []), "a": (I64, [1]), "b": (I64, [1])},
        {"y": (I64, 1)},
    )
    assert run(engine, divide=np.array(True), a=least, b=np.int64([-1])) == [least]
    assert run(engine, divide=np.array(False), a=least, b=np.int64([-1])) == [least]


def test_an_stft_whose_frames_have_no_length_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("STFT", ["x", "step", "", "length"], ["y"])
    inputs: dict[str, tuple[int, list[Any] | None]] = {"x": (F, ["n", "t", 1]), "step": (I32, []), "length": (I32, [])}
    engine = load(tmp_path, [node], inputs, {"y": (F, 4)})
    x = np.sin(np.arange(32, dtype=np.float32)).reshape(1, 32, 1)
    refuses(engine, x=x, step=np.array(4, np.int32), length=np.array(0, np.int32))
    (y,) = run(engine, x=x, step=np.array(4, np.int32), length=np.array(8, np.int32))
    np.testing.assert_allclose(y[0, 0, :, 0], np.fft.rfft(x[0, :8, 0]).real, rtol=1e-4, atol=1e-4)


def test_a_volume_without_an_extent_and_rows_without_features_are_refused(tmp_path: Path) -> None:
    shaped: dict[str, tuple[int, list[Any] | None]] = {"x": (F, ["n"]), "shape": (I64, ["r"])}
    weights = {"w": np.ones((1, 2, 3, 3, 3), np.float32)}
    reshape = helper.make_node("Reshape", ["x", "shape"], ["shaped"], allowzero=1)
    volume = load(
        tmp_path / "volume",
        [reshape, helper.make_node("Concat", ["shaped", "shaped"], ["both"], axis=0),
         helper.make_node("Slice", ["both", "start", "end", "axes"], ["cut"]),
         helper.make_node("ConvTranspose", ["cut", "w"], ["y"])],
        {**shaped, "start": (I64, [1]), "end": (I64, [1])},
        {"y": (F, 5)},
        {**weights, "axes": np.int64([2])},
    )  # fmt: skip
    x = np.arange(8, dtype=np.float32)
    cut = {"shape": np.int64([1, 1, 2, 2, 2]), "start": np.int64([0])}
    refuses(volume, x=x, end=np.int64([0]), **cut)
    assert run(volume, x=x, end=np.int64([1]), **cut)[0].shape == (2, 2, 3, 4, 4)
    unique = load(
        tmp_path / "unique",
        [reshape, helper.make_node("Slice", ["shaped", "start", "end", "axes"], ["cut"]),
         helper.make_node("Unique", ["cut"], ["y"], axis=0)],
        {**shaped, "start": (I64, [1]), "end": (I64, [1]), "axes": (I64, [1])},
        {"y": (F, 2)},
    )  # fmt: skip
    part = {"shape": np.int64([2, 4]), "start": np.int64([0]), "end": np.int64([0])}
    refuses(unique, x=x, axes=np.int64([1]), **part)
    assert run(unique, x=x, axes=np.int64([0]), **part)[0].shape == (0, 4)


def test_a_graph_that_needs_no_guard_stays_as_it_is() -> None:
    """Divisions of floats, and of sizes by constants that are not -1, as exporters write them."""
    nodes = [
        helper.make_node("Div", ["x", "x"], ["ratio"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Div", ["shape", "two"], ["half"]),
        helper.make_node("Softmax", ["ratio"], ["y"]),
    ]
    infos = [[helper.make_tensor_value_info(name, F, ["n", 3])] for name in "xy"]
    graph = helper.make_graph(nodes, "plain", *infos, [numpy_helper.from_array(np.int64([2]), "two")])
    model = ModelProto.FromString(helper.make_model(graph).SerializeToString())
    before = model.SerializeToString()
    assert not onnx_guards.put(model)
    assert model.SerializeToString() == before


def test_answers_are_those_of_the_graph_without_guards(tmp_path: Path) -> None:
    engine = recurrent(tmp_path, "LSTM", 4, 0)
    plain = onnxruntime.InferenceSession(str(tmp_path / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    inputs = {"x": random.normal(size=(6, 3)).astype(np.float32), "keep": np.array([1, 1, 0, 1, 0, 1], bool)}
    np.testing.assert_array_equal(run(engine, **inputs)[0], plain.run(None, inputs)[0])
