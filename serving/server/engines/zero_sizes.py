"""Requests with a tensor that has no values: answered or refused here, before a native engine sees them.

ONNX Runtime ends its process over an LSTM or GRU without rows, and no engine promises anything for a size of 0. Where
the outputs' shapes follow from the inputs', and are empty too, there is nothing to compute.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.server.types.signatures import Signature, shape_text
from bookserve.serving.wire.tensors import Array, TensorSpec

# The names of a tensor's dimensions, tensor by tensor: "" for a size that is fixed or has no name.
DimensionNames = Mapping[str, Sequence[str]]


def answer(
    signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str], names: DimensionNames
) -> list[Array] | None:
    """The outputs of a request with a size of 0, all of them empty; None for a request that the engine may see.

    A free size of an output is that of the inputs' dimension with the same name. Without names the first dimension of
    all tensors is the rows.
    Raises ServingError (INVALID_ARGUMENT) where an output's shape does not follow so, or has values to compute.
    """
    empty = next((name for name, array in inputs.items() if not array.size), None)
    if empty is None:
        return None
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
