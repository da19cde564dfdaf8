"""One HTTP/2 connection that carries gRPC calls (RFC 9113 and the gRPC over HTTP/2 protocol).

The model server's hot path: a request that fits one DATA frame is handed to its handler straight out of the receive
buffer, and its answer (headers, message, trailers) leaves in one write. Here are frames and streams, flow control both
ways, drain by GOAWAY, and limits on what a peer may make the server hold or do. A call is in `grpc_call.py`; messages
in several parts are put together by `grpc_messages.py`, frames by `http2_frames.py`, header blocks by `hpack.py`, what
gRPC writes into them by `grpc_protocol.py`. What takes too long is found by `http2_timeouts.py`.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from bookserve.serving.server.transport import grpc_messages, grpc_protocol, hpack, http2_frames
from bookserve.serving.server.transport.buffer_budget import BufferedBytes
from bookserve.serving.server.transport.connection_limit import is_full
from bookserve.serving.server.transport.grpc_call import GrpcCall, Handler, StreamHandler
from bookserve.serving.server.transport.grpc_protocol import OK_TRAILERS, PREFIX, RESPONSE_HEADERS
from bookserve.serving.server.transport.http2_frames import (
    ACK,
    CALM,
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
from bookserve.serving.server.transport.http2_limits import Http2Limits
from bookserve.serving.server.transport.http2_timeouts import TimeOuts
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensorflow_error_pb2 import Code

log = logging.getLogger(__name__)

_DRAIN_PING = b"drain..."
_LINGER_SECONDS = 1.0
# Why a connection is given up, as it is counted.
_REASONS = {
    PROTOCOL_ERROR: "protocol",
    FRAME_SIZE_ERROR: "frame_size",
    FLOW_CONTROL_ERROR: "flow_control",
    COMPRESSION_ERROR: "compression",
    CALM: "flood",
}


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
        self.refused = Counter() if refused is None else refused
        self._decoder = hpack.Decoder(limits.max_header_bytes)
        self.calls: dict[int, GrpcCall] = {}
        self._blocked: dict[int, GrpcCall] = {}  # calls whose answer waits for window, in order
        self._flush_due = False  # a window has opened
        self.last_stream = 0
        self._send_window = DEFAULT_WINDOW
        self._receive_window = limits.connection_window_bytes
        self._peer_max_frame = DEFAULT_MAX_FRAME
        self._partial = bytearray()
        self._wanted = len(PREFACE)
        self._greeted = False
        self._block: bytearray | None = None  # a header block that goes on in CONTINUATION frames
        self._block_stream = 0
        self._block_flags = 0
        self.draining = False
        self._refusing = False  # after the last GOAWAY of a drain
        self._closing = False  # nothing more is read or written
        self._write_paused = False
        self._unsent = 0  # bytes in the socket's buffer when it was full, as `buffered` counts them
        self._control_budget = float(limits.control_frames_per_second)
        self._reset_budget = 10.0 * limits.resets_per_second
        self._time_outs: TimeOuts
        self._transport: asyncio.Transport

    # The life of the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._time_outs = TimeOuts(self.limits, self._transport, self._loop.time())
        limits = self.limits
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
            self.refused["buffered_bytes"] += 1
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
        if self._closing:
            return
        if not self._greeted:
            if self._time_outs.has_not_greeted(now):
                self.refused["handshake_timeout"] += 1
                self._transport.abort()
            return
        rate = self.limits.control_frames_per_second
        self._control_budget = min(rate, self._control_budget + rate * elapsed)
        rate = self.limits.resets_per_second
        self._reset_budget = min(10.0 * rate, self._reset_budget + rate * elapsed)
        self._time_outs.sweep(self, now)

    def drain(self) -> None:
        """Tells the client to start no more calls here, answers those under way, then closes the connection."""
        if self.draining or self._closing:
            return
        self.draining = True
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
            self._transport.write(goaway(self.last_stream, NO_ERROR, b""))
            self._linger()

    def abort(self) -> None:
        """Drops the connection and what is under way on it."""
        self._transport.abort()

    @property
    def requests(self) -> int:
        """How many calls the client has started."""
        return (self.last_stream + 1) // 2

    @property
    def peer(self) -> Any:
        """The client's address, as asyncio tells it."""
        return self._transport.get_extra_info("peername")

    @property
    def idle(self) -> bool:
        """Whether no call is under way but those that would go on for ever."""
        return all(call.streaming for call in self.calls.values())

    def _close_when_drained(self) -> None:
        if self._refusing and self.idle:
            self._end_streaming_calls()
            self._linger()

    def _end_streaming_calls(self) -> None:
        for call in list(self.calls.values()):
            if call.streaming:
                call.fail(tensorflow_error_pb2.UNAVAILABLE, "this connection is closed by the server: call again")

    def _close_calls(self) -> None:
        for call in self.calls.values():
            call._close()
            self.let_go(call, call._held)
        self.calls.clear()
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
        self._time_outs.heard = True
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
            if self.draining:
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
        call = self.calls.get(stream_id)
        if call is not None:  # trailers
            if not flags & END_STREAM:
                raise ConnectionFault(PROTOCOL_ERROR, "second HEADERS without END_STREAM")
            grpc_messages.end(self, call)
            return
        if stream_id <= self.last_stream:
            if stream_id & 1 and stream_id:
                return  # trailers of a call that has been answered already
            raise ConnectionFault(PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        if not stream_id & 1:
            raise ConnectionFault(PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        self.last_stream = stream_id
        if self._refusing or len(self.calls) >= self.limits.max_streams:
            if not self._refusing:
                self.refused["streams"] += 1
            self._transport.write(reset(stream_id, REFUSED_STREAM))
            return
        self._open(stream_id, headers, flags)

    def _open(self, stream_id: int, headers: list[hpack.Header], flags: int) -> None:
        call = GrpcCall(self, stream_id, b"")
        self.calls[stream_id] = call
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
            self.refused["malformed"] += 1
            self.reset(call, PROTOCOL_ERROR)
            self._spend_reset()
        elif method != b"POST" or not content_type.startswith(b"application/grpc"):
            self.refused["not_grpc"] += 1
            self._end(call, frame(HEADERS, END_STREAM | END_HEADERS, stream_id, grpc_protocol.NOT_GRPC))
        elif call.path in self._handlers or self._accepts_stream(call):
            if call.timeout is not None:
                call._timer = self._loop.call_later(call.timeout, call._expire)
            if flags & END_STREAM:
                grpc_messages.end(self, call)
        else:
            method_name = call.path.decode("utf-8", "replace")
            self.refuse(call, "unknown_method", tensorflow_error_pb2.UNIMPLEMENTED, f"unknown method {method_name}")

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
        call = self.calls.get(stream_id)
        if call is None:
            if stream_id > self.last_stream or not stream_id & 1:
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
                self.dispatch(call, data[start + 5 : stop])
                return
        if flags & END_STREAM:
            call._receiving = False
        elif start == stop:
            self._spend_control()
        self._on_part(call, memoryview(data)[start:stop], length)
        if flags & END_STREAM and call.open:
            grpc_messages.end(self, call)

    def _on_part(self, call: GrpcCall, part: memoryview, length: int) -> None:
        """Takes a part of a message that came in several frames, or compressed, or in a streaming call."""
        if not grpc_messages.take(self, call, part):
            return
        call._receive_window -= length
        window = self.limits.stream_window_bytes
        if call._receive_window < 0:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "more data than the stream's window")
        if call._receive_window < window // 2:
            self._transport.write(window_update(call.stream_id, window - call._receive_window))
            call._receive_window = window

    def dispatch(self, call: GrpcCall, message: bytes) -> None:
        """Hands the message of a unary call to its handler."""
        call._receiving = False
        try:
            self._handlers[call.path](call, message)
        except Exception:
            self._failed(call)

    def guard(self, call: GrpcCall, handler: StreamHandler, message: bytes | None) -> None:
        """Hands a message of a streaming call to its handler, or None after the last."""
        try:
            handler(call, message)
        except Exception:
            self._failed(call)

    def _failed(self, call: GrpcCall) -> None:
        log.exception("fault while handling a call of %s", call.path.decode("utf-8", "replace"))
        call.fail(tensorflow_error_pb2.INTERNAL, "internal error")

    def refuse_for_buffered(self, call: GrpcCall) -> None:
        """Fails a call for which `hold` has no room."""
        self.refuse(call, "buffered_bytes", tensorflow_error_pb2.RESOURCE_EXHAUSTED, str(self._buffered))

    def refuse(self, call: GrpcCall, reason: str, code: Code, message: str) -> None:
        """Fails a call that its handler does not get to see."""
        self.refused[reason] += 1
        call.fail(code, message)

    def _on_reset(self, stream_id: int, length: int) -> None:
        if length != 4 or not stream_id or stream_id > self.last_stream:
            raise ConnectionFault(PROTOCOL_ERROR, "malformed RST_STREAM")
        call = self.calls.pop(stream_id, None)
        if call is None:
            return
        self._blocked.pop(stream_id, None)
        call._close()
        self.let_go(call, call._held)
        self._spend_reset()
        self._close_when_drained()

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 8 or stream_id:
            raise ConnectionFault(FRAME_SIZE_ERROR, "malformed PING")
        if flags & ACK:
            if payload == _DRAIN_PING and self.draining and not self._refusing:
                self._refusing = True
                self._transport.write(goaway(self.last_stream, NO_ERROR, b"drained"))
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
                for call in self.calls.values():
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
            call = self.calls.get(stream_id)
            if call is None:
                if stream_id > self.last_stream:
                    raise ConnectionFault(PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {stream_id}")
                return
            call._send_window += increment
            if not increment or call._send_window > MAX_WINDOW:
                self.reset(call, FLOW_CONTROL_ERROR)
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
        if not self.hold(call, len(data)):
            self.refuse_for_buffered(call)
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
        self.calls.pop(call.stream_id, None)
        if call._outgoing is not None:
            self._blocked.pop(call.stream_id, None)
        if call._held:
            self.let_go(call, call._held)
        call._close()
        self._transport.write(frames)
        if self._refusing and not call.streaming:
            self._close_when_drained()

    def reset(self, call: GrpcCall, code: int) -> None:
        """Ends a call without a status."""
        self._end(call, reset(call.stream_id, code))

    def hold(self, call: GrpcCall, size: int) -> bool:
        """Counts bytes that a call makes the server keep; false, and nothing is counted, where they are too many."""
        if not self._buffered.take(size):
            return False
        call._held += size
        return True

    def let_go(self, call: GrpcCall, size: int) -> None:
        """Ends what `hold` began."""
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
                self.let_go(call, size)
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
        self.refused[reason] += 1
        log.info("closing a gRPC connection: %s", message)
        self._transport.write(goaway(self.last_stream, code, message.encode()))
        if self._transport.can_write_eof():
            self._transport.pause_reading()  # so that a flood costs nothing any more
        self._linger()
