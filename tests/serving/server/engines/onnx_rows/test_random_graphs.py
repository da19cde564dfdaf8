"""Random graphs: what the walk proves answers the same together and apart, for random rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bookserve.serving.server.engines.onnx_rows import walk
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto

Array = npt.NDArray[Any]
ROWS = 6
PIECES = (slice(0, 1), slice(1, 3), slice(3, 6))
UNARY = ["Abs", "Sigmoid", "Tanh", "Neg", "Relu", "Exp", "Identity", "Floor", "Softplus", "Erf"]
BINARY = ["Add", "Sub", "Mul", "Max", "Min"]
REDUCING = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"]
OPTIONS = onnxruntime.SessionOptions()
OPTIONS.log_severity_level = 4


class Builder:
    """A graph that grows node by node; each is run at once, so that the whole is valid for the rows at hand."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        shape = (ROWS, *self.random.integers(2, 5, self.random.integers(1, 3)).tolist())
        self.inputs = {name: self.random.normal(size=shape).astype(np.float32) for name in ("x", "w")}
        self.arrays: dict[str, Array] = dict(self.inputs)
        self.values = list(self.inputs)  # of float32
        self.constants: dict[str, Array] = {}
        self.nodes: list[NodeProto] = []

    def constant(self, array: Any, dtype: Any = np.int64) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = self.arrays[name] = np.asarray(array, dtype)
        return name

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Appends a node; raises where the engine refuses it."""
        names = [f"v{len(self.nodes)}_{place}" for place in range(outputs)]
        node = helper.make_node(op, list(inputs), names, **attributes)
        feeds = {name: self.arrays[name] for name in dict.fromkeys(inputs) if name}
        session = onnxruntime.InferenceSession(self.model([node], feeds, names, {}, fixed=True), OPTIONS)
        results = session.run(None, feeds)
        if any(array.size == 0 or array.size > 20_000 for array in results):
            raise ValueError("too small, or too large")
        self.nodes.append(node)
        self.arrays.update(zip(names, results, strict=True))
        return names[0]

    def model(
        self, nodes: list[NodeProto], feeds: dict[str, Array], outputs: list[str], constants: dict[str, Array],
        *, fixed: bool = False,
    ) -> bytes:  # fmt: skip
        graph = helper.make_graph(
            nodes,
            "random",
            [
                helper.make_tensor_value_info(
                    name,
                    helper.np_dtype_to_tensor_dtype(array.dtype),
                    list(array.shape) if fixed else ["n", *array.shape[1:]],
                )
                for name, array in feeds.items()
            ],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        data: bytes = model.SerializeToString()
        return data

    def pick(self) -> str:
        """A value, most often one of the last."""
        return self.values[-1 - min(int(self.random.exponential(1.5)), len(self.values) - 1)]

    def axis(self, value: str) -> int:
        """Any axis, most often not the first."""
        last = self.arrays[value].ndim - 1
        return int(self.random.integers(last + 1)) if last == 0 or self.random.random() < 0.2 else last

    def needed(self, output: str) -> list[NodeProto]:
        """The nodes that lead to a value."""
        wanted, kept = {output}, []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                kept.append(node)
                wanted.update(node.input)
                bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
                wanted.update(name for body in bodies for inner in body.node for name in inner.input)
        return kept[::-1]

    def size(self, value: str, place: int) -> str:
        """A dimension as graphs ask for it: Shape, then Gather."""
        return self.add("Gather", self.add("Shape", value), self.constant([place]))

    def step(self) -> None:
        value, other = self.pick(), self.pick()
        made = self.random.choice(STEPS)(self, value, other)  # type: ignore[arg-type]
        if self.arrays[made].dtype == np.float32 and self.arrays[made].ndim < 6:
            self.values.append(made)


def reshape(b: Builder, value: str, other: str) -> str:
    dims = b.arrays[value].shape
    match int(b.random.integers(6)):
        case 0:
            return b.add("Reshape", value, b.constant([-1, dims[-1]]))
        case 1:
            return b.add("Reshape", value, b.constant([0, -1]))
        case 2:
            return b.add("Flatten", value, axis=int(b.random.integers(len(dims) + 1)))
        case 3:
            shape = b.add("Concat", b.size(other, 0), b.constant([-1]), axis=0)
            return b.add("Reshape", value, shape)
        case 4:
            return b.add("Reshape", value, b.add("Shape", other))
    parts = [b.size(value, 0), b.constant([-1]), b.size(value, len(dims) - 1)]
    return b.add("Reshape", value, b.add("Concat", *parts, axis=0))


def transpose(b: Builder, value: str, other: str) -> str:
    return b.add("Transpose", value, perm=b.random.permutation(b.arrays[value].ndim).tolist())


def combine(b: Builder, value: str, other: str) -> str:
    return b.add(str(b.random.choice(BINARY)), value, other)


def with_constant(b: Builder, value: str, other: str) -> str:
    dims = b.arrays[value].shape
    shape = [size if b.random.random() < 0.5 else 1 for size in dims]
    return b.add(str(b.random.choice(BINARY)), value, b.constant(b.random.normal(size=shape), np.float32))


def multiply(b: Builder, value: str, other: str) -> str:
    if b.random.random() < 0.5:
        return b.add("MatMul", value, b.constant(b.random.normal(size=(b.arrays[value].shape[-1], 3)), np.float32))
    order = [*range(b.arrays[other].ndim)]
    order[-2:] = order[-2:][::-1]
    return b.add("MatMul", value, b.add("Transpose", other, perm=order))


def reduce(b: Builder, value: str, other: str) -> str:
    axes = b.constant([b.axis(value)])
    return b.add(str(b.random.choice(REDUCING)), value, axes, keepdims=int(b.random.integers(2)))


def recur(b: Builder, value: str, other: str) -> str:
    width = b.arrays[value].shape[-1]
    weights = b.constant(b.random.normal(size=(1, 12, width)), np.float32)
    states = b.constant(b.random.normal(size=(1, 12, 3)), np.float32)
    initial: list[str] = []
    if b.random.random() < 0.5:
        shape = b.add("Concat", b.constant([1]), b.size(value, 1), b.constant([3]), axis=0)
        zeros = b.add("ConstantOfShape", shape)
        initial = ["", "", zeros, zeros]
    whole = b.add("LSTM", value, weights, states, *initial, outputs=3, hidden_size=3)
    return whole[:-1] + str(int(b.random.integers(3)))


def convolve(b: Builder, value: str, other: str) -> str:
    channels = b.arrays[value].shape[1]
    return b.add("Conv", value, b.constant(b.random.normal(size=(2, channels, 2)), np.float32))


def picked(b: Builder, value: str, other: str) -> str:
    best = b.add("ArgMax", value, axis=b.axis(value), keepdims=int(b.random.integers(2)))
    match int(b.random.integers(4)):
        case 0:
            return b.add("Cast", best, to=TensorProto.FLOAT)
        case 1:
            return b.add("Gather", b.constant(b.random.normal(size=(8, 3)), np.float32), best)
        case 2:  # a class for each row, as skl2onnx writes it
            classes = b.constant(b.random.normal(size=8), np.float32)
            found = b.add("ArrayFeatureExtractor", classes, best, domain="ai.onnx.ml")
            return b.add("Reshape", found, b.constant([-1])) if b.random.random() < 0.5 else found
    return b.add("GatherElements", other, best, axis=b.axis(other))


def gather(b: Builder, value: str, other: str) -> str:
    index: Any = [0, 1] if b.random.random() < 0.5 else 0
    return b.add("Gather", value, b.constant(index), axis=b.axis(value))


def cut(b: Builder, value: str, other: str) -> str:
    axis = b.axis(value)
    end = int(b.random.choice([2, 2**40, -1]))
    return b.add("Slice", value, b.constant([0]), b.constant([end]), b.constant([axis]))


def joined(b: Builder, value: str, other: str) -> str:
    return b.add("Concat", value, other, axis=b.axis(value))


def expand(b: Builder, value: str, other: str) -> str:
    one = b.constant(b.random.normal(size=(1, b.arrays[value].shape[-1])), np.float32)
    shape = b.add("Concat", b.size(other, 0), b.constant([1]), axis=0)
    return b.add("Expand", value if b.random.random() < 0.3 else one, shape)


def tile(b: Builder, value: str, other: str) -> str:
    repeats = [1] * b.arrays[value].ndim
    repeats[b.axis(value)] = 2
    return b.add("Tile", value, b.constant(repeats))


def pad(b: Builder, value: str, other: str) -> str:
    pads = [0] * 2 * b.arrays[value].ndim
    pads[b.axis(value)] = 1
    return b.add("Pad", value, b.constant(pads))


def count(b: Builder, value: str, other: str) -> str:
    number = b.add("Cast", b.size(value, b.axis(value)), to=TensorProto.FLOAT)
    return b.add("Mul", other, number)


def loop(b: Builder, value: str, other: str) -> str:
    dims = b.arrays[value].ndim
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["d"]),
            helper.make_node("Add", ["s", other], ["t"]),
            helper.make_node("Softmax", ["t"], ["r"], axis=b.axis(value)),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [None] * dims),
        ],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, []), onnx.ValueInfoProto(name="r")],
    )
    return b.add("Loop", b.constant(2), b.constant(True, np.bool_), value, body=body)


STEPS: list[Callable[[Builder, str, str], str]] = [
    lambda b, v, o: b.add(str(b.random.choice(UNARY)), v),
    combine,
    combine,
    with_constant,
    multiply,
    multiply,
    transpose,
    transpose,
    reshape,
    reshape,
    reshape,
    reduce,
    gather,
    cut,
    joined,
    expand,
    tile,
    pad,
    picked,
    count,
    recur,
    recur,
    convolve,
    loop,
    lambda b, v, o: b.add(str(b.random.choice(["Softmax", "LogSoftmax", "Hardmax"])), v, axis=b.axis(v)),
    lambda b, v, o: b.add("CumSum", v, b.constant(b.axis(v))),
    lambda b, v, o: b.add("TopK", v, b.constant([2]), axis=b.axis(v), outputs=2),
    lambda b, v, o: b.add("Unsqueeze", v, b.constant([int(b.random.integers(b.arrays[v].ndim + 1))])),
    lambda b, v, o: b.add("Squeeze", v, b.constant([b.axis(v)])),
    lambda b, v, o: b.add("Split", v, axis=b.axis(v), outputs=2, num_outputs=2),
    lambda b, v, o: b.add("LayerNormalization", v, b.constant(np.ones(b.arrays[v].shape[-1]), np.float32)),
    lambda b, v, o: b.add("LpNormalization", v, axis=b.axis(v)),
    lambda b, v, o: b.add("Where", b.add("Greater", v, o), v, o),
    lambda b, v, o: b.add("Einsum", v, o, equation="ij,ik->ijk"),
    lambda b, v, o: b.add("Gemm", v, o, transA=1),
    lambda b, v, o: b.add("Trilu", v),
]


def build(seed: int) -> Builder:
    builder = Builder(seed)
    for _ in range(int(builder.random.integers(3, 12))):
        for _ in range(20):
            try:
                builder.step()
            except Exception:
                continue  # the engine does not take such a node here
            break
    return builder


def proved(builder: Builder) -> list[str]:
    """The values that the walk proves to have independent rows."""
    names = [name for name in builder.values if name not in builder.inputs]
    return [name for name in names if not walk.refusal(ModelProto.FromString(ending_in(builder, name)))]


def ending_in(builder: Builder, name: str) -> bytes:
    return builder.model(builder.needed(name), builder.inputs, [name], builder.constants)


def independent(builder: Builder, name: str) -> bool:
    session = onnxruntime.InferenceSession(ending_in(builder, name), OPTIONS)
    together = session.run(None, builder.inputs)[0]
    apart = [session.run(None, {key: x[piece] for key, x in builder.inputs.items()})[0] for piece in PIECES]
    joined = np.concatenate(apart)
    return joined.shape == together.shape and bool(np.allclose(joined, together, rtol=1e-3, atol=1e-4, equal_nan=True))


def check(seeds: range) -> tuple[int, int]:
    """How many values were proved, of how many."""
    found = whole = 0
    for seed in seeds:
        builder = build(seed)
        names = proved(builder)
        found, whole = found + len(names), whole + len(builder.values) - len(builder.inputs)
        for name in names:
            assert independent(builder, name), (seed, name, [node.op_type for node in builder.nodes])
    return found, whole


def test_what_is_proved_answers_the_same_together_and_apart() -> None:
    found, whole = check(range(40))
    assert found > whole // 10, f"{found} of {whole} proved: the test shows nothing"


@pytest.mark.slow
def test_thousands_of_random_graphs() -> None:
    check(range(1000, 2500))
