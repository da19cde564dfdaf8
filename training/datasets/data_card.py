"""The data card of a training: what its rows are, how they were divided, and what a reader of its figures must know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

LEFT_OUT_SHOWN = 20


@dataclass(frozen=True)
class DataCard:
    """What stands in the manifest of a version.

    `rows`: split -> rows. `classes`: split -> class -> rows, or label -> rows that have it. `missing`: split -> label
    -> rows without a value. `ranges`: a quantity -> its smallest, median and largest value in the training rows, such
    as the words of a sentence. `duplicates`: "test in train" -> test rows that also stand in the training rows.
    `division` says how the splits were made; `left_out` counts what could not be used, `left_out_first` says why.
    """

    rows: dict[str, int]
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    missing: dict[str, dict[str, int]] = field(default_factory=dict)
    ranges: dict[str, list[float]] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    division: str = ""
    left_out: int = 0
    left_out_first: list[str] = field(default_factory=list)


def duplicates(splits: Mapping[str, Sequence[bytes]]) -> dict[str, int]:
    """For each two splits, how many rows of the later one also stand in the earlier one; a row is its bytes."""
    digests = {name: [blake2b(row, digest_size=16).digest() for row in rows] for name, rows in splits.items()}
    known = {name: set(rows) for name, rows in digests.items()}
    return {
        f"{later} in {earlier}": sum(row in known[earlier] for row in digests[later])
        for earlier, later in combinations(splits, 2)
    }


def row_bytes(inputs: Mapping[str, npt.NDArray[Any]]) -> list[bytes]:
    """Each row of the inputs, arrays [n, ...], as bytes."""
    arrays = [np.ascontiguousarray(array) for array in inputs.values()]
    return [b"".join(array[row].tobytes() for array in arrays) for row in range(len(arrays[0]))]


def spread(values: npt.NDArray[Any]) -> list[float]:
    """The smallest, the median and the largest of numbers [n]; nothing where there are none."""
    if not values.size:
        return []
    return [float(np.min(values)), float(np.median(values)), float(np.max(values))]
