"""The most memory that a process may take, so that a request that asks for terabytes fails alone.

Without it Linux grants more than there is and ends the whole process when the memory is used. The limit is of the data
that a process holds (RLIMIT_DATA); the processes of TensorFlow inherit it, each for itself.
"""

import os
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from bookserve.serving.server.types.errors import invalid_argument

# What a container may take, by the second and by the first version of Linux's control groups.
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_SMALL = 16 << 20  # bytes of a result that nobody asks about
_COPIES = 8  # of a result's values: numbers as Python's objects, and as text
_FULL, _SCARCE = 0.85, 0.5  # shares of the limit: what is above the first is kept for code that encodes and sends
_LOOK_SECONDS = 0.02  # between two looks
_RECLAIM_SECONDS = 0.1  # between two attempts to get back what is kept
# By default: a share of the machine's or the container's, and no less than libraries may reserve and never use.
_SHARE, _LEAST = 0.8, 4 << 30
_ROOM = 256 << 20  # for threads and models, below which the server would not come up


_base = 0  # bytes that the process held when the limit was set, most of them reserved and never used


def limit(max_bytes: int) -> int:
    """Has allocations beyond `max_bytes` fail from now on; 0 means 80 % of the machine's or the container's memory,
    at least 4 GiB.

    Answers the limit that holds, 0 where there is none: below zero, and on other systems than Linux.
    Raises ServingError (INVALID_ARGUMENT) where the process holds nearly as much before it has a model.
    """
    if max_bytes < 0 or not sys.platform.startswith("linux"):
        return 0
    import resource

    global _base
    held = _base = _held()
    if 0 < max_bytes < held + _ROOM:
        raise invalid_argument(
            f"--max_memory_bytes={max_bytes}: the process holds {held} bytes before it has a model, most of which its"
            f" libraries reserve and never use. Give at least {held + _ROOM}, or 0"
        )
    wanted = max_bytes or max(_LEAST, int(_SHARE * _available()))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    for other in (soft, hard):
        if other != resource.RLIM_INFINITY:
            wanted = min(wanted, other)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    return wanted


def resident_bytes() -> int:
    """Memory that this process has of the machine, 0 on other systems than Linux."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class Keeper(Protocol):
    """What keeps memory for later, such as the session of an engine."""

    def give_back(self) -> None:
        """Frees it; does not raise."""
        ...


_KEEPERS: "weakref.WeakSet[Keeper]" = weakref.WeakSet()


def add_keeper(keeper: Keeper) -> None:
    """Lets it be asked, as long as it lives, when memory is full."""
    _KEEPERS.add(keeper)


class _Reclaim:
    """Asks all keepers, one thread at a time and not too often."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0.0

    def __call__(self) -> None:
        if time.monotonic() - self._last > _RECLAIM_SECONDS and self._lock.acquire(blocking=False):
            try:
                for keeper in list(_KEEPERS):
                    keeper.give_back()
            finally:
                self._last = time.monotonic()
                self._lock.release()


_reclaim = _Reclaim()


class Memory:
    """What this process holds of what it may hold, looked at not too often."""

    def __init__(self) -> None:
        self._looked = 0.0
        self._held = 0.0

    def has_room(self) -> bool:
        """Whether something that takes memory may begin; where not, what is kept for later is asked back first.

        Without that one large request could be the last: what its engine keeps would refuse all that follow.
        """
        if self._share() <= _FULL:
            return True
        _reclaim()
        self._looked = 0.0
        return self._share() <= _FULL

    @property
    def is_scarce(self) -> bool:
        """Whether engines should give back what they keep for later."""
        return self._share() > _SCARCE

    def _share(self) -> float:
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            limit_now, held = _limit_and_held()
            self._looked, self._held = now, held / limit_now if limit_now else 0.0
        return self._held


def leaves_room_for(result_bytes: int) -> bool:
    """Whether a result of that size can be encoded and sent, which takes several copies of it.

    Asked of large results alone: code that encodes and sends may not survive an allocation that fails.
    """
    if result_bytes < _SMALL:
        return True
    limit_now, held = _limit_and_held()
    return not limit_now or held + _COPIES * result_bytes <= limit_now


def _limit_and_held() -> tuple[int, int]:
    """Beyond what the process held when the limit was set, in bytes; 0 and 0 without a limit."""
    if not sys.platform.startswith("linux"):
        return 0, 0
    import resource

    limit_now, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit_now == resource.RLIM_INFINITY:
        return 0, 0
    return limit_now - _base, _held() - _base


def _held() -> int:
    """The data of this process in bytes, as RLIMIT_DATA counts it."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")


def _available() -> int:
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # there is none, or it is "max"
            sizes.append(int(path.read_text()))
    return min(sizes)
