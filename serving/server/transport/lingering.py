"""Connections that stay open until their clients close them, though the library that served them closes at once.

A client that sends into a connection which the server has closed is told so before it reads what came last: that it
should go elsewhere. Its call then counts as failed, though the server has never seen it and the client may send it
again. So RFC 9112, section 9.6, tells to close in two steps: send no more, then read until the client has closed.
"""

import asyncio
import socket
from contextlib import suppress

from bookserve.serving.wire.connections import handles

_PIECE_BYTES = 1 << 16


def kept(endpoints: list[socket.socket]) -> list[socket.socket]:
    """Second handles of the connections that have come in on these listening sockets, where the system tells (Linux).

    Through them a connection stays open when the library closes its own handle. With too few descriptors some are left
    out.
    """
    connections = []
    for connection in handles(endpoints):
        connection.setblocking(False)
        connections.append(connection)
    return connections


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
