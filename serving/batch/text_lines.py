"""Lines of a text file as records, read as a stream: NDJSON, texts, SMILES, boards.

A line may have so many bytes; what is longer is passed over and never held in memory.
"""

import codecs
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from bookserve.serving.batch import records
from bookserve.serving.batch.pieces import Piece, Pieces
from bookserve.serving.batch.records import BadRow, Block, Place, Record


class LineTooLong(ValueError):
    """A line of more bytes than allowed; it has been passed over."""


def next_line(stream: IO[bytes], most: int) -> bytes:
    """The next line with its end; empty at the end of the file.

    Raises:
        LineTooLong: it has more than `most` bytes.
    """
    line = stream.readline(most + 2)  # with an end of two bytes
    if len(line.rstrip(b"\r\n")) <= most:
        return line
    while line and not line.endswith(b"\n"):
        line = stream.readline(1 << 20)
    raise LineTooLong(f"the row has more than {most:,} bytes (--max-row-bytes)")


def without_mark(line: bytes) -> bytes:
    """The first line of a file without its byte order mark."""
    return line.removeprefix(codecs.BOM_UTF8)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class TextLines:
    """The lines of a file that are not blank: as bytes where it is NDJSON, as texts otherwise.

    With `names` the first word of a line is the value and what follows its name, as SMILES files have it.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, path: Path, kind: str, *, names: bool, max_row_bytes: int) -> None:
        self.kind = kind
        self.total = path.stat().st_size
        self._path = path
        self.has_names = names
        self._most = max_row_bytes

    def read(self, start: Place) -> Iterator[tuple[Record | BadRow, Place]]:
        """See Source.read."""
        with self._path.open("rb") as stream:
            stream.seek(start.offset)
            for found in self.records(stream, start.line):
                yield found, Place(found.line, stream.tell())

    def blocks(self, start: Place, rows: int, size: int) -> Iterator[Block]:
        """See Source.blocks."""
        if self.kind != "ndjson":
            yield from records.gathered(self.read(start), rows, size)
            return
        with self._path.open("rb") as stream:
            pieces = Pieces(stream, rows, size)
            while (piece := pieces.at(start)) is not None:
                block: Block | None = JsonLines(piece, self, self._most)
                if not len(piece.ends):
                    block = next(records.gathered(islice(self.read(start), 1), 1, size), None)
                if block is None:
                    return
                yield block
                start = block.behind

    def records(self, stream: IO[bytes], number: int) -> Iterator[Record | BadRow]:
        """The rows of a stream that is behind the line of that number."""
        while True:
            number += 1
            try:
                line = next_line(stream, self._most)
            except LineTooLong as error:
                yield BadRow(number, None, str(error))
                continue
            if not line:
                return
            if number == 1:
                line = without_mark(line)
            if line.strip():
                yield self._record(number, line.strip(b"\r\n"))

    def digest(self) -> str:
        """See Source.digest."""
        return digest(self._path)

    def _record(self, number: int, line: bytes) -> Record | BadRow:
        if self.kind == "ndjson":
            return Record(number, None, line)
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            return BadRow(number, None, f"the line is no UTF-8: {error.reason} at byte {error.start}")
        if not self.has_names:
            return Record(number, None, text)
        value, _, name = text.partition(" ") if "\t" not in text else text.partition("\t")
        return Record(number, name.strip() or None, value)


@dataclass(frozen=True, slots=True)
class JsonLines:
    """A block of lines of JSON."""

    piece: Piece
    source: TextLines
    most: int  # bytes of a row

    @property
    def behind(self) -> Place:
        """See Block.behind."""
        return self.piece.behind

    def records(self) -> list[Record | BadRow]:
        """See Block.records."""
        return list(self.source.records(io.BytesIO(self.piece.content), self.piece.start.line))

    def halves(self) -> tuple[Block, ...]:
        """See Block.halves."""
        return tuple(JsonLines(piece, self.source, self.most) for piece in self.piece.halves())

    def lines(self) -> list[bytes] | None:
        """The lines; None where one is too long. Blank ones are among them."""
        if self.piece.longest > self.most:
            return None
        return self.piece.unmarked.removesuffix(b"\n").split(b"\n")
