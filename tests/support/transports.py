"""The server's two transports alone: real connections to a loopback port, served by a loop in a thread."""

import asyncio
import ssl
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bookserve.serving.server.transport.buffer_budget import BufferedBytes
from bookserve.serving.server.transport.http1 import Http1Limits, HttpConnection, HttpExchange
from bookserve.serving.server.transport.http2 import GrpcConnection, Handler, Http2Limits, StreamHandler

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
DEFAULT_BUFFERED = 512 << 20


class Transport:
    """A loop in a thread that serves connections of `make`, on TCP, or on the UNIX socket `path`."""

    def __init__(
        self,
        make: Callable[["Transport"], asyncio.Protocol],
        *,
        max_buffered: int = DEFAULT_BUFFERED,
        tls: ssl.SSLContext | None = None,
        handshake_seconds: float | None = None,
        loop_factory: LoopFactory = asyncio.new_event_loop,
        path: str = "",
    ) -> None:
        self.connections: set[Any] = set()
        self._made: weakref.WeakSet[Any] = weakref.WeakSet()  # also those that are turned away
        self.buffered = BufferedBytes(max_buffered)
        self.refused: Counter[str] = Counter()
        self.loop = loop_factory()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        options: dict[str, Any] = {"ssl": tls, "ssl_handshake_timeout": handshake_seconds} if tls else {}

        def connection() -> asyncio.Protocol:
            made = make(self)
            self._made.add(made)
            return made

        async def start() -> asyncio.Server:
            if path:
                return await self.loop.create_unix_server(connection, path, **options)
            return await self.loop.create_server(connection, "127.0.0.1", 0, **options)

        self.server = asyncio.run_coroutine_threadsafe(start(), self.loop).result(10)
        self.port = 0 if path else self.server.sockets[0].getsockname()[1]

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def on_loop(self, work: Callable[[], Any]) -> None:
        """Runs `work` in the loop's thread; what it raises is raised here."""

        async def run() -> None:
            work()

        asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def close(self) -> None:
        def stop() -> None:
            self.loop.call_later(0.05, self.loop.stop)
            self.server.close()
            for connection in list(self._made):
                transport = getattr(connection, "_transport", None)  # there is none without a TLS handshake
                if connection in self.connections or (transport and not transport.is_closing()):
                    connection.abort()

        self.loop.call_soon_threadsafe(stop)
        self.thread.join(10)
        self.loop.close()


class GrpcTransport(Transport):
    """Serves gRPC calls with `handlers` and `streams`."""

    connections: set[GrpcConnection]

    def __init__(
        self,
        handlers: Mapping[bytes, Handler],
        limits: Http2Limits | None = None,
        streams: Mapping[bytes, StreamHandler] | None = None,
        **options: Any,
    ) -> None:
        given = limits or Http2Limits()
        super().__init__(
            lambda this: GrpcConnection(handlers, streams or {}, given, this.buffered, this.connections, this.refused),
            **options,
        )

    def sweep(self, seconds_from_now: float = 0.0, elapsed: float = 1.0) -> None:
        """What the server does once a second, as if that many seconds had gone by."""

        def run() -> None:
            for connection in list(self.connections):
                connection.sweep(self.loop.time() + seconds_from_now, elapsed)

        self.on_loop(run)


class HttpTransport(Transport):
    """Serves REST requests with `handler`; a refusal's body is its message."""

    connections: set[HttpConnection]

    def __init__(
        self, handler: Callable[[HttpExchange], None], limits: Http1Limits | None = None, **options: Any
    ) -> None:
        given = limits or Http1Limits()
        super().__init__(
            lambda this: HttpConnection(handler, str.encode, given, this.buffered, this.connections, this.refused),
            **options,
        )

    def sweep(self, seconds_from_now: float) -> None:
        """What the server does once a second, as if that many seconds had gone by."""

        def run() -> None:
            for connection in list(self.connections):
                connection.sweep(self.loop.time() + seconds_from_now)

        self.on_loop(run)


@contextmanager
def serving(
    handlers: Mapping[bytes, Handler],
    limits: Http2Limits | None = None,
    streams: Mapping[bytes, StreamHandler] | None = None,
    **options: Any,
) -> Iterator[GrpcTransport]:
    transport = GrpcTransport(handlers, limits, streams, **options)
    try:
        yield transport
    finally:
        transport.close()


@contextmanager
def serving_rest(
    handler: Callable[[HttpExchange], None], limits: Http1Limits | None = None, **options: Any
) -> Iterator[HttpTransport]:
    transport = HttpTransport(handler, limits, **options)
    try:
        yield transport
    finally:
        transport.close()


def echo(call: Any, message: bytes) -> None:
    """A gRPC handler that answers what it was asked."""
    call.reply(message)
