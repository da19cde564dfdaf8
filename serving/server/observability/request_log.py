"""The request log: requests and their answers as JSON lines or TFRecords, in files that take turns.

Requests never wait for it: a record is handed to a thread over a queue that is bounded by records and by bytes, and is
dropped, and counted, where the queue is full. Files are `<prefix>-<date>.jsonl`, then `<prefix>-<date>.1.jsonl` and so
on, or `.tfrecord`; several processes may write to the same ones, since whole records are appended.
"""

import base64
import errno
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bookserve.serving.server.models.config import JSON_LINES
from bookserve.serving.server.observability import request_log_tfrecord
from bookserve.serving.wire.json_tensors import widened
from bookserve.serving.wire.tensors import Array

log = logging.getLogger(__name__)

# A tensor larger than this is written without its values to JSON lines.
MAX_TENSOR_BYTES = 64 << 10
_MAX_QUEUED = 10_000
_MAX_QUEUED_BYTES = 32 << 20
# Records are written some at a time: waking a thread and calling the kernel for each would cost more than its line.
_GATHER_SECONDS = 0.02
_MAX_TOGETHER = 256
_JOIN_SECONDS = 5.0
_OPEN_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One request as it is logged; `fields` is what is JSON already."""

    time: float
    fields: Mapping[str, Any]
    inputs: "Mapping[str, Array | Omitted]"
    outputs: "Mapping[str, Array | Omitted]"
    nbytes: int


@dataclass(frozen=True, slots=True)
class Omitted:
    """What is logged of a large tensor."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class RequestLog:
    """The files of one prefix and the thread that writes them."""

    def __init__(
        self,
        prefix: str,
        max_file_bytes: int,
        max_files: int,
        on_lost: Callable[[str], None],
        format: str = JSON_LINES,
    ) -> None:
        """Starts the thread.

        A file that has reached `max_file_bytes` is followed by another; all but the newest `max_files` are removed, 0
        keeps all. `on_lost` is called on the thread, with the model, for a record that could not be written.
        """
        self._prefix = Path(prefix).absolute()
        self._format = format
        self._max_file_bytes = max_file_bytes
        self._max_files = max_files
        self._on_lost = on_lost
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._put_bytes = 0  # written by the caller alone
        self._done_bytes = 0  # and this by the thread alone
        self._records: list[tuple[str, bytes]] = []  # model and record, to be written
        self._records_bytes = 0
        self._file = -1
        self._size = 0  # of that file
        self._day = ""
        self._complaint = ""
        self._thread = threading.Thread(target=self._write_all, name="request-log", daemon=True)
        self._thread.start()

    def put(self, fields: Mapping[str, Any], inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> bool:
        """Queues one record; False where the queue is full and it is dropped. Called from one thread."""
        kept_inputs: Mapping[str, Array | Omitted] = inputs
        kept_outputs: Mapping[str, Array | Omitted] = outputs
        if self._format == JSON_LINES:
            kept_inputs, kept_outputs = _cut(inputs), _cut(outputs)
        nbytes = sum(_nbytes(tensor) for tensors in (kept_inputs, kept_outputs) for tensor in tensors.values())
        waiting = self._put_bytes - self._done_bytes
        if self._queue.qsize() >= _MAX_QUEUED or waiting + nbytes > _MAX_QUEUED_BYTES:
            return False
        self._put_bytes += nbytes
        self._queue.put(Entry(time.time(), fields, kept_inputs, kept_outputs, nbytes))
        return True

    def stop(self) -> None:
        """Lets the thread end once it has written what is queued."""
        self._queue.put(None)

    def join(self) -> None:
        """Waits for the thread to end, but not for ever on a disk that hangs."""
        self._thread.join(_JOIN_SECONDS)

    # The thread

    def _write_all(self) -> None:
        going = True
        while going:
            entries = [self._queue.get()]
            if self._queue.qsize() < _MAX_TOGETHER:
                time.sleep(_GATHER_SECONDS)
            while len(entries) < _MAX_TOGETHER and not self._queue.empty():
                entries.append(self._queue.get())
            for entry in entries:
                if entry is None:
                    going = False
                else:
                    self._add(entry)
            self._write()
            self._done_bytes += sum([entry.nbytes for entry in entries if entry is not None])
        self._close_file()

    def _add(self, entry: Entry) -> None:
        try:
            if self._format == JSON_LINES:
                record = _line(entry)
            else:
                record = request_log_tfrecord.encode(
                    entry.time, entry.fields, _arrays(entry.inputs), _arrays(entry.outputs)
                )
        except Exception:
            log.exception("fault while writing a record of the request log %s", self._prefix)
            self._on_lost(entry.fields["model"])
            return
        self._records.append((entry.fields["model"], record))
        self._records_bytes += len(record)
        if self._size + self._records_bytes >= self._max_file_bytes:
            self._write()

    def _write(self) -> None:
        """Appends the records that have come together, in one call."""
        if not self._records:
            return
        records, self._records, self._records_bytes = self._records, [], 0
        try:
            day = datetime.now(UTC).strftime("%Y%m%d")
            if day != self._day:
                self._close_file()
                self._day = day
            while self._file < 0:
                self._open()
            self._append(b"".join([record for _, record in records]))
            self._measure()
            self._complaint = ""
        except OSError as error:
            self._complain(f"the request log {self._prefix} cannot be written: {error.strerror}")
            self._close_file()
            for model, _ in records:
                self._on_lost(model)

    def _append(self, data: bytes) -> None:
        """Raises OSError where it does not fit the disk: half a record would spoil those that follow."""
        written = os.write(self._file, data)
        if written < len(data):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _open(self) -> None:
        """Opens the newest file of the day, the next one where that is full, and removes the oldest ones."""
        pattern = re.compile(re.escape(self._prefix.name) + rf"-(\d{{8}})(?:\.(\d+))?\.{self._format}")
        matches = [match for file in self._prefix.parent.iterdir() if (match := pattern.fullmatch(file.name))]
        places = sorted((match[1], int(match[2] or 0)) for match in matches)
        today = [number for day, number in places if day == self._day]
        number = today[-1] if today else 0
        if today and self._path(self._day, number).lstat().st_size >= self._max_file_bytes:
            number += 1
        self._file = os.open(self._path(self._day, number), _OPEN_FLAGS, 0o640)
        self._measure()
        if self._max_files:
            others = [place for place in places if place != (self._day, number)]
            for place in others[: max(0, len(others) - self._max_files + 1)]:
                self._path(*place).unlink(missing_ok=True)

    def _measure(self) -> None:
        self._size = os.fstat(self._file).st_size
        if self._size >= self._max_file_bytes:
            self._close_file()

    def _path(self, day: str, number: int) -> Path:
        suffix = f".{number}" if number else ""
        return self._prefix.with_name(f"{self._prefix.name}-{day}{suffix}.{self._format}")

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
        self._size = 0

    def _complain(self, problem: str) -> None:
        if problem != self._complaint:
            self._complaint = problem
            log.error("%s", problem)


def _nbytes(tensor: Array | Omitted) -> int:
    if isinstance(tensor, Omitted):
        return 0
    if tensor.dtype.kind == "O":
        return sum(map(len, tensor.ravel().tolist()))
    return tensor.nbytes


def _cut(tensors: Mapping[str, Array]) -> dict[str, Array | Omitted]:
    """The tensors, those that are too large by their type and shape alone: what is queued is kept in memory."""
    return {
        name: tensor if _nbytes(tensor) <= MAX_TENSOR_BYTES else Omitted(tensor.dtype, tensor.shape)
        for name, tensor in tensors.items()
    }


def _arrays(tensors: Mapping[str, Array | Omitted]) -> dict[str, Array]:
    return {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, Omitted)}


