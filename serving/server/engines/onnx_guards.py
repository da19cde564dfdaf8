"""Operations over which a kernel of ONNX Runtime ends its process: in the graph that is run they fail, or compute.

What comes to such an operation may be made inside the graph, from a request that looks like any other, so no check of
the request would do. Which they are was found by `tests/serving/server/engines/probe_onnx.py`, which runs the onnx
package's tests of its operations with sizes of 0 and with extreme values; a crash that is not here ends the server,
which its supervisor starts again.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from bookserve.serving.server.engines.onnx_rows import graph
from bookserve.serving.wire.onnx_graph_pb2 import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

_OLDEST = 10  # opset; before it there is no Where, and no Slice by inputs
_INT32, _INT64 = 6, 7  # TensorProto.DataType
_INT, _TENSOR = 2, 4  # AttributeProto.AttributeType
_ROWS_OF_RECURRENT = 1  # the axis of an LSTM's input
_VOLUME_RANK = 5  # of the weights of a convolution over three dimensions
_COUNTS = frozenset(("ArgMax", "ArgMin", "NonZero", "Shape", "Size"))
# Operations whose results have the type of their first input: those that integers mostly go through.
_SAME_TYPE = frozenset(
    (
        "Abs", "Add", "Clip", "Concat", "CumSum", "Div", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
        "Identity", "Max", "Min", "Mod", "Mul", "Neg", "Pad", "Range", "ReduceMax", "ReduceMin", "ReduceProd",
        "ReduceSum", "Reshape", "ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Sub", "Sum", "Tile",
        "Transpose", "Unsqueeze",
    )
)  # fmt: skip


class _Known(NamedTuple):
    """What is known of a value without running anything."""

    data_type: int = 0  # TensorProto.DataType; 0: not known
    content: TensorProto | None = None  # of a constant


_UNKNOWN = _Known()


def put(model: ModelProto) -> bool:
    """Puts guards before such operations of a model; whether there was one that needs them."""
    parts: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    placed = 0
    for part in parts:
        versions = graph.opsets(part if isinstance(part, FunctionProto) else model)
        if versions.get("", 0) >= _OLDEST:
            placed += _Guards(placed).put(part, {})
    return placed > 0


class _Guards:
    """The guards of one graph, the graphs inside it included."""

    def __init__(self, number: int) -> None:
        self._number = number  # so that every new value has a name of its own
        self._placed = 0
        self._new: list[NodeProto] = []
        self._known: Mapping[str, _Known] = {}

    def put(self, part: GraphProto | FunctionProto, around: Mapping[str, _Known]) -> int:
        """Puts them; answers how many new values there are. `around` is known of the values from outside."""
        known = dict(around)
        if isinstance(part, GraphProto):
            known |= {info.name: _Known(info.type.tensor_type.elem_type) for info in part.input}
            known |= {tensor.name: _Known(tensor.data_type, tensor) for tensor in part.initializer}
        nodes: list[NodeProto] = []
        for node in part.node:
            for inside in [entry.g for entry in node.attribute if entry.HasField("g")]:
                self.put(inside, known)
            self._new, self._known = [], known
            if node.op_type in _GUARDS and node.domain in ("", "ai.onnx"):
                _GUARDS[node.op_type](self, node)
            nodes += [*self._new, node]
            _learn(node, known)
        if len(nodes) > len(part.node):
            copy = GraphProto(node=nodes)
            part.ClearField("node")
            part.node.extend(copy.node)
        return self._placed

    def without_rows(self, node: NodeProto) -> None:
        """An LSTM aborts without rows. Without steps it answers its initial state."""
        shape = self._make("Shape", node.input[0])
        rows = self._make("Gather", shape, self._constant(_INT64, [_ROWS_OF_RECURRENT]))
        self._refuse(node, 0, shape, rows)

    def without_rows_or_steps(self, node: NodeProto) -> None:
        """A GRU aborts without rows and without steps."""
        shape = self._make("Shape", node.input[0])
        self._refuse(node, 0, shape, shape)

    def around_nothing(self, node: NodeProto) -> None:
        """Unique along an axis aborts where what it compares has no values. Without places on the axis it is right."""
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), None)
        if axis is not None:
            shape = self._make("Shape", node.input[0])
            place, one = self._constant(_INT64, [axis]), self._constant(_INT64, [1])
            self._refuse(node, 0, shape, self._make("ScatterElements", shape, place, one))

    def volume(self, node: NodeProto) -> None:
        """A transposed convolution over three dimensions of which one is 0 writes where there is no memory."""
        weights = self._known.get(node.input[1], _UNKNOWN).content
        if weights is None or len(weights.dims) == _VOLUME_RANK:
            shape = self._make("Shape", node.input[0])
            two = self._constant(_INT64, [2])  # those of rows and channels
            last = self._constant(_INT64, [_VOLUME_RANK])
            self._refuse(node, 0, shape, self._make("Slice", shape, two, last))

    def division(self, node: NodeProto) -> None:
        """The smallest integer by -1 is no integer, and a trap of the processor: a / -1 becomes -a / 1."""
        kind = self._known.get(node.input[1], _UNKNOWN).data_type or self._known.get(node.input[0], _UNKNOWN).data_type
        if kind not in (_INT32, _INT64) or self._holds_no(node.input[1], -1):
            return
        above, below = node.input
        is_minus_one = self._make("Equal", below, self._constant(kind, -1))
        node.input[0] = self._make("Where", is_minus_one, self._make("Neg", above), above)
        node.input[1] = self._make("Where", is_minus_one, self._constant(kind, 1), below)

    def frames(self, node: NodeProto) -> None:
        """An STFT divides by the length of its frames, or of its window; frames of length -1 are refused."""
        _, step, window, length = [*node.input, "", ""][:4]
        if window:
            shape = self._make("Shape", window)
            self._refuse(node, 2, shape, shape)
        if length and not self._holds_no(length, 0):
            node.input[1] = self._make("Cast", step, to=_INT64)  # which has the type of the length
            length = self._make("Cast", length, to=_INT64)
            is_zero = self._make("Equal", length, self._constant(_INT64, 0))
            node.input[3] = self._make("Where", is_zero, self._constant(_INT64, -1), length)

    def _refuse(self, node: NodeProto, place: int, shape: str, sizes: str) -> None:
        """An input of this shape fails where one of the sizes is 0: one value is then what it is to be shaped to."""
        product = self._make("ReduceProd", sizes)
        is_empty = self._make("Equal", product, self._constant(_INT64, [0]))
        target = self._make("Where", is_empty, self._constant(_INT64, [1]), shape)
        node.input[place] = self._make("Reshape", node.input[place], target)

    def _holds_no(self, name: str, number: int) -> bool:
        """Whether it is known that a value does not hold this number."""
        content = self._known.get(name, _UNKNOWN).content
        array = None if content is None else graph.constant(content).content
        return array is not None and number not in array.ravel().tolist()

    def _constant(self, kind: int, value: int | list[int]) -> str:
        array = np.array(value, np.int32 if kind == _INT32 else np.int64)
        tensor = TensorProto(data_type=kind, dims=array.shape, raw_data=array.tobytes())
        return self._make("Constant", value=tensor)

    def _make(self, operation: str, *inputs: str, **attributes: int | TensorProto) -> str:
        """A new node before the one that is guarded; answers the name of its result."""
        self._placed += 1
        name = f"bookserve.guard.{self._number + self._placed}"
        node = NodeProto(name=name, op_type=operation, input=inputs, output=[name])
        for key, value in attributes.items():
            if isinstance(value, int):
                node.attribute.add(name=key, type=_INT, i=value)
            else:
                node.attribute.add(name=key, type=_TENSOR, t=value)
        self._new.append(node)
        return name


_GUARDS: Mapping[str, Callable[[_Guards, NodeProto], None]] = {
    "ConvTranspose": _Guards.volume,
    "Div": _Guards.division,
    "GRU": _Guards.without_rows_or_steps,
    "LSTM": _Guards.without_rows,
    "STFT": _Guards.frames,
    "Unique": _Guards.around_nothing,
}


def _learn(node: NodeProto, known: dict[str, _Known]) -> None:
    """Adds what is known of a node's results."""
    first = known.get(node.input[0], _UNKNOWN).data_type if node.input else 0
    attributes = {entry.name: entry for entry in node.attribute}
    value = _UNKNOWN
    match node.op_type:
        case "Constant" if "value" in attributes:
            value = _Known(attributes["value"].t.data_type, attributes["value"].t)
        case "Cast":
            value = _Known(attributes["to"].i)
        case "Where":
            value = _Known(known.get(node.input[1], _UNKNOWN).data_type)
        case operation if operation in _COUNTS:
            value = _Known(_INT64)
        case operation if operation in _SAME_TYPE:
            value = _Known(first)
    known |= dict.fromkeys(node.output, value)
