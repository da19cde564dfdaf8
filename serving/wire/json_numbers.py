"""Regular nested lists of numbers, read from the bytes of a predict request: REST's hot path.

`{"instances": [[0.1, 0.2], [0.3, 0.4]]}` is read without a Python object for each number: simdjson parses the request
and hands over all numbers of a list at once, however it is nested, in binary. It says nothing of the shape, which is
found in the brackets and commas alone. What is not that regular takes the ordinary way over json_text.py and
json_tensors.py, with the same result.
"""

import math
import re
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import simdjson

from bookserve.serving.wire.tensors import MAX_RANK, Array

_HEAD = re.compile(rb'\{\s*(?:"signature_name"\s*:\s*"(\w*)"\s*,\s*)?"(instances|inputs)"\s*:\s*(?=\[)')
_BESIDE_THE_SKELETON = b"+-.0123456789Ee \t\r\n"
_MAX_REMEMBERED = 1 << 16  # bytes of brackets and commas; those of longer lists are looked at each time

Form = Literal["d", "i", "u"]  # simdjson's names of the widest types
_WIDEST: dict[Form, np.dtype[Any]] = {"d": np.dtype(np.float64), "i": np.dtype(np.int64), "u": np.dtype(np.uint64)}


class Numbers:
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


def read(body: bytes) -> dict[str, Any] | None:
    """A request with its Numbers at `instances` or `inputs`, maybe behind a `signature_name`.

    None where the ordinary way is to be taken.
    """
    head = _HEAD.match(body)
    if head is None or not body.endswith(b"}"):
        return None
    skeleton = body[head.end() : -1].translate(None, _BESIDE_THE_SKELETON)
    shape = _remembered_shape(skeleton) if len(skeleton) <= _MAX_REMEMBERED else _shape(skeleton)
    if shape is None:
        return None
    key = head[2].decode()
    try:
        parsed: Any = simdjson.Parser().parse(body)
        numbers = Numbers(parsed[key], shape)
    except (ValueError, RuntimeError):
        return None
    return {key: numbers} if head[1] is None else {"signature_name": head[1].decode(), key: numbers}


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


_remembered_shape = lru_cache(maxsize=128)(_shape)
