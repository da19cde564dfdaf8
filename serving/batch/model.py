"""The interface of what answers rows: the version in this process, or a model server."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bookserve.clients.answers import Array
from bookserve.export.contracts import Contract

_RUN_BYTES = 320 << 10  # of the inputs of a run: little enough for a processor's cache
_FEWEST, _MOST = 64, 4096  # rows of a run
_FREE = 64  # that a free size is counted as


def rows_of_a_run(contract: Contract) -> int:
    """How many rows a run should have where they are independent: from 64 to 4,096, the more the smaller they are."""
    sizes = [
        math.prod(_FREE if size is None else size for size in tensor.shape[1:])
        * (_FREE if tensor.dtype == "object" else np.dtype(tensor.dtype).itemsize)
        for tensor in contract.inputs
    ]
    return max(_FEWEST, min(_MOST, _RUN_BYTES // max(1, sum(sizes))))


class RowsRefused(Exception):
    """The model does not take the values of these rows; the message says why."""


class ModelLost(Exception):
    """The model cannot be asked any more; the message says why and what would do."""


@dataclass(frozen=True)
class Pace:
    """How a model is asked: `rows` in a run where rows are independent, else one; `runs` under way at once."""

    rows: int
    runs: int


class Model(Protocol):
    """One version. `run` is called from several threads at once."""

    contract: Contract
    version: int
    pace: Pace
    identity: str  # what tells the version from another one of the same number

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of the contract for rows that are stacked along the first dimension.

        Raises:
            RowsRefused: because of the values.
            ModelLost: for another reason.
        """
        ...

    def close(self) -> None:
        """Gives back what it holds."""
        ...
