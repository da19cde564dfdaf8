import re

from bookserve.serving.gateway.metrics import CONTENT_TYPE, Metrics

LINE = re.compile(r'(?:# (?:HELP|TYPE) \w+ .+|\w+\{\w+="[^"\\\n]*"(?:,\w+="[^"\\\n]*")*\} [0-9.]+)')


def test_buckets_add_up_to_the_count() -> None:
    metrics = Metrics()
    for seconds in (0.0005, 0.001, 0.3, 99.0):
        metrics.answered("POST", "/api/v1/mnist", 200, seconds)
    text = metrics.text().decode()
    buckets = re.findall(r'_bucket\{le="(.+?)",route="/api/v1/mnist"\} (\d+)', text)
    assert ("0.001", "2") in buckets
    assert ("0.5", "3") in buckets
    assert buckets[-1] == ("+Inf", "4")
    counts = [int(count) for _, count in buckets]
    assert counts == sorted(counts)
    assert 'bookserve_gateway_request_seconds_sum{route="/api/v1/mnist"} 99.3015\n' in text
    assert 'bookserve_gateway_request_seconds_count{route="/api/v1/mnist"} 4.0\n' in text


def test_the_route_shows_what_was_answered(client) -> None:
    client.post("/api/v1/mnist", json={"pixels": [[0] * 28] * 28})
    client.post("/api/v1/mnist", json={})
    response = client.get("/metrics")
    assert response.content_type == CONTENT_TYPE
    for line in response.text.splitlines():
        assert LINE.fullmatch(line), line
    assert 'requests_total{method="POST",route="/api/v1/mnist",status="200"} 1.0\n' in response.text
    assert 'requests_total{method="POST",route="/api/v1/mnist",status="400"} 1.0\n' in response.text


def test_no_request_makes_up_series(client) -> None:
    for number in range(5):
        client.get(f'/nope-{number}"\n')
        client.get(f"/api/v1/models/none-{number}")
        client.open("/healthz", method=f"MAKE{number}")
    text = client.get("/metrics").text
    assert text.count("_seconds_count{") == 2  # unmatched, and one model
    assert 'requests_total{method="GET",route="unmatched",status="404"} 5.0\n' in text
    assert 'requests_total{method="GET",route="/api/v1/models/<name>",status="404"} 5.0\n' in text


def test_the_series_are_these_and_no_others(client) -> None:
    client.get("/healthz")
    names = re.findall(r"^# TYPE (\w+ \w+)$", client.get("/metrics").text, flags=re.M)
    assert names == [
        "bookserve_gateway_requests_total counter",
        "bookserve_gateway_refused_total counter",
        "bookserve_gateway_request_seconds histogram",
    ]
