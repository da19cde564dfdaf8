"""The ports of the model server: opened with their limits and TLS, swept once a second, and drained at the end."""

import asyncio
import contextlib
import ctypes
import logging
import os
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bookserve.serving.server import channel_arguments, rest_api, tls
from bookserve.serving.server.buffered import BufferedBytes
from bookserve.serving.server.errors import ServingError, invalid_argument
from bookserve.serving.server.flags import Flags
from bookserve.serving.server.http1 import Http1Limits, HttpConnection, HttpExchange
from bookserve.serving.server.http2 import GrpcConnection, Handler, Http2Limits, StreamHandler
from bookserve.serving.wire import tensorflow_error_pb2

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 1.0
_MIN_SWEEP_SECONDS = 0.005
_BACKLOG = 1024
_DRAIN_STEP_SECONDS = 0.02
_TLS_GOODBYE_SECONDS = 2.0
_SO_ATTACH_FILTER = 26  # Linux's socket(7); Python has no name for it
# Files that the process opens besides its connections: models, logs, what waits to be accepted.
_OTHER_FILES = 256


class Ports:
    """The listeners and their connections. `handlers` and `streams` answer gRPC calls, `rest` the REST requests."""

    def __init__(
        self,
        flags: Flags,
        handlers: Mapping[bytes, Handler],
        streams: Mapping[bytes, StreamHandler],
        rest: Callable[[HttpExchange], None],
    ) -> None:
        """Reads the TLS files. Raises ServingError for settings that make no sense."""
        if not flags.port and not flags.grpc_socket_path:
            raise invalid_argument(
                "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set."
            )
        self._flags = flags
        self._handlers = handlers
        self._streams = streams
        self._rest = rest
        self._loop = asyncio.get_running_loop()
        self._buffered = BufferedBytes(flags.max_buffered_bytes)
        self._grpc_limits, warnings = channel_arguments.apply(
            flags.grpc_channel_arguments,
            Http2Limits(
                max_connections=flags.max_connections,
                max_message_bytes=flags.max_request_bytes,
                max_header_bytes=flags.max_header_bytes,
                handshake_seconds=flags.handshake_seconds,
                request_seconds=flags.request_seconds,
                stalled_seconds=flags.stalled_seconds,
                idle_seconds=flags.grpc_idle_seconds,
            ),
        )
        for warning in warnings:
            log.warning("%s", warning)
        self._rest_limits = Http1Limits(
            max_connections=flags.max_connections,
            max_body_bytes=flags.max_request_bytes,
            max_header_bytes=flags.max_header_bytes,
            request_seconds=flags.request_seconds,
            stalled_seconds=flags.stalled_seconds,
            idle_seconds=flags.rest_idle_seconds,
            answer_seconds=max(0, flags.rest_api_timeout_in_ms) / 1000,
        )
        self._grpc_tls = tls.server_context(Path(flags.ssl_config_file), "h2") if flags.ssl_config_file else None
        self._rest_tls = (
            tls.server_context(Path(flags.rest_ssl_config_file), "http/1.1") if flags.rest_ssl_config_file else None
        )
        self._grpc_connections: set[GrpcConnection] = set()
        self._http_connections: set[HttpConnection] = set()
        self._listeners: list[asyncio.Server] = []

    async def open(self) -> None:
        """Starts to listen. Raises ServingError for a port that is taken or a socket path that cannot be used."""
        self._make_room_for_connections()
        try:
            await self._listen()
        except (OSError, ServingError) as error:
            for listener in self._listeners:
                listener.close()
            if isinstance(error, ServingError):
                raise
            raise ServingError(tensorflow_error_pb2.UNKNOWN, f"Failed to BuildAndStart gRPC server: {error}") from error

    def _make_room_for_connections(self) -> None:
        """Lets the process open as many files as it may, and fewer connections where that is not enough."""
        if sys.platform == "win32":
            return
        import resource

        files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * self._flags.max_connections + _OTHER_FILES
        if files < wanted:
            files = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
        if files < wanted:
            room = max(1, (files - _OTHER_FILES) // 2)
            log.warning("--max_connections is %d, as this process may open only %d files (ulimit -n)", room, files)
            self._grpc_limits = replace(self._grpc_limits, max_connections=room)
            self._rest_limits = replace(self._rest_limits, max_connections=room)

    async def _listen(self) -> None:
        flags, loop = self._flags, self._loop

        def grpc_connection() -> GrpcConnection:
            return GrpcConnection(
                self._handlers, self._streams, self._grpc_limits, self._buffered, self._grpc_connections
            )

        def rest_connection() -> HttpConnection:
            return HttpConnection(
                self._rest, rest_api.error_body, self._rest_limits, self._buffered, self._http_connections
            )

        host = flags.bind_address
        if flags.port:
            self._listeners.append(
                await loop.create_server(
                    grpc_connection, host, flags.port, backlog=_BACKLOG, **self._tls_options(self._grpc_tls)
                )
            )
            log.info("Running gRPC ModelServer at %s:%d ...", host, flags.port)
        if flags.grpc_socket_path:
            path = Path(flags.grpc_socket_path)
            if path.exists() and not path.is_socket():
                raise invalid_argument(f"--grpc_socket_path={path} is there already, and is no socket")
            path.unlink(missing_ok=True)  # left by a server that was killed
            self._listeners.append(
                await loop.create_unix_server(
                    grpc_connection, str(path), backlog=_BACKLOG, **self._tls_options(self._grpc_tls)
                )
            )
            log.info("Running gRPC ModelServer at unix:%s ...", path)
        if flags.rest_api_port and flags.rest_api_port == flags.port:
            log.error("--rest_api_port cannot be the same as --port: REST is off")
        elif flags.rest_api_port:
            self._listeners.append(
                await loop.create_server(
                    rest_connection, host, flags.rest_api_port, backlog=_BACKLOG, **self._tls_options(self._rest_tls)
                )
            )
            log.info("Exporting HTTP/REST API at:%s:%d ...", host, flags.rest_api_port)

    def _tls_options(self, context: ssl.SSLContext | None) -> dict[str, Any]:
        if context is None:
            return {}
        return {
            "ssl": context,
            "ssl_handshake_timeout": self._flags.handshake_seconds,
            "ssl_shutdown_timeout": _TLS_GOODBYE_SECONDS,
        }

    async def sweep(self) -> None:
        """Once a second, for ever: time-outs and refilled allowances of every connection.

        More often where --rest_api_timeout_in_ms is shorter than that.
        """
        timeout = self._rest_limits.answer_seconds
        seconds = min(_SWEEP_SECONDS, max(_MIN_SWEEP_SECONDS, timeout / 4)) if timeout else _SWEEP_SECONDS
        last = self._loop.time()
        while True:
            await asyncio.sleep(seconds)
            now = self._loop.time()
            for grpc_connection in list(self._grpc_connections):
                grpc_connection.sweep(now, now - last)
            for http_connection in list(self._http_connections):
                http_connection.sweep(now)
            last = now

    async def drain(self) -> None:
        """Answers what was accepted and what still arrives, then closes; at the latest after --drain_seconds."""
        flags, loop = self._flags, self._loop
        start = loop.time()
        end = start + flags.drain_seconds
        await self._until_quiet(start + flags.drain_seconds / 2)
        await self._stop_listening()
        await self._until_quiet(end)
        for connection in self._connections():
            if connection.idle:
                connection.close()
        while loop.time() < end and self._connections():  # for answers that the clients have yet to read
            await asyncio.sleep(_DRAIN_STEP_SECONDS)
        left = self._connections()
        if left:
            log.warning("%d connections are dropped after --drain_seconds=%g", len(left), flags.drain_seconds)
        for connection in left:
            connection.abort()

    async def _until_quiet(self, end: float) -> None:
        """Tells every connection to drain; returns when for --drain_quiet_seconds nothing was asked or is under way."""
        quiet_since = self._loop.time()
        requests = -1
        while self._loop.time() < min(end, quiet_since + self._flags.drain_quiet_seconds):
            for connection in self._connections():
                connection.drain()  # also those that were opened meanwhile
            seen = sum(connection.requests for connection in self._connections())
            if seen != requests or not all(connection.idle for connection in self._connections()):
                requests, quiet_since = seen, self._loop.time()
            await asyncio.sleep(_DRAIN_STEP_SECONDS)

    async def _stop_listening(self) -> None:
        """Closes the listeners without resetting a connection that a client has already made.

        The kernel resets what waits to be accepted when a listener closes. So the listeners first drop new handshakes
        (a client repeats its own after a second, and is refused then), and what waits is accepted meanwhile. A UNIX
        socket is taken away from its path instead.
        """
        if self._flags.grpc_socket_path:
            Path(self._flags.grpc_socket_path).unlink(missing_ok=True)
        for listener in self._listeners:
            for endpoint in listener.sockets:
                _drop_new_handshakes(endpoint.fileno())
        await asyncio.sleep(_DRAIN_STEP_SECONDS)
        for listener in self._listeners:
            listener.close()

    def _connections(self) -> list[GrpcConnection | HttpConnection]:
        return [*self._grpc_connections, *self._http_connections]


def _drop_new_handshakes(descriptor: int) -> None:
    """Attaches a packet filter that drops everything to a listening socket, where there are such filters (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # one instruction: return 0 bytes
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(drop_all))
    with socket.socket(fileno=os.dup(descriptor)) as endpoint, contextlib.suppress(OSError):
        endpoint.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
