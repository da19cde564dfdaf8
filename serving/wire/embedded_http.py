"""granian in this process, over a listening socket of ours, which it otherwise makes by itself."""

import asyncio
import os
import socket
from typing import Any

from granian.net import SocketHolder  # type: ignore[attr-defined]
from granian.server.embed import Server


class EmbeddedHttp(Server):
    """A server of granian over a socket that listens already, and stays the caller's.

    Several may serve the same socket: a connection goes to one of them, and none is lost when another stops.
    """

    def __init__(self, application: Any, endpoint: socket.socket, backlog: int, **settings: Any) -> None:
        """`settings` are granian's."""
        super().__init__(application, backlog=backlog, **settings)
        self._endpoint = endpoint
        self._serving: asyncio.Task[None] | None = None

    def _init_shared_socket(self) -> None:
        self._ssp: Any = None
        self._shd: Any = SocketHolder(os.dup(self._endpoint.fileno()), False, self.backlog)  # type: ignore[call-arg]

    async def start(self) -> "asyncio.Task[None]":
        """Returns when it accepts connections; the task ends when it has stopped. Raises what the start fails with."""
        serving = asyncio.create_task(self.serve())
        while not self.wrks and not serving.done():
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        if serving.done():
            await serving
        return serving
