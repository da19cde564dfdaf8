"""Spans of requests, sent to an OpenTelemetry collector: model server and gateway make theirs with this provider.

A trace crosses from one to the other in the header `traceparent` (W3C Trace Context). Whether a request is traced is
its caller's choice; where no caller made one, that of OTEL_TRACES_SAMPLER, which without a value takes all.
OpenTelemetry is imported here alone, and where spans are made, so without a collector nothing of it is loaded.
"""

import importlib.util
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_MODULES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
_FLUSH_SECONDS = 3.0  # that a collector has for the last spans


class SpanExportError(ValueError):
    """Spans cannot be sent: the address is none, or the packages are missing. The message is for the user."""


def check(endpoint: str) -> None:
    """SpanExportError where spans cannot be sent to such an address, or from here."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SpanExportError(f"{endpoint!r} is no URL of a collector: give one such as http://127.0.0.1:4318")
    try:
        found = all(importlib.util.find_spec(name) for name in _MODULES)
    except ModuleNotFoundError:
        found = False
    if not found:
        raise SpanExportError("the packages for it are missing: pip install 'bookserve[telemetry]'")


def provider(endpoint: str, service: str, instance: str) -> "TracerProvider":
    """Sends spans to `endpoint`, such as http://collector:4318 (OTLP over HTTP), in batches, on a thread of its own.

    `service` and `instance` are the resource's service.name and service.instance.id; OTEL_SERVICE_NAME and
    OTEL_RESOURCE_ATTRIBUTES say otherwise. Spans that a collector does not take in time are lost. Raises
    SpanExportError as `check`.
    """
    check(endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    own = Resource({"service.name": service, "service.instance.id": instance})
    made = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    url = endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return made


def close(made: "TracerProvider") -> None:
    """Sends what is left, for at most a few seconds."""
    closing = threading.Thread(target=made.shutdown, daemon=True)
    closing.start()
    closing.join(_FLUSH_SECONDS)
