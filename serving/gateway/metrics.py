"""GET /metrics: how many requests the gateway answered, with which status and how fast, in Prometheus' text format.

Routes are counted by their pattern, so that no request can make up new series.
"""

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds

# Else each series gets a second one, which tells when it began.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The counts of one gateway; shared by its threads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "bookserve_gateway_requests_total",
            "Requests answered, by method, route and status.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._refused = Counter(
            "bookserve_gateway_refused_total",
            "Requests refused before they were read in full, by status.",
            ("status",),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "bookserve_gateway_request_seconds",
            "How long answers took, the model server's part included.",
            ("route",),
            buckets=_BOUNDS,
            registry=self._registry,
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts an answer of the application. `route` is a pattern of the gateway's own."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, status: int) -> None:
        """Counts a request that was refused before the application saw it: too large, too slow, or one too many."""
        self._refused.labels(status).inc()

    def text(self) -> bytes:
        """All series."""
        return prometheus_client.generate_latest(self._registry)
