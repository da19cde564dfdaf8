"""What an ONNX graph says of its own contract: inputs, outputs, and the tables that inputs are looked up in."""

import re
from typing import Any

import onnx

from bookserve.export.contracts import Contract, Tensor
from bookserve.export.errors import ExportError
from bookserve.export.example_inputs import BATCHES, Table

_MEANING = re.compile(r"[A-Za-z][A-Za-z0-9_ +*-]{0,40}")
_PASSING = frozenset(("Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Transpose", "Flatten", "Slice"))
_LOOKED_UP = {
    "LabelEncoder": ("keys_strings", "keys_int64s", "keys_floats"),
    "CategoryMapper": ("cats_strings", "cats_int64s"),
    "OneHotEncoder": ("cats_strings", "cats_int64s"),
}


def read(graph: onnx.ModelProto, model: str) -> Contract:
    """The contract of a graph: its inputs without initializers, and its outputs; () is the shape of an unknown rank.

    Raises:
        ExportError: an input or output is no tensor of a type that numpy has.
    """
    constants = {tensor.name for tensor in graph.graph.initializer}
    return Contract(
        model,
        1,
        tuple(_tensor(value) for value in graph.graph.input if value.name not in constants),
        tuple(_tensor(value) for value in graph.graph.output),
    )


def tables(graph: onnx.ModelProto) -> dict[str, Table]:
    """Input -> the smallest size of a constant table that it indexes (Gather) or is spread over (OneHot), or the keys
    that it is looked up by (LabelEncoder, CategoryMapper, OneHotEncoder).
    """
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    origin = {value.name: value.name for value in graph.graph.input if value.name not in constants}
    sizes: dict[str, int] = {}
    keys: dict[str, tuple[Any, ...]] = {}
    for node in graph.graph.node:
        if node.op_type in _PASSING and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        if node.op_type == "Gather" and node.input[0] in constants and node.input[1] in origin:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            name, size = origin[node.input[1]], constants[node.input[0]][axis]
            sizes[name] = min(size, sizes.get(name, size))
        if node.domain == "ai.onnx.ml" and node.op_type in _LOOKED_UP and node.input[0] in origin:
            keys[origin[node.input[0]]] = _keys(node)
    return sizes | {name: found for name, found in keys.items() if found}


def _keys(node: onnx.NodeProto) -> tuple[Any, ...]:
    """The words or numbers that a node knows: those of the type that it has more of."""
    names = _LOOKED_UP[node.op_type]
    kinds = [tuple(onnx.helper.get_attribute_value(entry)) for entry in node.attribute if entry.name in names]
    return max(kinds, key=lambda keys: len(keys), default=())


def probabilities(graph: onnx.ModelProto) -> set[str]:
    """The outputs that a Sigmoid, or a Softmax over the last axis, makes."""
    makers = {name: node for node in graph.graph.node for name in node.output}
    found = set()
    for value in graph.graph.output:
        node = makers.get(value.name)
        while node is not None and node.op_type in ("Identity", "Cast", "Reshape", "Squeeze", "Flatten"):
            node = makers.get(node.input[0])
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), -1) if node is not None else 0
        last = axis in (-1, len(value.type.tensor_type.shape.dim) - 1)
        if node is not None and (node.op_type == "Sigmoid" or (node.op_type == "Softmax" and last)):
            found.add(value.name)
    return found


def operations(graph: onnx.ModelProto) -> set[str]:
    """The operations of the graph that ONNX itself does not have."""
    return {node.op_type for node in graph.graph.node if node.domain not in ("", "ai.onnx", "ai.onnx.ml")}


def _tensor(value: Any) -> Tensor:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        found = (kind or "value without a type").removesuffix("_type")
        remedy = ": export the graph with a tensor in its place, such as ConcatFromSequence makes of a sequence"
        raise ExportError(f"'{value.name}' is no tensor but a {found}{remedy}")
    tensor = value.type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"'{value.name}' is of the type {tensor.elem_type}, which numpy has not") from error
    if tensor.elem_type == onnx.TensorProto.STRING:
        dtype = "object"
    shape, free = [], []
    for place, dimension in enumerate(tensor.shape.dim):
        fixed = dimension.HasField("dim_value") and dimension.dim_value >= 0  # some exporters write -1 for free
        shape.append(dimension.dim_value if fixed else None)
        if not fixed:
            free.append(_meaning(dimension.dim_param, place))
    return Tensor(value.name, dtype, tuple(shape), free=tuple(free))


def _meaning(name: str, place: int) -> str:
    if name.startswith("unk_") or not _MEANING.fullmatch(name):
        return ""
    return "" if place == 0 and name.lower() in BATCHES else name
