"""The rows of a CSV file as records, read as a stream. A quoted cell may go over several lines."""

import codecs
import csv
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from bookserve.serving.batch import records, text_lines
from bookserve.serving.batch.pieces import Piece, Pieces
from bookserve.serving.batch.records import FEW, BadRow, Block, InputError, Numbers, Place, Record


class CsvTable:
    """A CSV file: `columns` are the cells of its first line, unless all of them are numbers."""

    kind = "csv"
    has_names = False

    def __init__(self, path: Path, *, max_row_bytes: int) -> None:
        """Raises InputError where the first line cannot be read."""
        self.total = path.stat().st_size
        self._path = path
        self._most = max_row_bytes
        self._head = Place()
        self.columns: tuple[str, ...] = ()
        with path.open("rb") as stream:
            lines = _Lines(stream, max_row_bytes, Place())
            try:
                head = next(csv.reader(lines, strict=True), [])
            except (csv.Error, ValueError) as error:
                raise InputError(f"the first line of {path} is no line of a CSV file: {error}") from error
            if any(not _is_number(cell) for cell in head):
                self._head, self.columns = Place(lines.number, stream.tell()), tuple(cell.strip() for cell in head)

    def read(self, start: Place) -> Iterator[tuple[Record | BadRow, Place]]:
        """See Source.read."""
        start = self._behind_head(start)
        with self._path.open("rb") as stream:
            stream.seek(start.offset)
            for found, line in self.records(stream, start):
                yield found, Place(line, stream.tell())

    def blocks(self, start: Place, rows: int, size: int) -> Iterator[Block]:
        """See Source.blocks."""
        start = self._behind_head(start)
        with self._path.open("rb") as stream:
            pieces, one_by_one = Pieces(stream, rows, size), FEW
            while (piece := pieces.at(start)) is not None:
                while not (is_plain := _is_plain(piece, self._most)) and (halves := piece.halves()):
                    piece = halves[0]
                if is_plain:
                    block: Block | None = CsvBlock(piece, self)
                    one_by_one = FEW
                else:
                    block = next(records.gathered(self.read(start), min(rows, one_by_one), size), None)
                    one_by_one *= 2  # where one row is not plain the next ones seldom are
                if block is None:
                    return
                yield block
                start = block.behind

    def records(self, stream: IO[bytes], start: Place) -> Iterator[tuple[Record | BadRow, int]]:
        """The rows of a stream that is at a place, each with the number of its last line."""
        lines = _Lines(stream, self._most, start)
        rows = csv.reader(lines, strict=True)
        with _cells_of(self._most):
            while True:
                lines.begin()
                found: Record | BadRow
                try:
                    cells = next(rows)
                except StopIteration:
                    return
                except (csv.Error, ValueError) as error:
                    last = f" (to line {lines.number}: is a quote not closed?)" if lines.number > lines.first else ""
                    found = BadRow(lines.first, None, f"{error}{last}")
                else:
                    if not cells:
                        continue
                    found = Record(lines.first, None, cells)
                yield found, lines.number

    def digest(self) -> str:
        """See Source.digest."""
        return text_lines.digest(self._path)

    def _behind_head(self, start: Place) -> Place:
        return max(start, self._head, key=lambda place: place.offset)


