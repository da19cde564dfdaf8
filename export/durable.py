"""Files that are whole on disk before anybody sees them, whenever the machine stops."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def fsync(path: Path) -> None:
    """Flush a file to disk, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Flush a folder and everything in it to disk."""
    for path in folder.rglob("*"):
        fsync(path)
    fsync(folder)


@contextmanager
def new_file(path: Path, folder: Path | None = None) -> Iterator[IO[bytes]]:
    """A stream to write a whole file with: it appears as `path` in one rename at the end, after it is on disk.

    Until then it is hidden in `folder`, by default beside `path`, and on its file system.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=folder or path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync(path.parent)


def replace_file(path: Path, text: str) -> None:
    """Write a whole text file in one rename, on disk before it appears."""
    with new_file(path) as stream:
        stream.write(text.encode("ascii"))
