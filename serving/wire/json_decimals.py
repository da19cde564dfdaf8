"""Decimals of REST answers: the fewest digits that tell a number, in TensorFlow Serving's notation where that differs.

TensorFlow Serving (`WriteDecimal` of util/json_tensor.cc) writes six digits where these tell a number from all others
of its type, else nine (float32) or seventeen (float64), as printf's %g does: `1e+06`, `3e-05`. Here numbers from 1e-4
to 1e6 have the fewest digits, by orjson, which is twenty times as fast: `0.33333334`, there `0.333333343`.
"""

import math
from collections.abc import Sequence

import numpy as np
import orjson

from bookserve.serving.wire.tensors import Array

_LEAST, _MOST = 1e-4, 1e6  # of what orjson writes
_FEW = 256  # values that are looked at faster one by one
_SPECIAL = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def rows(array: Array) -> list[str]:
    """The JSON of each row of a float32 or float64 array of rank 1 or more, on one line."""
    array = np.ascontiguousarray(array)
    if array.ndim > 1 and _is_plain(array):
        return [_dumps(row) for row in array]
    return nested(tokens(array.ravel()), array.shape)


def joined(array: Array) -> str:
    """The same, with ", " between the rows."""
    array = np.ascontiguousarray(array)
    return _dumps(array)[1:-1] if _is_plain(array) else ", ".join(nested(tokens(array.ravel()), array.shape))


def tokens(values: Array) -> list[str]:
    """The decimals of an array of rank 1."""
    if not values.size:
        return []
    texts = _dumps(values)[1:-1].split(", ")
    others = np.flatnonzero(~_plain(values)).tolist()
    for index, text in zip(others, _original(values[others]), strict=True):
        texts[index] = text
    return texts


def nested(tokens: Sequence[str], shape: tuple[int, ...]) -> list[str]:
    """The JSON of each row of an array of that shape, whose values have these texts."""
    rows = list(tokens)
    for axis in range(len(shape) - 1, 0, -1):
        size = shape[axis]
        count = math.prod(shape[:axis])
        rows = ["[" + ", ".join(rows[row * size : (row + 1) * size]) + "]" for row in range(count)]
    return rows


def stacked(tokens: Sequence[str], shape: tuple[int, ...], depth: int) -> str:
    """The JSON of an array of that shape, whose values have these texts, with a line for each.

    `depth` is how deep the array is in the answer; RapidJSON's PrettyWriter indents by four.
    """
    parts = list(tokens)
    for axis in range(len(shape) - 1, -1, -1):
        size = shape[axis]
        end = "\n" + "    " * (depth + axis)
        start = f"{end}    "
        count = math.prod(shape[:axis])
        if size:
            lists = (parts[place * size : (place + 1) * size] for place in range(count))
            parts = [f"[{start}{f',{start}'.join(values)}{end}]" for values in lists]
        else:
            parts = ["[]"] * count
    return parts[0]


def _is_plain(array: Array) -> bool:
    """Whether orjson writes all values as TensorFlow Serving does, but for the number of digits."""
    if array.size > _FEW:
        return bool(_plain(array).all())
    values = array.ravel().tolist()
    return all(_LEAST <= value < _MOST or value == 0 or -_MOST < value <= -_LEAST for value in values)


def _plain(array: Array) -> Array:
    size = np.abs(array)
    return np.asarray((size >= _LEAST) & (size < _MOST) | (size == 0))


def _dumps(array: Array) -> str:
    return orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY).replace(b",", b", ").decode()


def _original(values: Array) -> list[str]:
    """The decimals of an array of rank 1 as TensorFlow Serving writes them."""
    numbers = values.tolist()
    count = len(numbers)
    six = ("%.6g " * count % tuple(numbers)).split()
    with np.errstate(over="ignore", invalid="ignore"):  # of what rounds beyond the largest number, and of NaN
        enough = (np.array(list(map(float, six))).astype(values.dtype) == values).tolist()
    if not all(enough):
        more = ("%.9g " if values.dtype == np.float32 else "%.17g ") * count % tuple(numbers)
        six = [short if told else long for short, long, told in zip(six, more.split(), enough, strict=True)]
    return [text if "." in text or "e" in text else _SPECIAL.get(text) or text + ".0" for text in six]
