"""Large nested lists of numbers, read from the bytes of a predict request without a Python object for each number.

simdjson parses the request and hands over all numbers of a list at once, however it is nested, in binary. It says
nothing of the shape, which is found in the brackets and commas alone.
"""

import math
from typing import Any, Literal, cast

import numpy as np
import simdjson

from bookserve.serving.wire.tensors import MAX_RANK, Array

Form = Literal["d", "i", "u"]  # simdjson's names of the widest types
_WIDEST: dict[Form, np.dtype[Any]] = {"d": np.dtype(np.float64), "i": np.dtype(np.int64), "u": np.dtype(np.uint64)}


class LargeNumbers:
    """A nested list of numbers that has been parsed and not been built, and its shape."""

    __slots__ = ("_list", "shape")

    def __init__(self, parsed: simdjson.Array, shape: tuple[int, ...]) -> None:
        self._list = parsed
        self.shape = shape

    def array(self, dtype: np.dtype[Any]) -> Array | None:
        """The list as an array of floats or integers; None where a value is not of that type, or is missing."""
        form: Form = "d" if dtype.kind == "f" else "u" if dtype == np.uint64 else "i"
        try:
            wide = np.frombuffer(self._list.as_buffer(of_type=form), _WIDEST[form])
        except (TypeError, ValueError, RuntimeError):
            return None
        if wide.size != math.prod(self.shape):
            return None
        with np.errstate(over="ignore"):
            array = wide.astype(dtype, copy=False)
        exact = np.isfinite(array) if dtype.kind == "f" else array == wide
        return array.reshape(self.shape) if exact.all() else None

    def nested(self) -> list[Any]:
        """The list itself."""
        return self._list.as_list()


def read(body: bytes, key: str, skeleton: bytes) -> LargeNumbers | None:
    """The list at `key` of a request; `skeleton` is the list without its numbers and spaces.

    None for what is no JSON, or no regular list.
    """
    shape = _shape(skeleton)
    if shape is None:
        return None
    try:
        parsed = cast(dict[str, simdjson.Array], simdjson.Parser().parse(body))
        return LargeNumbers(parsed[key], shape)
    except (ValueError, RuntimeError):
        return None


def _shape(skeleton: bytes) -> tuple[int, ...] | None:
    """The shape of the regular list that has these brackets and commas; None where there is none."""
    rank = len(skeleton) - len(skeleton.lstrip(b"["))
    if not 0 < rank <= MAX_RANK:
        return None
    shape = []
    inner = b""  # one element of the list that is looked at, from the innermost to the whole
    for level in range(1, rank + 1):
        end = skeleton.find(b"]" * level)
        size, rest = divmod(end + level - 1 - (rank - level), len(inner) + 1)
        if end < 0 or rest:
            return None
        shape.append(size)
        inner = b"[%b%b]" % ((inner + b",") * (size - 1), inner)
    return tuple(reversed(shape)) if inner == skeleton else None
