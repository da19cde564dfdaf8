"""Whether files that are followed, such as certificates, have changed."""

from collections.abc import Iterable
from pathlib import Path

Stamp = tuple[tuple[int, int, int], ...]


def stamp(files: Iterable[Path | None]) -> Stamp:
    """Another one when a file is replaced or written, also behind symbolic links. A file that is None is not there."""
    return tuple(_of(file) for file in files if file is not None)


def _of(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
