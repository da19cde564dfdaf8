"""What is known of one request while it is under way, where somebody wants to know it.

A call or an exchange carries a `Record` when metrics, request lines or a request log ask for one, and None otherwise.
Whoever learns something writes it down here; the transport ends it with the answer's status. What is made of it is in
`observability/observer.py`.
"""

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from bookserve.serving.server.batching.batcher import Task
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire.tensorflow_error_pb2 import Code
from bookserve.serving.wire.tensors import Array

OnEnd = Callable[["Record", Code, str, int], None]


class Record:
    """One request. What is not known stays at the class's value."""

    traceparent = ""  # as the client sent them, where requests are traced
    tracestate = ""
    model = ""  # as the request names it
    version = 0  # 0 until a loaded version is found
    engine = ""
    task: Task | None = None  # once it has been queued
    outputs: Mapping[str, Array] = MappingProxyType({})
    error: ServingError | None = None  # what the answer's HTTP status stands for

    def __init__(self, entrypoint: str, api: str, counted: bool, request_id: str, on_end: OnEnd) -> None:
        self.entrypoint = entrypoint  # "GRPC" or "REST"
        self.api = api  # such as "Predict" of gRPC and "predict" of REST; "" for a GET
        self.counted = counted  # whether TensorFlow Serving counts requests of this kind
        self.request_id = request_id
        self.on_end = on_end
        self.start = time.perf_counter()

    def asks(self, version: int, engine: str, task: Task) -> None:
        """Notes which version of the model was found, what runs it, and what it is asked."""
        self.version = version
        self.engine = engine
        self.task = task

    def end(self, code: Code, message: str, nbytes: int) -> None:
        """Called once, by the transport: with the status of the answer and its size in bytes."""
        self.on_end(self, self.error.code if self.error is not None else code, message, nbytes)
