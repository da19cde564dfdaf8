"""One gRPC call: what its handler knows of it, and how the handler answers it."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bookserve.serving.server.inference.trace import Record
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensorflow_error_pb2 import Code

if TYPE_CHECKING:
    from bookserve.serving.server.transport.http2 import GrpcConnection


class GrpcCall:
    """One call of one connection.

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
