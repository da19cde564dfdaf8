"""Regular nested lists of numbers, read from the bytes of a predict request: REST's hot path.

`{"instances": [[0.1, 0.2], [0.3, 0.4]]}` is read without a Python object for each number: simdjson parses the request
and hands over all numbers of a list at once, however it is nested, in binary. It says nothing of the shape, which is
found in the brackets and commas alone. So are lists that have names, `{"inputs": {"a": [1, 2], "b": [[3]]}}` and
`{"instances": [{"a": [1, 2]}, {"a": [3, 4]}]}`, where they are long. What is not that regular takes the ordinary way
over json_text.py and json_tensors.py, with the same result.
"""

import math
import re
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import simdjson

from bookserve.serving.wire.tensors import MAX_RANK, Array

_HEAD = re.compile(rb'\{\s*(?:"signature_name"\s*:\s*"(\w*)"\s*,\s*)?"(instances|inputs)"\s*:\s*(?=[\[{])')
_NAME = re.compile(rb'"([\w./:-]{1,250})"\s*:')  # of an input; other names are left to the ordinary way
_SPACE = b" \t\r\n"
_LONG = 500  # bytes of a list that has a name: to look at many short ones one by one takes longer than the ordinary way
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
    """A request with Numbers at `instances` or `inputs`, maybe behind a `signature_name`: of all its numbers, or by
    name, for `instances` in each row.

    None where the ordinary way is to be taken.
    """
    head = _HEAD.match(body)
    if head is None or not body.endswith(b"}"):
        return None
    key, rest = head[2].decode(), body[head.end() : -1]
    has_names = b'"' in rest
    layout: Any = (
        _named_shapes(rest, key == "instances") if has_names else _shape_of(rest.translate(None, _BESIDE_THE_SKELETON))
    )
    if layout is None:
        return None
    try:
        parsed: Any = simdjson.Parser().parse(body)
        value = parsed[key]
        if not has_names:
            numbers: Any = Numbers(value, layout)
        elif key == "inputs":
            numbers = _by_name(value, layout)
        else:
            numbers = [_by_name(row, layout) for row in value]
    except (ValueError, RuntimeError):
        return None
    return {key: numbers} if head[1] is None else {"signature_name": head[1].decode(), key: numbers}


def named(value: Any) -> bool:
    """Whether `read` made the value, of lists that have names."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and isinstance(next(iter(first.values()), None), Numbers)


def built(value: Any) -> Any:
    """The value as the ordinary way has it, whether or not `read` made it."""
    if isinstance(value, Numbers):
        return value.nested()
    if not named(value):
        return value
    if isinstance(value, list):
        return [built(row) for row in value]
    return {name: numbers.nested() for name, numbers in value.items()}


def _by_name(value: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, Numbers]:
    return {name: Numbers(value[name], shape) for name, shape in shapes.items()}


def _named_shapes(text: bytes, rows: bool) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the lists of an object; or, for `rows`, of a list of objects that have the same names in the same
    order and lists of the same shapes.
    """
    quotes = text.count(b'"')
    if len(text) < _LONG * quotes // 2:
        return None
    before, *parts = _NAME.split(text)
    names = parts[0::2]
    width = len(set(names))
    if not names or quotes != 2 * len(names) or before.translate(None, _SPACE) != (b"[{" if rows else b"{"):
        return None  # there are texts, or other names
    if names != names[:width] * (len(names) // width) or not (rows or len(names) == width):
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for place, part in enumerate(parts[1::2]):
        ends_row, ends = (place + 1) % width == 0, place + 1 == len(names)
        ending = (b"}]" if rows else b"}") if ends else b"},{" if ends_row else b","
        skeleton = part.translate(None, _BESIDE_THE_SKELETON)
        shape = _shape_of(skeleton.removesuffix(ending)) if skeleton.endswith(ending) else None
        if shape is None or shapes.setdefault(names[place].decode(), shape) != shape:
            return None
    return shapes


def _shape_of(skeleton: bytes) -> tuple[int, ...] | None:
    """The same as `_shape`, remembered where the skeleton is short."""
    return _remembered_shape(skeleton) if len(skeleton) <= _MAX_REMEMBERED else _shape(skeleton)


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
