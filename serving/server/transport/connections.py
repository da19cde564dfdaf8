"""The connections of one process, over both protocols: made with their limits and TLS, swept, and drained at the end.

Where they come from is the affair of `listeners.py` and, where several processes share the ports, of `workers/pool.py`.
"""

import asyncio
import contextlib
import enum
import logging
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bookserve.serving.server.api.rest_errors import error_body
from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.transport import grpc_channel_arguments, tls
from bookserve.serving.server.transport.buffer_budget import BufferedBytes
from bookserve.serving.server.transport.grpc_call import Handler, StreamHandler
from bookserve.serving.server.transport.http1 import Handler as RestHandler
from bookserve.serving.server.transport.http1 import Http1Limits, HttpConnection
from bookserve.serving.server.transport.http2 import GrpcConnection
from bookserve.serving.server.transport.http2_limits import Http2Limits

log = logging.getLogger(__name__)

DRAIN_STEP_SECONDS = 0.02
_SWEEP_SECONDS = 1.0
_MIN_SWEEP_SECONDS = 0.005
_TLS_GOODBYE_SECONDS = 2.0
# Files that the process opens besides its connections: models, logs, what waits to be accepted.
_OTHER_FILES = 256


class Api(enum.Enum):
    """What is spoken on a connection; the value is one byte, for messages between processes."""

    GRPC = b"g"
    REST = b"r"


@dataclass(frozen=True)
class Activity:
    """What happens on all connections of a process, or of several."""

    requests: int  # that have come in on those that are open now
    idle: bool  # whether none is under way

    def __add__(self, other: "Activity") -> "Activity":
        return Activity(self.requests + other.requests, self.idle and other.idle)


class Connections:
    """The connections. `handlers` and `streams` answer gRPC calls, `rest` the REST requests."""

    def __init__(
        self,
        flags: Flags,
        handlers: Mapping[bytes, Handler],
        streams: Mapping[bytes, StreamHandler],
        rest: RestHandler,
    ) -> None:
        """Reads the TLS files. Raises ServingError for settings that make no sense."""
        self._flags = flags
        self._handlers = handlers
        self._streams = streams
        self._rest = rest
        self._loop = asyncio.get_running_loop()
        self._buffered = BufferedBytes(flags.max_buffered_bytes)
        self._grpc_limits, warnings = grpc_channel_arguments.apply(
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
        # What the transports refuse by themselves, by reason.
        self.refused: dict[Api, Counter[str]] = {api: Counter() for api in Api}
        self._grpc_connections: set[GrpcConnection] = set()
        self._http_connections: set[HttpConnection] = set()
        self._adopting: dict[Api, set[asyncio.Task[None]]] = {api: set() for api in Api}
        self._make_room()

    def _make_room(self) -> None:
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

    # New ones

    def factory(self, api: Api) -> Callable[[], asyncio.Protocol]:
        """What makes the protocol of a new connection."""
        return self._grpc_connection if api is Api.GRPC else self._rest_connection

    def _grpc_connection(self) -> GrpcConnection:
        return GrpcConnection(
            self._handlers,
            self._streams,
            self._grpc_limits,
            self._buffered,
            self._grpc_connections,
            self.refused[Api.GRPC],
        )

    def _rest_connection(self) -> HttpConnection:
        return HttpConnection(
            self._rest,
            error_body,
            self._rest_limits,
            self._buffered,
            self._http_connections,
            self.refused[Api.REST],
        )

    def tls_options(self, api: Api) -> dict[str, Any]:
        """The loop's arguments for TLS; none where it is off."""
        context: ssl.SSLContext | None = self._grpc_tls if api is Api.GRPC else self._rest_tls
        if context is None:
            return {}
        return {
            "ssl": context,
            "ssl_handshake_timeout": self._flags.handshake_seconds,
            "ssl_shutdown_timeout": _TLS_GOODBYE_SECONDS,
        }

    def adopt(self, api: Api, endpoint: socket.socket) -> None:
        """Serves a connection that has been accepted, here or in another process."""
        task = self._loop.create_task(self._adopt(api, endpoint))
        self._adopting[api].add(task)
        task.add_done_callback(self._adopting[api].discard)

    async def _adopt(self, api: Api, endpoint: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self.factory(api), endpoint, **self.tls_options(api))
        except OSError as error:  # gone already, or no TLS
            log.debug("a connection was not made: %s", error)

    def count(self, api: Api) -> int:
        """How many there are, with those that are yet to shake hands."""
        connections: set[Any] = self._grpc_connections if api is Api.GRPC else self._http_connections
        return len(connections) + len(self._adopting[api])

    # Their lives

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

    def drain(self) -> Activity:
        """Tells every connection to drain, also those that were opened since the last call."""
        connections = self._all()
        for connection in connections:
            connection.drain()
        return Activity(
            sum(connection.requests for connection in connections), all(connection.idle for connection in connections)
        )

    async def finish(self, seconds: float) -> None:
        """Closes what is idle, waits for clients that have yet to read their answers, and drops the rest after that."""
        end = self._loop.time() + seconds
        for connection in self._all():
            if connection.idle:
                connection.close()
        while self._loop.time() < end and self._all():
            await asyncio.sleep(DRAIN_STEP_SECONDS)
        left = self._all()
        if left:
            log.warning("%d connections are dropped after --drain_seconds=%g", len(left), self._flags.drain_seconds)
        for connection in left:
            connection.abort()

    def _all(self) -> list[GrpcConnection | HttpConnection]:
        return [*self._grpc_connections, *self._http_connections]
