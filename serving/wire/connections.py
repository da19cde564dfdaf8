"""The connections of this process that came in on a socket (Linux tells those of a library); how many it may have."""

import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# How long a client that was refused may take to close its connection.
_REFUSED_SECONDS = 1.0
_OTHER_FILES = 256  # of a process that are not connections
_RESET = struct.pack("ii", 1, 0)  # closed, a connection is gone at once, and its client told so


def affordable(connections: int, ports: int) -> int:
    """How many connections each of so many ports may have, with the files that the system lets this process open.

    Without one to spare the library of gRPC gives up its port. A part is left for models, logs and TensorFlow.
    """
    if sys.platform == "win32":
        return connections
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # what is unlimited may not be asked for everywhere
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, (soft - min(_OTHER_FILES, soft // 2)) // max(1, ports)))


def handles(endpoints: list[socket.socket]) -> Iterator[socket.socket]:
    """A second handle of each connection that came in on these listening sockets; the caller closes it.

    None where the system does not tell. With too few descriptors some are left out.
    """
    if not sys.platform.startswith("linux"):
        return
    addresses = {_place(endpoint) for endpoint in endpoints}
    for number in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):  # no socket, or closed meanwhile
            if str(number.readlink()).startswith("socket:["):
                handle = socket.socket(fileno=os.dup(int(number.name)))
                if _is_connection(handle) and _place(handle) in addresses:
                    yield handle
                else:
                    handle.close()


class RefusedClients:
    """Clients that were refused before their request was complete, until their connections are closed.

    A client that goes on sending keeps its connection open: the HTTP library reads a chunk size of more and more
    zeros for as long as they come. A client is told by its `address:port`, the address in brackets with IPv6.
    """

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}  # when each must be gone

    def add(self, client: str) -> None:
        """It was refused just now, and is to close its connection."""
        self._ends[client] = time.monotonic() + _REFUSED_SECONDS

    def returned(self, client: str) -> None:
        """It has sent another request, so it has another connection."""
        if self._ends:
            self._ends.pop(client, None)

    def cut_off(self, endpoints: list[socket.socket]) -> None:
        """To be called several times a second: ends the connections that are there after their time.

        The library then sees an end of what comes in, and closes its own handle.
        """
        now = time.monotonic()
        late = {client for client, end in self._ends.items() if end < now}
        if not late:
            return
        for client in late:
            del self._ends[client]
        for connection in handles(endpoints):
            with connection, suppress(OSError):  # the client has closed meanwhile
                if _client(connection) in late:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    connection.shutdown(socket.SHUT_RDWR)


def _client(connection: socket.socket) -> str:
    address, port = connection.getpeername()[:2]
    return f"[{address}]:{port}" if connection.family == socket.AF_INET6 else f"{address}:{port}"


def _place(handle: socket.socket) -> tuple[int, str | int]:
    """A family and the port, or the path of a UNIX socket."""
    name = handle.getsockname()
    return handle.family, name if handle.family == socket.AF_UNIX else name[1]


def _is_connection(handle: socket.socket) -> bool:
    if handle.type != socket.SOCK_STREAM or handle.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    try:
        handle.getpeername()
    except OSError:
        return False
    return True
