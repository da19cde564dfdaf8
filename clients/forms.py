"""Which form a person gives a model's input in: that of its task, where the contract has all that the task needs.

The gateway and `bookserve predict` ask `form` and have a function for each of its answers. Everything else is asked in
tensors.
"""

from collections.abc import Mapping

import numpy as np

from bookserve.clients.answers import Array, ModelMetadata, Signature, TensorInfo
from bookserve.clients.inputs import boards, molecules
from bookserve.export.contracts import Contract, Tensor

TENSORS = "tensors"
PICTURES = "image-classification"
TEXT = "text"
MOLECULES = "molecules"
BOARD = "board"
NUMBERS = ("regression", "tabular")


def form(contract: Contract) -> str:
    """The contract's task, or "tensors" where the contract lacks what a person's input of that task is turned into."""
    if len(contract.inputs) != 1 and contract.task != MOLECULES:
        return TENSORS
    checks = {
        PICTURES: _takes_pictures,
        TEXT: _takes_text,
        MOLECULES: _takes_molecules,
        BOARD: _takes_boards,
        **dict.fromkeys(NUMBERS, _takes_numbers),
    }
    fits = checks.get(contract.task)
    return contract.task if fits is not None and fits(contract, contract.inputs[0]) else TENSORS


def requests(contract: Contract, inputs: Mapping[str, Array]) -> list[Mapping[str, Array]]:
    """The rows of the inputs as requests: all in one, or each alone of a graph that was written for one row.

    Tensors are one request, as whoever gives them says how many rows there are.
    """
    one_row = form(contract) != TENSORS and all(tensor.shape[:1] == (1,) for tensor in contract.inputs)
    if not one_row:
        return [inputs]
    rows = len(inputs[contract.inputs[0].name])
    return [{name: array[row : row + 1] for name, array in inputs.items()} for row in range(rows)]


def scores(contract: Contract) -> Tensor | None:
    """The first output [n, classes] of floats, with as many classes as there are labels, if there are any.

    Behind the classes may be dimensions of 1, as networks have that end in a pooling.
    """
    for tensor in contract.outputs:
        fits = not contract.labels or tensor.shape[1:2] in ((None,), (len(contract.labels),))
        if _is_float(tensor) and len(tensor.shape) >= 2 and set(tensor.shape[2:]) <= {1} and fits:
            return tensor
    return None


def values(contract: Contract) -> Tensor | None:
    """The first output [n] of floats."""
    return next((tensor for tensor in contract.outputs if _is_float(tensor) and len(tensor.shape) == 1), None)


def classes(contract: Contract) -> Tensor | None:
    """The first output [n] of class numbers or names, where the classes have labels."""

    def names(tensor: Tensor) -> bool:
        return len(tensor.shape) == 1 and (tensor.dtype == "object" or np.dtype(tensor.dtype).kind in "iu")

    return next((tensor for tensor in contract.outputs if contract.labels and names(tensor)), None)


def from_signature(model: str, name: str, signature: Signature) -> Contract:
    """The contract of which only a signature is known, its number is 0; an unknown rank has the shape ()."""
    inputs, outputs = (
        tuple(Tensor(key, info.dtype, info.shape or ()) for key, info in side.items())
        for side in (signature.inputs, signature.outputs)
    )
    return Contract(model, 0, inputs, outputs, signature=name)


def mismatch(contract: Contract, metadata: ModelMetadata) -> str:
    """Why a version does not keep a contract; empty when it does."""
    name = f"{metadata.model} version {metadata.version}"
    signature = metadata.signatures.get(contract.signature)
    if signature is None:
        return f"{name} has no signature {contract.signature!r}, which contract {contract.id} needs"
    for kind, tensors, infos in (
        ("input", contract.inputs, signature.inputs),
        ("output", contract.outputs, signature.outputs),
    ):
        for tensor in tensors:
            info = infos.get(tensor.name)
            if info is None or not _fits(tensor, info, kind):
                has = "nothing" if info is None else type_text(info.dtype, info.shape)
                wants = type_text(tensor.dtype, tensor.shape)
                return (
                    f"{name} does not keep contract {contract.id}: {kind} {tensor.name!r} should be {wants}, is {has}"
                )
        extra = sorted(infos.keys() - {tensor.name for tensor in tensors}) if kind == "input" else []
        if extra:
            return f"{name} does not keep contract {contract.id}: it wants an input {extra[0]!r} as well"
    return ""


