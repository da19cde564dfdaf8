"""TensorFlow's profiler on the gRPC port: tensorflow.ProfilerService, as TensorFlow Serving offers it.

Its calls are passed on, as they are, to TensorFlow's own profiler server in this process. That server is started, on a
port that TensorFlow opens on every address of the machine, when the first such call comes, and only where a model is
run by TensorFlow.
"""

import asyncio
import socket
import sys
from collections.abc import Mapping
from typing import Any

from bookserve.serving.server.http2 import GrpcCall, Handler
from bookserve.serving.wire import tensorflow_error_pb2

_METHODS = ("Profile", "Terminate", "Monitor")


class Profiler:
    """Answers the methods of ProfilerService."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._loop = asyncio.get_running_loop()
        self._channel: asyncio.Future[Any] | None = None  # to TensorFlow's server

    @property
    def handlers(self) -> Mapping[bytes, Handler]:
        """The handler of each method path."""
        return {f"/tensorflow.ProfilerService/{method}".encode(): self._handle for method in _METHODS}

    def _handle(self, call: GrpcCall, data: bytes) -> None:
        if not self._enabled:
            call.fail(tensorflow_error_pb2.UNIMPLEMENTED, "the profiler is turned off (--enable_profiler=false)")
        elif "tensorflow" not in sys.modules:
            text = "no model here is run by TensorFlow, so there is nothing that TensorFlow's profiler could see"
            call.fail(tensorflow_error_pb2.UNIMPLEMENTED, text)
        else:
            if self._channel is None:
                self._channel = self._loop.run_in_executor(None, _start)
            self._channel.add_done_callback(lambda channel: self._pass_on(call, data, channel))

    def _pass_on(self, call: GrpcCall, data: bytes, channel: "asyncio.Future[Any]") -> None:
        if (fault := channel.exception()) is not None:
            self._channel = None
            call.fail(tensorflow_error_pb2.UNAVAILABLE, f"TensorFlow's profiler does not start: {fault}")
            return
        answer = channel.result().unary_unary(call.path.decode()).future(data, timeout=call.timeout)
        answer.add_done_callback(lambda answer: self._loop.call_soon_threadsafe(_answer, call, answer))


def _start() -> Any:
    """A channel to TensorFlow's profiler server, which is started; on a thread, as it waits for TensorFlow's import."""
    import grpc
    import tensorflow as tf

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tf.profiler.experimental.server.start(port)
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", unlimited)


def _answer(call: GrpcCall, answer: Any) -> None:
    if answer.exception() is None:
        call.reply(answer.result())
    else:
        call.fail(answer.code().value[0], answer.details())
