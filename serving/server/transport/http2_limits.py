"""What one HTTP/2 connection may make the server hold or do, and how long it may take."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Http2Limits:
    """The limits of a connection. Times are in seconds."""

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
