"""What the model server counted in the last minutes: requests, errors and latency of each model, for the page.

A thread reads the metrics page of the model server's REST port every few seconds and keeps the counts of the last
minutes; a figure is the difference between the newest counts and the oldest.
"""

import ssl
import threading
import time
import urllib.error
import urllib.request
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

PATH = "/monitoring/prometheus/metrics"
WINDOW_SECONDS = 300.0
EVERY_SECONDS = 5.0
_FETCH_SECONDS = 2.0
_MAX_BYTES = 16 << 20
_COUNT = ":tensorflow:serving:request_count"
_LATENCY = ":tensorflow:serving:request_latency_bucket"


@dataclass(frozen=True)
class _Counts:
    """All counts of a metrics page, read at `seconds` of the monotonic clock; latencies count up to a bound in us."""

    seconds: float
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)  # (model, status)
    latencies: Counter[tuple[str, float]] = field(default_factory=Counter)  # (model, bound)


class ServerMetrics:
    """The last minutes of the model server whose REST answers at `address`, such as "http://127.0.0.1:8501".

    `start` begins to read; until then, and where nothing can be read, `recent` says why. `clock` is in seconds;
    `context` is for https://.
    """

    def __init__(
        self, address: str, clock: Callable[[], float] = time.monotonic, context: ssl.SSLContext | None = None
    ) -> None:
        self._url = address.rstrip("/") + PATH
        self._address = address
        self._clock = clock
        self._kept: deque[_Counts] = deque()
        self._reason = "nothing is measured yet"
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.use(context)

    def use(self, context: ssl.SSLContext | None) -> None:
        """From now on https:// is spoken with this `context`."""
        # A proxy of the environment would get requests meant for loopback.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def start(self) -> None:
        """Reads from now on, every few seconds, on a thread that ends with the process or `stop`."""
        threading.Thread(target=self._read, name="server-metrics", daemon=True).start()

    def stop(self) -> None:
        """Reads no more."""
        self._stop.set()

    def sample(self) -> None:
        """Reads the counts once."""
        try:
            with self._opener.open(self._url, timeout=_FETCH_SECONDS) as response:
                text = response.read(_MAX_BYTES).decode()
            counts = _parse(text, self._clock())
        except urllib.error.HTTPError as error:
            error.close()
            off = error.code == 404
            self._miss(
                "the model server's metrics are off: start it with --enable_metrics"
                if off
                else f"the model server answered {error.code} for its metrics"
            )
        except (OSError, ValueError):
            self._miss(f"the model server's metrics at {self._address} cannot be read")
        else:
            self._keep(counts)

    def recent(self, model: str) -> dict[str, Any]:
        """`reason` why nothing is known, or the window in `seconds`, `requests` in it, `rate` (requests a second),
        `errors`, and the percentiles `p50` and `p99` of the latency in milliseconds, None without requests.
        """
        with self._lock:
            kept, reason = list(self._kept), self._reason
        if reason or len(kept) < 2:
            return {"reason": reason or "measured from now on"}
        first, last = kept[0], kept[-1]
        seconds = last.seconds - first.seconds
        by_status = {
            status: count - first.requests[name, status]
            for (name, status), count in last.requests.items()
            if name == model
        }
        latencies: list[tuple[float, float]] = []
        for (name, bound), count in last.latencies.items():
            if name == model:
                insort(latencies, (bound, count - first.latencies[name, bound]))
        requests = sum(by_status.values())
        return {
            "reason": None,
            "seconds": round(seconds, 1),
            "requests": int(requests),
            "rate": round(requests / seconds, 3),
            "errors": int(requests - by_status.get("OK", 0)),
            "p50": _milliseconds(latencies, 0.50),
            "p99": _milliseconds(latencies, 0.99),
        }

    def _read(self) -> None:
        while not self._stop.is_set():
            self.sample()
            self._stop.wait(EVERY_SECONDS)

    def _miss(self, reason: str) -> None:
        with self._lock:
            self._reason = reason
            self._kept.clear()

    def _keep(self, counts: _Counts) -> None:
        with self._lock:
            self._reason = ""
            if self._kept and _restarted(self._kept[-1].requests, counts.requests):
                self._kept.clear()
            self._kept.append(counts)
            while counts.seconds - self._kept[0].seconds > WINDOW_SECONDS:
                self._kept.popleft()


def _parse(text: str, seconds: float) -> _Counts:
    """The counts of a metrics page. ValueError where it is none."""
    counts = _Counts(seconds)
    lines = [line for line in text.splitlines() if line.startswith((_COUNT, _LATENCY))]
    for family in text_string_to_metric_families("\n".join([*lines, ""])):
        for sample in family.samples:
            model = sample.labels.get("model_name", "")
            if sample.name == _COUNT:
                counts.requests[model, sample.labels.get("status", "")] += int(sample.value)
            elif sample.name == _LATENCY:
                counts.latencies[model, float(sample.labels["le"])] += int(sample.value)
    return counts


def _restarted(before: Mapping[tuple[str, str], int], now: Mapping[tuple[str, str], int]) -> bool:
    """Whether a count went back: another process counts from 0."""
    return any(now.get(key, 0) < count for key, count in before.items())


def _milliseconds(latencies: Sequence[tuple[float, float]], share: float) -> float | None:
    """The latency that `share` of the requests do not exceed; between the bounds of a bucket by straight line.

    `latencies` are (bound in microseconds, requests of at most so many), ascending.
    """
    total = latencies[-1][1] if latencies else 0
    if not total:
        return None
    below, under = 0.0, 0.0
    for bound, count in latencies:
        if count >= share * total:
            if bound == float("inf"):
                return round(below / 1000, 3)
            part = (share * total - under) / (count - under)
            return round((below + part * (bound - below)) / 1000, 3)
        below, under = bound, count
    return round(below / 1000, 3)