def type_text(dtype: str, shape: tuple[int | None, ...] | None) -> str:
    """A text such as "uint8 [n,28,28]"."""
    if shape is None:
        return f"{dtype} of any shape"
    return f"{dtype} [{','.join('n' if size is None else str(size) for size in shape)}]"


def _fits(tensor: Tensor, info: TensorInfo, kind: str) -> bool:
    """A dimension that the contract fixes may be free in the signature.

    One that it frees must be free, but for an output's after the batch: a version has its own size there, as of its
    vocabulary.
    """
    if info.dtype != tensor.dtype:
        return False
    if info.shape is None or not tensor.shape:
        return True
    if len(info.shape) != len(tensor.shape):
        return False
    return all(
        has is None or has == wants or (wants is None and kind == "output" and place > 0)
        for place, (has, wants) in enumerate(zip(info.shape, tensor.shape, strict=True))
    )


def _takes_pictures(contract: Contract, tensor: Tensor) -> bool:
    means = contract.preprocessing
    if means is None or means.input != tensor.name or means.size is None or not _has_rows(tensor):
        return False
    channels = {"grey": 1, "rgb": 3}.get(means.colour, 0)
    shapes: list[tuple[int, ...]] = [(*means.size, channels)]
    if means.layout == "channels-first":
        shapes = [(channels, *means.size)]
    elif channels == 1:
        shapes.append(means.size)
    fits = any(
        len(tensor.shape) == 1 + len(shape)
        and all(has in (None, wants) for has, wants in zip(tensor.shape[1:], shape, strict=True))
        for shape in shapes
    )
    known = means.resize in ("crop", "stretch") or (means.resize == "centred" and channels == 1)
    return fits and channels > 0 and known and _is_number(tensor) and scores(contract) is not None


def _takes_text(contract: Contract, tensor: Tensor) -> bool:
    means = contract.preprocessing
    return (
        means is not None
        and means.input == tensor.name
        and bool(means.vocabulary)
        and means.vocabulary in contract.assets
        and tensor.shape == (None, None)
        and np.dtype(tensor.dtype).kind == "i"
        and scores(contract) is not None
    )


def _takes_molecules(contract: Contract, tensor: Tensor) -> bool:
    means = contract.preprocessing
    if means is None or means.fingerprint is None or means.input != tensor.name or not _is_number(tensor):
        return False
    if means.fingerprint.kind != "morgan":
        return False
    bits, more = means.fingerprint.bits, means.descriptors
    expected: dict[str, tuple[int | None, ...]] = {means.input: (None, bits)}
    if more is not None:
        expected |= {more.counts: (None, 2 * bits + molecules.KEYS), more.values: (None, len(more.names))}
    return {one.name: one.shape for one in contract.inputs} == expected


def _takes_boards(contract: Contract, tensor: Tensor) -> bool:
    squares = scores(contract)
    fits = squares is not None and squares.shape == (None, boards.SQUARES) and values(contract) is not None
    return fits and tensor.shape == (None, 3, 3, 2) and _is_float(tensor)


def _takes_numbers(contract: Contract, tensor: Tensor) -> bool:
    fits = len(tensor.shape) == 2 and _has_rows(tensor) and bool(tensor.shape[1])
    return fits and _is_float(tensor) and all(output.shape[:1] == tensor.shape[:1] for output in contract.outputs)


def _has_rows(tensor: Tensor) -> bool:
    """Any number of them, or one at a time."""
    return tensor.shape[:1] in ((None,), (1,))


def _is_float(tensor: Tensor) -> bool:
    return tensor.dtype in ("float16", "float32", "float64")


def _is_number(tensor: Tensor) -> bool:
    return tensor.dtype != "bool" and (_is_float(tensor) or tensor.dtype.removeprefix("u").startswith("int"))
