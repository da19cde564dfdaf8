"""gRPC calls over ASGI: a call's messages are read, its handler answers it, and status and trailers follow.

This is the gRPC over HTTP/2 protocol above HTTP/2 itself, which the library behind `ports.py` speaks. A unary call
whose message came in one piece, nearly every one, goes to its handler without a detour.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import quote

from bookserve.serving.server.transport import compression
from bookserve.serving.server.transport.limits import Limits, UnfinishedBytes
from bookserve.serving.server.types.errors import out_of_memory
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensorflow_error_pb2 import Code

log = logging.getLogger(__name__)

Header = tuple[bytes, bytes]
Event = Mapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

_PREFIX = 5  # bytes before each message: whether it is compressed, and its size
_HEADERS: list[Header] = [(b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"identity,deflate,gzip")]
_OK: Header = (b"grpc-status", b"0")
_START: Event = {"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True}
_END: Event = {"type": "http.response.body"}
_OK_TRAILERS: Event = {"type": "http.response.trailers", "headers": [_OK]}
_NOT_GRPC: Event = {"type": "http.response.start", "status": 415, "headers": [(b"content-length", b"0")]}
_JOINED = 64 << 10  # an answer up to this size is copied behind its prefix, a larger one is sent after it

# The protocol's Percent-Encoded: every printable ASCII character but the percent sign stands for itself.
_UNQUOTED = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
# TensorFlow Serving cuts its messages there (model_servers/grpc_status_util.cc).
_MAX_STATUS_MESSAGE = 1024
_FULL = out_of_memory()
_TIMEOUT_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class Ended(Protocol):
    """What is told the end of a request."""

    def end(self, code: Code, message: str, nbytes: int) -> None:
        """Called once, with the status of the answer and its size in bytes."""
        ...


_MAX_TIMEOUT_DIGITS = 20  # the protocol has 8; gRPC's C core takes more
# With one of these a request comes from a proxy, and its connection's address is not the client's.
PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
PROXIED = "proxied"  # no address


class GrpcCall:
    """One call, as its handler sees it.

    A unary call is answered once, with `reply` or `fail`; a streaming one with any number of `send`, then `finish` or
    `fail`. `open` turns false when the call is answered, cancelled by the client, past its deadline or its connection
    gone; from then on an answer is dropped, so work for a closed call may be skipped.
    """

    __slots__ = (
        "__weakref__",
        "_error",
        "_parts",
        "_waker",
        "authorization",
        "encoding",
        "open",
        "path",
        "record",
        "request_id",
        "scope",
        "streaming",
        "timeout",
        "trailers",
    )

    def __init__(self, scope: Event) -> None:
        self.path: bytes = scope["raw_path"]
        self.scope = scope
        self.timeout: float | None = None  # seconds, from the client's deadline
        self.authorization = b""  # the metadata of that name
        self.encoding = "identity"  # of compressed messages
        self.request_id = ""  # as the client sent it
        self.open = True
        self.streaming = False  # the call may go on for as long as it likes
        self.trailers: list[Header] = []  # that follow those of the status
        self.record: Any = None  # an `Ended`; taken off and ended with the call
        self._parts: list[bytes] = []  # messages to be sent
        self._error: tuple[Code, str] | None = None
        self._waker: asyncio.Future[None] | None = None

    @property
    def peer(self) -> str:
        """The client's address; "" on a UNIX socket, PROXIED where a proxy hides it."""
        if any(name.decode("latin-1") in PROXY_HEADERS for name, _ in self.scope["headers"]):
            return PROXIED
        client = self.scope.get("client")
        if client:
            return str(client[0])
        return "" if self.scope["server"][1] is None else "unknown"

    @property
    def host(self) -> str:
        """The server's name as the client wrote it, its `:authority`; "" where it wrote none."""
        return next((value.decode("latin-1") for name, value in self.scope["headers"] if name == b"host"), "")

    def reply(self, message: bytes) -> None:
        """Answers the call with a serialised message."""
        if self.open:
            self._parts.append(message)
            self._end(tensorflow_error_pb2.OK, "", len(message))

    def send(self, message: bytes) -> None:
        """Sends one message of several."""
        if self.open:
            self.streaming = True
            self._parts.append(message)
            self._wake()

    def finish(self) -> None:
        """Ends a streaming call with OK, behind what has been sent."""
        if self.open:
            self._end(tensorflow_error_pb2.OK, "", 0)

    def fail(self, code: Code, message: str) -> None:
        """Ends the call with an error status; the message is cut as TensorFlow Serving cuts it."""
        if self.open:
            self._error = code, message
            self._end(code, message, 0)

    def drop(self) -> None:
        """Ends the call without an answer: the client is gone."""
        if self.open:
            self._end(tensorflow_error_pb2.CANCELLED, "the client is gone", 0)

    def expire(self) -> None:
        """Ends the call at its deadline."""
        self.fail(tensorflow_error_pb2.DEADLINE_EXCEEDED, "Timed out waiting for notification")

    def _end(self, code: Code, message: str, nbytes: int) -> None:
        self.open = False
        if self.record is not None:
            record, self.record = self.record, None
            record.end(code, message, nbytes)
        self._wake()

    def _wake(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    async def send_answer(self, send: Send) -> None:
        """Sends what the handler answers, as it comes, then status and trailers."""
        begun = False
        while self.open or self._parts:
            if not self._parts:
                self._waker = asyncio.get_running_loop().create_future()
                await self._waker
                continue
            if not begun:
                begun = True
                await send(_START)
            parts, self._parts = self._parts, []
            for message in parts:
                prefix = b"\0" + len(message).to_bytes(4, "big")
                if len(message) > _JOINED:
                    await send({"type": "http.response.body", "body": prefix, "more_body": True})
                    prefix = b""
                last = not self.open and not self.streaming
                await send({"type": "http.response.body", "body": prefix + message, "more_body": not last})
        await self._send_status(send, begun)

    async def _send_status(self, send: Send, begun: bool) -> None:
        status = [_OK] if self._error is None else _status(*self._error)
        if not begun and self._error is not None:  # trailers alone
            headers = [*_HEADERS, *status, *self.trailers]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send(_END)
            return
        if not begun:
            await send(_START)
        if self.streaming or not begun:
            await send(_END)
        if self.trailers or self._error is not None:
            await send({"type": "http.response.trailers", "headers": [*status, *self.trailers]})
        else:
            await send(_OK_TRAILERS)


# Called with the one message of a call.
Handler = Callable[[GrpcCall, bytes], None]
# Called with each message of a call, and with None after the last.
StreamHandler = Callable[[GrpcCall, bytes | None], None]


class _Refused(Exception):
    """A call that is answered by the transport itself; `reason` as it is counted."""

    def __init__(self, reason: str, code: Code, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code


class _NotGrpc(Exception):
    """A request of plain HTTP."""


class GrpcApplication:
    """The ASGI application of the gRPC port: `handlers` and `streams` by method path.

    `refused` counts what is refused here, by reason; `started` the calls that have come in.
    """

    def __init__(
        self,
        handlers: Mapping[bytes, Handler],
        streams: Mapping[bytes, StreamHandler],
        limits: Limits,
        unfinished: UnfinishedBytes,
    ) -> None:
        self.calls: set[GrpcCall] = set()  # under way
        self.started = 0
        self.refused: Counter[str] = Counter()
        self._handlers = handlers
        self._streams = streams
        self._limits = limits
        self._unfinished = unfinished
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> bool:
        """Whether no call is under way but those that would go on for ever."""
        return all(call.streaming for call in self.calls)

    def end_streams(self) -> None:
        """Ends the calls that would go on for ever."""
        for call in list(self.calls):
            if call.streaming:
                call.fail(tensorflow_error_pb2.UNAVAILABLE, "this connection is closed by the server: call again")

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answers one call (ASGI 3)."""
        call = GrpcCall(scope)
        self.calls.add(call)
        self.started += 1
        timer = None
        try:
            self._read_headers(call, scope)
            if call.timeout is not None:
                timer = self._loop.call_later(call.timeout, call.expire)
            handler = self._handlers.get(call.path)
            if handler is not None:
                message = await self._one_message(call, receive)
                if call.open:
                    self._handle(call, handler, message)
                await call.send_answer(send)
            else:
                await self._stream(call, self._streams[call.path], receive, send)
        except asyncio.CancelledError:
            call.drop()
            raise
        except _Refused as refused:
            self.refused[refused.reason] += 1
            await self._fail(call, send, refused.code, str(refused))
        except _NotGrpc:
            self.refused["not_grpc"] += 1
            await send(_NOT_GRPC)
            await send(_END)
        except OSError:  # the client is gone
            call.drop()
        except MemoryError:
            await self._fail(call, send, _FULL.code, _FULL.message)
        except Exception:
            log.exception("fault while answering a call of %s", call.path.decode("utf-8", "replace"))
            await self._fail(call, send, tensorflow_error_pb2.INTERNAL, "internal error")
        finally:
            self.calls.discard(call)
            if timer is not None:
                timer.cancel()

    def _handle(self, call: GrpcCall, handler: Handler, message: bytes) -> None:
        try:
            handler(call, message)
        except MemoryError:
            call.fail(_FULL.code, _FULL.message)
        except Exception:  # also an OSError, which means here that a file is not there, not that the client is gone
            log.exception("fault while answering a call of %s", call.path.decode("utf-8", "replace"))
            call.fail(tensorflow_error_pb2.INTERNAL, "internal error")

    async def _fail(self, call: GrpcCall, send: Send, code: Code, message: str) -> None:
        call.fail(code, message)
        with suppress(OSError):  # the client is gone
            await call.send_answer(send)

    def _read_headers(self, call: GrpcCall, scope: Event) -> None:
        size = len(call.path)
        content_type = accepted = timeout = b""
        for name, value in scope["headers"]:
            size += len(name) + len(value)
            if name == b"content-type":
                content_type = value
            elif name == b"te":
                accepted = value
            elif name == b"grpc-timeout":
                timeout = value
            elif name == b"grpc-encoding":
                call.encoding = value.decode("latin-1")
            elif name == b"x-request-id":
                call.request_id = value.decode("latin-1")
            elif name == b"authorization":
                call.authorization = value
        limit = self._limits.header_bytes
        if size > limit:
            text = f"received metadata of {size} bytes is larger than {limit} (--max_header_bytes)"
            raise _Refused("header_bytes", tensorflow_error_pb2.RESOURCE_EXHAUSTED, text)
        if len(self.calls) > self._limits.calls:
            text = f"more than {self._limits.calls} calls are under way (--max_buffered_bytes): try again later"
            raise _Refused("calls", tensorflow_error_pb2.RESOURCE_EXHAUSTED, text)
        if scope["method"] != "POST" or not content_type.startswith(b"application/grpc"):
            raise _NotGrpc
        if b"trailers" not in accepted:  # the status of an answer stands there
            text = "the request lacks the header 'te: trailers': a proxy that does not know gRPC has left it out"
            raise _Refused("malformed", tensorflow_error_pb2.INTERNAL, text)
        if timeout:
            call.timeout = _seconds(timeout)
        if call.path not in self._handlers and call.path not in self._streams:
            text = f"unknown method {call.path.decode('utf-8', 'replace')}"
            raise _Refused("unknown_method", tensorflow_error_pb2.UNIMPLEMENTED, text)

    # Messages

    async def _one_message(self, call: GrpcCall, receive: Receive) -> bytes:
        """The message of a unary call."""
        event = await receive()
        body: bytes = event.get("body", b"")
        size = int.from_bytes(body[1:_PREFIX], "big")
        if len(body) < _PREFIX or size != len(body) - _PREFIX:
            seconds = self._limits.request_seconds
            try:
                async with asyncio.timeout(seconds):
                    body = await self._rest_of(event, receive)
            except TimeoutError:
                text = f"the request was not complete after {seconds:g} seconds (--request_seconds)"
                raise _Refused("request_timeout", tensorflow_error_pb2.DEADLINE_EXCEEDED, text) from None
        elif size > self._limits.message_bytes:
            raise self._too_large(size)
        if body[0]:
            return await self._decompressed(call, body[_PREFIX:])
        return body[_PREFIX:]

    async def _rest_of(self, event: Event, receive: Receive) -> bytes:
        """The message, with its prefix, that begins with `event`."""
        parts: list[bytes] = []
        held, size = 0, -1
        try:
            while True:
                if event["type"] == "http.disconnect":
                    raise OSError("the client is gone")
                part = event.get("body", b"")
                if not self._unfinished.take(len(part)):
                    text = str(self._unfinished)
                    raise _Refused("buffered_bytes", tensorflow_error_pb2.RESOURCE_EXHAUSTED, text)
                held += len(part)
                parts.append(part)
                if size < 0 and held >= _PREFIX:
                    parts = [b"".join(parts)]
                    size = int.from_bytes(parts[0][1:_PREFIX], "big")
                    if size > self._limits.message_bytes:
                        raise self._too_large(size)
                if 0 <= size < held - _PREFIX:
                    text = "a unary call carries one message"
                    raise _Refused("malformed", tensorflow_error_pb2.INTERNAL, text)
                if 0 <= size == held - _PREFIX:
                    return b"".join(parts)
                if not event.get("more_body"):
                    text = "the call ended without a complete message"
                    raise _Refused("malformed", tensorflow_error_pb2.INTERNAL, text)
                event = await receive()
        finally:
            self._unfinished.give_back(held)

    async def _stream(self, call: GrpcCall, handler: StreamHandler, receive: Receive, send: Send) -> None:
        """Hands every message of a streaming call to its handler, while answers are sent."""
        call.streaming = True
        reading = self._loop.create_task(self._read_stream(call, handler, receive))
        try:
            await call.send_answer(send)
        finally:
            reading.cancel()

    async def _read_stream(self, call: GrpcCall, handler: StreamHandler, receive: Receive) -> None:
        received = bytearray()
        held = 0
        try:
            while call.open:
                event = await receive()
                part = event.get("body", b"")
                if not self._unfinished.take(len(part)):
                    raise _Refused("buffered_bytes", tensorflow_error_pb2.RESOURCE_EXHAUSTED, str(self._unfinished))
                held += len(part)
                received += part
                await self._take_messages(call, handler, received)
                self._unfinished.give_back(held - len(received))
                held = len(received)
                if not event.get("more_body"):
                    break
            if received and call.open:
                text = "the call ended without a complete message"
                raise _Refused("malformed", tensorflow_error_pb2.INTERNAL, text)
            handler(call, None)
        except _Refused as refused:
            self.refused[refused.reason] += 1
            call.fail(refused.code, str(refused))
        except Exception:
            log.exception("fault while answering a call of %s", call.path.decode("utf-8", "replace"))
            call.fail(tensorflow_error_pb2.INTERNAL, "internal error")
        finally:
            self._unfinished.give_back(held)

    async def _take_messages(self, call: GrpcCall, handler: StreamHandler, received: bytearray) -> None:
        while call.open and len(received) >= _PREFIX:
            size = int.from_bytes(received[1:_PREFIX], "big")
            if size > self._limits.message_bytes:
                raise self._too_large(size)
            if len(received) < _PREFIX + size:
                return
            message = bytes(received[_PREFIX : _PREFIX + size])
            if received[0]:
                message = await self._decompressed(call, message)
            del received[: _PREFIX + size]
            handler(call, message)

    async def _decompressed(self, call: GrpcCall, message: bytes) -> bytes:
        if call.encoding == "identity":
            text = "a message is marked as compressed, and the call has no grpc-encoding"
            raise _Refused("encoding", tensorflow_error_pb2.INTERNAL, text)
        if call.encoding not in ("gzip", "deflate"):
            text = f"grpc-encoding {call.encoding} is not supported: use gzip, deflate or identity"
            raise _Refused("encoding", tensorflow_error_pb2.UNIMPLEMENTED, text)
        try:
            return await compression.decompressed(message, call.encoding, self._limits.message_bytes)
        except compression.TooLarge:
            raise self._too_large(None) from None
        except compression.CompressionError as error:
            text = f"the message does not decompress: {error}"
            raise _Refused("encoding", tensorflow_error_pb2.INTERNAL, text) from error

    def _too_large(self, size: int | None) -> _Refused:
        sent = "Received message" if size is None else f"Received message of {size} bytes"
        text = f"{sent} larger than max ({self._limits.message_bytes} bytes, --max_request_bytes)"
        return _Refused("request_bytes", tensorflow_error_pb2.RESOURCE_EXHAUSTED, text)


def _status(code: Code, message: str) -> list[Header]:
    if len(message) > _MAX_STATUS_MESSAGE:
        message = message[:_MAX_STATUS_MESSAGE] + "...TRUNCATED"
    text = quote(message, safe=_UNQUOTED)
    inner = text.strip(" ")  # a header's value has no space at its ends (RFC 9110, 5.5)
    if inner != text:
        start = text.index(inner)
        text = "%20" * start + inner + "%20" * (len(text) - start - len(inner))
    return [(b"grpc-status", b"%d" % code), (b"grpc-message", text.encode())]


def _seconds(timeout: bytes) -> float:
    """A grpc-timeout header in seconds. Raises _Refused where it is malformed, as gRPC's own servers do."""
    digits, unit = timeout[:-1], _TIMEOUT_UNITS.get(timeout[-1:])
    if unit is None or not digits.isdigit() or len(digits) > _MAX_TIMEOUT_DIGITS:
        text = f"grpc-timeout is {timeout[:20].decode('latin-1')!r}: it has to be a number and a unit, such as 500m"
        raise _Refused("malformed", tensorflow_error_pb2.INTERNAL, text)
    return int(digits) * unit
