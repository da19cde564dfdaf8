"""TensorFlow's profiler on the gRPC port: tensorflow.ProfilerService, as TensorFlow Serving offers it.

Its calls are passed on, as they are, to TensorFlow's own profiler server in the process that runs the version which
TensorFlow loaded last. That server is started, on a port that TensorFlow opens on every address of the machine, when
the first such call comes. As traces are written to folders that the caller names, only who may change models may call.
"""

import asyncio
import importlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from bookserve.serving.server.api.admin import Access
from bookserve.serving.server.api.grpc_handlers import fail
from bookserve.serving.server.models.loader import InProcessLoader
from bookserve.serving.server.transport.grpc_call import GrpcCall, Handler
from bookserve.serving.server.types.errors import ServingError, internal, unavailable, unimplemented
from bookserve.serving.wire import tensorflow_error_pb2

if TYPE_CHECKING:
    from bookserve.serving.server.engines.tensorflow_engine import TensorFlowEngine

log = logging.getLogger(__name__)

_METHODS = ("Profile", "Terminate", "Monitor")
_LOOK_SECONDS = 0.25  # between two looks whether the client still waits
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]


class Profiler:
    """Answers the methods of ProfilerService."""

    def __init__(
        self,
        loader: InProcessLoader,
        access: Access,
        start: Callable[[Coroutine[Any, Any, None]], None],
        *,
        enabled: bool,
    ) -> None:
        """`start` has something done beside the event loop's other work."""
        self._loader = loader
        self._access = access
        self._start = start
        self._enabled = enabled
        self._asking = asyncio.Lock()  # so that processes that do not answer hold up one thread, not all

    @property
    def handlers(self) -> Mapping[bytes, Handler]:
        """The handler of each method path."""
        return {f"/tensorflow.ProfilerService/{method}".encode(): self._handle for method in _METHODS}

    def _handle(self, call: GrpcCall, data: bytes) -> None:
        if not self._enabled:
            fail(call, unimplemented("the profiler is turned off: start with --enable_profiler"))
            return
        try:
            self._access.check_grpc(call)
        except ServingError as error:
            fail(call, error)
            return
        if (engine := self._loader.profiled()) is None:
            text = "no model here is run by TensorFlow, so there is nothing that TensorFlow's profiler could see"
            fail(call, unimplemented(text))
        else:
            self._start(self._answer(call, data, engine))

    async def _answer(self, call: GrpcCall, data: bytes, engine: "TensorFlowEngine") -> None:
        try:
            async with self._asking:
                grpc = await asyncio.to_thread(importlib.import_module, "grpc")  # takes its time, and memory
                port = await asyncio.to_thread(engine.profiler_port)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", _CHANNEL_OPTIONS) as channel:
                answer = asyncio.ensure_future(channel.unary_unary(call.path.decode())(data, timeout=call.timeout))
                while call.open and not answer.done():
                    await asyncio.wait({answer}, timeout=_LOOK_SECONDS)
                if answer.done():
                    _pass_back(call, answer)
                else:  # which also ends the trace
                    answer.cancel()
        except ServingError as error:
            fail(call, error)
        except Exception:
            log.exception("fault while profiling")
            fail(call, internal())


def _pass_back(call: GrpcCall, answer: "asyncio.Future[bytes]") -> None:
    error: Any = answer.exception()
    if error is None:
        call.reply(answer.result())
    elif error.code().value[0] == tensorflow_error_pb2.UNAVAILABLE:
        text = f"TensorFlow's profiler does not answer, or its process ended meanwhile: {error.details()}"
        fail(call, unavailable(text))
    else:
        call.fail(error.code().value[0], error.details())
