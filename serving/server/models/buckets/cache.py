"""Where versions that come from buckets lie on this machine: whole, bounded, and shared by the servers that run on it.

    <folder>/<digest>/<model>/3/         a version
    <folder>/<digest>/<model>/3.json     the objects that it was fetched from; there only while the version is whole
    <folder>/<digest>/<model>/3.lock     locked by the servers that have it; says how many bytes it takes
    <folder>/<digest>/<model>/3.part/    a version that is being fetched

Where room is needed the version that was used longest ago goes, but never one that a server has. Locks end with the
process that holds them, so what a killed server leaves is cleared away by the next that needs the room.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bookserve.serving.server.types.errors import exhausted, failed_precondition
from bookserve.serving.wire import bucket
from bookserve.serving.wire.bucket import BucketAddress, Object

Fetch = Callable[[Path, Callable[[int], None]], Sequence[Object]]

_PAUSE_SECONDS = 0.1
_WAIT_SECONDS = 3600.0  # for another server that is fetching the same version


@dataclass(frozen=True)
class Entry:
    """One version in the cache."""

    path: Path

    @property
    def part(self) -> Path:
        """Where it is written while it is fetched."""
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def lock(self) -> Path:
        """The file that who has it locks."""
        return self.path.with_name(f"{self.path.name}.lock")

    @property
    def record(self) -> Path:
        """The file that tells what it was fetched from."""
        return self.path.with_name(f"{self.path.name}.json")

    def holds(self, objects: Sequence[Object] | None) -> bool:
        """Whether it is whole, and what these objects are; None for whatever it was fetched from."""
        try:
            known = [Object(*item) for item in json.loads(self.record.read_bytes())]
            sizes = [(self.path / item.name).stat().st_size for item in known]
        except (OSError, ValueError, TypeError):
            return False
        return sizes == [item.size for item in known] and (objects is None or known == list(objects))

    def publish(self, objects: Sequence[Object]) -> None:
        """Makes what was fetched the version."""
        self.part.rename(self.path)
        new = self.record.with_name(f"{self.record.name}.new")
        new.write_text(json.dumps([[item.name, item.size, item.tag] for item in objects]), encoding="utf-8")
        new.replace(self.record)

    def clear(self) -> None:
        """Removes it, whole or not. Only for who holds the lock alone."""
        self.record.unlink(missing_ok=True)
        for folder in (self.path, self.part):
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.truncate(self.lock, 0)


class Hold:
    """A lock on a version: as long as it is open nobody removes or replaces it."""

    def __init__(self, entry: Entry) -> None:
        """Opens the lock file; locks nothing yet. Raises OSError."""
        entry.lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._descriptor = os.open(entry.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.utime(self._descriptor)  # it is used now

    def share(self) -> bool:
        """Locks together with others; False where somebody has it alone."""
        return self._lock(alone=False)

    def take(self) -> bool:
        """Locks alone; False where others have it, too."""
        return self._lock(alone=True)

    def _lock(self, *, alone: bool) -> bool:
        if sys.platform == "win32":
            return True  # no locks there: one server to one cache
        import fcntl

        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Ends the lock."""
        os.close(self._descriptor)


class Cache:
    """The folder of all versions that were fetched. Shared by threads."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def entry(self, address: BucketAddress, version: int) -> Entry:
        """Where a version has its place, there or not."""
        return Entry(self._model(address) / str(version))

    def versions(self, address: BucketAddress) -> list[int]:
        """The versions of a model that are there whole."""
        found = [Entry(record.with_suffix("")) for record in self._model(address).glob("*.json")]
        return sorted(int(entry.path.name) for entry in found if entry.path.name.isdigit() and entry.holds(None))

    def _model(self, address: BucketAddress) -> Path:
        where = f"{bucket.endpoint(address.scheme)} {address}"
        return self._folder / hashlib.sha256(where.encode()).hexdigest()[:16] / address.name

    def obtain(self, entry: Entry, objects: Sequence[Object] | None, fetch: Fetch) -> Hold:
        """The version that these objects are, held: as it is there, or fetched. Blocks meanwhile.

        `fetch` writes it into an empty folder, and answers the objects that it then is; it says before how many bytes
        it is going to write. `objects` is None where nobody knows them: then what is there will do.
        Raises ServingError: RESOURCE_EXHAUSTED where there is no room, FAILED_PRECONDITION where another server has a
        version with other content; OSError where the folder cannot be written to, and what `fetch` raises.
        """
        hold = Hold(entry)
        try:
            end = time.monotonic() + _WAIT_SECONDS
            while True:
                if hold.share():
                    if entry.holds(objects):
                        return hold
                    if hold.take():
                        self._fetch(entry, fetch)
                        objects = None  # what was fetched
                        continue
                    raise failed_precondition(
                        f"{entry.path} is in use by another server, with other content: versions never change"
                    )
                if time.monotonic() > end:
                    raise failed_precondition(f"another server fetches {entry.path} for more than {_WAIT_SECONDS:g} s")
                time.sleep(_PAUSE_SECONDS)
        except BaseException:
            hold.close()
            raise

    def _fetch(self, entry: Entry, fetch: Fetch) -> None:
        entry.clear()
        try:
            entry.part.mkdir(mode=0o700)
            entry.publish(fetch(entry.part, partial(self._make_room, entry)))
        except BaseException:
            entry.clear()
            raise

    def _make_room(self, entry: Entry, needed: int) -> None:
        """Has the lock file of an entry say that it takes so many bytes, once there is room for them."""
        if needed > self._max_bytes:
            raise exhausted(f"it has {needed} bytes, and the cache holds {self._max_bytes} (--model_cache_max_bytes)")
        whole = Hold(Entry(self._folder / "cache"))
        try:
            while not whole.take():
                time.sleep(_PAUSE_SECONDS)
            others = [Entry(lock.with_suffix("")) for lock in self._folder.glob("*/*/*.lock")]
            others = sorted((other for other in others if other != entry), key=_last_use)
            taken = {other: _bytes(other) for other in others}
            for other in others:
                if sum(taken.values()) + needed <= self._max_bytes:
                    break
                if _drop(other):
                    taken[other] = 0
            held = sum(taken.values())
            if held + needed > self._max_bytes:
                raise exhausted(
                    f"it has {needed} bytes, and {held} of the {self._max_bytes} that the cache holds are in use"
                    " (--model_cache_max_bytes)"
                )
            entry.lock.write_text(str(needed), encoding="ascii")
        finally:
            whole.close()


def _drop(entry: Entry) -> bool:
    """Removes a version unless somebody has it."""
    used = _last_use(entry)
    hold = Hold(entry)
    try:
        if not hold.take():
            os.utime(entry.lock, (used, used))
            return False
        entry.clear()
        return True
    finally:
        hold.close()


def _last_use(entry: Entry) -> float:
    try:
        return entry.lock.stat().st_mtime
    except OSError:
        return 0.0


def _bytes(entry: Entry) -> int:
    try:
        return int(entry.lock.read_text(encoding="ascii") or 0)
    except (OSError, ValueError):
        return 0
