"""Spans of the gateway for OpenTelemetry (--otlp-endpoint): one for a request to /api/, and below it one for each call
to the model server, whose own spans continue the trace.
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from flask import Flask, Response, g, request
from opentelemetry import context, trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bookserve.clients import errors
from bookserve.clients.answers import Array, ModelMetadata, Prediction, VersionStatus
from bookserve.clients.grpc_client import DEFAULT_TIMEOUT
from bookserve.serving.gateway.model_backend import PredictClient
from bookserve.serving.wire import span_export

_TRACED = "/api/"
_MAX_TEXT = 200


class Tracing:
    """The spans of this process."""

    def __init__(self, endpoint: str) -> None:
        """Raises SpanExportError."""
        self._provider = span_export.provider(endpoint, "bookserve-gateway", f"{socket.gethostname()}-{os.getpid()}")
        self._tracer = self._provider.get_tracer("bookserve.serving.gateway")
        self._propagator = TraceContextTextMapPropagator()

    def add(self, app: Flask) -> None:
        """Has every request to /api/ followed, within the trace of its `traceparent` where it has one."""

        @app.before_request
        def start() -> None:
            if request.path.startswith(_TRACED):
                parent = self._propagator.extract(request.headers)
                g.span = self._tracer.start_span(request.method, parent, SpanKind.SERVER)
                g.span_token = context.attach(trace.set_span_in_context(g.span))

        @app.after_request
        def describe(response: Response) -> Response:
            if "span" in g:
                g.span.set_attributes(
                    {
                        "http.request.method": request.method,
                        "http.response.status_code": response.status_code,
                        "bookserve.request_id": g.request_id,
                    }
                )
                if response.status_code >= 500:
                    g.span.set_status(Status(StatusCode.ERROR))
            return response

        @app.teardown_request
        def end(_: BaseException | None) -> None:
            if "span" in g:
                if "route" in g:
                    g.span.update_name(f"{request.method} {g.route}")
                    g.span.set_attribute("http.route", g.route)
                context.detach(g.span_token)
                g.span.end()

    def metadata(self) -> Sequence[tuple[str, str]]:
        """The span of now, as the metadata of a call to the model server."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return tuple(carrier.items())

    @contextmanager
    def call(self, method: str, model: str) -> Iterator[None]:
        """A call to the model server, which `metadata` is asked for within."""
        if not trace.get_current_span().get_span_context().is_valid:  # of a probe, or of a thread of our own
            yield
            return
        attributes = {"rpc.system": "grpc", "bookserve.model": model[:_MAX_TEXT]}
        with self._tracer.start_as_current_span(
            method, kind=SpanKind.CLIENT, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except errors.PredictError as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR, str(error)[:_MAX_TEXT]))
                raise

    def client(self, client: PredictClient) -> "TracedClient":
        """The same client, with a span for each call."""
        return TracedClient(client, self)

    def close(self) -> None:
        """Sends the last spans."""
        span_export.close(self._provider)


class TracedClient:
    """A client to the model server with a span for each call."""

    def __init__(self, client: PredictClient, tracing: Tracing) -> None:
        self._client = client
        self._tracing = tracing

    def predict(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Prediction:
        """As the client's."""
        with self._tracing.call("Predict", model):
            return self._client.predict(
                model, inputs, version=version, label=label, signature=signature, timeout=timeout
            )

    def metadata(
        self, model: str, *, version: int | None = None, label: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> ModelMetadata:
        """As the client's."""
        with self._tracing.call("GetModelMetadata", model):
            return self._client.metadata(model, version=version, label=label, timeout=timeout)

    def status(self, model: str, *, timeout: float = DEFAULT_TIMEOUT) -> list[VersionStatus]:
        """As the client's."""
        with self._tracing.call("GetModelStatus", model):
            return self._client.status(model, timeout=timeout)
