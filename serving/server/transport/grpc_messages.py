"""Messages of gRPC calls that come in several frames, compressed, or in a streaming call, put together.

A message that fits one frame is none of this module's affair: the connection hands it to its handler at once.
"""

import zlib
from typing import TYPE_CHECKING

from bookserve.serving.server.transport import grpc_protocol
from bookserve.serving.server.transport.grpc_call import GrpcCall, StreamHandler
from bookserve.serving.server.transport.grpc_protocol import PREFIX
from bookserve.serving.wire import tensorflow_error_pb2

if TYPE_CHECKING:
    from bookserve.serving.server.transport.http2 import GrpcConnection


def take(connection: "GrpcConnection", call: GrpcCall, part: memoryview) -> bool:
    """Takes a part of what a call brings; false where it is answered by that."""
    if not connection.hold(call, len(part)):
        connection.refuse_for_buffered(call)
        return False
    if call._body is None:
        call._body = bytearray()
    call._body += part
    if call._stream is None:
        return _fits_unary(connection, call, call._body)
    _take_messages(connection, call, call._stream)
    return call.open


def end(connection: "GrpcConnection", call: GrpcCall) -> None:
    """What a call brings has ended."""
    call._receiving = False
    body = call._body
    if call._stream is not None and not body:
        connection.guard(call, call._stream, None)
        return
    if body is None or call._expected != len(body):
        text = "the call ended without a complete message"
        connection.refuse(call, "malformed", tensorflow_error_pb2.INTERNAL, text)
        return
    call._body = None
    connection.let_go(call, call._held)
    message = _message(connection, call, body[0], bytes(memoryview(body)[5:]))
    if message is not None:
        connection.dispatch(call, message)


def _fits_unary(connection: "GrpcConnection", call: GrpcCall, body: bytearray) -> bool:
    """Whether the body so far may be the beginning of the one message; otherwise the call is answered."""
    if call._expected < 0 and len(body) >= 5:
        size = PREFIX.unpack_from(body)[1]
        if size > connection.limits.max_message_bytes:
            _too_large(connection, call, size)
            return False
        call._expected = size + 5
    if 0 <= call._expected < len(body):
        text = "a unary call carries one message"
        connection.refuse(call, "malformed", tensorflow_error_pb2.INTERNAL, text)
        return False
    return True


def _take_messages(connection: "GrpcConnection", call: GrpcCall, handler: StreamHandler) -> None:
    """Hands every complete message of a streaming call to its handler."""
    body = call._body
    while call.open and body is not None and len(body) >= 5:
        compressed, size = PREFIX.unpack_from(body)
        if size > connection.limits.max_message_bytes:
            _too_large(connection, call, size)
            return
        if len(body) < size + 5:
            return
        message = _message(connection, call, compressed, bytes(body[5 : size + 5]))
        if message is None:
            return
        del body[: size + 5]
        connection.let_go(call, size + 5)
        connection.guard(call, handler, message)


def _message(connection: "GrpcConnection", call: GrpcCall, compressed: int, data: bytes) -> bytes | None:
    """The message, decompressed; None where it cannot be, and the call is answered."""
    if not compressed:
        return data
    refuse = connection.refuse
    try:
        return grpc_protocol.decompressed(data, call._encoding, connection.limits.max_message_bytes)
    except OverflowError:
        _too_large(connection, call, None)
    except ValueError as error:
        refuse(call, "encoding", tensorflow_error_pb2.UNIMPLEMENTED, str(error))
    except zlib.error:
        refuse(call, "encoding", tensorflow_error_pb2.INTERNAL, "the message does not decompress")
    return None


def _too_large(connection: "GrpcConnection", call: GrpcCall, size: int | None) -> None:
    sent = "Received message" if size is None else f"Received message of {size} bytes"
    text = f"{sent} larger than max ({connection.limits.max_message_bytes} bytes, --max_request_bytes)"
    connection.refuse(call, "request_bytes", tensorflow_error_pb2.RESOURCE_EXHAUSTED, text)
