"""Requests with a tensor that has no values: answered or refused here, before a native engine sees them.

ONNX Runtime ends its process over an LSTM or GRU without rows, and no engine promises anything for a size of 0. Where
the outputs' shapes follow from the inputs', and are empty too, there is nothing to compute. An ONNX graph that does
nothing with an input but lay it beside others, such as features that may be left out, may see it empty.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.server.types.signatures import Signature, shape_text
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto
from bookserve.serving.wire.tensors import Array, TensorSpec

# The names of a tensor's dimensions, tensor by tensor: "" for a size that is fixed or has no name.
DimensionNames = Mapping[str, Sequence[str]]
# Of an input that is only concatenated: beside what, Concat by Concat; "" is a value that is computed.
Companions = Mapping[str, Sequence[frozenset[str]]]
_UNCHANGED = frozenset(("Cast", "Identity", "Squeeze", "Transpose", "Unsqueeze"))


def answer(
    signature: Signature,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    names: DimensionNames,
    companions: Companions,
) -> list[Array] | None:
    """The outputs of a request with a size of 0, all of them empty; None for a request that the engine may see.

    A free size of an output is that of the inputs' dimension with the same name. Without names the first dimension of
    all tensors is the rows.
    Raises ServingError (INVALID_ARGUMENT) where an output's shape does not follow so, or has values to compute.
    """
    all_empty = [name for name, array in inputs.items() if not array.size]
    if not all_empty:
        return None
    filled = {"", *inputs}.difference(all_empty)
    if all(name in companions and all(filled & beside for beside in companions[name]) for name in all_empty):
        return None
    empty = all_empty[0]
    sizes = _named_sizes(inputs, names)
    without_rows = all(
        array.shape[0] == 0 and not _name(names, name, 0)
        for name, array in inputs.items()
        if signature.inputs[name].shape is None or signature.inputs[name].shape[:1] == (None,)  # type: ignore[index]
    )
    answers: list[Array] = []
    for name in outputs:
        spec = signature.outputs[name]
        shape = _shape(spec, names, sizes, without_rows)
        if shape is None or 0 not in shape:
            raise _refusal(empty, inputs[empty], spec)
        answers.append(np.empty(shape, spec.dtype))
    return answers


def companions(model: ModelProto) -> Companions:
    """The inputs of an ONNX model that are concatenated to other values, each time, and for nothing else."""
    inputs = {info.name for info in model.graph.input}
    origins = {name: name for name in inputs}  # value -> the input that it is, but for its type and form
    found: dict[str, list[frozenset[str]]] = {}
    otherwise = {info.name for info in model.graph.output}
    for node in model.graph.node:
        if any(entry.HasField("g") for entry in node.attribute):
            return {}  # the graphs inside may use any value
        standard = node.domain in ("", "ai.onnx")
        if standard and node.op_type in _UNCHANGED and node.input[0] in origins:
            origins[node.output[0]] = origins[node.input[0]]
        elif standard and node.op_type == "Concat":
            sources = [origins.get(name, "") for name in node.input]
            for source in filter(None, sources):
                found.setdefault(source, []).append(frozenset(sources) - {source})
        else:
            otherwise |= set(node.input)
    used_otherwise = {origins[name] for name in otherwise if name in origins}
    return {name: beside for name, beside in found.items() if name not in used_otherwise}


def _named_sizes(inputs: Mapping[str, Array], names: DimensionNames) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, array in inputs.items():
        for place, size in enumerate(array.shape):
            dimension = _name(names, name, place)
            if dimension and sizes.setdefault(dimension, size) != size:
                raise invalid_argument(
                    f"input '{name}' has {size} for its dimension '{dimension}', another input has {sizes[dimension]}"
                )
    return sizes


def _shape(
    spec: TensorSpec, names: DimensionNames, sizes: Mapping[str, int], without_rows: bool
) -> tuple[int, ...] | None:
    """The output's shape where it follows from the inputs'."""
    if spec.shape is None:
        return None
    shape = []
    for place, fixed in enumerate(spec.shape):
        dimension = _name(names, spec.name, place)
        size = fixed if fixed is not None else sizes.get(dimension)
        if size is None and without_rows and not place and not dimension:
            size = 0
        if size is None:
            return None
        shape.append(size)
    return tuple(shape)


def _name(names: DimensionNames, tensor: str, place: int) -> str:
    dimensions = names.get(tensor, ())
    return dimensions[place] if place < len(dimensions) else ""


def _refusal(name: str, array: Array, output: TensorSpec) -> ServingError:
    declared = "a shape that the model does not tell" if output.shape is None else f"shape {shape_text(output.shape)}"
    return invalid_argument(
        f"input '{name}' has no values, its shape is {list(array.shape)}, and output '{output.name}' of {declared} does"
        " not follow from that: send at least one value"
    )