@dataclass(frozen=True, slots=True)
class CsvBlock:
    """Lines of which each is a row; see `_is_plain`."""

    piece: Piece
    source: CsvTable

    @property
    def behind(self) -> Place:
        """See Block.behind."""
        return self.piece.behind

    def records(self) -> list[Record | BadRow]:
        """See Block.records."""
        stream = io.BytesIO(self.piece.content)
        return [found for found, _ in self.source.records(stream, self.piece.start)]

    def halves(self) -> tuple[Block, ...]:
        """See Block.halves."""
        return tuple(CsvBlock(piece, self.source) for piece in self.piece.halves())

    def numbers(self, width: int, wanted: Sequence[int], name: int | None, dtype: str) -> Numbers | None:
        """See Table.numbers.

        pyarrow takes fewer spellings of a number than Python, and gives the same float64 for those that are finite.
        """
        try:
            import pyarrow
            import pyarrow.csv
        except ModuleNotFoundError:
            return None
        if name in wanted:
            return None
        types = {str(place): pyarrow.float64() for place in wanted}
        if name is not None:
            types[str(name)] = pyarrow.string()
        content = self.piece.unmarked
        try:
            table = pyarrow.csv.read_csv(
                pyarrow.BufferReader(content),
                pyarrow.csv.ReadOptions(
                    use_threads=False, block_size=len(content) + 1, column_names=[str(place) for place in range(width)]
                ),
                pyarrow.csv.ParseOptions(ignore_empty_lines=False),
                pyarrow.csv.ConvertOptions(
                    column_types=types, include_columns=list(types), null_values=[], strings_can_be_null=False
                ),
            )
        except pyarrow.ArrowException:
            return None
        if table.num_rows != len(self.piece.ends):
            return None
        columns = [_array(table.column(str(number))) for number in wanted]
        kind = np.dtype(dtype)
        cells = np.stack(columns, axis=1, dtype=kind if kind.kind == "f" else np.float64, casting="same_kind")
        if not np.isfinite(cells).all():
            return None
        return Numbers(self.piece.lines, cells, None if name is None else table.column(str(name)).to_pylist())


def _array(column: Any) -> Any:
    """A column of float64 without nulls; `to_numpy` would import pandas where that is installed."""
    return np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks])


def _is_plain(piece: Piece, most: int) -> bool:
    """Whether every line of a piece is one row for the csv module and for pyarrow alike.

    So each quote opens or closes a whole cell within one line. A carriage return within a line is one row more for
    pyarrow, which `CsvBlock.numbers` sees.
    """
    content, places = piece.content, np.frombuffer(piece.content, np.uint8)
    if not len(piece.ends) or piece.longest > most or b"\0" in content:
        return False
    if piece.start.line and content.startswith(codecs.BOM_UTF8):
        return False
    try:
        content.isascii() or content.decode()
    except UnicodeDecodeError:
        return False
    if b'"' not in content:
        return True
    quotes = np.flatnonzero(places == ord('"'))
    if len(quotes) % 2:
        return False
    opening, closing = quotes[0::2], quotes[1::2]
    around = np.concatenate([[ord("\n")], places, [ord("\n")]])  # at place + 1
    return bool(
        np.isin(around[opening], (ord(","), ord("\n"))).all()
        and np.isin(around[closing + 2], (ord(","), ord("\n"), ord("\r"))).all()
        and (np.searchsorted(piece.ends, opening, "right") == np.searchsorted(piece.ends, closing, "right")).all()
    )


_readers: list[int] = []  # of this module, with the bytes that a cell of each may have
_readers_lock = threading.RLock()


@contextmanager
def _cells_of(most: int) -> Iterator[None]:
    """The csv module takes cells of that size meanwhile; its limit is that of all readers of the process."""
    with _readers_lock:
        if not _readers:
            _readers.append(csv.field_size_limit())  # as it was
        _readers.append(most)
        csv.field_size_limit(max(_readers))
    try:
        yield
    finally:
        with _readers_lock:
            _readers.remove(most)
            csv.field_size_limit(max(_readers))
            if len(_readers) == 1:
                _readers.clear()


class _Lines:
    """The lines for the csv module. After a line that is refused it goes on with the next one."""

    def __init__(self, stream: IO[bytes], most: int, start: Place) -> None:
        self.number = start.line
        self.first = start.line + 1  # line of the row that is being read
        self._stream = stream
        self._most = most
        self._bytes = 0  # of that row

    def begin(self) -> None:
        """A row begins."""
        self.first, self._bytes = self.number + 1, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        """The next line. Raises ValueError for one that is too long, makes its row too long, or is no UTF-8."""
        self.number += 1
        line = text_lines.next_line(self._stream, self._most)
        if not line:
            self.number -= 1
            raise StopIteration
        self._bytes += len(line)
        if self._bytes > self._most + 2:
            raise text_lines.LineTooLong(f"the row has more than {self._most:,} bytes (--max-row-bytes)")
        try:
            return (text_lines.without_mark(line) if self.number == 1 else line).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the line is no UTF-8: {error.reason} at byte {error.start}") from error


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
