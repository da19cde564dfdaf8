"""One HTTP/2 connection that carries unary gRPC calls (RFC 9113 and the gRPC over HTTP/2 protocol).

The model server's hot path: a request that fits one DATA frame is handed to its handler straight out of the receive
buffer, and its answer (headers, message, trailers) leaves in one write. Everything else of the protocol is here too:
flow control both ways, big messages, compression, deadlines, cancellation, drain by GOAWAY, and limits on what a peer
may make the server hold or do. Header blocks are read and written by `hpack.py`.
"""

import asyncio
import logging
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

from bookserve.serving.server import hpack
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensorflow_error_pb2 import Code

log = logging.getLogger(__name__)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    range(10)
)
_END_STREAM = _ACK = 0x01
_END_HEADERS, _PADDED, _WITH_PRIORITY = 0x04, 0x08, 0x20
_SETTING_MAX_STREAMS, _SETTING_WINDOW, _SETTING_MAX_FRAME, _SETTING_MAX_HEADERS = 3, 4, 5, 6
_NO_ERROR, _PROTOCOL_ERROR, _INTERNAL_ERROR, _FLOW_CONTROL_ERROR = 0, 1, 2, 3
_STREAM_CLOSED, _FRAME_SIZE_ERROR, _REFUSED_STREAM, _CANCEL, _COMPRESSION_ERROR, _CALM = 5, 6, 7, 8, 9, 11

_FRAME = struct.Struct(">HBBBL")  # length (16 + 8 bits), type, flags, stream
_UINT32 = struct.Struct(">L")
_SETTING = struct.Struct(">HL")
_MESSAGE = struct.Struct(">BL")  # gRPC's prefix: compressed flag, length
_DRAIN_PING = b"drain..."
_LINGER_SECONDS = 1.0

# What the peer assumes until our SETTINGS arrive, and we of it (RFC 9113, 6.5.2 and 6.9.2).
_DEFAULT_WINDOW = 65_535
_DEFAULT_MAX_FRAME = 16_384
_MAX_WINDOW = 2**31 - 1

_CONTENT_TYPE = (b"content-type", b"application/grpc")
_RESPONSE_HEADERS = hpack.encode(
    [(b":status", b"200"), _CONTENT_TYPE, (b"grpc-accept-encoding", b"identity,deflate,gzip")]
)
_OK_TRAILERS = hpack.encode([(b"grpc-status", b"0")])
_NOT_GRPC = hpack.encode([(b":status", b"415")])
# The gRPC protocol's Percent-Encoded: every printable ASCII character but the percent sign stands for itself.
_UNQUOTED = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
# TensorFlow Serving cuts its messages there (model_servers/grpc_status_util.cc).
_MAX_STATUS_MESSAGE = 1024
_TIMEOUT_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


@dataclass(frozen=True)
class Http2Limits:
    """What one connection may make the server hold or do."""

    max_message_bytes: int = 64 << 20  # one request message, also after decompression
    max_streams: int = 2048  # calls at a time
    max_header_bytes: int = 16 << 10  # one header list, and one header block with its continuations
    stream_window_bytes: int = 1 << 20  # sent ahead by the client before the server has read it
    connection_window_bytes: int = 4 << 20
    max_frame_bytes: int = 256 << 10
    preface_seconds: float = 10.0  # a connection that has not spoken HTTP/2 by then is closed
    control_frames_per_second: int = 1000  # PING and SETTINGS, each of which asks for an answer
    resets_per_second: int = 100  # calls the client starts and resets, beyond a burst of ten times that


