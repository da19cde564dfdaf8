"""Messages between the server and the processes in which TensorFlow runs: a kind, a length, and that many bytes."""

import socket
import struct

from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire.tensorflow_serving_pb2 import StatusProto

ANSWER, ERROR = 0, 1  # an error is a StatusProto
_HEADER = struct.Struct("<BQ")
_MAX_BYTES = 1 << 31  # of a protobuf message
_SENT_AT_ONCE = 1 << 16  # bytes; more is not copied to go with the header


def send(channel: socket.socket, kind: int, data: bytes) -> None:
    """Sends one message. Raises OSError when the other side is gone."""
    header = _HEADER.pack(kind, len(data))
    if len(data) <= _SENT_AT_ONCE:
        channel.sendall(header + data)
    else:
        channel.sendall(header)
        channel.sendall(data)


def send_error(channel: socket.socket, error: ServingError) -> None:
    """Sends an error that the other side is to raise."""
    status = StatusProto(error_code=error.code, error_message=error.message)
    send(channel, ERROR, status.SerializeToString())


def receive(channel: socket.socket) -> tuple[int, bytes] | None:
    """The next message; None when the other side has closed the channel, is gone, or sends what no message can be."""
    header = _read(channel, _HEADER.size)
    if header is None:
        return None
    kind, length = _HEADER.unpack(header)
    data = _read(channel, length) if length <= _MAX_BYTES else None
    return None if data is None else (kind, data)


def _read(channel: socket.socket, length: int) -> bytes | None:
    parts: list[bytes] = []
    while length:
        try:
            part = channel.recv(length, socket.MSG_WAITALL)
        except OSError:  # reset by the other side, or closed by another thread of this one
            return None
        if not part:
            return None
        parts.append(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
