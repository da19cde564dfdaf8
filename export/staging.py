"""Folders that are written before they become a version, or emptied after they were one.

Their names are no integers, so no server takes them for a version. A lock file beside each tells whether its writer
lives: what a killed writer left is removed by the next.
"""

import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bookserve.export.errors import StoreError

_STAGING = ".publishing-"
_REMOVED = ".removed-"
LOCK = ".lock"


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A new folder below `parent`, which is made where it is missing; gone at the end, unless it was renamed.

    What killed writers left goes first.
    """
    _make(parent)
    remove_leftovers(parent)
    lock_path, lock = _take_new_lock(parent)
    folder = lock_path.with_suffix("")
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock_path.unlink(missing_ok=True)
        os.close(lock)


def take_away(folder: Path) -> Path:
    """Rename a version's folder to one that nobody looks for; `remove_leftovers` empties it."""
    return folder.rename(folder.parent / f"{_REMOVED}{uuid.uuid4().hex}")


def remove_leftovers(parent: Path) -> None:
    """Delete what was taken away, and what writers that do not live any more were writing."""
    for folder in _found(parent, f"{_REMOVED}*"):
        shutil.rmtree(folder, ignore_errors=True)  # another process may be at it, too
    for lock_path in _found(parent, f"{_STAGING}*{LOCK}"):
        try:
            lock = os.open(lock_path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its writer lives
        else:
            shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
            lock_path.unlink(missing_ok=True)
        finally:
            os.close(lock)


def _found(parent: Path, pattern: str) -> list[Path]:
    try:
        return list(parent.glob(pattern))
    except FileNotFoundError:  # gone while we looked
        return []


def _make(parent: Path) -> None:
    """Make a model's folder; another writer, who had nothing to publish, may take it away at any moment.

    Raises StoreError where a file has its name.
    """
    while True:
        try:
            return parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            with suppress(FileNotFoundError):
                if not stat.S_ISDIR(parent.lstat().st_mode):
                    raise StoreError(f"{parent} is a file, and the model's folder has to be there: move it") from None


def _take_new_lock(parent: Path) -> tuple[Path, int]:
    """A lock file of our own, locked for as long as the descriptor is open."""
    while True:
        path = parent / f"{_STAGING}{uuid.uuid4().hex}{LOCK}"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileNotFoundError:
            _make(parent)
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return path, lock
        os.close(lock)  # another writer took the new file for a leftover
