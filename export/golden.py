"""The example in a version's contract: one request with the answer that the version gave when it was made.

`bookserve models verify` asks it again, of every graph of the version.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export import example_inputs, parity
from bookserve.export.contracts import Contract, Example
from bookserve.export.errors import ExportError

Rows = Mapping[str, npt.NDArray[Any]]
TOLERANCE = 1e-4  # of the largest value of an output: the processor may be another one, which rounds otherwise
_INLINE = 20_000  # values of an example that a manifest holds


def first_row(contract: Contract, rows: Rows) -> Rows:
    """The first row alone, see `first_rows`."""
    return first_rows(contract, rows, 1)


def first_rows(contract: Contract, rows: Rows, count: int) -> Rows:
    """So many rows of every input whose first dimension is free, or one that is called a batch; others as they are."""
    found = dict(rows)
    for tensor in contract.inputs:
        names = iter(tensor.free)
        for axis, size in enumerate(tensor.shape):
            name = next(names, "") if size is None else ""
            if size is None and (axis == 0 or name.lower() in example_inputs.BATCHES):
                found[tensor.name] = found[tensor.name].take(range(count), axis)
    return found


def example(contract: Contract, rows: Rows, answer: Rows) -> Example | None:
    """The example for the manifest; None where it is too large or holds what JSON has not."""
    outputs = {tensor.name: np.asarray(answer[tensor.name]) for tensor in contract.outputs}
    arrays = [*rows.values(), *outputs.values()]
    if sum(array.size for array in arrays) > _INLINE:
        return None
    if any(array.dtype.kind == "c" or (array.dtype.kind == "f" and not np.isfinite(array).all()) for array in arrays):
        return None
    return Example(
        {name: example_inputs.to_rest(array) for name, array in rows.items()},
        {name: example_inputs.to_rest(array) for name, array in outputs.items()},
    )


def differences(contract: Contract, run: parity.Run, recorded: Mapping[str, float]) -> dict[str, float]:
    """Output -> the largest difference of the answer to the contract's example from the one that stands there.

    `recorded` has the differences between the version's own graphs when it was made (`Manifest.parity`): as much is
    allowed, where that is more than `TOLERANCE`.

    Raises:
        ExportError: an answer is further away, or of another shape or type; the message has the worst value.
    """
    assert contract.example is not None
    answer = run(example_inputs.fit(contract.example.inputs, contract, "the manifest's example"))
    expected, found = {}, {}
    for tensor in contract.outputs:
        if tensor.name not in answer:
            raise ExportError(f"it gives no '{tensor.name}' but {', '.join(answer)}")
        try:
            expected[tensor.name] = example_inputs.as_array(contract.example.outputs[tensor.name], tensor.dtype)
        except (KeyError, ValueError, TypeError) as error:
            raise ExportError(f"the manifest's example has no output '{tensor.name}' of its type: {error}") from error
    for tensor in contract.outputs:
        tolerance = max(TOLERANCE, recorded.get(tensor.name, 0.0))
        whose = ("the manifest's example", "the graph")
        found[tensor.name] = parity.difference(tensor, expected, answer, whose, tolerance)
    return found
