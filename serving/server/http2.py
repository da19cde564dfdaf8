"""One HTTP/2 connection that carries gRPC calls (RFC 9113 and the gRPC over HTTP/2 protocol).

The model server's hot path: a request that fits one DATA frame is handed to its handler straight out of the receive
buffer, and its answer (headers, message, trailers) leaves in one write. Everything else of the protocol is here too:
flow control both ways, big messages, compression, streaming calls, deadlines, cancellation, drain by GOAWAY, and limits
on what a peer may make the server hold or do. Frames are put together by `http2_frames.py`, header blocks by
`hpack.py`, and what gRPC writes into them by `grpc_protocol.py`.
"""

import asyncio
import logging
import math
import random
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from bookserve.serving.server import grpc_protocol, hpack, http2_frames
from bookserve.serving.server.buffered import BufferedBytes
from bookserve.serving.server.connection_limit import is_full
from bookserve.serving.server.grpc_protocol import OK_TRAILERS, PREFIX, RESPONSE_HEADERS
from bookserve.serving.server.http2_frames import (
    ACK,
    CALM,
    CANCEL,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    DEFAULT_MAX_FRAME,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME,
    FRAME_SIZE_ERROR,
    HEADERS,
    MAX_WINDOW,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTING,
    SETTING_MAX_FRAME,
    SETTING_MAX_HEADERS,
    SETTING_MAX_STREAMS,
    SETTING_WINDOW,
    SETTINGS,
    UINT32,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ConnectionFault,
    frame,
    goaway,
    reset,
    window_update,
)
from bookserve.serving.server.record import Record
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensorflow_error_pb2 import Code

log = logging.getLogger(__name__)

_DRAIN_PING = b"drain..."
_ALIVE_PING = b"alive?.."
_LINGER_SECONDS = 1.0
# How long a client may take to leave a connection that was idle too long.
_LEAVE_SECONDS = 10.0
# Why a connection is given up, as it is counted.
_REASONS = {
    PROTOCOL_ERROR: "protocol",
    FRAME_SIZE_ERROR: "frame_size",
    FLOW_CONTROL_ERROR: "flow_control",
    COMPRESSION_ERROR: "compression",
    CALM: "flood",
}


@dataclass(frozen=True)
class Http2Limits:
    """What one connection may make the server hold or do, and how long it may take. Times are in seconds."""

    max_connections: int = 4096  # on this port; more are turned away
    max_message_bytes: int = 64 << 20  # one request message, also after decompression
    max_streams: int = 2048  # calls at a time
    max_header_bytes: int = 16 << 10  # one header list, and one header block with its continuations
    stream_window_bytes: int = 1 << 20  # sent ahead by the client before the server has read it
    connection_window_bytes: int = 4 << 20
    max_frame_bytes: int = 256 << 10
    handshake_seconds: float = 10.0  # a connection that has not spoken HTTP/2 by then is closed
    request_seconds: float = 30.0  # from a call's headers to the end of its message
    stalled_seconds: float = 60.0  # for the client to read anything of an answer that waits for it
    idle_seconds: float = 3600.0  # a connection without calls
    age_seconds: float = math.inf  # after which clients are sent to a new connection, give or take a tenth
    age_grace_seconds: float = math.inf  # for the calls that are under way then
    keepalive_seconds: float = 7200.0  # of silence, after which the peer is asked for a sign of life
    keepalive_timeout_seconds: float = 20.0  # for that sign
    control_frames_per_second: int = 1000  # that ask for an answer or carry nothing: PING, SETTINGS, empty DATA, ...
    resets_per_second: int = 100  # calls begun and reset at the client's doing, beyond a burst of ten times that


