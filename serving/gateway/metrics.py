"""GET /metrics: how many requests the gateway answered, with which status and how fast, in Prometheus' text format.

Routes are counted by their pattern, so that no request can make up new series. Format:
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


@dataclass
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))
    total: float = 0.0


class Metrics:
    """The counts of one gateway; shared by its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._seconds: dict[str, _Histogram] = {}
        self._refused: Counter[int] = Counter()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts an answer of the application. `route` is a pattern of the gateway's own."""
        with self._lock:
            self._requests[method, route, status] += 1
            histogram = self._seconds.setdefault(route, _Histogram())
            histogram.counts[bisect_left(_BOUNDS, seconds)] += 1
            histogram.total += seconds

    def refused(self, status: int) -> None:
        """Counts a request that was refused before the application saw it: too large, too slow, or one too many."""
        with self._lock:
            self._refused[status] += 1

    def text(self) -> str:
        """All series."""
        with self._lock:
            lines = [
                "# HELP bookserve_gateway_requests_total Requests answered, by method, route and status.",
                "# TYPE bookserve_gateway_requests_total counter",
                *(
                    f'bookserve_gateway_requests_total{{method="{method}",route="{route}",status="{status}"}} {count}'
                    for (method, route, status), count in sorted(self._requests.items())
                ),
                "# HELP bookserve_gateway_refused_total Requests refused before they were read in full, by status.",
                "# TYPE bookserve_gateway_refused_total counter",
                *(
                    f'bookserve_gateway_refused_total{{status="{status}"}} {count}'
                    for status, count in sorted(self._refused.items())
                ),
                "# HELP bookserve_gateway_request_seconds How long answers took, the model server's part included.",
                "# TYPE bookserve_gateway_request_seconds histogram",
            ]
            for route, histogram in sorted(self._seconds.items()):
                lines += _series(route, histogram)
        return "\n".join(lines) + "\n"


def _series(route: str, histogram: _Histogram) -> list[str]:
    name, lines, below = "bookserve_gateway_request_seconds", [], 0
    for bound, count in zip((*_BOUNDS, "+Inf"), histogram.counts, strict=True):
        below += count
        lines.append(f'{name}_bucket{{route="{route}",le="{bound}"}} {below}')
    lines.append(f'{name}_sum{{route="{route}"}} {histogram.total:.6f}')
    lines.append(f'{name}_count{{route="{route}"}} {below}')
    return lines
