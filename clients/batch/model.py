"""The interface of what answers rows: the version in this process, or a model server."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bookserve.clients.answers import Array
from bookserve.export.contracts import Contract


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