class GrpcCall:
    """One call: what its handler knows of it, and how the handler answers it.

    A unary call is answered once, with `reply` or `fail`; a streaming one with any number of `send`, then `finish` or
    `fail`. `open` turns false when the call is answered, cancelled by the client, past its deadline or its connection
    gone; from then on an answer is dropped, so work for a closed call may be skipped.
    """

    __slots__ = (
        "__weakref__",
        "_begun",
        "_body",
        "_connection",
        "_encoding",
        "_ending",
        "_expected",
        "_held",
        "_mark",
        "_mark_at",
        "_outgoing",
        "_receive_window",
        "_receiving",
        "_send_window",
        "_stream",
        "_timer",
        "authorization",
        "open",
        "path",
        "record",
        "request_id",
        "stream_id",
        "timeout",
        "trailers",
    )

    def __init__(self, connection: "GrpcConnection", stream_id: int, path: bytes) -> None:
        self.path = path
        self.stream_id = stream_id
        self.timeout: float | None = None  # seconds, from the client's deadline
        self.authorization = b""  # the metadata of that name
        self.open = True
        self.request_id = b""  # as the client sent it
        self.trailers = b""  # a header block that follows those of the status
        self.record: Record | None = None  # taken off and ended with the call
        self._connection = connection
        self._encoding = b"identity"
        self._body: bytearray | None = None
        self._expected = -1  # bytes of body with its prefix, once the prefix is there
        self._outgoing: memoryview | None = None
        self._held = 0  # bytes of both, as the server's BufferedBytes counts them
        self._send_window = connection.peer_window
        self._receive_window = connection.limits.stream_window_bytes
        self._receiving = True  # until the client has sent everything
        self._begun = False  # response headers are sent
        self._ending = False  # the trailers follow what is outgoing
        self._stream: StreamHandler | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._mark = 0  # what the last sweep saw of the call, and since when that has not changed
        self._mark_at = 0.0

    @property
    def streaming(self) -> bool:
        """Whether the call may go on for as long as it likes."""
        return self._stream is not None or (self._begun and not self._ending)

    @property
    def peer(self) -> Any:
        """The client's address, as asyncio tells it."""
        return self._connection.peer

    def reply(self, message: bytes) -> None:
        """Answers the call with a serialised message."""
        if self.open:
            if self.record is not None:
                self._end_record(self.record, tensorflow_error_pb2.OK, "", len(message))
            self._connection.send_message(self, message)

    def send(self, message: bytes) -> None:
        """Sends one message of several."""
        if self.open:
            self._connection.send_part(self, message)

    def finish(self) -> None:
        """Ends a streaming call with OK, behind what has been sent."""
        if self.open:
            self._connection.send_end(self)

    def fail(self, code: Code, message: str) -> None:
        """Ends the call with an error status; the message is cut as TensorFlow Serving cuts it."""
        if self.open:
            if self.record is not None:
                self._end_record(self.record, code, message, 0)
            self._connection.send_failure(self, code, message)

    def _end_record(self, record: Record, code: Code, message: str, nbytes: int) -> None:
        self.record = None
        record.end(code, message, nbytes)

    def _close(self) -> None:
        self.open = False
        if self.record is not None:
            self._end_record(self.record, tensorflow_error_pb2.CANCELLED, "the client is gone", 0)
        self._body = self._outgoing = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        self.fail(tensorflow_error_pb2.DEADLINE_EXCEEDED, "Timed out waiting for notification")


# Called with the one message of a call.
Handler = Callable[[GrpcCall, bytes], None]
# Called with each message of a call, and with None after the last.
StreamHandler = Callable[[GrpcCall, bytes | None], None]


