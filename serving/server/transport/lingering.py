"""Connections that outlive what the library does with them, and connections that the library would never close.

A client that sends into a connection which the server has closed is told so before it reads what came last: that it
should go elsewhere. Its call then counts as failed, though the server has never seen it and the client may send it
again. So RFC 9112, section 9.6, tells to close in two steps: send no more, then read until the client has closed.

A client that is refused and goes on sending must be cut off in the end.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path

_PIECE_BYTES = 1 << 16


def kept(endpoints: list[socket.socket]) -> list[socket.socket]:
    """Second handles of the connections that have come in on these listening sockets, where the system tells (Linux).

    Through them a connection stays open when the library closes its own handle. With too few descriptors some are left
    out.
    """
    connections = []
    for connection in _handles(endpoints):
        connection.setblocking(False)
        connections.append(connection)
    return connections


def cut_off(endpoints: list[socket.socket], clients: Container[str]) -> None:
    """Ends the connections of these clients (`address:port`, IPv6 in brackets) at once, where the system tells them (Linux).

    What they send from now on is answered by a reset, which the library behind `ports.py` sees.
    """
    for connection in _handles(endpoints):
        with connection, suppress(OSError):  # the client has closed meanwhile
            address, port = connection.getpeername()[:2]
            if (f"[{address}]:{port}" if connection.family == socket.AF_INET6 else f"{address}:{port}") in clients:
                connection.shutdown(socket.SHUT_RDWR)


def _handles(endpoints: list[socket.socket]) -> Iterator[socket.socket]:
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


async def close(connections: list[socket.socket], seconds: float) -> None:
    """Sends no more on them, and closes each when its client has closed, or all after so many seconds."""
    for connection in connections:
        with suppress(OSError):  # the client has closed already
            connection.shutdown(socket.SHUT_WR)
    waiting = [asyncio.ensure_future(_read_out(connection)) for connection in connections]
    if waiting:
        await asyncio.wait(waiting, timeout=seconds)
    for reading in waiting:
        reading.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for connection in connections:
        connection.close()


async def _read_out(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while await loop.sock_recv(connection, _PIECE_BYTES):
            pass


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
