"""One HTTP/1.1 connection of the REST API: parsing by llhttp (`httptools`), limits, order and keep-alive by us.

A request is handed on only when it is complete and within its limits; what breaks a limit is answered with the status
that says so, and the connection is closed. Pipelined requests are answered in their order.
"""

import asyncio
import http
import logging
import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import httptools

from bookserve.serving.server.inference.trace import Record
from bookserve.serving.server.transport.buffer_budget import BufferedBytes
from bookserve.serving.server.transport.connection_limit import is_full
from bookserve.serving.server.types.errors import code_of_http
from bookserve.serving.wire import tensorflow_error_pb2

log = logging.getLogger(__name__)

_REASONS = {status.value: status.phrase for status in http.HTTPStatus} | {499: "Client Closed Request"}
_STATUS_LINES = {status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in _REASONS.items()}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_MAX_PIPELINED = 64
# How much of a refused request is still read so that its sender sees the refusal, and for how long.
_MAX_DISCARDED = 1 << 20
_LINGER_SECONDS = 2.0


@dataclass(frozen=True)
class Http1Limits:
    """What one connection may make the server hold, and how long it may take. Times are in seconds."""

    max_connections: int = 4096  # on this port; more are turned away
    max_body_bytes: int = 64 << 20  # as sent, and after decompression
    max_header_bytes: int = 16 << 10  # request line and headers together
    request_seconds: float = 30.0  # from a request's first byte to its last
    stalled_seconds: float = 60.0  # for the client to read anything of an answer that waits for it
    idle_seconds: float = 120.0  # a kept-alive connection without a request
    answer_seconds: float = 0.0  # from a request's last byte to its answer; 0 is for ever


