"""The most memory that a process may take, so that a request that asks for terabytes fails alone.

Without it Linux grants more than there is and ends the whole process when the memory is used. The limit is of the data
that a process holds (RLIMIT_DATA); the processes of TensorFlow inherit it, each for itself.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

# What a container may take, by the second and by the first version of Linux's control groups.
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_SMALL = 16 << 20  # bytes of a result that nobody asks about
_COPIES = 8  # of a result's values: numbers as Python's objects, and as text
_SHARE = 0.8  # of the machine's or the container's, by default


def limit(max_bytes: int) -> int:
    """Has allocations beyond `max_bytes` fail from now on; 0 means 80 % of the machine's or the container's memory.

    Answers the limit that holds, 0 where there is none: below zero, and on other systems than Linux.
    """
    if max_bytes < 0 or not sys.platform.startswith("linux"):
        return 0
    import resource

    wanted = max_bytes or int(_SHARE * _available())
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    for other in (soft, hard):
        if other != resource.RLIM_INFINITY:
            wanted = min(wanted, other)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    return wanted


def leaves_room_for(result_bytes: int) -> bool:
    """Whether a result of that size can be encoded and sent, which takes several copies of it.

    Asked of large results alone: code that encodes and sends may not survive an allocation that fails.
    """
    if result_bytes < _SMALL or not sys.platform.startswith("linux"):
        return True
    import resource

    limit_now, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit_now == resource.RLIM_INFINITY:
        return True
    held = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    return held + _COPIES * result_bytes <= limit_now


def _available() -> int:
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # there is none, or it is "max"
            sizes.append(int(path.read_text()))
    return min(sizes)
