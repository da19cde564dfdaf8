"""The records of an INPUT, one a row of OUTPUT, and the interface of what reads them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bookserve.clients.answers import Array

MAX_ROW_BYTES = 16 << 20
FEW = 64  # rows of a block that is not halved any more


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


class Block(Protocol):
    """Rows that lie together in an INPUT. What reads them one by one may be called from several threads."""

    @property
    def behind(self) -> Place:
        """The place behind the last row."""
        ...

    def records(self) -> list[Record | BadRow]:
        """Each row by itself, as `Source.read` gives it."""
        ...

    def halves(self) -> "tuple[Block, ...]":
        """Two blocks with its rows; none where it has FEW."""
        ...


@dataclass(frozen=True, slots=True)
class Records:
    """A block of rows that were read one by one."""

    found: list[Record | BadRow]
    behind: Place

    def records(self) -> list[Record | BadRow]:
        """See Block.records."""
        return self.found

    def halves(self) -> tuple[Block, ...]:
        """See Block.halves."""
        middle = len(self.found) // 2
        parts = (self.found[:middle], self.found[middle:]) if len(self.found) > FEW else ()
        return tuple(Records(part, self.behind) for part in parts)


@dataclass(frozen=True, slots=True)
class Numbers:
    """The rows of a block of a table: their numbers [rows, columns], int64 or finite floats, and their names."""

    lines: Sequence[int]
    cells: Array
    names: Sequence[str | None] | None


class Table(Block, Protocol):
    """A block of a table, whose rows may be read at once."""

    def numbers(self, width: int, wanted: Sequence[int], name: int | None, dtype: str) -> Numbers | None:
        """The columns of the numbers `wanted`, of `width` that there are, and the texts in column `name`.

        Floats come as `dtype` where that is a float's, as float64 otherwise.

        None where this is not sure to be what the rows say one by one: each has to be looked at by itself.
        """
        ...


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

    def blocks(self, start: Place, rows: int, size: int) -> Iterator[Block]:
        """The same rows in blocks, each of up to `rows` rows and about `size` bytes. Raises as `read`."""
        ...

    def digest(self) -> str:
        """What tells this INPUT from another: a text that changes with its content."""
        ...


def gathered(found: Iterator[tuple[Record | BadRow, Place]], rows: int, size: int) -> Iterator[Records]:
    """Rows that are read one by one, as blocks."""
    some: list[Record | BadRow] = []
    held, place = 0, Place()
    for one, place in found:
        some.append(one)
        held += _bytes(one)
        if len(some) >= rows or held >= size:
            yield Records(some, place)
            some, held = [], 0
    if some:
        yield Records(some, place)


def _bytes(found: Record | BadRow) -> int:
    """About how much memory a record holds."""
    if isinstance(found, BadRow):
        return 0
    value = found.value
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, list):
        return sum(map(len, value))
    return sum(len(cell) if isinstance(cell, bytes | str | list) else 8 for cell in value.values())