class HttpExchange:
    """One request, complete, and how it is answered, once.

    `open` turns false when it is answered or its connection is gone; from then on an answer is dropped.
    """

    __slots__ = (
        "_answer",
        "_connection",
        "_keep_alive",
        "answer_headers",
        "body",
        "headers",
        "method",
        "open",
        "path",
        "received",
        "record",
    )

    def __init__(self, connection: "HttpConnection", method: bytes, path: bytes, headers: dict[bytes, bytes]) -> None:
        self.method = method
        self.path = path  # undecoded, without the query
        self.headers = headers  # names in lower case; of a repeated header the last
        self.body = b""  # decompressed
        self.open = True
        self.received = 0.0  # the loop's time
        self.answer_headers = b""  # further header lines of the answer, each with its line break
        self.record: Record | None = None  # taken off and ended with the exchange
        self._connection = connection
        self._keep_alive = True
        self._answer: bytes | None = None

    @property
    def peer(self) -> Any:
        """The client's address, as asyncio tells it."""
        return self._connection.peer

    def respond(
        self,
        status: int,
        body: bytes,
        content_type: bytes = b"application/json",
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        """Answers the request; a HEAD request gets the headers alone."""
        if self.open:
            if self.record is not None:
                record, self.record = self.record, None
                record.end(record.error.code if record.error else code_of_http(status), "", len(body))
            self._connection.send_response(self, status, body, content_type, headers)

    def drop(self) -> None:
        """Ends the exchange without an answer: the client is gone."""
        self.open = False
        if self.record is not None:
            record, self.record = self.record, None
            record.end(tensorflow_error_pb2.CANCELLED, "the client is gone", 0)


Handler = Callable[[HttpExchange], None]


class _Refusal(Exception):
    """A request that is answered by the transport itself, after which the connection closes."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason  # as it is counted


class HttpConnection(asyncio.Protocol):
    """The server's side of one connection.

    `refuse` makes the body of an answer from the transport's own message, in the format of the API behind it;
    `buffered` is shared by all connections; `connections` is the server's set of open ones, kept by the connection;
    `refused` counts what the transport refuses by itself, by reason.
    """

    def __init__(
        self,
        handler: Handler,
        refuse: Callable[[str], bytes],
        limits: Http1Limits,
        buffered: BufferedBytes,
        connections: "set[HttpConnection]",
        refused: Counter[str] | None = None,
    ) -> None:
        self._handler = handler
        self._refuse = refuse
        self._limits = limits
        self._buffered = buffered
        self._connections = connections
        self._refused = Counter() if refused is None else refused
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[HttpExchange] = deque()  # under way, in the order of the requests
        self.requests = 0  # that have been read completely
        self.turned_away = False
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._in_head = True
        # Received since a head, a part of a body or a request ended: llhttp keeps an unfinished header to itself.
        self._open_bytes = 0
        self._progress = False  # one of them ended in what was received last
        self._header_bytes = 0  # of the headers and trailers parsed so far
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._held = 0  # of them, as `buffered` counts them
        self._draining = False
        self._finished = False  # what still comes in is discarded: the last answer closes the connection
        self._unread = False
        self._discarded = 0
        self._write_paused = False
        self._unsent = 0  # bytes of answers that the client does not read, as `buffered` counts them
        self._swept_unsent = 0
        self._transport: asyncio.Transport

    # The life of the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._idle_since: float | None = self._loop.time()  # None from a request's first byte to its answer
        self._request_since: float | None = None  # None but while a request is coming in
        self._unsent_since = self._loop.time()
        self._connections.add(self)
        limit = self._limits.max_connections
        if is_full(self._connections, limit):
            self.turned_away = True
            text = f"this port has {limit} connections already (--max_connections): try again later"
            self._finish_with(503, "connections", text)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        for exchange in self._queue:
            exchange.drop()
        self._queue.clear()
        self._body = []
        self._buffered.give_back(self._held + self._unsent)
        self._held = self._unsent = 0

    def pause_writing(self) -> None:
        # A peer that does not read its answers may not send more requests either.
        self._write_paused = True
        self._transport.pause_reading()
        self._hold_unsent(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._write_paused = False
        self._buffered.give_back(self._unsent)
        self._unsent = 0
        if not self._finished:
            self._transport.resume_reading()

    def _hold_unsent(self, size: int) -> None:
        if self._buffered.take(size):
            self._unsent += size
        else:
            log.info("dropping a REST connection: %s", self._buffered)
            self._refused["buffered_bytes"] += 1
            self._transport.abort()

    def sweep(self, now: float) -> None:
        """Called by the server about once a second with the loop's time: closes what takes too long."""
        limits = self._limits
        unsent = self._transport.get_write_buffer_size()
        if not unsent or unsent != self._swept_unsent:
            self._swept_unsent, self._unsent_since = unsent, now
        if now - self._unsent_since > limits.stalled_seconds:
            self._refused["stalled"] += 1
            self._transport.abort()
        elif self._request_since is not None and now - self._request_since > limits.request_seconds:
            seconds = f"{limits.request_seconds:g} seconds (--request_seconds)"
            self._finish_with(408, "request_timeout", f"the request was not complete after {seconds}")
        elif self._idle_since is not None and now - self._idle_since > limits.idle_seconds:
            self._transport.close()
        elif limits.answer_seconds:
            for exchange in list(self._queue):
                if now - exchange.received > limits.answer_seconds:
                    exchange.respond(504, self._refuse("Timed out waiting for notification"))

    def drain(self) -> None:
        """From now on the next answer closes the connection; an idle one stays open for a last request."""
        self._draining = True

    def close(self) -> None:
        """Closes the connection once the answers are written."""
        self._transport.close()

    def abort(self) -> None:
        """Drops the connection and what is under way on it."""
        self._transport.abort()

    @property
    def peer(self) -> Any:
        """The client's address, as asyncio tells it."""
        return self._transport.get_extra_info("peername")

    @property
    def idle(self) -> bool:
        """Whether no request is under way, neither coming in nor waiting for its answer."""
        return not self._queue and self._request_since is None

    # Receiving

    def data_received(self, data: bytes) -> None:
        if self._finished:
            self._discarded += len(data)
            if self._discarded > _MAX_DISCARDED:
                self._transport.abort()
            return
        if self._request_since is None and not self._queue:
            self._request_since = self._loop.time()
        self._progress = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # answered as if no upgrade had been offered; what follows is not HTTP/1.1 any more and is discarded
        except httptools.HttpParserCallbackError as error:
            refusal = error.__context__
            if not isinstance(refusal, _Refusal):
                log.error("fault while reading a request", exc_info=refusal)
                self._finish_with(500, "internal_error", "internal error")
                return
            self._finish_with(refusal.status, refusal.reason, str(refusal))
        except httptools.HttpParserError as error:
            self._finish_with(400, "malformed", f"malformed HTTP request: {error}")
        else:
            if self._request_since is not None and not self._finished:
                self._after_part(len(data))

    def _after_part(self, size: int) -> None:
        """Holds what has been received of an incomplete request against the limits."""
        self._open_bytes = 0 if self._progress else self._open_bytes + size
        if self._open_bytes > self._limits.max_header_bytes:
            self._finish_with(431, "header_bytes", self._head_too_large())
        elif self._body_bytes > self._held:
            if self._buffered.take(self._body_bytes - self._held):
                self._held = self._body_bytes
            else:
                self._finish_with(503, "buffered_bytes", f"{self._buffered}: try again later")

    def eof_received(self) -> bool:
        # Nobody half-closes over HTTP/1.1 but those who are gone, and what they asked for need not be computed.
        return False

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._header_bytes = 0
        self._body = []
        self._body_bytes = 0
        self._idle_since = None
        if self._request_since is None:
            self._request_since = self._loop.time()

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_header(len(name) + len(value))
        if self._in_head:  # trailers change nothing
            self._headers[name.lower()] = value

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self._limits.max_header_bytes:
            raise _Refusal(431, "header_bytes", self._head_too_large())

    def _head_too_large(self) -> str:
        return (
            f"the request line and headers are larger than {self._limits.max_header_bytes} bytes (--max_header_bytes)"
        )

    def on_headers_complete(self) -> None:
        self._progress = True
        self._in_head = False
        length = self._headers.get(b"content-length")
        if length is not None and int(length) > self._limits.max_body_bytes:
            raise _Refusal(413, "request_bytes", self._too_large())
        expects = self._headers.get(b"expect", b"").lower() == b"100-continue"
        if expects and not self._queue and self._parser.get_http_version() == "1.1":  # HTTP/1.0 knows no 1xx
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._progress = True
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.max_body_bytes:
            raise _Refusal(413, "request_bytes", self._too_large())
        self._body.append(body)

    def _too_large(self) -> str:
        return f"the request body is larger than {self._limits.max_body_bytes} bytes (--max_request_bytes)"

    def on_message_complete(self) -> None:
        try:
            path = httptools.parse_url(self._url).path
        except httptools.HttpParserInvalidURLError:
            raise _Refusal(400, "malformed", "malformed URL") from None
        exchange = HttpExchange(self, self._parser.get_method(), path or b"/", self._headers)
        exchange._keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._body_bytes = 0
        if self._held:
            self._release_body()
        self._url = b""
        self._in_head = self._progress = True
        self._request_since = None
        encoding = self._headers.get(b"content-encoding", b"identity").lower()
        if encoding != b"identity" and body:
            body = self._decompressed(body, encoding)
        exchange.body = body
        exchange.received = self._loop.time()
        if len(self._queue) >= _MAX_PIPELINED:
            text = f"more than {_MAX_PIPELINED} requests wait for their answers on one connection"
            raise _Refusal(429, "pipelined", text)
        self.requests += 1
        self._queue.append(exchange)
        if not exchange._keep_alive:
            self._finished = True
        try:
            self._handler(exchange)
        except Exception:
            log.exception("fault while handling a request")
            exchange.respond(500, self._refuse("internal error"))

    def _release_body(self) -> None:
        self._buffered.give_back(self._held)
        self._held = 0

    def _decompressed(self, body: bytes, encoding: bytes) -> bytes:
        name = encoding.decode("latin-1")
        if encoding.endswith(b"gzip"):
            wbits = 16 + zlib.MAX_WBITS
        elif encoding == b"deflate":
            wbits = zlib.MAX_WBITS
        else:
            text = f"content-encoding {name!r} is not supported: use gzip, deflate or identity"
            raise _Refusal(415, "encoding", text)
        decompressor = zlib.decompressobj(wbits)
        try:
            data = decompressor.decompress(body, self._limits.max_body_bytes + 1)
        except zlib.error:
            raise _Refusal(400, "encoding", f"the request body is not valid {name}") from None
        if len(data) > self._limits.max_body_bytes:
            raise _Refusal(413, "request_bytes", f"{self._too_large()} after decompression")
        if not decompressor.eof:
            raise _Refusal(400, "encoding", f"the {name} request body ends early")
        if decompressor.unused_data:
            raise _Refusal(400, "encoding", f"the {name} request body goes on after its end")
        return data

    # Sending

    def send_response(
        self,
        exchange: HttpExchange,
        status: int,
        body: bytes,
        content_type: bytes,
        headers: tuple[tuple[bytes, bytes], ...],
    ) -> None:
        """Sends an answer as soon as those of all earlier requests of the connection are sent."""
        exchange.open = False
        if self._draining:
            exchange._keep_alive = False
        head = [
            _STATUS_LINES[status],
            b"Content-Type: %b\r\nContent-Length: %d\r\n" % (content_type, len(body)),
            *[b"%b: %b\r\n" % header for header in headers],
            exchange.answer_headers,
            b"\r\n" if exchange._keep_alive else b"Connection: close\r\n\r\n",
        ]
        if exchange.method != b"HEAD":
            head.append(body)
        exchange._answer = b"".join(head)
        queue = self._queue
        while queue and queue[0]._answer is not None:
            first = queue.popleft()
            answer = cast(bytes, first._answer)
            if self._write_paused:
                self._hold_unsent(len(answer))
            self._transport.write(answer)
            if not first._keep_alive:
                self._finished = True
                self._close()
                return
        if not queue:
            self._idle_since = self._loop.time()

    def _close(self) -> None:
        """Closes after the last answer so that the client can read it.

        Closing a socket with unread input makes the kernel drop the answer on its way, so where the request was not
        read to its end, only our direction is closed; the client's is discarded until it ends, too, or a limit.
        """
        if self._unread and self._transport.can_write_eof():
            self._transport.write_eof()
            self._loop.call_later(_LINGER_SECONDS, self._transport.close)
        else:
            self._transport.close()

    def _finish_with(self, status: int, reason: str, message: str) -> None:
        """Answers what cannot be read any further, behind the answers that are still due, and reads no more."""
        self._refused[reason] += 1
        self._finished = self._unread = True
        self._request_since = None
        self._body = []
        self._release_body()
        exchange = HttpExchange(self, b"", b"", {})
        exchange._keep_alive = False
        self._queue.append(exchange)
        exchange.respond(status, self._refuse(message))