class GrpcConnection(asyncio.Protocol):
    """The server's side of one connection.

    `handlers` answer the calls that bring one message, `streams` those that may bring several; `buffered` is shared by
    all connections; `connections` is the server's set of open ones, kept by the connection; `refused` counts what the
    transport refuses by itself, by reason.
    """

    def __init__(
        self,
        handlers: Mapping[bytes, Handler],
        streams: Mapping[bytes, StreamHandler],
        limits: Http2Limits,
        buffered: BufferedBytes,
        connections: "set[GrpcConnection]",
        refused: Counter[str] | None = None,
    ) -> None:
        self.limits = limits
        self.peer_window = DEFAULT_WINDOW  # what a new stream may send
        self.turned_away = False
        self._handlers = handlers
        self._streams = streams
        self._buffered = buffered
        self._connections = connections
        self._refused = Counter() if refused is None else refused
        self._decoder = hpack.Decoder(limits.max_header_bytes)
        self._calls: dict[int, GrpcCall] = {}
        self._blocked: dict[int, GrpcCall] = {}  # calls whose answer waits for window, in order
        self._flush_due = False  # a window has opened
        self._last_stream = 0
        self._send_window = DEFAULT_WINDOW
        self._receive_window = limits.connection_window_bytes
        self._peer_max_frame = DEFAULT_MAX_FRAME
        self._partial = bytearray()
        self._wanted = len(PREFACE)
        self._greeted = False
        self._block: bytearray | None = None  # a header block that goes on in CONTINUATION frames
        self._block_stream = 0
        self._block_flags = 0
        self._draining = False
        self._refusing = False  # after the last GOAWAY of a drain
        self._closing = False  # nothing more is read or written
        self._write_paused = False
        self._unsent = 0  # bytes in the socket's buffer when it was full, as `buffered` counts them
        self._control_budget = float(limits.control_frames_per_second)
        self._reset_budget = 10.0 * limits.resets_per_second
        # What the sweeps compare.
        self._heard = False  # since the last sweep
        self._asked_at: float | None = None  # when the silent peer was asked for a sign of life
        self._swept_stream = 0
        self._swept_unsent = 0
        self._abort_at = math.inf
        self._transport: asyncio.Transport

    # The life of the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._opened = self._heard_at = self._idle_since = self._unsent_since = self._loop.time()
        limits = self.limits
        self._retires_at = self._opened + limits.age_seconds * random.uniform(0.9, 1.1)
        settings = {
            SETTING_MAX_STREAMS: limits.max_streams,
            SETTING_WINDOW: limits.stream_window_bytes,
            SETTING_MAX_FRAME: limits.max_frame_bytes,
            SETTING_MAX_HEADERS: limits.max_header_bytes,
        }
        more = limits.connection_window_bytes - DEFAULT_WINDOW
        self._transport.write(http2_frames.settings(settings) + window_update(0, more))
        self._connections.add(self)
        if is_full(self._connections, limits.max_connections):
            self.turned_away = True
            text = f"this port has {limits.max_connections} connections already (--max_connections)"
            self._abandon(CALM, "connections", text)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._close_calls()
        self._buffered.give_back(self._unsent)
        self._unsent = 0

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        # A peer that does not read its answers may not send more requests either.
        self._write_paused = True
        self._transport.pause_reading()
        size = self._transport.get_write_buffer_size()
        if self._buffered.take(size):
            self._unsent = size
        else:
            log.info("dropping a gRPC connection: %s", self._buffered)
            self._refused["buffered_bytes"] += 1
            self._transport.abort()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._buffered.give_back(self._unsent)
        self._unsent = 0
        if not self._closing:
            self._transport.resume_reading()
            self._flush()

    def sweep(self, now: float, elapsed: float) -> None:
        """Called by the server about once a second with the loop's time and the seconds since the last call."""
        limits = self.limits
        if self._closing:
            return
        if not self._greeted:
            if now - self._opened > limits.handshake_seconds:
                self._refused["handshake_timeout"] += 1
                self._transport.abort()
            return
        rate = limits.control_frames_per_second
        self._control_budget = min(rate, self._control_budget + rate * elapsed)
        rate = limits.resets_per_second
        self._reset_budget = min(10.0 * rate, self._reset_budget + rate * elapsed)
        if now > self._abort_at or self._is_lost(now):
            self._transport.abort()
            return
        if self._is_stuck(now):
            self._refused["stalled"] += 1
            self._transport.abort()
            return
        self._end_slow_calls(now)
        self._retire(now)

    def _is_lost(self, now: float) -> bool:
        """Asks a silent peer for a sign of life; true when it has given none in time."""
        if self._heard:
            self._heard = False
            self._heard_at = now
            self._asked_at = None
        elif self._asked_at is not None:
            return now - self._asked_at > self.limits.keepalive_timeout_seconds
        elif now - self._heard_at > self.limits.keepalive_seconds:
            self._asked_at = now
            self._transport.write(frame(PING, 0, 0, _ALIVE_PING))
        return False

    def _is_stuck(self, now: float) -> bool:
        """Whether the peer has read nothing for too long of what the socket has for it."""
        unsent = self._transport.get_write_buffer_size()
        if not unsent or unsent != self._swept_unsent:
            self._swept_unsent = unsent
            self._unsent_since = now
        return now - self._unsent_since > self.limits.stalled_seconds

    def _end_slow_calls(self, now: float) -> None:
        limits = self.limits
        for call in list(self._calls.values()):
            if call._outgoing is not None:
                mark, allowed = len(call._outgoing), limits.stalled_seconds
            elif call._receiving and call._stream is None:
                mark, allowed = -1, limits.request_seconds
            else:
                continue
            if mark != call._mark:
                call._mark, call._mark_at = mark, now
            elif now - call._mark_at <= allowed:
                continue
            elif call._outgoing is not None:
                self._refused["stalled"] += 1
                self._reset(call, CANCEL)
            else:
                self._refused["request_timeout"] += 1
                text = f"the request was not complete after {allowed:g} seconds (--request_seconds)"
                call.fail(tensorflow_error_pb2.DEADLINE_EXCEEDED, text)

    def _retire(self, now: float) -> None:
        """Sends the client to a new connection when this one has been idle too long or is too old."""
        if self._calls or self._last_stream != self._swept_stream:
            self._swept_stream = self._last_stream
            self._idle_since = now
        if self._draining:
            return
        if now - self._idle_since > self.limits.idle_seconds:
            self._abort_at = now + _LEAVE_SECONDS
            self.drain()
        elif now > self._retires_at:
            self._abort_at = now + self.limits.age_grace_seconds
            self.drain()

    def drain(self) -> None:
        """Tells the client to start no more calls here, answers those under way, then closes the connection."""
        if self._draining or self._closing:
            return
        self._draining = True
        if not self._greeted:
            return  # the preface may be on its way; it is answered with a GOAWAY
        self._send_goaway()

    def _send_goaway(self) -> None:
        # Two steps (RFC 9113, 6.8): calls that are on their way while the first GOAWAY travels are still served.
        self._transport.write(goaway(MAX_WINDOW, NO_ERROR, b"draining") + frame(PING, 0, 0, _DRAIN_PING))

    def close(self) -> None:
        """Closes the connection once the client has read its answers; calls that it starts now are not served."""
        if not self._closing:
            self._end_streaming_calls()
            self._transport.write(goaway(self._last_stream, NO_ERROR, b""))
            self._linger()

    def abort(self) -> None:
        """Drops the connection and what is under way on it."""
        self._transport.abort()

    @property
    def requests(self) -> int:
        """How many calls the client has started."""
        return (self._last_stream + 1) // 2

    @property
    def peer(self) -> Any:
        """The client's address, as asyncio tells it."""
        return self._transport.get_extra_info("peername")

    @property
    def idle(self) -> bool:
        """Whether no call is under way but those that would go on for ever."""
        return all(call.streaming for call in self._calls.values())

    def _close_when_drained(self) -> None:
        if self._refusing and self.idle:
            self._end_streaming_calls()
            self._linger()

    def _end_streaming_calls(self) -> None:
        for call in list(self._calls.values()):
            if call.streaming:
                call.fail(tensorflow_error_pb2.UNAVAILABLE, "this connection is closed by the server: call again")

    def _close_calls(self) -> None:
        for call in self._calls.values():
            call._close()
            self._let_go(call, call._held)
        self._calls.clear()
        self._blocked.clear()

    def _linger(self) -> None:
        """Closes our direction and leaves it to the client to close the connection, for a moment.

        Closing a socket with unread input makes the kernel drop answers on their way, and there is always input: the
        client's window updates. Streams above the GOAWAY's are safe: the client repeats them elsewhere.
        """
        if self._closing:
            return
        self._closing = True
        self._close_calls()  # after a fault of the peer there may be some
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._loop.call_later(_LINGER_SECONDS, self._transport.close)
        else:
            self._transport.close()  # of TLS, which says goodbye before it closes the socket

    # Receiving

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._heard = True
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return
            data = bytes(self._partial)
            self._partial.clear()
        try:
            position = self._frames(data)
        except ConnectionFault as fault:
            self._abandon(fault.code, _REASONS[fault.code], str(fault))
            return
        except hpack.HeaderListTooLarge as error:
            self._abandon(CALM, "header_bytes", str(error))
            return
        except hpack.HpackError as error:
            self._abandon(COMPRESSION_ERROR, _REASONS[COMPRESSION_ERROR], str(error))
            return
        if position < len(data):
            self._partial += memoryview(data)[position:]
        if self._flush_due:
            self._flush_due = False
            self._flush()

    def _frames(self, data: bytes) -> int:
        """Handles every complete frame in `data` and returns where the incomplete one begins."""
        position = 0
        end = len(data)
        if not self._greeted:
            if not data.startswith(PREFACE[: min(end, len(PREFACE))]):
                raise ConnectionFault(PROTOCOL_ERROR, "this port speaks gRPC (HTTP/2) only")
            if end < len(PREFACE):
                return 0
            self._greeted = True
            position = len(PREFACE)
            if self._draining:
                self._send_goaway()
        while end - position >= 9 and not self._closing:
            high, low, kind, flags, stream_id = FRAME.unpack_from(data, position)
            length = high << 8 | low
            if length > self.limits.max_frame_bytes:
                raise ConnectionFault(FRAME_SIZE_ERROR, f"frame of {length} bytes")
            start = position + 9
            stop = start + length
            if stop > end:
                self._wanted = 9 + length
                return position
            position = stop
            if self._block is not None and (kind != CONTINUATION or stream_id != self._block_stream):
                raise ConnectionFault(PROTOCOL_ERROR, "expected a CONTINUATION frame")
            if kind == DATA:
                self._on_data(flags, stream_id, data, start, stop)
            elif kind == HEADERS:
                self._on_headers(flags, stream_id, data[start:stop])
            elif kind == WINDOW_UPDATE:
                self._on_window_update(stream_id, data[start:stop])
            elif kind == PING:
                self._on_ping(flags, stream_id, data[start:stop])
            elif kind == RST_STREAM:
                self._on_reset(stream_id, length)
            elif kind == SETTINGS:
                self._on_settings(flags, stream_id, data[start:stop])
            elif kind == CONTINUATION:
                self._on_continuation(flags, stream_id, data[start:stop])
            elif kind == PUSH_PROMISE:
                raise ConnectionFault(PROTOCOL_ERROR, "a client may not push")
            else:  # PRIORITY, the client's GOAWAY and unknown types need no action
                self._spend_control()
        self._wanted = 9
        return position

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & (PADDED | WITH_PRIORITY):
            payload = http2_frames.unpadded(payload, flags)
        if flags & END_HEADERS:
            self._on_header_block(flags, stream_id, payload)
        else:
            self._block = bytearray(payload)
            self._block_stream = stream_id
            self._block_flags = flags

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        if len(self._block) > self.limits.max_header_bytes:
            raise hpack.HeaderListTooLarge(self._headers_too_large())
        if flags & END_HEADERS:
            block = bytes(self._block)
            self._block = None
            self._on_header_block(self._block_flags, stream_id, block)
        elif not payload:
            raise ConnectionFault(CALM, "empty CONTINUATION frame")

    def _headers_too_large(self) -> str:
        return f"the header block is larger than {self.limits.max_header_bytes} bytes (--max_header_bytes)"

    def _on_header_block(self, flags: int, stream_id: int, block: bytes) -> None:
        if len(block) > self.limits.max_header_bytes:
            raise hpack.HeaderListTooLarge(self._headers_too_large())
        headers = self._decoder.decode(block)  # also for streams that are refused: the table must follow
        call = self._calls.get(stream_id)
        if call is not None:  # trailers
            if not flags & END_STREAM:
                raise ConnectionFault(PROTOCOL_ERROR, "second HEADERS without END_STREAM")
            self._on_end(call)
            return
        if stream_id <= self._last_stream:
            if stream_id & 1 and stream_id:
                return  # trailers of a call that has been answered already
            raise ConnectionFault(PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        if not stream_id & 1:
            raise ConnectionFault(PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        self._last_stream = stream_id
        if self._refusing or len(self._calls) >= self.limits.max_streams:
            if not self._refusing:
                self._refused["streams"] += 1
            self._transport.write(reset(stream_id, REFUSED_STREAM))
            return
        self._open(stream_id, headers, flags)

    def _open(self, stream_id: int, headers: list[hpack.Header], flags: int) -> None:
        call = GrpcCall(self, stream_id, b"")
        self._calls[stream_id] = call
        if flags & END_STREAM:
            call._receiving = False
        method = content_type = b""
        for name, value in headers:
            if name == b":path":
                call.path = value
            elif name == b":method":
                method = value
            elif name == b"content-type":
                content_type = value
            elif name == b"grpc-timeout":
                call.timeout = grpc_protocol.seconds(value)
            elif name == b"grpc-encoding":
                call._encoding = value
            elif name == b"x-request-id":
                call.request_id = value
            elif name == b"authorization":
                call.authorization = value
        if not call.path or not method:
            self._refused["malformed"] += 1
            self._reset(call, PROTOCOL_ERROR)
            self._spend_reset()
        elif method != b"POST" or not content_type.startswith(b"application/grpc"):
            self._refused["not_grpc"] += 1
            self._end(call, frame(HEADERS, END_STREAM | END_HEADERS, stream_id, grpc_protocol.NOT_GRPC))
        elif call.path in self._handlers or self._accepts_stream(call):
            if call.timeout is not None:
                call._timer = self._loop.call_later(call.timeout, call._expire)
            if flags & END_STREAM:
                self._on_end(call)
        else:
            method_name = call.path.decode("utf-8", "replace")
            self._refuse(call, "unknown_method", tensorflow_error_pb2.UNIMPLEMENTED, f"unknown method {method_name}")

    def _accepts_stream(self, call: GrpcCall) -> bool:
        call._stream = self._streams.get(call.path)
        if call._stream is None:
            return False
        call._body = bytearray()  # so that no message of it takes the short way of a unary call
        return True

    def _on_data(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        length = stop - start
        self._receive_window -= length
        if self._receive_window < 0:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "more data than the connection's window")
        window = self.limits.connection_window_bytes
        if self._receive_window < window // 2:
            self._transport.write(window_update(0, window - self._receive_window))
            self._receive_window = window
        call = self._calls.get(stream_id)
        if call is None:
            if stream_id > self._last_stream or not stream_id & 1:
                raise ConnectionFault(PROTOCOL_ERROR, f"DATA on idle stream {stream_id}")
            return  # of a call that has been answered or cancelled
        if flags & PADDED:
            if not length or data[start] >= length:
                raise ConnectionFault(PROTOCOL_ERROR, "padding longer than its frame")
            stop -= data[start]
            start += 1
        if flags & END_STREAM and call._body is None and stop - start >= 5:
            compressed, size = PREFIX.unpack_from(data, start)
            if not compressed and size == stop - start - 5 and size <= self.limits.max_message_bytes:
                self._dispatch(call, data[start + 5 : stop])
                return
        if flags & END_STREAM:
            call._receiving = False
        elif start == stop:
            self._spend_control()
        self._on_part(call, data, start, stop, length)
        if flags & END_STREAM and call.open:
            self._on_end(call)

    def _on_part(self, call: GrpcCall, data: bytes, start: int, stop: int, length: int) -> None:
        """Takes a part of a message that came in several frames, or compressed, or in a streaming call."""
        if not self._hold(call, stop - start):
            self._refuse_for_buffered(call)
            return
        if call._body is None:
            call._body = bytearray()
        call._body += memoryview(data)[start:stop]
        if call._stream is not None:
            self._take_messages(call, call._stream)
        elif not self._fits_unary(call, call._body):
            return
        if not call.open:
            return
        call._receive_window -= length
        window = self.limits.stream_window_bytes
        if call._receive_window < 0:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "more data than the stream's window")
        if call._receive_window < window // 2:
            self._transport.write(window_update(call.stream_id, window - call._receive_window))
            call._receive_window = window

    def _fits_unary(self, call: GrpcCall, body: bytearray) -> bool:
        """Whether the body so far may be the beginning of the one message; otherwise the call is answered."""
        if call._expected < 0 and len(body) >= 5:
            size = PREFIX.unpack_from(body)[1]
            if size > self.limits.max_message_bytes:
                self._too_large(call, size)
                return False
            call._expected = size + 5
        if 0 <= call._expected < len(body):
            self._refuse(call, "malformed", tensorflow_error_pb2.INTERNAL, "a unary call carries one message")
            return False
        return True

    def _take_messages(self, call: GrpcCall, handler: StreamHandler) -> None:
        """Hands every complete message of a streaming call to its handler."""
        body = call._body
        while call.open and body is not None and len(body) >= 5:
            compressed, size = PREFIX.unpack_from(body)
            if size > self.limits.max_message_bytes:
                self._too_large(call, size)
                return
            if len(body) < size + 5:
                return
            message = self._message(call, compressed, bytes(body[5 : size + 5]))
            if message is None:
                return
            del body[: size + 5]
            self._let_go(call, size + 5)
            self._guard(call, handler, message)

    def _on_end(self, call: GrpcCall) -> None:
        call._receiving = False
        body = call._body
        if call._stream is not None and not body:
            self._guard(call, call._stream, None)
            return
        if body is None or call._expected != len(body):
            text = "the call ended without a complete message"
            self._refuse(call, "malformed", tensorflow_error_pb2.INTERNAL, text)
            return
        call._body = None
        self._let_go(call, call._held)
        message = self._message(call, body[0], bytes(memoryview(body)[5:]))
        if message is not None:
            self._dispatch(call, message)

    def _message(self, call: GrpcCall, compressed: int, data: bytes) -> bytes | None:
        """The message, decompressed; None where it cannot be, and the call is answered."""
        if not compressed:
            return data
        try:
            return grpc_protocol.decompressed(data, call._encoding, self.limits.max_message_bytes)
        except OverflowError:
            self._too_large(call, None)
        except ValueError as error:
            self._refuse(call, "encoding", tensorflow_error_pb2.UNIMPLEMENTED, str(error))
        except zlib.error:
            self._refuse(call, "encoding", tensorflow_error_pb2.INTERNAL, "the message does not decompress")
        return None

    def _dispatch(self, call: GrpcCall, message: bytes) -> None:
        call._receiving = False
        try:
            self._handlers[call.path](call, message)
        except Exception:
            self._failed(call)

    def _guard(self, call: GrpcCall, handler: StreamHandler, message: bytes | None) -> None:
        try:
            handler(call, message)
        except Exception:
            self._failed(call)

    def _failed(self, call: GrpcCall) -> None:
        log.exception("fault while handling a call of %s", call.path.decode("utf-8", "replace"))
        call.fail(tensorflow_error_pb2.INTERNAL, "internal error")

    def _too_large(self, call: GrpcCall, size: int | None) -> None:
        limit = self.limits.max_message_bytes
        sent = "Received message" if size is None else f"Received message of {size} bytes"
        text = f"{sent} larger than max ({limit} bytes, --max_request_bytes)"
        self._refuse(call, "request_bytes", tensorflow_error_pb2.RESOURCE_EXHAUSTED, text)

    def _refuse_for_buffered(self, call: GrpcCall) -> None:
        self._refuse(call, "buffered_bytes", tensorflow_error_pb2.RESOURCE_EXHAUSTED, str(self._buffered))

    def _refuse(self, call: GrpcCall, reason: str, code: Code, message: str) -> None:
        """Fails a call that its handler does not get to see."""
        self._refused[reason] += 1
        call.fail(code, message)

    def _on_reset(self, stream_id: int, length: int) -> None:
        if length != 4 or not stream_id or stream_id > self._last_stream:
            raise ConnectionFault(PROTOCOL_ERROR, "malformed RST_STREAM")
        call = self._calls.pop(stream_id, None)
        if call is None:
            return
        self._blocked.pop(stream_id, None)
        call._close()
        self._let_go(call, call._held)
        self._spend_reset()
        self._close_when_drained()

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 8 or stream_id:
            raise ConnectionFault(FRAME_SIZE_ERROR, "malformed PING")
        if flags & ACK:
            if payload == _DRAIN_PING and self._draining and not self._refusing:
                self._refusing = True
                self._transport.write(goaway(self._last_stream, NO_ERROR, b"drained"))
                self._close_when_drained()
            return
        self._spend_control()
        self._transport.write(frame(PING, ACK, 0, payload))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) % 6 or (flags & ACK and payload):
            raise ConnectionFault(FRAME_SIZE_ERROR, "malformed SETTINGS")
        if flags & ACK:
            return
        self._spend_control()
        for identifier, value in SETTING.iter_unpack(payload):
            if identifier == SETTING_WINDOW:
                if value > MAX_WINDOW:
                    raise ConnectionFault(FLOW_CONTROL_ERROR, "window size out of range")
                for call in self._calls.values():
                    call._send_window += value - self.peer_window
                self.peer_window = value
            elif identifier == SETTING_MAX_FRAME:
                if not DEFAULT_MAX_FRAME <= value < 1 << 24:
                    raise ConnectionFault(PROTOCOL_ERROR, "frame size out of range")
                self._peer_max_frame = value
        self._transport.write(frame(SETTINGS, ACK, 0, b""))
        self._flush_due = True

    def _spend_control(self) -> None:
        self._control_budget -= 1
        if self._control_budget < 0:
            raise ConnectionFault(CALM, f"more than {self.limits.control_frames_per_second} control frames a second")

    def _spend_reset(self) -> None:
        self._reset_budget -= 1
        if self._reset_budget < 0:
            raise ConnectionFault(CALM, f"more than {self.limits.resets_per_second} calls a second were reset")

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(FRAME_SIZE_ERROR, "malformed WINDOW_UPDATE")
        increment = UINT32.unpack(payload)[0] & MAX_WINDOW
        if not stream_id:
            self._send_window += increment
            if not increment or self._send_window > MAX_WINDOW:
                raise ConnectionFault(FLOW_CONTROL_ERROR, "the connection's window leaves its range")
        else:
            call = self._calls.get(stream_id)
            if call is None:
                if stream_id > self._last_stream:
                    raise ConnectionFault(PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {stream_id}")
                return
            call._send_window += increment
            if not increment or call._send_window > MAX_WINDOW:
                self._reset(call, FLOW_CONTROL_ERROR)
                self._spend_reset()
        # Once for all updates of one read: a flush looks at every blocked call.
        self._flush_due = True

    # Sending

    def send_message(self, call: GrpcCall, message: bytes) -> None:
        """Sends headers, message and trailers of an answer, as far as the windows allow; the rest follows by itself."""
        stream_id = call.stream_id
        size = len(message) + 5
        headers = frame(HEADERS, END_HEADERS, stream_id, RESPONSE_HEADERS)
        prefix = PREFIX.pack(0, len(message))
        if (
            size <= self._send_window
            and size <= call._send_window
            and size <= self._peer_max_frame
            and not self._write_paused
        ):
            self._send_window -= size
            head = FRAME.pack(size >> 8, size & 0xFF, DATA, 0, stream_id)
            trailers = frame(HEADERS, END_STREAM | END_HEADERS, stream_id, OK_TRAILERS + call.trailers)
            self._end(call, b"".join((headers, head, prefix, message, trailers)))
            return
        call._ending = True
        self._queue(call, prefix + message)

    def send_part(self, call: GrpcCall, message: bytes) -> None:
        """Sends one message of a streaming call, as far as the windows allow; the rest follows by itself."""
        self._queue(call, PREFIX.pack(0, len(message)) + message)

    def _queue(self, call: GrpcCall, data: bytes) -> None:
        if not self._hold(call, len(data)):
            self._refuse_for_buffered(call)
            return
        if not call._begun:
            call._begun = True
            self._transport.write(frame(HEADERS, END_HEADERS, call.stream_id, RESPONSE_HEADERS))
        call._outgoing = memoryview(data if call._outgoing is None else bytes(call._outgoing) + data)
        self._blocked[call.stream_id] = call
        self._flush()

    def send_end(self, call: GrpcCall) -> None:
        """Ends a streaming call with OK, behind what waits to be sent."""
        if not call._begun:
            call._begun = True
            self._transport.write(frame(HEADERS, END_HEADERS, call.stream_id, RESPONSE_HEADERS))
        call._ending = True
        if call._outgoing is None:
            self._end(call, frame(HEADERS, END_STREAM | END_HEADERS, call.stream_id, OK_TRAILERS + call.trailers))

    def send_failure(self, call: GrpcCall, code: Code, message: str) -> None:
        """Sends an error status: trailers only, or trailers behind what has been sent."""
        block = grpc_protocol.error_trailers(code, message, alone=not call._begun) + call.trailers
        frames = frame(HEADERS, END_STREAM | END_HEADERS, call.stream_id, block)
        if call._receiving:  # the client need not send the rest (RFC 9113, 8.1)
            frames += reset(call.stream_id, NO_ERROR)
        self._end(call, frames)

    def _end(self, call: GrpcCall, frames: bytes) -> None:
        self._calls.pop(call.stream_id, None)
        if call._outgoing is not None:
            self._blocked.pop(call.stream_id, None)
        if call._held:
            self._let_go(call, call._held)
        call._close()
        self._transport.write(frames)
        if self._refusing and not call.streaming:
            self._close_when_drained()

    def _reset(self, call: GrpcCall, code: int) -> None:
        self._end(call, reset(call.stream_id, code))

    def _hold(self, call: GrpcCall, size: int) -> bool:
        if not self._buffered.take(size):
            return False
        call._held += size
        return True

    def _let_go(self, call: GrpcCall, size: int) -> None:
        self._buffered.give_back(size)
        call._held -= size

    def _flush(self) -> None:
        """Sends what waits for window: one frame a call in turn, until the windows or the socket are full."""
        while self._blocked and self._send_window > 0:
            progress = False
            for call in list(self._blocked.values()):
                outgoing = call._outgoing
                if outgoing is None:  # closed by the end of another one, the last of a drain
                    continue
                if self._write_paused:
                    return
                size = min(len(outgoing), self._send_window, call._send_window, self._peer_max_frame)
                if size <= 0:
                    continue
                progress = True
                self._send_window -= size
                call._send_window -= size
                self._let_go(call, size)
                part = frame(DATA, 0, call.stream_id, outgoing[:size])
                if size < len(outgoing):
                    call._outgoing = outgoing[size:]
                    self._transport.write(part)
                elif call._ending:
                    trailers = OK_TRAILERS + call.trailers
                    self._end(call, part + frame(HEADERS, END_STREAM | END_HEADERS, call.stream_id, trailers))
                else:
                    del self._blocked[call.stream_id]
                    call._outgoing = None
                    self._transport.write(part)
            if not progress:
                return

    def _abandon(self, code: int, reason: str, message: str) -> None:
        """Ends the connection for something that the peer did, and tells it what."""
        self._refused[reason] += 1
        log.info("closing a gRPC connection: %s", message)
        self._transport.write(goaway(self._last_stream, code, message.encode()))
        if self._transport.can_write_eof():
            self._transport.pause_reading()  # so that a flood costs nothing any more
        self._linger()
