"""REST requests over RSGI: a request is read whole, within its limits, its handler answers it, and the answer is sent.

HTTP/1 itself is spoken by the library behind `ports.py`. What breaks a limit is answered here, in the form that
`error_body` gives, and its connection is closed.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from bookserve.serving.server.transport import compression
from bookserve.serving.server.transport.grpc_call import PROXIED, PROXY_HEADERS
from bookserve.serving.server.transport.limits import Limits, UnfinishedBytes
from bookserve.serving.server.types.errors import HTTP_STATUS, code_of_http, out_of_memory
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.connections import RefusedClients

log = logging.getLogger(__name__)

# A body up to this size is read in one step; of a larger one, and of one whose size is not told, every piece counts.
_SMALL_BODY = 64 << 10
# Reading a piece costs the same whatever its size, so beyond the first ones they must carry something.
_FREE_PIECES = 2048
_PIECE_BYTES = 128  # on average
# How often waiting requests are looked at, and after how long it is noticed when their clients go away.
_SWEEP_SECONDS = 0.25
_MIN_SWEEP_SECONDS = 0.005


class Headers(Protocol):
    """The headers of a request, by names in lower case."""

    def __contains__(self, name: str) -> bool: ...
    def get(self, name: str, default: Any = None) -> Any:
        """The value of a header."""
        ...

    def items(self) -> list[tuple[str, str]]:
        """All of them."""
        ...


class Scope(Protocol):
    """A request as the library tells it (RSGI)."""

    http_version: str
    method: str
    path: str
    client: str

    @property
    def headers(self) -> Headers:
        """See Headers."""
        ...


class Channel(Protocol):
    """Where the body comes from and the answer goes (RSGI)."""

    def __call__(self) -> Awaitable[bytes]:
        """The whole body."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Its pieces."""
        ...

    def client_disconnect(self) -> Awaitable[None]:
        """Returns when the client is gone."""
        ...

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Sends the answer."""
        ...


class HttpExchange:
    """One request, complete, and how it is answered, once.

    `open` turns false when it is answered or its client is gone; from then on an answer is dropped.
    """

    __slots__ = (
        "_waker",
        "answer",
        "answer_headers",
        "body",
        "channel",
        "headers",
        "late",
        "method",
        "open",
        "path",
        "reader",
        "received",
        "record",
        "scope",
        "watched",
    )

    def __init__(self, scope: Scope, channel: Channel) -> None:
        self.scope = scope
        self.method = scope.method
        self.path = scope.path  # percent-decoded, without the query
        self.headers = scope.headers
        self.channel = channel
        self.body = b""  # decompressed
        self.open = True
        self.received = 0.0  # the loop's time; while the body is read, when that began
        self.reader: asyncio.Task[Any] | None = None  # reads the body
        self.late = False  # the body was not complete in time
        self.answer: tuple[int, list[tuple[str, str]], bytes] | None = None
        self.answer_headers: list[tuple[str, str]] = []  # further headers of the answer
        self.record: Any = None  # an `Ended` of grpc_call.py; taken off and ended with the exchange
        self.watched: asyncio.Task[None] | None = None  # done when the client is gone
        self._waker: asyncio.Future[None] | None = None

    @property
    def peer(self) -> str:
        """The client's address; PROXIED where a proxy hides it."""
        if any(name in self.headers for name in PROXY_HEADERS):
            return PROXIED
        return self.scope.client.rpartition(":")[0].strip("[]")

    def respond(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Answers the request; a HEAD request gets the headers alone."""
        if self.open:
            self.answer = status, [("content-type", content_type), *headers, *self.answer_headers], body
            self._end(code_of_http(status), "", len(body))

    def drop(self) -> None:
        """Ends the exchange without an answer: the client is gone."""
        if self.open:
            self._end(tensorflow_error_pb2.CANCELLED, "the client is gone", 0)

    def _end(self, code: tensorflow_error_pb2.Code, message: str, nbytes: int) -> None:
        self.open = False
        if self.record is not None:
            record, self.record = self.record, None
            record.end(code, message, nbytes)
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    async def until_ended(self) -> None:
        """Returns when it is answered, or its client gone."""
        if self.open:
            self._waker = asyncio.get_running_loop().create_future()
            await self._waker


Handler = Callable[[HttpExchange], None]


class _Refused(Exception):
    """A request that is answered by the transport itself; `reason` as it is counted."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class RestApplication:
    """The RSGI application of the REST port.

    `refused` counts what is refused here, by reason; `started` the requests that have come in whole.
    """

    def __init__(
        self, handler: Handler, error_body: Callable[[str], bytes], limits: Limits, unfinished: UnfinishedBytes
    ) -> None:
        """`error_body` makes the body of an answer from the transport's own message."""
        self.draining = False  # every answer closes its connection
        self.started = 0
        self.refused: Counter[str] = Counter()
        self.refused_clients = RefusedClients()
        self._handler = handler
        self._error_body = error_body
        self._limits = limits
        self._unfinished = unfinished
        self._loop = asyncio.get_running_loop()
        self._waiting: set[HttpExchange] = set()  # for their answers
        self._reading: set[HttpExchange] = set()  # their bodies

    @property
    def idle(self) -> bool:
        """Whether no request is under way, neither coming in nor waiting for its answer."""
        return not self._waiting and not self._reading

    async def __rsgi__(self, scope: Scope, channel: Channel) -> None:
        """Answers one request (RSGI 1)."""
        exchange = HttpExchange(scope, channel)
        closes = False
        self.refused_clients.returned(scope.client)
        try:
            self._check_head(scope)
            if scope.method != "GET" and scope.method != "HEAD":
                await self._read_body(exchange)
            exchange.received = self._loop.time()
            self.started += 1
            self._waiting.add(exchange)
            self._handle(exchange)
            await exchange.until_ended()
        except _Refused as refused:
            self.refused[refused.reason] += 1
            closes = True
            self.refused_clients.add(scope.client)
            exchange.respond(refused.status, self._error_body(str(refused)))
        except asyncio.CancelledError:
            exchange.drop()
            raise
        except ConnectionError:
            exchange.drop()
        except MemoryError:
            self._full(exchange)
        except Exception:
            self._fault(exchange)
        finally:
            self._waiting.discard(exchange)
            if exchange.watched is not None:
                exchange.watched.cancel()
        if exchange.answer is not None:
            status, headers, body = exchange.answer
            if closes or self.draining:
                headers.append(("connection", "close"))
            if scope.method == "HEAD":  # of an empty body, the library does not tell the length
                headers.append(("content-length", str(len(body))))
            channel.response_bytes(status, headers, body)

    def _handle(self, exchange: HttpExchange) -> None:
        try:
            self._handler(exchange)
        except MemoryError:
            self._full(exchange)
        except Exception:  # also a ConnectionError, which is another connection's here, not the client's
            self._fault(exchange)

    def _full(self, exchange: HttpExchange) -> None:
        full = out_of_memory()
        exchange.respond(HTTP_STATUS[full.code], self._error_body(full.message), headers=(("retry-after", "1"),))

    def _fault(self, exchange: HttpExchange) -> None:
        log.exception("fault while answering a request")
        exchange.respond(500, self._error_body("internal error"))

    def _check_head(self, scope: Scope) -> None:
        headers = scope.headers.items()
        limit = self._limits.header_bytes
        if len(scope.path) + sum([len(name) + len(value) for name, value in headers]) > limit:
            text = f"the request line and headers are larger than {limit} bytes (--max_header_bytes)"
            raise _Refused(431, "header_bytes", text)
        hosts = [name for name, _ in headers].count("host")
        if hosts != 1 and (hosts or scope.http_version == "1.1"):
            text = f"a request of HTTP/1.1 needs one Host header, this one has {hosts or 'none'}"
            raise _Refused(400, "malformed", text)

    # The body

    async def _read_body(self, exchange: HttpExchange) -> None:
        headers = exchange.headers
        exchange.received = self._loop.time()
        exchange.reader = asyncio.current_task()
        self._reading.add(exchange)
        try:
            body = await self._body(exchange)
        except asyncio.CancelledError:
            if not exchange.late or exchange.reader is None:
                raise
            exchange.reader.uncancel()
            text = f"the request was not complete after {self._limits.request_seconds:g} seconds (--request_seconds)"
            raise _Refused(408, "request_timeout", text) from None
        finally:
            self._reading.discard(exchange)
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding != "identity" and body:
            body = await self._decompressed(body, encoding)
        exchange.body = body

    async def _body(self, exchange: HttpExchange) -> bytes:
        length = exchange.headers.get("content-length", "")
        if not length.isdigit():
            return await self._pieces(exchange)
        if int(length) > self._limits.message_bytes:
            raise self._too_large()
        if int(length) <= _SMALL_BODY:
            return await _whole(exchange.channel)
        body = await self._pieces(exchange)
        if len(body) < int(length):
            raise ConnectionResetError("the client is gone")
        return body

    async def _pieces(self, exchange: HttpExchange) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            async for piece in _until_gone(exchange.channel):
                if not self._unfinished.take(len(piece)):
                    raise _Refused(503, "buffered_bytes", str(self._unfinished))
                size += len(piece)
                if size > self._limits.message_bytes:
                    raise self._too_large()
                pieces.append(piece)
                if len(pieces) > _FREE_PIECES and size < _PIECE_BYTES * len(pieces):
                    text = "the body comes in needlessly small chunks: send it in larger ones"
                    raise _Refused(400, "chunks", text)
            # The last piece is empty; one more before it is all that the library tells of a broken body, and trailers.
            if pieces[-2:] == [b"", b""] and "content-length" not in exchange.headers:
                text = "the body's chunks are malformed or break off, or trailers follow, which are not supported"
                raise _Refused(400, "malformed", text)
            return b"".join(pieces)
        finally:
            self._unfinished.give_back(size)

    async def _decompressed(self, body: bytes, encoding: str) -> bytes:
        if encoding.endswith("gzip"):  # as in TensorFlow Serving, which looks for the word alone
            encoding = "gzip"
        if not compression.known(encoding):
            text = f"content-encoding {encoding!r} is not supported: use gzip, deflate or identity"
            raise _Refused(415, "encoding", text)
        try:
            return await compression.decompressed(body, encoding, self._limits.message_bytes)
        except compression.TooLarge:
            raise self._too_large(" after decompression") from None
        except compression.CompressionError as error:
            raise _Refused(400, "encoding", f"the request body is not valid {encoding}: {error}") from error

    def _too_large(self, when: str = "") -> _Refused:
        text = f"the request body is larger than {self._limits.message_bytes} bytes (--max_request_bytes){when}"
        return _Refused(413, "request_bytes", text)

    # What waits

    async def sweep(self, endpoints: Callable[[], list[socket.socket]]) -> None:
        """For ever: ends requests that come too slowly or wait too long for their answer, or whose clients are gone.

        One look at all of them every so often costs less than a timer for each. `endpoints` tells the
        listening sockets that their connections came in on.
        """
        timeout, request_seconds = self._limits.answer_seconds, self._limits.request_seconds
        seconds = max(_MIN_SWEEP_SECONDS, min(_SWEEP_SECONDS, (timeout or request_seconds) / 4, request_seconds / 4))
        while True:
            await asyncio.sleep(seconds)
            self.refused_clients.cut_off(endpoints())
            now = self._loop.time()
            for exchange in self._reading:
                if now - exchange.received > request_seconds and exchange.reader is not None and not exchange.late:
                    exchange.late = True
                    exchange.reader.cancel()
            for exchange in list(self._waiting):
                if timeout and now - exchange.received > timeout:
                    exchange.respond(504, self._error_body("Timed out waiting for notification"))
                elif exchange.watched is None and now - exchange.received > _SWEEP_SECONDS:
                    exchange.watched = self._loop.create_task(_watch(exchange))


async def _watch(exchange: HttpExchange) -> None:
    await exchange.channel.client_disconnect()
    exchange.drop()


async def _whole(channel: Channel) -> bytes:
    """The body. Raises ConnectionError where the client is gone."""
    try:
        return await channel()
    except ProtocolClosed as error:
        raise ConnectionResetError("the client is gone") from error


async def _until_gone(channel: Channel) -> AsyncIterator[bytes]:
    """The body's pieces. Raises ConnectionError where the client is gone."""
    try:
        async for piece in channel:
            yield piece
    except ProtocolClosed as error:
        raise ConnectionResetError("the client is gone") from error