class _ConnectionFault(Exception):
    """The peer broke the protocol or a limit: the connection ends with this HTTP/2 error code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class GrpcCall:
    """One unary call: what its handler knows of it, and how the handler answers it, once.

    `open` turns false when the call is answered, cancelled by the client, past its deadline or its connection gone;
    from then on an answer is dropped, so work for a closed call may be skipped.
    """

    __slots__ = (
        "_body",
        "_connection",
        "_encoding",
        "_expected",
        "_outgoing",
        "_receive_window",
        "_send_window",
        "_timer",
        "authorization",
        "open",
        "path",
        "stream_id",
        "timeout",
    )

    def __init__(self, connection: "GrpcConnection", stream_id: int, path: bytes) -> None:
        self.path = path
        self.stream_id = stream_id
        self.timeout: float | None = None  # seconds, from the client's deadline
        self.authorization = b""  # the metadata of that name
        self.open = True
        self._connection = connection
        self._encoding = b"identity"
        self._body: bytearray | None = None
        self._expected = -1  # bytes of body with its prefix, once the prefix is there
        self._outgoing: memoryview | None = None
        self._send_window = connection.peer_window
        self._receive_window = connection.limits.stream_window_bytes
        self._timer: asyncio.TimerHandle | None = None

    @property
    def peer(self) -> Any:
        """The client's address, as asyncio tells it."""
        return self._connection.peer

    def reply(self, message: bytes) -> None:
        """Answers the call with a serialised message."""
        if self.open:
            self._connection.send_message(self, message)

    def fail(self, code: Code, message: str) -> None:
        """Answers the call with an error status; the message is cut as TensorFlow Serving cuts it."""
        if self.open:
            if len(message) > _MAX_STATUS_MESSAGE:
                message = message[:_MAX_STATUS_MESSAGE] + "...TRUNCATED"
            self._connection.send_failure(self, code, message)

    def _close(self) -> None:
        self.open = False
        self._body = self._outgoing = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        self.fail(tensorflow_error_pb2.DEADLINE_EXCEEDED, "Deadline Exceeded")


Handler = Callable[[GrpcCall, bytes], None]


