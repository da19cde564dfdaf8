"""Spans of requests for OpenTelemetry (--otlp_endpoint), made at a request's end of what its record holds.

A request is a span, its wait in the model's queue and its run are spans below it. Only requests that TensorFlow Serving
counts, and those within a caller's trace, have spans; so probes have none.
"""

import os
import socket
import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bookserve.serving.server.inference.trace import Record
from bookserve.serving.wire import span_export, tensorflow_error_pb2
from bookserve.serving.wire.tensorflow_error_pb2 import Code

# What the server could not do; other codes are the clients' mistakes, and no errors of a server's span (OpenTelemetry's
# semantic conventions for gRPC).
_ERRORS = (
    tensorflow_error_pb2.UNKNOWN,
    tensorflow_error_pb2.DEADLINE_EXCEEDED,
    tensorflow_error_pb2.RESOURCE_EXHAUSTED,
    tensorflow_error_pb2.UNIMPLEMENTED,
    tensorflow_error_pb2.INTERNAL,
    tensorflow_error_pb2.UNAVAILABLE,
    tensorflow_error_pb2.DATA_LOSS,
)
_MAX_TEXT = 200


class Tracing:
    """The spans of one process."""

    def __init__(self, endpoint: str, worker: int) -> None:
        """Raises SpanExportError."""
        self._provider = span_export.provider(
            endpoint, "bookserve-model-server", f"{socket.gethostname()}-{os.getpid()}-{worker}"
        )
        self._tracer = self._provider.get_tracer("bookserve.serving.server")
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, record: Record, code: Code, message: str) -> None:
        """Makes the spans of a request that has ended now."""
        if not (record.counted or record.traceparent):
            return
        now, clock = time.time_ns(), time.perf_counter()

        def moment(seconds: float) -> int:
            return now - int((clock - seconds) * 1e9)

        parent = self._propagator.extract({"traceparent": record.traceparent, "tracestate": record.tracestate})
        name = f"{record.entrypoint} {record.api[:_MAX_TEXT] or 'read'}"
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, None, (), moment(record.start))
        if span.is_recording():
            self._describe(span, record, code, message)
            task = record.task
            if task is not None and (run := task.run) is not None:
                inside = trace.set_span_in_context(span)
                self._below(inside, "queue", moment(task.queued), moment(run.started), {})
                ran: dict[str, str | int] = {"bookserve.rows": run.rows, "bookserve.padding": run.padding}
                ran["bookserve.engine"] = record.engine
                self._below(inside, "run", moment(run.started), moment(run.ended), ran)
        span.end(now)

    @staticmethod
    def _describe(span: Span, record: Record, code: Code, message: str) -> None:
        found: dict[str, str | int] = {
            "bookserve.model": record.model[:_MAX_TEXT],
            "bookserve.version": record.version,
            "bookserve.signature": record.task.signature.name if record.task is not None else "",
            "bookserve.request_id": record.request_id,
        }
        span.set_attributes({name: value for name, value in found.items() if value})
        span.set_attribute("rpc.system", record.entrypoint.lower())
        span.set_attribute("rpc.response.status_code", Code.Name(code))
        if code in _ERRORS:
            text = record.error.message if record.error is not None else message
            span.set_attribute("error.type", Code.Name(code))
            span.set_status(Status(StatusCode.ERROR, text[:_MAX_TEXT]))

    def _below(self, inside: Context, name: str, start: int, end: int, attributes: dict[str, str | int]) -> None:
        span = self._tracer.start_span(name, inside, SpanKind.INTERNAL, attributes, (), start)
        span.end(end)

    def close(self) -> None:
        """Sends the last spans."""
        span_export.close(self._provider)
