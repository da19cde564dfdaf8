"""Regular nested lists of numbers, read from the bytes of a predict request: REST's hot path.

`{"instances": [[0.1, 0.2], [0.3, 0.4]]}` is read without its lists being built: the numbers as one flat list, and the
brackets and commas by comparison with those of an earlier request. What is not that regular, or the first of its shape,
takes the ordinary way over json_text.py and json_tensors.py, with the same result. What is large goes to json_large.py.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from bookserve.serving.wire import json_large
from bookserve.serving.wire.json_large import LargeNumbers

_HEAD = re.compile(rb'\{\s*(?:"signature_name"\s*:\s*"(\w*)"\s*,\s*)?"(instances|inputs)"\s*:\s*(?=\[)')
_NUMBER = b"+-.0123456789Ee"
_SPACE = b" \t\r\n"
_BRACKETS = b"[]"
# What each character is, as a bit.
_PART, _OPEN, _CLOSE = 1, 2, 4
_KINDS = bytes(_PART if code in _NUMBER else {ord("["): _OPEN, ord("]"): _CLOSE}.get(code, 0) for code in range(256))
# Skeletons that are remembered: how many, and how long.
_MAX_KNOWN = 128
_MAX_LENGTH = 1 << 18
_LARGE = 1 << 18  # bytes

# Brackets and commas of a list -> its shape.
_KNOWN: dict[bytes, tuple[int, ...]] = {}


@dataclass(frozen=True, slots=True)
class Numbers:
    """A nested list of numbers that has not been built: its numbers in order, int or float, and its shape."""

    flat: list[Any]
    shape: tuple[int, ...]

    def nested(self) -> list[Any]:
        """The list itself."""
        level = self.flat
        for size in reversed(self.shape[1:]):
            level = [level[start : start + size] for start in range(0, len(level), size)]
        return level


def read(body: bytes) -> dict[str, Any] | None:
    """A request with its Numbers or LargeNumbers at `instances` or `inputs`, maybe behind a `signature_name`.

    None where the ordinary way is to be taken.
    """
    head = _HEAD.match(body)
    if head is None or not body.endswith(b"}"):
        return None
    text = body[head.end() : -1]
    skeleton = text.translate(None, _NUMBER + _SPACE)
    if len(text) >= _LARGE:
        large = json_large.read(body, head[2].decode(), skeleton)
        return None if large is None else _request(head, large)
    shape = _KNOWN.get(skeleton)
    if shape is None:
        return None
    # The skeleton is a regular list's. A number may stand only behind "[" or "," and before "]" or ","; where one is
    # missing or broken, the flat list is no JSON.
    kinds = np.frombuffer(text.translate(_KINDS, _SPACE), np.uint8)
    before, after = kinds[:-1], kinds[1:]
    if ((before << 1 & after & _OPEN) | (before >> 2 & after & _PART)).any():
        return None
    try:
        flat = orjson.loads(b"[%b]" % text.translate(None, _BRACKETS))
    except orjson.JSONDecodeError:
        return None
    return _request(head, Numbers(flat, shape)) if flat else None  # of `[[]]` it is empty


def _request(head: re.Match[bytes], numbers: Numbers | LargeNumbers) -> dict[str, Any]:
    request: dict[str, Any] = {} if head[1] is None else {"signature_name": head[1].decode()}
    request[head[2].decode()] = numbers
    return request


def remember(shape: tuple[int, ...]) -> None:
    """Lets lists of this shape be read by `read` from now on."""
    skeleton = _skeleton(shape)
    if skeleton is None or skeleton in _KNOWN:
        return
    if len(_KNOWN) >= _MAX_KNOWN:
        _KNOWN.clear()
    _KNOWN[skeleton] = shape


def _skeleton(shape: tuple[int, ...]) -> bytes | None:
    """Brackets and commas of a list of that shape; None for no list, an empty one, or one that is too large."""
    if not shape or 0 in shape:
        return None
    skeleton = b""
    for size in reversed(shape):
        if size * (len(skeleton) + 1) + 2 > _MAX_LENGTH:
            return None
        skeleton = b"[%b]" % b",".join([skeleton] * size)
    return skeleton
