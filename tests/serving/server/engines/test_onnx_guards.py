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


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 13, 14, 15, 17])
def test_a_division_in_a_loop_is_guarded_in_every_version_of_the_operations(tmp_path: Path, opset: int) -> None:
    """What a loop carries has a type that its body need not say."""
    body = helper.make_graph(
        [helper.make_node("Div", ["carried", "b"], ["divided"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("step", I64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", I64, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("divided", I64, None),
        ],
    )
    body.input[2].ClearField("type")
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "a"], ["y"], body=body)],
        "loop",
        [helper.make_tensor_value_info(name, I64, ["n"]) for name in "ab"],
        [helper.make_tensor_value_info("y", I64, ["n"])],
        [numpy_helper.from_array(np.int64(3), "times")],
    )
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=5), tmp_path / "model.onnx")
    engine = OnnxEngine(tmp_path / "model.onnx", tmp_path / "saved_model.pb", EngineOptions())
    least = np.iinfo(np.int64).min
    (y,) = run(engine, a=np.array([least, 1000, -1000]), b=np.array([-1, -1, 3]))
    assert isinstance(y, np.ndarray)
    assert y.tolist() == [least, -1000, -37]


def old_functions(base: Path, kinds: Sequence[int]) -> OnnxEngine:
    """Divides an "a" by a "b" of each of the types, by one function of opset 8; what is divided is a size times "a"."""
    function = helper.make_function(
        "local", "Divide", ["a", "b"], ["y"], [helper.make_node("Div", ["a", "b"], ["y"], "division")], opsets(8)[:1]
    )
    nodes = [helper.make_node("Shape", ["x"], ["shape"])]
    inputs, outputs = [helper.make_tensor_value_info("x", F, ["n"])], []
    for kind in kinds:
        nodes += [
            helper.make_node("Cast", ["shape"], [f"size{kind}"], to=kind)
            if kind != I64
            else helper.make_node("Identity", ["shape"], [f"size{kind}"]),
            helper.make_node("Mul", [f"size{kind}", f"a{kind}"], [f"product{kind}"]),
            helper.make_node("Divide", [f"product{kind}", f"b{kind}"], [f"y{kind}"], domain="local"),
        ]
        inputs += [helper.make_tensor_value_info(f"{letter}{kind}", kind, [1]) for letter in "ab"]
        outputs.append(helper.make_tensor_value_info(f"y{kind}", kind, [1]))
    graph = helper.make_graph(nodes, "old", inputs, outputs)
    model = helper.make_model(graph, functions=[function], opset_imports=opsets(8), ir_version=10)
    onnx.save(model, base / "model.onnx")
    return OnnxEngine(base / "model.onnx", base / "saved_model.pb", EngineOptions())


def opsets(standard: int) -> list[onnx.OperatorSetIdProto]:
    return [helper.make_opsetid("", standard), helper.make_opsetid("local", 1)]


@pytest.mark.parametrize("kind", [I32, I64])
def test_a_division_in_an_old_function_is_guarded(tmp_path: Path, kind: int) -> None:
    engine = old_functions(tmp_path, [kind])
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    least = np.array([np.iinfo(dtype).min], dtype)
    x = np.zeros(1, np.float32)
    assert run(engine, x=x, **{f"a{kind}": least, f"b{kind}": np.array([-1], dtype)}) == [least]
    assert run(engine, x=x, **{f"a{kind}": np.array([-7], dtype), f"b{kind}": np.array([2], dtype)}) == [-3]


def test_a_division_that_cannot_be_guarded_is_refused(tmp_path: Path) -> None:
    """The same function of opset 8 for integers of both kinds."""
    with pytest.raises(ServingError, match=r"the division 'division' may be .* convert the model to opset 9 or later"):
        old_functions(tmp_path, [I32, I64])


def test_a_division_by_an_input_with_a_default_is_guarded(tmp_path: Path) -> None:
    """The default is not all that may come."""
    least = np.int64([np.iinfo(np.int64).min])
    inputs: dict[str, tuple[int, list[Any] | None]] = {"a": (I64, [1]), "b": (I64, [1])}
    nodes = [helper.make_node("Div", ["a", "b"], ["y"])]
    engine = load(tmp_path, nodes, inputs, {"y": (I64, 1)}, {"b": np.int64([3])})
    assert run(engine, a=np.int64([7])) == [2]
    assert run(engine, a=least, b=np.int64([-1])) == [least]


