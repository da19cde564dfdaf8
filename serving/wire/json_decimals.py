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
_BLOCK = 1 << 16  # values that are written at a time
_TENS = 10.0 ** np.arange(60)  # by exponent
_DOUBT = 1e-6  # more than the error of a number of nine digits in float64
_SPECIAL = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def rows(array: Array) -> list[str]:
    """The JSON of each row of a float32 or float64 array of rank 1 or more, on one line."""
    if array.ndim == 1:
        return tokens(array)
    lists = array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
    return nested(_lists(lists), array.shape[:-1])


def joined(array: Array) -> str:
    """The same, with ", " between the rows."""
    return _text(array) if array.ndim == 1 else ", ".join(rows(array))


def tokens(values: Array) -> list[str]:
    """The decimals of an array of rank 1."""
    if not values.size:
        return []
    values = np.ascontiguousarray(values)
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


def _lists(array: Array) -> list[str]:
    """The JSON of each row of an array of rank 2, in blocks: the texts of single numbers take much memory."""
    width = array.shape[-1]
    if width > _BLOCK:
        return [f"[{_text(row)}]" for row in array]
    texts: list[str] = []
    step = _BLOCK // max(width, 1)
    for start in range(0, len(array), step):
        block = np.ascontiguousarray(array[start : start + step])
        if _is_plain(block):
            texts += _dumps(block)[2:-2].split("], [")
        else:
            texts += [row[1:-1] for row in nested(tokens(block.ravel()), block.shape)]
    return [f"[{text}]" for text in texts]


def _text(values: Array) -> str:
    """The JSON of an array of rank 1 without its brackets."""
    blocks = (np.ascontiguousarray(values[start : start + _BLOCK]) for start in range(0, values.size, _BLOCK))
    return ", ".join([_dumps(block)[1:-1] if _is_plain(block) else ", ".join(tokens(block)) for block in blocks])


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
    if values.dtype == np.float32 and values.size > _FEW:
        size = np.abs(values)
        small = (size < _LEAST) & (size > 0)
        if small.all():
            return _small(values)
        texts = np.empty(values.size, dtype=object)
        texts[small], texts[~small] = _small(values[small]), _printed(values[~small])
        return list(texts)
    return _printed(values)


def _printed(values: Array) -> list[str]:
    """The same by printf, number by number."""
    numbers = values.tolist()
    count = len(numbers)
    six = ("%.6g " * count % tuple(numbers)).split()
    with np.errstate(over="ignore", invalid="ignore"):  # of what rounds beyond the largest number, and of NaN
        enough = (np.array(list(map(float, six))).astype(values.dtype) == values).tolist()
    if not all(enough):
        more = ("%.9g " if values.dtype == np.float32 else "%.17g ") * count % tuple(numbers)
        six = [short if told else long for short, long, told in zip(six, more.split(), enough, strict=True)]
    return [text if "." in text or "e" in text else _SPECIAL.get(text) or text + ".0" for text in six]


def _small(values: Array) -> list[str]:
    """The same for many float32 numbers between 0 and 1e-4, as the probabilities of many classes are, all at once.

    In float64 their digits are right unless what is rounded lies within `_DOUBT` of a tie; those go to printf.
    """
    size = np.abs(values.astype(np.float64))
    exponent = np.floor(np.log10(size)).astype(np.int64)  # maybe one off
    exponent += (size * _TENS[-exponent] >= 10).astype(np.int64) - (size * _TENS[-exponent] < 1)
    scaled = size * _TENS[8 - exponent]  # nine digits before the point
    nine, six = np.rint(scaled), np.rint(scaled / 1000)
    doubt = (np.abs(scaled % 1 - 0.5) < _DOUBT) | (np.abs(scaled / 1000 % 1 - 0.5) < _DOUBT)
    back = six * (1 / _TENS[5 - exponent])  # what six digits tell
    low, high = (back * (1 - 1e-15)).astype(np.float32), (back * (1 + 1e-15)).astype(np.float32)
    doubt |= (low != high) | (nine >= 1e9) | (six >= 1e6)
    digits = np.where(low == np.abs(values), six * 1000, nine).astype(np.int64)
    table = np.empty((values.size, 16), np.uint8)  # a number's characters; 0 is none
    table[:, 0] = np.where(values < 0, ord("-"), 0)
    ending = np.ones(values.size, bool)  # nothing but zeros so far, from behind
    for column in range(10, 2, -1):
        digits, digit = np.divmod(digits, 10)
        ending &= digit == 0
        table[:, column] = np.where(ending, 0, digit + ord("0"))
    table[:, 2] = np.where(ending, 0, ord("."))
    table[:, 1] = digits + ord("0")
    table[:, 11], table[:, 12], table[:, 15] = ord("e"), ord("-"), ord(",")
    tens, ones = np.divmod(-exponent, 10)
    table[:, 13], table[:, 14] = tens + ord("0"), ones + ord("0")
    texts: list[str] = table[table != 0].tobytes()[:-1].decode().split(",")
    places = np.flatnonzero(doubt).tolist()
    for place, text in zip(places, _printed(values[places]), strict=True):
        texts[place] = text
    return texts
