"""Operations over which a kernel of ONNX Runtime ends its process: in the graph that is run they fail, or compute.

What comes to such an operation may be made inside the graph, from a request that looks like any other, so no check of
the request would do. Which they are was found by `tests/serving/server/engines/probe_onnx.py`, which runs the onnx
package's tests of its operations with sizes of 0 and with extreme values; a crash that is not here ends the server,
which its supervisor starts again.
"""

from collections.abc import Callable, Mapping

import numpy as np

from bookserve.serving.server.engines import onnx_integers
from bookserve.serving.server.engines.onnx_rows import graph
from bookserve.serving.wire.onnx_graph_pb2 import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

_OLDEST = 7  # opset that ONNX Runtime runs
_WHERE = 9  # opset since which there is such an operation
_CONSTANT_INTEGERS = 9  # opset since which a Constant may be one
_SLICE_BY_INPUTS = 10  # the same
_CAST_LIKE = 15  # opset since which there is such an operation
_INT64, _BOOL, _DOUBLE = 7, 9, 11  # TensorProto.DataType
_INT, _TENSOR = 2, 4  # AttributeProto.AttributeType
_ROWS_OF_RECURRENT = 1  # the axis of an LSTM's input
_KINDS = (onnx_integers.BOTH, (onnx_integers.INT32,), (onnx_integers.INT64,))
_VOLUME_RANK = 5  # of the weights of a convolution over three dimensions


class Unguarded(Exception):
    """An operation that may end the process, and that no guard can be put before."""


def put(model: ModelProto) -> bool:
    """Puts guards before such operations of a model; whether there was one that needs them.

    Raises Unguarded.
    """
    parts: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    placed = 0
    questions = zip(*(onnx_integers.of(model, kinds) for kinds in _KINDS), strict=True)
    for part, may_be in zip(parts, questions, strict=True):
        versions = graph.opsets(part if isinstance(part, FunctionProto) else model)
        opset = versions.get("", 0)
        if opset >= _OLDEST:
            placed += _Guards(placed, opset, may_be).put(part, {})
    return placed > 0


