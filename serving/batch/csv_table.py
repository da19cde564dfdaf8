"""The rows of a CSV file as records, read as a stream. A quoted cell may go over several lines."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bookserve.serving.batch import text_lines
from bookserve.serving.batch.records import BadRow, InputError, Place, Record


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
        before = csv.field_size_limit(self._most)  # of all readers of this process
        try:
            yield from self._read(start)
        finally:
            csv.field_size_limit(before)

    def _read(self, start: Place) -> Iterator[tuple[Record | BadRow, Place]]:
        start = max(start, self._head, key=lambda place: place.offset)
        with self._path.open("rb") as stream:
            stream.seek(start.offset)
            lines = _Lines(stream, self._most, start)
            rows = csv.reader(lines, strict=True)
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
                yield found, Place(lines.number, stream.tell())

    def digest(self) -> str:
        """See Source.digest."""
        return text_lines.digest(self._path)


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
