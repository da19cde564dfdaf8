"""HTTP/2 frames as bytes (RFC 9113, 4 and 6): their types, flags and error codes, and how they are put together."""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x01
END_HEADERS, PADDED, WITH_PRIORITY = 0x04, 0x08, 0x20
SETTING_MAX_STREAMS, SETTING_WINDOW, SETTING_MAX_FRAME, SETTING_MAX_HEADERS = 3, 4, 5, 6
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CALM = 5, 6, 7, 8, 9, 11

# What the peer assumes until our SETTINGS arrive, and we of it (RFC 9113, 6.5.2 and 6.9.2).
DEFAULT_WINDOW = 65_535
DEFAULT_MAX_FRAME = 16_384
MAX_WINDOW = 2**31 - 1

FRAME = struct.Struct(">HBBBL")  # length (16 + 8 bits), type, flags, stream
UINT32 = struct.Struct(">L")
SETTING = struct.Struct(">HL")


class ConnectionFault(Exception):
    """The peer broke the protocol or a limit: the connection ends with this HTTP/2 error code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def frame(kind: int, flags: int, stream_id: int, payload: bytes | memoryview) -> bytes:
    """One frame; the payload must fit the peer's SETTINGS_MAX_FRAME_SIZE."""
    length = len(payload)
    return FRAME.pack(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*setting) for setting in values.items()))


def goaway(last_stream: int, code: int, reason: bytes) -> bytes:
    """A GOAWAY frame; streams above `last_stream` were not and will not be served."""
    return frame(GOAWAY, 0, 0, UINT32.pack(last_stream) + UINT32.pack(code) + reason)


def reset(stream_id: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, UINT32.pack(code))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame, of the connection for stream 0."""
    return frame(WINDOW_UPDATE, 0, stream_id, UINT32.pack(increment))


def unpadded(payload: bytes, flags: int) -> bytes:
    """The header block within the payload of a HEADERS frame. Raises ConnectionFault when there is no room for one."""
    start, stop = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise ConnectionFault(PROTOCOL_ERROR, "padded frame without a pad length")
        stop -= payload[0]
        start = 1
    if flags & WITH_PRIORITY:
        start += 5
    if start > stop:
        raise ConnectionFault(PROTOCOL_ERROR, "padding longer than its frame")
    return payload[start:stop]
