"""Pieces of a text file: as many whole lines as one run takes, read at once and not looked at."""

import codecs
from dataclasses import dataclass
from typing import IO

import numpy as np

from bookserve.clients.answers import Array
from bookserve.serving.batch.records import FEW, Place

_FIRST_WINDOW = 64 << 10  # bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines as they lie in the file, and where each ends in `content`: int64 [lines], behind its line feed."""

    content: bytes
    ends: Array
    start: Place

    @property
    def lines(self) -> range:
        """The number of each line."""
        return range(self.start.line + 1, self.start.line + 1 + len(self.ends))

    @property
    def behind(self) -> Place:
        """The place behind the last line."""
        return Place(self.start.line + len(self.ends), self.start.offset + len(self.content))

    def halves(self) -> tuple["Piece", ...]:
        """Two pieces with its lines; none where it has FEW."""
        if len(self.ends) <= FEW:
            return ()
        middle = len(self.ends) // 2
        cut = int(self.ends[middle - 1])
        first = Piece(self.content[:cut], self.ends[:middle], self.start)
        return first, Piece(self.content[cut:], self.ends[middle:] - cut, first.behind)

    @property
    def longest(self) -> int:
        """Bytes of the longest line, with its end."""
        return int(np.diff(self.ends, prepend=0).max(initial=0))

    @property
    def unmarked(self) -> bytes:
        """The content without the byte order mark that a file may begin with."""
        return self.content if self.start.line else self.content.removeprefix(codecs.BOM_UTF8)


class Pieces:
    """The pieces of one open file, each of up to `rows` lines and `size` bytes."""

    def __init__(self, stream: IO[bytes], rows: int, size: int) -> None:
        self._stream = stream
        self._rows = rows
        self._size = size
        self._window = min(_FIRST_WINDOW, size)

    def at(self, start: Place) -> Piece | None:
        """The lines behind a place; None at the end of the file. No line where the next one has more than `size` bytes.

        Raises OSError.
        """
        while True:
            self._stream.seek(start.offset)
            content = self._stream.read(self._window)
            if not content:
                return None
            is_all = len(content) < self._window
            ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))[: self._rows] + 1
            if len(ends) == self._rows or is_all or self._window == self._size:
                break
            self._window = min(2 * self._window, self._size)
        if is_all and len(ends) < self._rows and not content.endswith(b"\n"):
            ends = np.append(ends, len(content))  # the last line of a file may have no end
        content = content[: ends[-1]] if len(ends) else b""
        if len(ends) == self._rows:
            self._window = min(max(_FIRST_WINDOW, len(content) + len(content) // 4), self._size)
        return Piece(content, ends, start)
