"""What takes too long on an HTTP/2 connection: found by looking at it about once a second, and ended."""

import asyncio
import math
import random
from typing import TYPE_CHECKING

from bookserve.serving.server.transport.http2_frames import CANCEL, PING, frame
from bookserve.serving.server.transport.http2_limits import Http2Limits
from bookserve.serving.wire import tensorflow_error_pb2

if TYPE_CHECKING:
    from bookserve.serving.server.transport.http2 import GrpcConnection

_ALIVE_PING = b"alive?.."
# How long a client may take to leave a connection that was idle too long.
_LEAVE_SECONDS = 10.0


class TimeOuts:
    """What the sweeps of one connection compare. Times are the loop's."""

    def __init__(self, limits: Http2Limits, transport: asyncio.Transport, now: float) -> None:
        self.heard = False  # anything from the peer since the last sweep; set by the connection
        self._transport = transport
        self._limits = limits
        self._opened = self._heard_at = self._idle_since = self._unsent_since = now
        self._asked_at: float | None = None  # when the silent peer was asked for a sign of life
        self._swept_stream = 0
        self._swept_unsent = 0
        self._retires_at = now + self._limits.age_seconds * random.uniform(0.9, 1.1)
        self._abort_at = math.inf

    def has_not_greeted(self, now: float) -> bool:
        """Whether a connection that has not spoken HTTP/2 yet should have by now."""
        return now - self._opened > self._limits.handshake_seconds

    def sweep(self, connection: "GrpcConnection", now: float) -> None:
        """Ends what has taken too long: the connection, or calls of it."""
        if now > self._abort_at or self._is_lost(now):
            self._transport.abort()
        elif self._is_stuck(now):
            connection.refused["stalled"] += 1
            self._transport.abort()
        else:
            self._end_slow_calls(connection, now)
            self._retire(connection, now)

    def _is_lost(self, now: float) -> bool:
        """Asks a silent peer for a sign of life; true when it has given none in time."""
        if self.heard:
            self.heard = False
            self._heard_at = now
            self._asked_at = None
        elif self._asked_at is not None:
            return now - self._asked_at > self._limits.keepalive_timeout_seconds
        elif now - self._heard_at > self._limits.keepalive_seconds:
            self._asked_at = now
            self._transport.write(frame(PING, 0, 0, _ALIVE_PING))
        return False

    def _is_stuck(self, now: float) -> bool:
        """Whether the peer has read nothing for too long of what the socket has for it."""
        unsent = self._transport.get_write_buffer_size()
        if not unsent or unsent != self._swept_unsent:
            self._swept_unsent = unsent
            self._unsent_since = now
        return now - self._unsent_since > self._limits.stalled_seconds

    def _end_slow_calls(self, connection: "GrpcConnection", now: float) -> None:
        limits = self._limits
        for call in list(connection.calls.values()):
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
                connection.refused["stalled"] += 1
                connection.reset(call, CANCEL)
            else:
                text = f"the request was not complete after {allowed:g} seconds (--request_seconds)"
                connection.refuse(call, "request_timeout", tensorflow_error_pb2.DEADLINE_EXCEEDED, text)

    def _retire(self, connection: "GrpcConnection", now: float) -> None:
        """Sends the client to a new connection when this one has been idle too long or is too old."""
        if connection.calls or connection.last_stream != self._swept_stream:
            self._swept_stream = connection.last_stream
            self._idle_since = now
        if connection.draining:
            return
        if now - self._idle_since > self._limits.idle_seconds:
            self._abort_at = now + _LEAVE_SECONDS
            connection.drain()
        elif now > self._retires_at:
            self._abort_at = now + self._limits.age_grace_seconds
            connection.drain()