class _Guards:
    """The guards of one graph, the graphs inside it included."""

    def __init__(self, number: int, opset: int, may_be: tuple[onnx_integers.Question, ...]) -> None:
        self._number = number  # so that every new value has a name of its own
        self._opset = opset
        self._may_be = dict(zip(_KINDS, may_be, strict=True))
        self._placed = 0
        self._new: list[NodeProto] = []
        self._constants: Mapping[str, TensorProto] = {}

    def put(self, part: GraphProto | FunctionProto, around: Mapping[str, TensorProto]) -> int:
        """Puts them; answers how many new values there are. `around` are the constants from outside."""
        constants = dict(around)
        if isinstance(part, GraphProto):
            constants |= {tensor.name: tensor for tensor in part.initializer}
            for info in part.input:
                constants.pop(info.name, None)  # a request may give another value where there is a default
        nodes: list[NodeProto] = []
        for node in part.node:
            for inside in [entry.g for entry in node.attribute if entry.HasField("g")]:
                self.put(inside, constants)
            self._new, self._constants = [], constants
            if node.op_type in _GUARDS and node.domain in ("", "ai.onnx"):
                _GUARDS[node.op_type](self, node)
            nodes += [*self._new, node]
            for name in node.output:
                constants.pop(name, None)
            if node.op_type == "Constant":
                constants |= {name: entry.t for entry in node.attribute if entry.HasField("t") for name in node.output}
        if len(nodes) > len(part.node):
            copy = GraphProto(node=nodes)
            part.ClearField("node")
            part.node.extend(copy.node)
        return self._placed

    def without_rows(self, node: NodeProto) -> None:
        """An LSTM aborts without rows. Without steps it answers its initial state."""
        shape = self._make("Shape", node.input[0])
        rows = self._make("Gather", shape, self._constant([_ROWS_OF_RECURRENT]))
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
            place, one = self._constant([axis]), self._constant([1])
            self._refuse(node, 0, shape, self._make("ScatterElements", shape, place, one))

    def volume(self, node: NodeProto) -> None:
        """A transposed convolution over three dimensions of which one is 0 writes where there is no memory."""
        weights = self._constants.get(node.input[1])
        if weights is None or len(weights.dims) == _VOLUME_RANK:
            shape = extents = self._make("Shape", node.input[0])
            if self._opset >= _SLICE_BY_INPUTS:  # else none of the sizes may be 0
                two = self._constant([2])  # those of rows and channels
                extents = self._make("Slice", shape, two, self._constant([_VOLUME_RANK]))
            self._refuse(node, 0, shape, extents)

    def division(self, node: NodeProto) -> None:
        """The smallest integer by -1 is no integer, and a trap of the processor: a / -1 becomes -a / 1.

        That is right, and the same to the bit, for values of every type, as a function of the model may have them.
        """
        above, below = node.input
        may_be = {kinds for kinds, is_one in self._may_be.items() if is_one(above) and is_one(below)}
        if onnx_integers.BOTH not in may_be or self._holds_no(below, -1):
            return
        if self._opset < _WHERE:
            self._divide_in_old_graph(node, [kinds[0] for kinds in may_be if len(kinds) == 1])
            return
        above_minus_one = self._make("Add", self._make("Cast", below, to=_DOUBLE), self._constant(1.0))
        is_another = self._make("Cast", above_minus_one, to=_BOOL)
        if self._opset < _CAST_LIKE:
            node.input[0] = self._make("Where", is_another, above, self._make("Mul", above, below))
            node.input[1] = self._make("Where", is_another, below, self._make("Mul", below, below))
        else:  # since then there are types that ONNX Runtime divides, and knows no Where for
            sign = self._make("Where", is_another, self._constant(1.0), self._constant(-1.0))
            factor = self._make("CastLike", sign, below)
            node.input[0], node.input[1] = self._make("Mul", above, factor), self._make("Mul", below, factor)

    def _divide_in_old_graph(self, node: NodeProto, kinds: list[int]) -> None:
        """The same where there is no Where, for integers of one kind.

        Raises Unguarded where they may be of 32 and of 64 bits, as in a function that is called with both: no operation
        of these opsets tells them apart.
        """
        if len(kinds) != 1:
            raise Unguarded(
                f"the division '{node.name or node.output[0]}' may be one of int32 and of int64, which cannot be kept"
                f" from ending the server in opset {self._opset}: convert the model to opset {_WHERE} or later"
                " (onnx.version_converter)"
            )
        one, two, minus_one = (self._constant(value, kinds[0]) for value in (1, 2, -1))
        is_minus_one = self._make("Cast", self._make("Equal", node.input[1], minus_one), to=kinds[0])
        factor = self._make("Sub", one, self._make("Mul", two, is_minus_one))
        node.input[0], node.input[1] = (self._make("Mul", side, factor) for side in (*node.input,))

    def frames(self, node: NodeProto) -> None:
        """An STFT divides by the length of its frames, or of its window; frames of length -1 are refused."""
        _, step, window, length = [*node.input, "", ""][:4]
        if window:
            shape = self._make("Shape", window)
            self._refuse(node, 2, shape, shape)
        if length and not self._holds_no(length, 0):
            node.input[1] = self._make("Cast", step, to=_INT64)  # which has the type of the length
            length = self._make("Cast", length, to=_INT64)
            is_zero = self._make("Equal", length, self._constant(0))
            node.input[3] = self._make("Where", is_zero, self._constant(-1), length)

    def _refuse(self, node: NodeProto, place: int, shape: str, sizes: str) -> None:
        """An input of this shape fails where one of the sizes is 0: one value is then what it is to be shaped to."""
        product = self._make("ReduceProd", sizes)
        is_empty = self._make("Equal", product, self._constant([0]))
        above_one = self._make("Sub", shape, self._constant([1]))
        target = self._make("Sub", shape, self._make("Mul", self._make("Cast", is_empty, to=_INT64), above_one))
        node.input[place] = self._make("Reshape", node.input[place], target)

    def _holds_no(self, name: str, number: int) -> bool:
        """Whether it is known that a value does not hold this number."""
        content = self._constants.get(name)
        array = None if content is None else graph.constant(content).content
        return array is not None and number not in array.ravel().tolist()

    def _constant(self, value: int | float | list[int], kind: int = 0) -> str:
        array = np.array(value, np.int32 if kind == onnx_integers.INT32 else None)
        kind = kind or (_DOUBLE if array.dtype == np.float64 else _INT64)
        if self._opset < _CONSTANT_INTEGERS and kind != _DOUBLE:
            tensor = TensorProto(data_type=_DOUBLE, dims=array.shape, raw_data=array.astype(np.float64).tobytes())
            return self._make("Cast", self._make("Constant", value=tensor), to=kind)
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
