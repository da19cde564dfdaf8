"""A user's own table of numbers, from a CSV file to splits: the columns x tell a number y, or one of two classes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.training.datasets import table
from bookserve.training.datasets.files import DataError, Origin, sha256_of
from bookserve.training.datasets.own_data import PointTable
from bookserve.training.datasets.splits import Splits, divide
from bookserve.training.datasets.toy import Points, Split

LEAST_ROWS = 20
LEAST_OF_CLASS = 3  # one for each split
LARGEST = 1e15  # of a number; beyond, float32 says nothing any more
TOLD = 5  # lines that a message names


@dataclass(frozen=True)
class _Numbers:
    """`x` float64 [n, columns], and the cells of the column y with their lines."""

    x: npt.NDArray[np.float64]
    y: list[str]
    lines: tuple[int, ...]


def read_numbers(own: PointTable, seed: int) -> Points:
    """The splits, 80, 10 and 10 percent drawn by the seed, of a table whose column y has numbers.

    Raises:
        DataError: as `table.read`; a cell is no finite number, there are less than 20 rows, or y is constant.
    """
    numbers = _read(own)
    y = _columns(own, [own.y], [[cell] for cell in numbers.y], numbers.lines)[:, 0]
    if np.ptp(y) == 0:
        raise DataError(f"{own.file}: the column '{own.y}' is {y[0]:g} in every row: there is nothing to learn from it")
    return _points(own, numbers.x, y, divide(len(y), seed), (), f"80, 10 and 10 percent, drawn by seed {seed}")


def read_classes(own: PointTable, seed: int) -> Points:
    """The same of a table whose column y has two different values, the classes 0 and 1 in their order; `labels` are the
    values. Each class is divided by itself.

    Raises:
        DataError: as `table.read`; a cell of x is no finite number, y has not two values, or one in less than 3 rows.
    """
    numbers = _read(own)
    empty = [line for cell, line in zip(numbers.y, numbers.lines, strict=True) if not cell]
    if empty:
        raise DataError(f"{own.file}, line {_listed(empty)}: the column '{own.y}' is empty: fill or remove these rows")
    labels = sorted(set(numbers.y), key=_by_number)
    if len(labels) != 2:
        told = ", ".join(table.shown(label) for label in labels[:TOLD]) + (" …" if len(labels) > TOLD else "")
        raise DataError(
            f"{own.file}: the column '{own.y}' has {len(labels)} different values ({told}); two classes are learnt, so "
            "it must have two"
        )
    y = np.array([labels.index(cell) for cell in numbers.y], np.int64)
    for label, count in zip(labels, np.bincount(y), strict=True):
        if count < LEAST_OF_CLASS:
            raise DataError(
                f"{own.file}: {table.shown(label)} stands in {count} rows of '{own.y}'; a class needs "
                f"{LEAST_OF_CLASS}, to train, validate and test"
            )
    division = f"80, 10 and 10 percent of each class, drawn by seed {seed}"
    return _points(own, numbers.x, y, divide(len(y), seed, y), tuple(labels), division)


def _read(own: PointTable) -> _Numbers:
    if own.y in own.x:
        raise DataError(f"'{own.y}' is both a column to predict from and the column to predict: leave it out of one")
    read = table.read(own.file, (*own.x, own.y))
    x = _columns(own, own.x, [row[:-1] for row in read.rows], read.lines)
    if len(x) < LEAST_ROWS:
        raise DataError(f"{own.file} has {len(x)} rows; {LEAST_ROWS} at least are needed to train, validate and test")
    return _Numbers(x, [row[-1] for row in read.rows], read.lines)


def _columns(
    own: PointTable, names: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Cells as numbers, float64 [rows, columns].

    Raises:
        DataError: one is none; the message names the first lines.
    """
    values = np.empty((len(rows), len(names)))
    faults = []
    for place, (cells, line) in enumerate(zip(rows, lines, strict=True)):
        for column, cell in enumerate(cells):
            values[place, column] = _number(cell)
            if math.isnan(values[place, column]):
                faults.append(f"line {line}: '{names[column]}' is {table.shown(cell)}")
    if faults:
        more = f"; and {len(faults) - TOLD} more" if len(faults) > TOLD else ""
        raise DataError(
            f"{own.file}, {'; '.join(faults[:TOLD])}{more}: a number below {LARGEST:g}, such as 12.5, has to stand "
            "there; fill or remove these rows"
        )
    return values


def _number(cell: str) -> float:
    """The number of a cell; NaN if it is none, not finite or huge."""
    try:
        value = float(cell)
    except ValueError:
        return math.nan
    return value if abs(value) <= LARGEST and "_" not in cell else math.nan


def _by_number(label: str) -> tuple[bool, float, str]:
    """Numbers in their order, before text in its own."""
    value = _number(label)
    return (True, 0.0, label) if math.isnan(value) else (False, value, label)


def _listed(lines: Sequence[int]) -> str:
    more = f" and {len(lines) - TOLD} more" if len(lines) > TOLD else ""
    return ", ".join(str(line) for line in lines[:TOLD]) + more


def _points(
    own: PointTable,
    x: npt.NDArray[np.float64],
    y: npt.NDArray[Any],
    parts: Sequence[npt.NDArray[np.int64]],
    labels: tuple[str, ...],
    division: str,
) -> Points:
    train, valid, test = (Split(x[part].astype(np.float32), y[part].astype(np.float32)) for part in parts)
    origin = Origin("own", own.file.name, sha256_of(own.file))
    return Splits(train, valid, test, origin, labels=labels, columns=own.x, division=division)