class GrpcConnection(asyncio.Protocol):
    """The server's side of one connection; `connections` is the server's set of open ones, kept by the connection."""

    def __init__(
        self, handlers: Mapping[bytes, Handler], limits: Http2Limits, connections: "set[GrpcConnection]"
    ) -> None:
        self.limits = limits
        self.peer_window = _DEFAULT_WINDOW  # what a new stream may send
        self._handlers = handlers
        self._connections = connections
        self._decoder = hpack.Decoder(limits.max_header_bytes)
        self._calls: dict[int, GrpcCall] = {}
        self._blocked: dict[int, GrpcCall] = {}  # calls whose answer waits for window, in order
        self._last_stream = 0
        self._send_window = _DEFAULT_WINDOW
        self._receive_window = limits.connection_window_bytes
        self._peer_max_frame = _DEFAULT_MAX_FRAME
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
        self._control_budget = float(limits.control_frames_per_second)
        self._reset_budget = 10.0 * limits.resets_per_second
        self._transport: asyncio.Transport

    # The life of the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._opened = self._loop.time()
        self._connections.add(self)
        limits = self.limits
        settings = b"".join(
            _SETTING.pack(*setting)
            for setting in (
                (_SETTING_MAX_STREAMS, limits.max_streams),
                (_SETTING_WINDOW, limits.stream_window_bytes),
                (_SETTING_MAX_FRAME, limits.max_frame_bytes),
                (_SETTING_MAX_HEADERS, limits.max_header_bytes),
            )
        )
        more = limits.connection_window_bytes - _DEFAULT_WINDOW
        self._transport.write(
            _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, _UINT32.pack(more)),
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        for call in self._calls.values():
            call._close()
        self._calls.clear()
        self._blocked.clear()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        # A peer that does not read its answers may not send more requests either.
        self._write_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._transport.resume_reading()
        self._flush()

    def sweep(self, now: float, elapsed: float) -> None:
        """Called by the server about once a second with the loop's time and the seconds since the last call."""
        limits = self.limits
        if not self._greeted and now - self._opened > limits.preface_seconds:
            self._transport.abort()
            return
        rate = limits.control_frames_per_second
        self._control_budget = min(rate, self._control_budget + rate * elapsed)
        rate = limits.resets_per_second
        self._reset_budget = min(10.0 * rate, self._reset_budget + rate * elapsed)

    def drain(self) -> None:
        """Tells the client to start no more calls here, answers those under way, then closes the connection."""
        if self._draining:
            return
        self._draining = True
        if not self._greeted:
            return  # the preface may be on its way; it is answered with a GOAWAY
        self._send_goaway()

    def _send_goaway(self) -> None:
        # Two steps (RFC 9113, 6.8): calls that are on their way while the first GOAWAY travels are still served.
        self._transport.write(_goaway(_MAX_WINDOW, _NO_ERROR, b"draining") + _frame(_PING, 0, 0, _DRAIN_PING))

    def close(self) -> None:
        """Closes the connection once the client has read its answers; calls that it starts now are not served."""
        if not self._closing:
            self._transport.write(_goaway(self._last_stream, _NO_ERROR, b""))
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
        """Whether no call is under way."""
        return not self._calls

    def _close_when_drained(self) -> None:
        if self._refusing and not self._calls:
            self._linger()

    def _linger(self) -> None:
        """Closes our direction and leaves it to the client to close the connection, for a moment.

        Closing a socket with unread input makes the kernel drop answers on their way, and there is always input: the
        client's window updates. Streams above the GOAWAY's are safe: the client repeats them elsewhere.
        """
        if self._closing:
            return
        self._closing = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._loop.call_later(_LINGER_SECONDS, self._transport.close)
        else:
            self._transport.close()

    # Receiving

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return
            data = bytes(self._partial)
            self._partial.clear()
        try:
            position = self._frames(data)
        except _ConnectionFault as fault:
            self._abandon(fault.code, str(fault))
            return
        except hpack.HeaderListTooLarge as error:
            self._abandon(_CALM, str(error))
            return
        except hpack.HpackError as error:
            self._abandon(_COMPRESSION_ERROR, str(error))
            return
        if position < len(data):
            self._partial += memoryview(data)[position:]

    def _frames(self, data: bytes) -> int:
        """Handles every complete frame in `data` and returns where the incomplete one begins."""
        position = 0
        end = len(data)
        if not self._greeted:
            if not data.startswith(PREFACE[: min(end, len(PREFACE))]):
                raise _ConnectionFault(_PROTOCOL_ERROR, "this port speaks gRPC (HTTP/2) only")
            if end < len(PREFACE):
                return 0
            self._greeted = True
            position = len(PREFACE)
            if self._draining:
                self._send_goaway()
        while end - position >= 9 and not self._closing:
            high, low, kind, flags, stream_id = _FRAME.unpack_from(data, position)
            length = high << 8 | low
            if length > self.limits.max_frame_bytes:
                raise _ConnectionFault(_FRAME_SIZE_ERROR, f"frame of {length} bytes")
            start = position + 9
            stop = start + length
            if stop > end:
                self._wanted = 9 + length
                return position
            position = stop
            if self._block is not None and (kind != _CONTINUATION or stream_id != self._block_stream):
                raise _ConnectionFault(_PROTOCOL_ERROR, "expected a CONTINUATION frame")
            if kind == _DATA:
                self._on_data(flags, stream_id, data, start, stop)
            elif kind == _HEADERS:
                self._on_headers(flags, stream_id, data[start:stop])
            elif kind == _WINDOW_UPDATE:
                self._on_window_update(stream_id, data[start:stop])
            elif kind == _PING:
                self._on_ping(flags, stream_id, data[start:stop])
            elif kind == _RST_STREAM:
                self._on_reset(stream_id, length)
            elif kind == _SETTINGS:
                self._on_settings(flags, stream_id, data[start:stop])
            elif kind == _CONTINUATION:
                self._on_continuation(flags, stream_id, data[start:stop])
            elif kind == _PUSH_PROMISE:
                raise _ConnectionFault(_PROTOCOL_ERROR, "a client may not push")
            # PRIORITY, the client's GOAWAY and unknown types need no action.
        self._wanted = 9
        return position

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & (_PADDED | _WITH_PRIORITY):
            payload = _unpad(payload, flags)
        if flags & _END_HEADERS:
            self._on_header_block(flags, stream_id, payload)
        else:
            self._block = bytearray(payload)
            self._block_stream = stream_id
            self._block_flags = flags

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None:
            raise _ConnectionFault(_PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        if len(self._block) > self.limits.max_header_bytes:
            raise _ConnectionFault(_CALM, "the header block is too large")
        if flags & _END_HEADERS:
            block = bytes(self._block)
            self._block = None
            self._on_header_block(self._block_flags, stream_id, block)
        elif not payload:
            raise _ConnectionFault(_CALM, "empty CONTINUATION frame")

    def _on_header_block(self, flags: int, stream_id: int, block: bytes) -> None:
        if len(block) > self.limits.max_header_bytes:
            raise _ConnectionFault(_CALM, "the header block is too large")
        headers = self._decoder.decode(block)  # also for streams that are refused: the table must follow
        call = self._calls.get(stream_id)
        if call is not None:  # trailers
            if not flags & _END_STREAM:
                raise _ConnectionFault(_PROTOCOL_ERROR, "second HEADERS without END_STREAM")
            self._on_end(call)
            return
        if stream_id <= self._last_stream:
            if stream_id & 1 and stream_id:
                return  # trailers of a call that has been answered already
            raise _ConnectionFault(_PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        if not stream_id & 1:
            raise _ConnectionFault(_PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        self._last_stream = stream_id
        if self._refusing or len(self._calls) >= self.limits.max_streams:
            self._transport.write(_frame(_RST_STREAM, 0, stream_id, _UINT32.pack(_REFUSED_STREAM)))
            return
        self._open(stream_id, headers, flags)

    def _open(self, stream_id: int, headers: list[hpack.Header], flags: int) -> None:
        call = GrpcCall(self, stream_id, b"")
        self._calls[stream_id] = call
        method = content_type = b""
        for name, value in headers:
            if name == b":path":
                call.path = value
            elif name == b":method":
                method = value
            elif name == b"content-type":
                content_type = value
            elif name == b"grpc-timeout":
                call.timeout = _seconds(value)
            elif name == b"grpc-encoding":
                call._encoding = value
            elif name == b"authorization":
                call.authorization = value
        if not call.path or not method:
            self._reset(call, _PROTOCOL_ERROR)
        elif method != b"POST" or not content_type.startswith(b"application/grpc"):
            self._end(call, _frame(_HEADERS, _END_STREAM | _END_HEADERS, stream_id, _NOT_GRPC))
        elif call.path not in self._handlers:
            method_name = call.path.decode("utf-8", "replace")
            call.fail(tensorflow_error_pb2.UNIMPLEMENTED, f"unknown method {method_name}")
        else:
            if call.timeout is not None:
                call._timer = self._loop.call_later(call.timeout, call._expire)
            if flags & _END_STREAM:
                self._on_end(call)

    def _on_data(self, flags: int, stream_id: int, data: bytes, start: int, stop: int) -> None:
        length = stop - start
        self._receive_window -= length
        if self._receive_window < 0:
            raise _ConnectionFault(_FLOW_CONTROL_ERROR, "more data than the connection's window")
        window = self.limits.connection_window_bytes
        if self._receive_window < window // 2:
            self._transport.write(_frame(_WINDOW_UPDATE, 0, 0, _UINT32.pack(window - self._receive_window)))
            self._receive_window = window
        call = self._calls.get(stream_id)
        if call is None:
            if stream_id > self._last_stream or not stream_id & 1:
                raise _ConnectionFault(_PROTOCOL_ERROR, f"DATA on idle stream {stream_id}")
            return  # of a call that has been answered or cancelled
        if flags & _PADDED:
            if not length or data[start] >= length:
                raise _ConnectionFault(_PROTOCOL_ERROR, "padding longer than its frame")
            stop -= data[start]
            start += 1
        if flags & _END_STREAM and call._body is None and stop - start >= 5:
            compressed, size = _MESSAGE.unpack_from(data, start)
            if not compressed and size == stop - start - 5 and size <= self.limits.max_message_bytes:
                self._dispatch(call, data[start + 5 : stop])
                return
        self._on_part(call, data, start, stop, length)
        if flags & _END_STREAM and call.open:
            self._on_end(call)

    def _on_part(self, call: GrpcCall, data: bytes, start: int, stop: int, length: int) -> None:
        """Takes a part of a message that came in several frames, or compressed."""
        if call._body is None:
            call._body = bytearray()
        call._body += memoryview(data)[start:stop]
        if call._expected < 0 and len(call._body) >= 5:
            size = _MESSAGE.unpack_from(call._body)[1]
            if size > self.limits.max_message_bytes:
                self._too_large(call, size)
                return
            call._expected = size + 5
        if 0 <= call._expected < len(call._body):
            call.fail(tensorflow_error_pb2.INTERNAL, "a unary call carries one message")
            return
        call._receive_window -= length
        window = self.limits.stream_window_bytes
        if call._receive_window < 0:
            raise _ConnectionFault(_FLOW_CONTROL_ERROR, "more data than the stream's window")
        if call._receive_window < window // 2:
            update = _UINT32.pack(window - call._receive_window)
            self._transport.write(_frame(_WINDOW_UPDATE, 0, call.stream_id, update))
            call._receive_window = window

    def _on_end(self, call: GrpcCall) -> None:
        body = call._body
        if body is None or call._expected != len(body):
            call.fail(tensorflow_error_pb2.INTERNAL, "the call ended without a complete message")
            return
        call._body = None
        message = bytes(memoryview(body)[5:])
        if body[0]:
            try:
                message = _decompressed(message, call._encoding, self.limits.max_message_bytes)
            except OverflowError:
                self._too_large(call, None)
                return
            except ValueError as error:
                call.fail(tensorflow_error_pb2.UNIMPLEMENTED, str(error))
                return
            except zlib.error:
                call.fail(tensorflow_error_pb2.INTERNAL, "the message does not decompress")
                return
        self._dispatch(call, message)

    def _dispatch(self, call: GrpcCall, message: bytes) -> None:
        try:
            self._handlers[call.path](call, message)
        except Exception:
            log.exception("fault while handling a call of %s", call.path.decode("utf-8", "replace"))
            call.fail(tensorflow_error_pb2.INTERNAL, "internal error")

    def _too_large(self, call: GrpcCall, size: int | None) -> None:
        limit = self.limits.max_message_bytes
        sent = "Received message" if size is None else f"Received message of {size} bytes"
        call.fail(tensorflow_error_pb2.RESOURCE_EXHAUSTED, f"{sent} larger than max ({limit} bytes)")

    def _on_reset(self, stream_id: int, length: int) -> None:
        if length != 4 or not stream_id or stream_id > self._last_stream:
            raise _ConnectionFault(_PROTOCOL_ERROR, "malformed RST_STREAM")
        call = self._calls.pop(stream_id, None)
        if call is None:
            return
        self._blocked.pop(stream_id, None)
        call._close()
        self._reset_budget -= 1
        if self._reset_budget < 0:
            raise _ConnectionFault(_CALM, "too many calls were reset")
        self._close_when_drained()

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 8 or stream_id:
            raise _ConnectionFault(_FRAME_SIZE_ERROR, "malformed PING")
        if flags & _ACK:
            if payload == _DRAIN_PING and self._draining:
                self._refusing = True
                self._transport.write(_goaway(self._last_stream, _NO_ERROR, b"drained"))
                self._close_when_drained()
            return
        self._spend_control()
        self._transport.write(_frame(_PING, _ACK, 0, payload))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) % 6 or (flags & _ACK and payload):
            raise _ConnectionFault(_FRAME_SIZE_ERROR, "malformed SETTINGS")
        if flags & _ACK:
            return
        self._spend_control()
        for identifier, value in _SETTING.iter_unpack(payload):
            if identifier == _SETTING_WINDOW:
                if value > _MAX_WINDOW:
                    raise _ConnectionFault(_FLOW_CONTROL_ERROR, "window size out of range")
                for call in self._calls.values():
                    call._send_window += value - self.peer_window
                self.peer_window = value
            elif identifier == _SETTING_MAX_FRAME:
                if not _DEFAULT_MAX_FRAME <= value < 1 << 24:
                    raise _ConnectionFault(_PROTOCOL_ERROR, "frame size out of range")
                self._peer_max_frame = value
        self._transport.write(_frame(_SETTINGS, _ACK, 0, b""))
        self._flush()

    def _spend_control(self) -> None:
        self._control_budget -= 1
        if self._control_budget < 0:
            raise _ConnectionFault(_CALM, "too many control frames")

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise _ConnectionFault(_FRAME_SIZE_ERROR, "malformed WINDOW_UPDATE")
        increment = _UINT32.unpack(payload)[0] & _MAX_WINDOW
        if not stream_id:
            self._send_window += increment
            if not increment or self._send_window > _MAX_WINDOW:
                raise _ConnectionFault(_FLOW_CONTROL_ERROR, "the connection's window leaves its range")
        else:
            call = self._calls.get(stream_id)
            if call is None:
                if stream_id > self._last_stream:
                    raise _ConnectionFault(_PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {stream_id}")
                return
            call._send_window += increment
            if not increment or call._send_window > _MAX_WINDOW:
                self._reset(call, _FLOW_CONTROL_ERROR)
        if self._blocked:
            self._flush()

    # Sending

    def send_message(self, call: GrpcCall, message: bytes) -> None:
        """Sends headers, message and trailers of an answer, as far as the windows allow; the rest follows by itself."""
        stream_id = call.stream_id
        size = len(message) + 5
        headers = _frame(_HEADERS, _END_HEADERS, stream_id, _RESPONSE_HEADERS)
        prefix = _MESSAGE.pack(0, len(message))
        if size <= self._send_window and size <= call._send_window and size <= self._peer_max_frame:
            self._send_window -= size
            head = _FRAME.pack(size >> 8, size & 0xFF, _DATA, 0, stream_id)
            trailers = _frame(_HEADERS, _END_STREAM | _END_HEADERS, stream_id, _OK_TRAILERS)
            self._end(call, b"".join((headers, head, prefix, message, trailers)))
            return
        self._transport.write(headers)
        call._outgoing = memoryview(prefix + message)
        self._blocked[stream_id] = call
        self._flush()

    def send_failure(self, call: GrpcCall, code: Code, message: str) -> None:
        """Sends an error status: trailers only, or trailers behind what has been sent."""
        status = [(b"grpc-status", b"%d" % code), (b"grpc-message", quote(message, safe=_UNQUOTED).encode())]
        if call._outgoing is None:
            status = [(b":status", b"200"), _CONTENT_TYPE, *status]
        block = hpack.encode(status)
        self._end(call, _frame(_HEADERS, _END_STREAM | _END_HEADERS, call.stream_id, block))

    def _end(self, call: GrpcCall, frames: bytes) -> None:
        self._calls.pop(call.stream_id, None)
        self._blocked.pop(call.stream_id, None)
        call._close()
        self._transport.write(frames)
        if self._refusing:
            self._close_when_drained()

    def _reset(self, call: GrpcCall, code: int) -> None:
        self._end(call, _frame(_RST_STREAM, 0, call.stream_id, _UINT32.pack(code)))

    def _flush(self) -> None:
        """Sends what waits for window: one frame a call in turn, until the windows or the socket are full."""
        while self._blocked and self._send_window > 0 and not self._write_paused:
            progress = False
            for call in list(self._blocked.values()):
                outgoing = call._outgoing
                assert outgoing is not None
                size = min(len(outgoing), self._send_window, call._send_window, self._peer_max_frame)
                if size <= 0:
                    continue
                progress = True
                self._send_window -= size
                call._send_window -= size
                frame = _frame(_DATA, 0, call.stream_id, outgoing[:size])
                if size < len(outgoing):
                    call._outgoing = outgoing[size:]
                    self._transport.write(frame)
                else:
                    end = _frame(_HEADERS, _END_STREAM | _END_HEADERS, call.stream_id, _OK_TRAILERS)
                    self._end(call, frame + end)
            if not progress:
                return

    def _abandon(self, code: int, reason: str) -> None:
        log.info("closing a gRPC connection: %s", reason)
        self._transport.write(_goaway(self._last_stream, code, reason.encode()))
        self._closing = True
        self._transport.close()


def _frame(kind: int, flags: int, stream_id: int, payload: bytes | memoryview) -> bytes:
    length = len(payload)
    return _FRAME.pack(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def _goaway(last_stream: int, code: int, reason: bytes) -> bytes:
    return _frame(_GOAWAY, 0, 0, _UINT32.pack(last_stream) + _UINT32.pack(code) + reason)


def _unpad(payload: bytes, flags: int) -> bytes:
    start, stop = 0, len(payload)
    if flags & _PADDED:
        if not payload:
            raise _ConnectionFault(_PROTOCOL_ERROR, "padded frame without a pad length")
        stop -= payload[0]
        start = 1
    if flags & _WITH_PRIORITY:
        start += 5
    if start > stop:
        raise _ConnectionFault(_PROTOCOL_ERROR, "padding longer than its frame")
    return payload[start:stop]


def _seconds(timeout: bytes) -> float | None:
    """A grpc-timeout header in seconds; None when it is malformed, which the protocol lets a server ignore."""
    digits, unit = timeout[:-1], _TIMEOUT_UNITS.get(timeout[-1:])
    if unit is None or not digits.isdigit() or len(digits) > 8:
        return None
    return int(digits) * unit


def _decompressed(message: bytes, encoding: bytes, limit: int) -> bytes:
    """Raises OverflowError above `limit` bytes, ValueError for an unknown encoding, zlib.error for broken data."""
    if encoding == b"gzip":
        wbits = 16 + zlib.MAX_WBITS
    elif encoding == b"deflate":
        wbits = zlib.MAX_WBITS
    else:
        raise ValueError(f"grpc-encoding {encoding.decode('latin-1')} is not supported: use gzip, deflate or identity")
    decompressor = zlib.decompressobj(wbits)
    data = decompressor.decompress(message, limit + 1)
    if len(data) > limit:
        raise OverflowError
    if not decompressor.eof:
        raise zlib.error("incomplete data")
    return data