DIVISION = helper.make_function(
    "local",
    "Divide",
    ["above", "below"],
    ["quotient"],
    [helper.make_node("Div", ["above", "below"], ["quotient"])],
    [helper.make_opsetid("", 17)],
)
HALVED = helper.make_function(  # calls the other, and before it is there
    "local",
    "DivideTwice",
    ["above", "below"],
    ["quotient"],
    [
        helper.make_node("Divide", ["above", "below"], ["once"], domain="local"),
        helper.make_node("Divide", ["once", "below"], ["quotient"], domain="local"),
    ],
    [helper.make_opsetid("local", 1)],
)
TYPES = (  # that ONNX Runtime divides
    np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64,
    np.float16, np.float32, np.float64,
)  # fmt: skip


def with_functions(
    base: Path, kinds: Sequence[type[np.generic]], functions: Sequence[onnx.FunctionProto]
) -> OnnxEngine:
    """Divides twice, by a function of the model, an "a" by a "b" of each of the types."""
    nodes = []
    inputs = {}
    outputs = {}
    for kind in kinds:
        name, number = kind.__name__, helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        nodes.append(helper.make_node("DivideTwice", [f"a_{name}", f"b_{name}"], [f"y_{name}"], domain="local"))
        inputs |= {
            f"{letter}_{name}": helper.make_tensor_value_info(f"{letter}_{name}", number, ["n"]) for letter in "ab"
        }
        outputs[name] = helper.make_tensor_value_info(f"y_{name}", number, ["n"])
    graph = helper.make_graph(nodes, "functions", [*inputs.values()], [*outputs.values()])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=8)
    base.mkdir(exist_ok=True)
    onnx.save(model, base / "model.onnx")
    return OnnxEngine(base / "model.onnx", base / "saved_model.pb", EngineOptions())


def quotients(above: Array, below: Array) -> Array:
    """As C has them: whole numbers are rounded towards zero, and wrap."""
    if np.issubdtype(above.dtype, np.floating):
        with np.errstate(divide="ignore", over="ignore"):
            return above / below
    exact = [
        abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        for a, b in zip(above.tolist(), below.tolist(), strict=True)
    ]
    modulus = 1 << (8 * above.itemsize)
    return np.array([value % modulus for value in exact], f"u{above.itemsize}").view(above.dtype)


def test_a_division_in_a_function_is_guarded_for_every_type_that_it_is_called_with(tmp_path: Path) -> None:
    """The same function: right where the guard is not needed, and alive where it is."""
    engine = with_functions(tmp_path, TYPES, [HALVED, DIVISION])
    inputs: dict[str, Array] = {}
    expected: dict[str, Array] = {}
    for kind in TYPES:
        if np.issubdtype(kind, np.floating):
            above, below = (
                np.array([0.1, -3.7, np.inf, -0.0, np.nan, 65000], kind),
                np.array([-1, 0.3, -1, -1, -1, -0.0], kind),
            )
        else:
            least, most = np.iinfo(kind).min, np.iinfo(kind).max
            signs = [1, 1, 1] if least == 0 else [-1, -1, -1]
            above = np.array([least, most, 100, 0, 1, 120], kind)
            below = np.array([*signs, 7, 2, most], kind)
        inputs |= {f"a_{kind.__name__}": above, f"b_{kind.__name__}": below}
        with np.errstate(over="ignore"):
            expected[kind.__name__] = quotients(quotients(above, below), below)
    (signature,) = engine.signatures.values()
    for name, right in expected.items():
        (answer,) = engine.run(signature, inputs, (f"y_{name}",))
        np.testing.assert_array_equal(answer, right, name)
        assert [np.signbit(one) for one in answer if one == one] == [np.signbit(one) for one in right if one == one]


def test_a_function_that_is_called_with_floats_alone_stays_as_it_is() -> None:
    graph = helper.make_graph(
        [helper.make_node("DivideTwice", ["a", "b"], ["y"], domain="local")],
        "floats",
        [helper.make_tensor_value_info(name, F, ["n"]) for name in "ab"],
        [helper.make_tensor_value_info("y", F, ["n"])],
    )
    model = helper.make_model(graph, functions=[HALVED, DIVISION])
    assert not onnx_guards.put(ModelProto.FromString(model.SerializeToString()))
    graph.input[0].type.tensor_type.elem_type = graph.input[1].type.tensor_type.elem_type = I64
    model = helper.make_model(graph, functions=[HALVED, DIVISION])
    assert onnx_guards.put(ModelProto.FromString(model.SerializeToString()))


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
