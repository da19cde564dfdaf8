"""An ONNX file as the proof reads it: nodes with attributes of Python, small constants, functions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from bookserve.serving.server.engines.onnx_rows import values
from bookserve.serving.server.engines.onnx_rows.values import Content, Mixed, Value
from bookserve.serving.wire.onnx_graph_pb2 import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
)

_DOMAINS = {"ai.onnx": ""}  # two names of one
# TensorProto.DataType -> numpy's type and the field without raw_data, for the constants that shapes are made of.
_TYPES = {
    1: ("f4", "float_data"),
    6: ("i4", "int32_data"),
    7: ("i8", "int64_data"),
    9: ("?", "int32_data"),
    11: ("f8", "double_data"),
}
_EXTERNAL = 1  # TensorProto.DataLocation
_INT, _FLOAT, _STRING, _TENSOR, _GRAPH, _FLOATS, _INTS, _STRINGS = 2, 1, 3, 4, 5, 6, 7, 8


@dataclass(frozen=True)
class Node:
    """One operation: its name and version, and its attributes."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]  # "" for one that is left out
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 1  # of its domain
    overload: str = ""

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return self.attributes.get(name, default)

    @property
    def label(self) -> str:
        """For messages: the operation and its node."""
        operation = f"{self.domain}.{self.op}" if self.domain else self.op
        return f"{operation} ({self.name or next(filter(None, self.outputs), '?')})"


def read(path: Path) -> ModelProto:
    """The file. Raises Mixed where it is no ONNX file that protobuf can read."""
    try:
        return ModelProto.FromString(path.read_bytes())
    except (OSError, DecodeError, ValueError) as error:
        raise Mixed(f"the graph cannot be read: {error}") from error


def opsets(message: Any) -> dict[str, int]:
    """Domain -> version, of a model or a function."""
    return {_DOMAINS.get(entry.domain, entry.domain): entry.version for entry in message.opset_import}


def node(proto: NodeProto, versions: Mapping[str, int], bound: Mapping[str, Any]) -> Node:
    """A node of a model, or of a function whose attributes are `bound`."""
    domain = _DOMAINS.get(proto.domain, proto.domain)
    attributes = {}
    for entry in proto.attribute:
        if entry.ref_attr_name:
            if entry.ref_attr_name in bound:
                attributes[entry.name] = bound[entry.ref_attr_name]
        else:
            attributes[entry.name] = attribute_value(entry)
    inputs, outputs = tuple(proto.input), tuple(proto.output)
    return Node(proto.op_type, domain, proto.name, inputs, outputs, attributes, versions.get(domain, 1), proto.overload)


def attribute_value(entry: AttributeProto) -> Any:
    """An attribute as int, float, str, a list of them, a TensorProto or a GraphProto; None for another kind."""
    match entry.type or _guessed_type(entry):
        case kind if kind == _INT:
            return entry.i
        case kind if kind == _FLOAT:
            return entry.f
        case kind if kind == _STRING:
            return entry.s.decode("utf-8", "replace")
        case kind if kind == _TENSOR:
            return entry.t
        case kind if kind == _GRAPH:
            return entry.g
        case kind if kind == _FLOATS:
            return list(entry.floats)
        case kind if kind == _INTS:
            return list(entry.ints)
        case kind if kind == _STRINGS:
            return [text.decode("utf-8", "replace") for text in entry.strings]
    return None


def _guessed_type(entry: AttributeProto) -> int:
    """Of a file from before attributes said their type."""
    for name, kind in (("i", _INT), ("f", _FLOAT), ("s", _STRING), ("t", _TENSOR), ("g", _GRAPH)):
        if entry.HasField(name):
            return kind
    return _INTS if entry.ints else _FLOATS if entry.floats else _STRINGS


def constant(tensor: TensorProto) -> Value:
    """A tensor of the file, with its content where that is small and of numbers."""
    shape = tuple(tensor.dims)
    if np.prod(shape, dtype=object) > values.MAX_CONTENT or tensor.data_location == _EXTERNAL:
        return Value(shape)
    content = _content(tensor, shape)
    return Value(shape) if content is None else Value(shape, None, content, tensor.data_type)


def _content(tensor: TensorProto, shape: tuple[int, ...]) -> Content | None:
    if tensor.data_type not in _TYPES:
        return None
    kind, field_name = _TYPES[tensor.data_type]
    if tensor.raw_data:
        array = np.frombuffer(tensor.raw_data, np.dtype(kind).newbyteorder("<"))
    else:
        array = np.array(getattr(tensor, field_name), kind)
    if array.size != np.prod(shape, dtype=object):
        return None
    return array.astype(np.object_).reshape(shape)


def inputs(graph: GraphProto) -> dict[str, tuple[int | None, ...] | None]:
    """Name -> declared shape, None for a free size, of the inputs that have no default; None for no known rank."""
    defaults = {tensor.name for tensor in graph.initializer}
    return {
        info.name: _shape(info) if info.type.HasField("tensor_type") else None
        for info in graph.input
        if info.name not in defaults
    }


def _shape(info: Any) -> tuple[int | None, ...] | None:
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim)
