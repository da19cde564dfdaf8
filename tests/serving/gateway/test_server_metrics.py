import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bookserve.serving.gateway.server_metrics import PATH, ServerMetrics
from model_servers import free_port


@dataclass
class Page:
    """A metrics page: of "score" requests that succeed in at most 1 ms and 10 ms, and some that fail in 100 ms."""

    fast: int = 0
    slow: int = 0
    failed: int = 0
    status: int = 200

    def text(self) -> str:
        lines = ["# TYPE :tensorflow:serving:request_count counter"]
        for status, count in (("OK", self.fast + self.slow), ("INTERNAL", self.failed)):
            lines.append(f':tensorflow:serving:request_count{{model_name="score",status="{status}"}} {count}')
        lines.append(':tensorflow:serving:request_count{model_name="other",status="OK"} 7')
        lines.append("# TYPE :tensorflow:serving:request_latency histogram")
        counts = (0, self.fast, self.fast + self.slow, self.fast + self.slow + self.failed)
        for bound, count in zip(("100", "1000", "10000", "+Inf"), counts, strict=True):
            labels = f'model_name="score",API="predict",entrypoint="GRPC",le="{bound}"'
            lines.append(f":tensorflow:serving:request_latency_bucket{{{labels}}} {count}")
        return "\n".join([*lines, ""])


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def address(page: Page) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = page.text().encode()
            self.send_response(page.status if self.path == PATH else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@dataclass
class Clock:
    seconds: float = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    """The time, which a test sets."""
    return Clock()


@pytest.fixture
def metrics(address: str, clock: Clock) -> ServerMetrics:
    return ServerMetrics(address, clock)


def test_figures_are_of_what_came_between_two_looks(page, metrics, clock) -> None:
    page.fast = 1000
    assert metrics.recent("score") == {"reason": "nothing is measured yet"}
    metrics.sample()
    assert metrics.recent("score") == {"reason": "measured from now on"}
    page.fast, page.slow, page.failed, clock.seconds = 1090, 9, 1, 110.0
    metrics.sample()
    recent = metrics.recent("score")
    assert (recent["seconds"], recent["requests"], recent["rate"], recent["errors"]) == (10.0, 100, 10.0, 1)
    assert recent["p50"] == pytest.approx((100 + 900 * 50 / 90) / 1000)  # within the bucket of 0.1 to 1 ms
    assert recent["p99"] == 10.0  # the 99th is the last of the slow ones
    assert metrics.recent("other") == {**recent, "requests": 0, "rate": 0.0, "errors": 0, "p50": None, "p99": None}
    assert metrics.recent("nobody")["requests"] == 0


def test_a_latency_beyond_the_last_bound_is_that_bound(page, metrics, clock) -> None:
    metrics.sample()
    page.failed, clock.seconds = 4, 101.0
    metrics.sample()
    assert (metrics.recent("score")["p50"], metrics.recent("score")["p99"]) == (10.0, 10.0)


def test_what_is_older_than_the_window_is_forgotten(page, metrics, clock) -> None:
    for seconds, requests in ((0, 0), (200, 50), (300, 60), (301, 60)):
        page.fast, clock.seconds = requests, 1000.0 + seconds
        metrics.sample()
    recent = metrics.recent("score")
    assert (recent["seconds"], recent["requests"]) == (101.0, 10)


def test_a_server_that_was_started_again_counts_anew(page, metrics, clock) -> None:
    for seconds, requests in ((0, 500), (5, 600), (10, 3), (15, 8)):
        page.fast, clock.seconds = requests, 1000.0 + seconds
        metrics.sample()
    recent = metrics.recent("score")
    assert (recent["seconds"], recent["requests"]) == (5.0, 5)


def test_why_nothing_can_be_read_is_said_and_ends_when_it_can(page, metrics, clock) -> None:
    page.status = 404
    metrics.sample()
    assert "--enable_metrics" in metrics.recent("score")["reason"]
    page.status = 500
    metrics.sample()
    assert "500" in metrics.recent("score")["reason"]
    away = ServerMetrics(f"http://127.0.0.1:{free_port()}")
    away.sample()
    assert "cannot be read" in away.recent("score")["reason"]
    page.status = 200
    metrics.sample()
    clock.seconds += 5
    metrics.sample()
    assert metrics.recent("score")["reason"] is None


def test_a_page_that_is_none_is_no_figure(metrics, monkeypatch) -> None:
    monkeypatch.setattr(Page, "text", lambda page: ":tensorflow:serving:request_count{model_name=\n")
    metrics.sample()
    assert "cannot be read" in metrics.recent("score")["reason"]
