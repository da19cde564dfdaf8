"""Folders that are written before they become a version, or emptied after they were one.

Their names are no integers, so no server takes them for a version. A lock file beside each tells whether its writer
lives: what a killed writer left is removed by the next.
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STAGING = ".publishing-"
_REMOVED = ".removed-"
LOCK = ".lock"


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A new folder below `parent`; gone at the end, unless it was renamed. What killed writers left goes first."""
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
    for folder in parent.glob(f"{_REMOVED}*"):
        shutil.rmtree(folder, ignore_errors=True)  # another process may be at it, too
    for lock_path in parent.glob(f"{_STAGING}*{LOCK}"):
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


def _take_new_lock(parent: Path) -> tuple[Path, int]:
    """A lock file of our own, locked for as long as the descriptor is open."""
    while True:
        path = parent / f"{_STAGING}{uuid.uuid4().hex}{LOCK}"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileNotFoundError:
            parent.mkdir(exist_ok=True)  # another writer had nothing to publish, and took the empty folder away
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return path, lock
        os.close(lock)  # another writer took the new file for a leftover
