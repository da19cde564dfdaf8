"""What gRPC itself writes into HTTP/2 (the gRPC over HTTP/2 protocol): prefixes, status, time-outs, compression."""

import struct
import zlib
from urllib.parse import quote

from bookserve.serving.server.transport import hpack
from bookserve.serving.wire.tensorflow_error_pb2 import Code

PREFIX = struct.Struct(">BL")  # before each message: compressed flag, length

_CONTENT_TYPE = (b"content-type", b"application/grpc")
RESPONSE_HEADERS = hpack.encode(
    [(b":status", b"200"), _CONTENT_TYPE, (b"grpc-accept-encoding", b"identity,deflate,gzip")]
)
OK_TRAILERS = hpack.encode([(b"grpc-status", b"0")])
NOT_GRPC = hpack.encode([(b":status", b"415")])

# The protocol's Percent-Encoded: every printable ASCII character but the percent sign stands for itself.
_UNQUOTED = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
# TensorFlow Serving cuts its messages there (model_servers/grpc_status_util.cc).
_MAX_STATUS_MESSAGE = 1024
_TIMEOUT_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def error_trailers(code: Code, message: str, *, alone: bool) -> bytes:
    """The header block of an error status; `alone` where no headers have been sent before it."""
    if len(message) > _MAX_STATUS_MESSAGE:
        message = message[:_MAX_STATUS_MESSAGE] + "...TRUNCATED"
    status = [(b"grpc-status", b"%d" % code), (b"grpc-message", quote(message, safe=_UNQUOTED).encode())]
    return hpack.encode([(b":status", b"200"), _CONTENT_TYPE, *status] if alone else status)


def seconds(timeout: bytes) -> float | None:
    """A grpc-timeout header in seconds; None when it is malformed, which the protocol lets a server ignore."""
    digits, unit = timeout[:-1], _TIMEOUT_UNITS.get(timeout[-1:])
    if unit is None or not digits.isdigit() or len(digits) > 8:
        return None
    return int(digits) * unit


def decompressed(message: bytes, encoding: bytes, limit: int) -> bytes:
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
