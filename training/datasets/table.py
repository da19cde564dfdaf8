"""A user's CSV file as rows of text: the columns that are asked for, each row with its line in the file.

Commas, semicolons or tabs part the columns. Whatever is wrong with the file is said with its line, what stands there,
and what would do.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bookserve.training.datasets import text_file
from bookserve.training.datasets.files import DataError

MAX_BYTES = 1 << 30  # of a file: it is read into memory
SEPARATORS = ",;\t"
_SHOWN = 40  # characters of a cell in a message
_COLUMNS_SHOWN = 20  # in a message


@dataclass(frozen=True)
class Table:
    """The cells of some columns, without blanks around them: a row of text each, and the line on which it ends."""

    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]


def read(path: Path, columns: Sequence[str]) -> Table:
    """The cells of `columns`, in that order, of every row that is not blank.

    Raises:
        DataError: the file is missing, too large, empty, no UTF-8 or no CSV; a column is missing or there twice; a row
            has more or fewer cells than there are columns; or there are no rows. The message names the file and line.
    """
    text = text_file.read(path, "a CSV file whose first line names its columns", MAX_BYTES)
    head = text.partition("\n")[0]
    separator = max(SEPARATORS, key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, lines = [], []
    try:
        names = [name.strip() for name in next(reader)]
        places = _places(path, names, columns)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells where the first line names {len(names)} "
                    "columns; a cell with a separator in it needs quotes"
                )
            rows.append(tuple(cells[place].strip() for place in places))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}, cannot be read as CSV: {error}") from error
    if not rows:
        raise DataError(f"{path} has a line of column names and no rows below it")
    return Table(tuple(rows), tuple(lines))


def shown(cell: str) -> str:
    """A cell as a message has it."""
    return repr(cell if len(cell) <= _SHOWN else f"{cell[:_SHOWN]}…")


def _places(path: Path, names: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Where the columns stand.

    Raises:
        DataError: one is missing or there twice.
    """
    missing = [column for column in columns if column not in names]
    if missing:
        more = f" and {len(names) - _COLUMNS_SHOWN} more" if len(names) > _COLUMNS_SHOWN else ""
        there = ", ".join(shown(name) for name in names[:_COLUMNS_SHOWN])
        wanted = ", ".join(f"'{name}'" for name in missing)
        raise DataError(f"{path} has no column {wanted}; its first line names {there}{more}")
    twice = [column for column in columns if names.count(column) > 1]
    if twice:
        raise DataError(f"{path} has the column '{twice[0]}' twice: give one of them another name")
    return [names.index(column) for column in columns]
