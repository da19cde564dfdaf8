"""Decimals of REST answers in TensorFlow Serving's digits: `WriteDecimal` of its util/json_tensor.cc.

A number is written with six digits where these tell it from all others of its type, else with nine (float32) or
seventeen (float64), as printf's %g writes them: `1e+06`, `3e-05`, `0.123456702`. A whole number gets `.0`.
"""

import math
from collections.abc import Sequence

import numpy as np
import orjson

from bookserve.serving.wire.tensors import Array

_MANY = 2048  # from so many values on it is faster to write them column by column
_WIDTH = 16  # bytes of the longest float32: -1.23456789e-05
_COLUMNS = _WIDTH + 2  # and the ", " behind it
_POWERS = np.array([float(f"1e{power}") for power in range(-60, 61)])
# Of normal numbers.
_SMALLEST, _SMALLEST_DOUBLE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float64).tiny)
_SPECIAL = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def texts(values: Array) -> list[str]:
    """The decimals of a float32 or float64 array of rank 1."""
    # Where six digits tell a normal number from all others, its shortest form is that number, too.
    shortest = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode().split(",")
    digits, smallest = (9, _SMALLEST) if values.dtype == np.float32 else (17, _SMALLEST_DOUBLE)
    written = []
    for value, short in zip(values.tolist(), shortest, strict=False):
        text = f"{value:.6g}"
        if short == "null":
            text = _SPECIAL[text]
        elif abs(value) < smallest:
            if float(values.dtype.type(text)) != value:
                text = f"{value:.{digits}g}"
        elif float(text) != float(short):
            text = f"{value:.{digits}g}"
        written.append(text if "." in text or "e" in text or short == "null" else text + ".0")
    return written


def nested(tokens: Sequence[str], shape: tuple[int, ...]) -> list[str]:
    """The JSON of each row of an array of that shape, whose values have these texts."""
    rows = list(tokens)
    for axis in range(len(shape) - 1, 0, -1):
        size = shape[axis]
        count = math.prod(shape[:axis])
        rows = ["[" + ", ".join(rows[row * size : (row + 1) * size]) + "]" for row in range(count)]
    return rows


def rows(array: Array) -> list[str]:
    """The JSON of each row of a float array of rank 1 or more, on one line."""
    flat = array.ravel()
    if flat.size < _MANY or array.dtype != np.float32:
        return nested(texts(flat), array.shape)
    with np.errstate(invalid="ignore", over="ignore"):  # of NaN, and of what rounds beyond the largest number
        block = _columns(flat)
    for size in array.shape[:0:-1]:
        block = _enclosed(block, size)
    block[:, -2:] = 0, ord("\n")
    return block.tobytes().translate(None, b"\0").decode().split("\n")[:-1]


def _enclosed(block: Array, size: int) -> Array:
    """Lists of so many rows each; a row ends with ", " before and after."""
    lists = np.empty((block.shape[0] // size, block.shape[1] * size + 4), np.uint8)
    lists[:, 0] = ord("[")
    lists[:, 1:-3] = block.reshape(lists.shape[0], -1)
    lists[:, -5:-3] = 0  # no comma behind the last
    lists[:, -3:] = tuple(b"], ")
    return lists


def _columns(values: Array) -> Array:
    """The text of each float32 and ", ", one a row of bytes (n, _COLUMNS), with 0 where nothing stands."""
    block = np.zeros((values.size, _COLUMNS), np.uint8)
    block[:, -2:] = tuple(b", ")
    block[np.signbit(values), 0] = ord("-")
    size = np.abs(values).astype(np.float64)
    block[size == 0, 1:4] = tuple(b"0.0")
    normal = np.flatnonzero((size >= _SMALLEST) & np.isfinite(size))
    unsure = _write_normal(block, normal, size[normal])
    rest = np.flatnonzero((size > 0) & (size < _SMALLEST) | ~np.isfinite(size))
    for index in np.concatenate([rest, normal[unsure]]).tolist():
        text = texts(values[index : index + 1])[0].encode()
        block[index, :_WIDTH] = tuple(text.ljust(_WIDTH, b"\0"))
    return block


def _write_normal(block: Array, where: Array, size: Array) -> Array:
    """Writes positive normal numbers into these rows; tells of which it cannot be sure how they are rounded."""
    exponent = np.floor(np.log10(size)).astype(np.int32)
    exponent -= size * _power(8 - exponent) < 1e8
    exponent += size * _power(8 - exponent) >= 1e9
    scaled = size * _power(8 - exponent)
    nine = np.rint(scaled)
    unsure: Array = np.abs(np.abs(scaled - nine) - 0.5) < 1e-4
    six = np.floor((nine + 500) / 1000)
    is_short = (six * _power(exponent - 5)).astype(np.float32) == size.astype(np.float32)
    digits = np.where(is_short, six * 1000, nine).astype(np.uint32)
    over = digits >= 10**9
    digits[over] = 10**8
    exponent += over
    table = np.zeros((size.size, 10), np.uint8)  # one more: the 0 behind the point of nine digits
    for column in range(8, -1, -1):
        rest = digits // np.uint32(10)
        table[:, column] = digits - rest * np.uint32(10)
        digits = rest
    significant = 10 - np.argmax(table[:, ::-1] != 0, axis=1)
    precision = np.where(is_short, 6, 9)
    scientific = (exponent < -4) | (exponent >= precision)
    shown = np.where(scientific | (exponent < 0), significant, np.maximum(significant, exponent + 2))
    table += ord("0")
    table *= np.arange(10, dtype=np.uint8) < shown.astype(np.uint8)[:, None]
    for kind in np.unique(exponent * 2 + scientific).tolist():
        power, is_scientific = divmod(kind, 2)
        group = np.flatnonzero((exponent == power) & (scientific == bool(is_scientific)))
        text = np.zeros((group.size, _WIDTH - 1), np.uint8)
        if is_scientific:
            text[:, 0] = table[group, 0]
            text[:, 1] = np.where(significant[group] > 1, ord("."), 0)
            text[:, 2:10] = table[group, 1:9]
            text[:, 10:14] = tuple(f"e{power:+03d}".encode())
        elif power >= 0:
            text[:, : power + 1] = table[group, : power + 1]
            text[:, power + 1] = ord(".")
            text[:, power + 2 : 11] = table[group, power + 1 :]
        else:
            text[:, : 1 - power] = tuple(b"0." + b"0" * (-power - 1))
            text[:, 1 - power : 10 - power] = table[group, :9]
        block[where[group], 1:_WIDTH] = text
    return unsure


def _power(exponents: Array) -> Array:
    return np.asarray(_POWERS[exponents + 60])
