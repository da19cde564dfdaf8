"""The records of an INPUT, one a row of OUTPUT, and the interface of what reads them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

MAX_ROW_BYTES = 16 << 20


class InputError(Exception):
    """An INPUT that cannot be read as a whole; the message says why and what would do."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a source was read: `line` is the number of the last line, row or file, `offset` where reading goes on.

    The unit of `offset` is the source's: bytes of a text file, rows of a Parquet file, files of a folder.
    """

    line: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One row. `line` counts from 1; `name` is what the user calls the row, where the INPUT has names."""

    line: int
    name: str | None
    value: Any


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that gets no answer, and why."""

    line: int
    name: str | None
    reason: str


class Source(Protocol):
    """An INPUT. What `Record.value` is depends on `kind`.

    "ndjson": bytes of JSON; "lines": a text; "csv": the cells, list[str]; "parquet": column -> value; "pictures": the
    bytes of a picture's file.
    """

    kind: str
    total: int  # in the unit of Place.offset
    columns: tuple[str, ...]  # of a table that names them
    has_names: bool  # whether its records have names, apart from a column or field with them

    def read(self, start: Place) -> Iterator[tuple[Record | BadRow, Place]]:
        """The rows after `start`, each with the place behind it.

        Raises:
            InputError, OSError: the rest cannot be read.
        """
        ...

    def digest(self) -> str:
        """What tells this INPUT from another: a text that changes with its content."""
        ...
