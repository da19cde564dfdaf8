"""The outline of a version's graph for its page: which operations it has, how often, and what goes in and out.

An ONNX file or a SavedModel is read from the store without its weights and without an engine: protobuf says how long
each field is (https://protobuf.dev/programming-guides/encoding/), so what is not told is passed over. LiteRT files are
read by `litert_outline.py`.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf.message import DecodeError

from bookserve.serving.gateway import litert_outline
from bookserve.serving.wire.onnx_graph_pb2 import ValueInfoProto

MAX_FIELDS = 200_000  # of a file; a node has about ten
MAX_KINDS = 100  # of operations that are listed, the most frequent ones
MAX_TENSORS = litert_outline.MAX_TENSORS
_MAX_TEXT = 200  # bytes of a name
_MAX_TENSOR = 1 << 16  # bytes of what is said of an input
_LENGTH = 2  # a field whose length stands before it
_SIZES = {1: 8, 5: 4}  # wire type -> bytes of a number

# Where a format's file has its operations: field numbers from the outermost message in, and of a node those of the
# operation and of its domain.
_ONNX = {"nodes": ((7, 1), (25, 7)), "name": 4, "domain": 7}  # graph, functions
_SAVED_MODEL = {"nodes": ((2, 2, 1), (2, 2, 2, 1, 3)), "name": 2, "domain": 0}  # graph, library of functions
FILES: dict[str, dict[str, Any] | None] = {
    **{"assets.extra/model.onnx": _ONNX, "model.onnx": _ONNX, "saved_model.pb": _SAVED_MODEL},
    **(dict.fromkeys(("assets.extra/model.tflite", "model.tflite")) if litert_outline.KNOWN else {}),
}
_ONNX_INITIALIZER, _ONNX_INPUT, _ONNX_OUTPUT = (7, 5), (7, 11), (7, 12)
_INITIALIZER_NAME = 8
_TYPES = (
    *("", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16", "float64"),
    *("uint32", "uint64", "complex64", "complex128", "bfloat16"),
)


class _Enough(Exception):
    """A file has more fields than are read."""


class _Reader:
    """A file in protobuf's encoding, of which only what is asked for is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._fields = 0

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The fields with a length between two places: number, start and end. ValueError where they do not fit."""
        place = start
        while place < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise _Enough
            self._file.seek(place)
            key = self._number()
            number, kind = key >> 3, key & 7
            if kind == _LENGTH:
                size = self._number()
                place = self._file.tell()
                if size > end - place:
                    raise ValueError("a field ends behind its message")
                yield number, place, place + size
                place += size
            elif kind == 0:
                self._number()
                place = self._file.tell()
            elif kind in _SIZES:
                place = self._file.tell() + _SIZES[kind]
            else:
                raise ValueError(f"no field is of the wire type {kind}")

    def bytes(self, start: int, end: int, most: int) -> bytes:
        """What stands between two places, at most so many bytes."""
        self._file.seek(start)
        return self._file.read(min(end - start, most))

    def text(self, start: int, end: int) -> str:
        """The same as text."""
        return self.bytes(start, end, _MAX_TEXT).decode("utf-8", "replace")

    def _number(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._file.read(1)
            if not byte:
                raise ValueError("the file ends within a field")
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return value
        raise ValueError("a number has more than ten bytes")


class _Outline:
    """What was found so far."""

    def __init__(self, reader: _Reader, form: dict[str, Any]) -> None:
        self._reader = reader
        self._form = form
        self._places = {*form["nodes"], *((_ONNX_INITIALIZER, _ONNX_INPUT, _ONNX_OUTPUT) if form is _ONNX else ())}
        self._parents = {place[:depth] for place in self._places for depth in range(1, len(place))}
        self.counts: Counter[str] = Counter()
        self.constants: set[str] = set()
        self.tensors: dict[tuple[int, ...], list[dict[str, Any]]] = {_ONNX_INPUT: [], _ONNX_OUTPUT: []}

    def read(self, above: tuple[int, ...], start: int, end: int) -> None:
        for number, first, last in self._reader.fields(start, end):
            place = (*above, number)
            if place in self._form["nodes"]:
                self._count(first, last)
            elif place == _ONNX_INITIALIZER and place in self._places:
                self._initializer(first, last)
            elif place in self.tensors and place in self._places:
                if last - first <= _MAX_TENSOR:
                    self.tensors[place].append(_tensor(self._reader.bytes(first, last, _MAX_TENSOR)))
            elif place in self._parents:
                self.read(place, first, last)

    def _count(self, start: int, end: int) -> None:
        told = {number: (first, last) for number, first, last in self._reader.fields(start, end)}
        name = self._reader.text(*told[self._form["name"]]) if self._form["name"] in told else ""
        domain = self._reader.text(*told[self._form["domain"]]) if self._form["domain"] in told else ""
        self.counts[f"{domain}.{name}" if domain not in ("", "ai.onnx") else name] += 1

    def _initializer(self, start: int, end: int) -> None:
        for number, first, last in self._reader.fields(start, end):
            if number == _INITIALIZER_NAME:
                self.constants.add(self._reader.text(first, last))


def find(version: Path) -> str | None:
    """The file of a version's folder that is outlined; None where it has neither ONNX, SavedModel nor LiteRT."""
    for name in FILES:
        path = version / name
        if path.is_file() and not path.is_symlink() and not path.parent.is_symlink():
            return name
    return None


def outline(version: Path) -> dict[str, Any] | None:
    """The outline of the graph in a version's folder; None where it has no file of `find`, or no whole one.

    `file` and its `bytes`, `nodes` in all, the most frequent `operations` as [name, count], `kinds` in all, and whether
    that is the `whole` file; bodies of loops and branches are counted of LiteRT alone, those of functions once. Of ONNX
    and LiteRT also `inputs` and `outputs` with `name`, `dtype` and `shape`, where a size is a number, a name, or null.
    """
    name = find(version)
    if name is None:
        return None
    form = FILES[name]
    try:
        with (version / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = litert_outline.outline(file) if form is None else _of_protobuf(file, size, form)
    except (OSError, ValueError, DecodeError):
        return None
    counts = found.pop("counts")
    return {
        "file": name,
        "bytes": size,
        "nodes": counts.total(),
        "kinds": len(counts),
        "operations": [list(pair) for pair in counts.most_common(MAX_KINDS)],
        **found,
    }


def _of_protobuf(file: BinaryIO, size: int, form: dict[str, Any]) -> dict[str, Any]:
    """As `litert_outline.outline`; a SavedModel has no `inputs` and `outputs`. Raises ValueError, DecodeError."""
    found, whole = _Outline(_Reader(file), form), True
    try:
        found.read((), 0, size)
    except _Enough:
        whole = False
    told: dict[str, Any] = {"counts": found.counts, "whole": whole}
    if form is _ONNX:
        inputs = [tensor for tensor in found.tensors[_ONNX_INPUT] if tensor["name"] not in found.constants]
        told |= {"inputs": inputs[:MAX_TENSORS], "outputs": found.tensors[_ONNX_OUTPUT][:MAX_TENSORS]}
    return told


def _tensor(content: bytes) -> dict[str, Any]:
    value = ValueInfoProto.FromString(content)
    told = value.type.tensor_type
    dtype = _TYPES[told.elem_type] if told.elem_type < len(_TYPES) else ""
    sizes = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in told.shape.dim]
    return {"name": value.name[:_MAX_TEXT], "dtype": dtype, "shape": sizes if told.HasField("shape") else None}
