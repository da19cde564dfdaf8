"""The pictures of a folder or of a ZIP archive as records, sorted by their names, which are also the rows' names.

Hidden files and what macOS adds to archives are passed over; every other file is a row. Of a folder with millions of
files the names are held in memory, and never more than one picture for each run under way.
"""

import hashlib
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from bookserve.serving.batch import records, text_lines
from bookserve.serving.batch.records import BadRow, Block, InputError, Place, Record

_READ_ERRORS = (OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, zlib.error)


class PictureFolder:
    """All files below a folder; links to folders are not followed."""

    kind = "pictures"
    has_names = True
    columns: tuple[str, ...] = ()

    def __init__(self, folder: Path, *, max_row_bytes: int) -> None:
        self._folder = folder
        self._most = max_row_bytes
        self._names = sorted(
            os.path.relpath(Path(parent, name), folder)
            for parent, folders, files in os.walk(folder)
            for name in files
            if _is_shown(os.path.relpath(Path(parent, name), folder))
        )
        self.total = len(self._names)

    def read(self, start: Place) -> Iterator[tuple[Record | BadRow, Place]]:
        """See Source.read."""
        for number, name in enumerate(self._names[start.offset :], start.offset + 1):
            path = self._folder / name
            yield _record(number, name, self._most, partial(_open, path)), Place(number, number)

    def blocks(self, start: Place, rows: int, size: int) -> Iterator[Block]:
        """See Source.blocks."""
        return records.gathered(self.read(start), rows, size)

    def digest(self) -> str:
        """See Source.digest: of the names, sizes and times of change."""
        found = hashlib.sha256()
        for name in self._names:
            status = (self._folder / name).stat()
            found.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
        return found.hexdigest()


class PictureArchive:
    """All files of a ZIP archive."""

    kind = "pictures"
    has_names = True
    columns: tuple[str, ...] = ()

    def __init__(self, path: Path, *, max_row_bytes: int) -> None:
        """Raises InputError where it is no archive."""
        self._path = path
        self._most = max_row_bytes
        try:
            with zipfile.ZipFile(path) as archive:
                self._names = sorted(
                    entry.filename for entry in archive.infolist() if not entry.is_dir() and _is_shown(entry.filename)
                )
        except zipfile.BadZipFile as error:
            raise InputError(f"{path} is no ZIP archive that can be read: {error}") from error
        self.total = len(self._names)

    def read(self, start: Place) -> Iterator[tuple[Record | BadRow, Place]]:
        """See Source.read."""
        with zipfile.ZipFile(self._path) as archive:
            for number, name in enumerate(self._names[start.offset :], start.offset + 1):
                yield _record(number, name, self._most, partial(archive.open, name)), Place(number, number)

    def blocks(self, start: Place, rows: int, size: int) -> Iterator[Block]:
        """See Source.blocks."""
        return records.gathered(self.read(start), rows, size)

    def digest(self) -> str:
        """See Source.digest."""
        return text_lines.digest(self._path)


def _open(path: Path) -> IO[bytes]:
    """Raises OSError for what is no file, such as a pipe, whose reading might never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no regular file")
    return path.open("rb")


def _record(number: int, name: str, most: int, open_file: Callable[[], IO[bytes]]) -> Record | BadRow:
    shown = os.fsencode(name).decode("utf-8", "backslashreplace")
    try:
        with open_file() as file:
            content = file.read(most + 1)
    except _READ_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return BadRow(number, shown, f"the file cannot be read: {reason}")
    if len(content) > most:
        return BadRow(number, shown, f"the file has more than {most:,} bytes (--max-row-bytes)")
    return Record(number, shown, content)


def _is_shown(name: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and parts[0] != "__MACOSX" and not any(part.startswith(".") for part in parts)