def _line(entry: Entry) -> bytes:
    when = datetime.fromtimestamp(entry.time, UTC).isoformat(timespec="milliseconds")
    fields = {"time": when, **entry.fields}
    return orjson.dumps(
        {**fields, "inputs": _jsonable(entry.inputs), "outputs": _jsonable(entry.outputs)},
        option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
    )


def _jsonable(tensors: Mapping[str, Array | Omitted]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Omitted):
            kind = "string" if tensor.dtype.kind == "O" else tensor.dtype.name
            values[name] = {"omitted": f"more than {MAX_TENSOR_BYTES} bytes", "dtype": kind, "shape": tensor.shape}
        elif tensor.dtype.kind == "O":
            values[name] = _strings(tensor.tolist())
        elif tensor.dtype.kind == "c":
            values[name] = _pairs(tensor)
        else:
            (carried,) = widened({name: tensor}).values()
            values[name] = np.ascontiguousarray(carried) if carried.ndim else carried.item()
    return values


def _pairs(array: Array) -> Array:
    """Complex numbers as pairs along a last dimension of 2."""
    contiguous = np.ascontiguousarray(array)
    return contiguous.view(contiguous.real.dtype).reshape(*array.shape, 2)


def _strings(value: Any) -> Any:
    if isinstance(value, list):
        return [_strings(item) for item in value]
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}
