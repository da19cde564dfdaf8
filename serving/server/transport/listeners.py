"""The ports of the model server: opened, and closed at the end of a drain that leaves nothing unanswered.

One process lets its event loop accept. With several, the leader accepts itself and hands each connection to the process
that has the fewest.
"""

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.transport.connections import DRAIN_STEP_SECONDS, Api, Connections
from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.server.workers.pool import Followers

log = logging.getLogger(__name__)

_BACKLOG = 1024
_MAX_PORT = 65535
_ANY = ("", "0.0.0.0", "::")  # addresses that stand for all
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)  # of a machine that is without
_PAUSE_SECONDS = 1.0  # of accepting, when the process can open no more files
_SO_ATTACH_FILTER = 26  # Linux's socket(7); Python has no name for it


class Ports:
    """The listening sockets."""

    def __init__(self, flags: Flags, connections: Connections, followers: Followers | None) -> None:
        """Raises ServingError where there is no port for gRPC, or one that no TCP has."""
        for name, port in (("port", flags.port), ("rest_api_port", flags.rest_api_port)):
            if not 0 <= port <= _MAX_PORT:
                raise invalid_argument(f"--{name}={port} is no port: it must be 0 to {_MAX_PORT}")
        if not flags.port and not flags.grpc_socket_path:
            raise invalid_argument(
                "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set."
            )
        self._flags = flags
        self._connections = connections
        self._followers = followers
        self._loop = asyncio.get_running_loop()
        self._endpoints: list[tuple[Api, socket.socket]] = []
        self._listeners: list[asyncio.Server] = []  # of the loop

    async def open(self) -> None:
        """Starts to listen. Raises ServingError for a port that is taken or a socket path that cannot be used."""
        try:
            await self._bind()
            for api, endpoint in self._endpoints:
                if self._followers is None:
                    await self._serve(api, endpoint)
                else:
                    self._loop.add_reader(endpoint.fileno(), self._accept, api, endpoint)
        except (OSError, ServingError) as error:
            self._close()
            if isinstance(error, ServingError):
                raise
            raise invalid_argument(f"Failed to BuildAndStart gRPC server: {error}") from error

    async def _bind(self) -> None:
        flags, host = self._flags, self._flags.bind_address
        if flags.port:
            await self._bind_port(Api.GRPC, flags.port)
            log.info("Running gRPC ModelServer at %s:%d ...", host or "0.0.0.0", flags.port)
        if flags.grpc_socket_path:
            path = Path(flags.grpc_socket_path)
            if path.exists() and not path.is_socket():
                raise invalid_argument(f"--grpc_socket_path={path} is there already, and is no socket")
            path.unlink(missing_ok=True)  # left by a server that was killed
            endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._endpoints.append((Api.GRPC, endpoint))
            endpoint.bind(str(path))
            log.info("Running gRPC ModelServer at unix:%s ...", path)
        if flags.rest_api_port and flags.rest_api_port == flags.port:
            log.error("--rest_api_port cannot be the same as --port: REST is off")
        elif flags.rest_api_port:
            await self._bind_port(Api.REST, flags.rest_api_port)
            shown = "localhost" if host in _ANY else host  # as TensorFlow Serving writes it, and as log readers expect
            log.info("Exporting HTTP/REST API at:%s:%d ...", shown, flags.rest_api_port)
        for _, endpoint in self._endpoints:
            endpoint.listen(_BACKLOG)
            endpoint.setblocking(False)

    async def _bind_port(self, api: Api, port: int) -> None:
        """On every address that the host's name has; without a name on all of IPv4, and of IPv6 where there is that."""
        host = self._flags.bind_address or None
        try:
            found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise OSError(error.errno, f"--bind_address={host}: {error.strerror}") from error
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                self._endpoints.append((api, _bound(family, kind, protocol, address)))
            except OSError as error:
                if host is None and family == socket.AF_INET6 and error.errno in _NO_IPV6:
                    continue
                raise OSError(error.errno, f"{host or 'all addresses'}:{port}: {error.strerror}") from error

    async def _serve(self, api: Api, endpoint: socket.socket) -> None:
        is_unix = isinstance(endpoint.getsockname(), str)
        start = self._loop.create_unix_server if is_unix else self._loop.create_server
        options = self._connections.tls_options(api)
        self._listeners.append(await start(self._connections.factory(api), sock=endpoint, backlog=_BACKLOG, **options))

    def _accept(self, api: Api, endpoint: socket.socket) -> None:
        """Accepts what waits, and hands it out."""
        assert self._followers is not None
        for _ in range(_BACKLOG):
            try:
                accepted, _ = endpoint.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("cannot accept connections: %s", error)
                self._loop.remove_reader(endpoint.fileno())
                self._loop.call_later(_PAUSE_SECONDS, self._go_on, api, endpoint)
                return
            accepted.setblocking(False)
            if not self._followers.hand_over(api, accepted, self._connections.count):
                self._connections.adopt(api, accepted)

    def _go_on(self, api: Api, endpoint: socket.socket) -> None:
        if endpoint.fileno() >= 0:
            self._loop.add_reader(endpoint.fileno(), self._accept, api, endpoint)

    # The end

    async def drain(self) -> None:
        """Answers what was accepted and what still arrives, then closes; at the latest after --drain_seconds."""
        start = self._loop.time()
        end = start + self._flags.drain_seconds
        await self._until_quiet(start + self._flags.drain_seconds / 2)
        await self._stop_listening()
        await self._until_quiet(end)
        seconds = max(0.0, end - self._loop.time())
        others = [] if self._followers is None else [self._followers.finish(seconds)]
        await asyncio.gather(self._connections.finish(seconds), *others)

    async def _until_quiet(self, end: float) -> None:
        """Tells every connection to drain; returns when for --drain_quiet_seconds nothing was asked or is under way."""
        quiet_since = self._loop.time()
        requests = -1
        while self._loop.time() < min(end, quiet_since + self._flags.drain_quiet_seconds):
            activity = self._connections.drain()
            if self._followers is not None:
                activity += await self._followers.drain()
            if activity.requests != requests or not activity.idle:
                requests, quiet_since = activity.requests, self._loop.time()
            await asyncio.sleep(DRAIN_STEP_SECONDS)

    async def _stop_listening(self) -> None:
        """Closes the listeners without resetting a connection that a client has already made.

        The kernel resets what waits to be accepted when a listener closes. So the listeners first drop new handshakes
        (a client repeats its own after a second, and is refused then), and what waits is accepted meanwhile. A UNIX
        socket is taken away from its path instead.
        """
        if self._flags.grpc_socket_path:
            Path(self._flags.grpc_socket_path).unlink(missing_ok=True)
        for _, endpoint in self._endpoints:
            _drop_new_handshakes(endpoint.fileno())
        await asyncio.sleep(DRAIN_STEP_SECONDS)
        if self._followers is not None:
            for api, endpoint in self._endpoints:
                self._accept(api, endpoint)
        self._close()

    def _close(self) -> None:
        for listener in self._listeners:
            listener.close()
        for _, endpoint in self._endpoints:
            if self._followers is not None:
                self._loop.remove_reader(endpoint.fileno())
            endpoint.close()


def _bound(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    """A socket that has its address, but does not listen yet. Raises OSError where it cannot have it."""
    endpoint = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            endpoint.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        endpoint.bind(address)
    except OSError:
        endpoint.close()
        raise
    return endpoint


def _drop_new_handshakes(descriptor: int) -> None:
    """Attaches a packet filter that drops everything to a listening socket, where there are such filters (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # one instruction: return 0 bytes
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(drop_all))
    with socket.socket(fileno=os.dup(descriptor)) as endpoint, contextlib.suppress(OSError):
        endpoint.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
