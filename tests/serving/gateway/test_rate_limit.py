"""A limit of predictions for each caller: off by default, counted by key or by address."""

import json

import pytest

from bookserve.serving.gateway import rate_limit
from bookserve.serving.gateway.app import create_app
from bookserve.serving.gateway.config import GatewayConfig
from bookserve.serving.gateway.rate_limit import RateLimit
from http_calls import problem_of

BODY = {"pixels": [[7] * 28] * 28}
KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


def test_as_many_as_are_allowed_at_once_and_then_at_that_rate() -> None:
    now = [100.0]
    limit = RateLimit(6, lambda: now[0])
    assert [limit.seconds_to_wait("a") for _ in range(6)] == [0] * 6
    assert limit.seconds_to_wait("a") == pytest.approx(10)
    assert limit.seconds_to_wait("b") == 0
    now[0] += 9.9
    assert limit.seconds_to_wait("a") == pytest.approx(0.1)
    now[0] += 0.1
    assert [limit.seconds_to_wait("a") > 0 for _ in range(2)] == [False, True]
    now[0] += 60
    assert [limit.seconds_to_wait("a") > 0 for _ in range(7)] == [False] * 6 + [True]


def test_callers_are_not_remembered_for_ever(monkeypatch) -> None:
    monkeypatch.setattr(rate_limit, "_CALLERS", 3)
    now = [0.0]
    limit = RateLimit(1, lambda: now[0])
    for name in "abc":
        assert limit.seconds_to_wait(name) == 0
    now[0] = 61.0
    assert limit.seconds_to_wait("d") == 0
    assert list(limit._whole) == ["d"]


def test_one_too_many_is_a_429_that_says_when_to_ask_again(backend, molecule_pool, models_dir, client) -> None:
    config = GatewayConfig(models_dir=models_dir, requests_per_minute=3)
    limited = create_app(config, backend, molecule_pool).test_client()
    assert [limited.post("/api/v1/mnist", json=BODY).status_code for _ in range(3)] == [200] * 3
    for path in ("/api/v1/mnist", "/api/v1/models/mnist:predict", "/api/v1/nope"):
        response = limited.post(path, json=BODY)
        document = problem_of(response, 429)
        assert document["type"] == "urn:bookserve:problem:too-many-requests"
        assert document["title"] == "Too Many Requests"
        assert "more than 3 predictions a minute" in document["detail"]
        assert 18 <= int(response.headers["Retry-After"]) <= 20
    assert len(backend.asked) == 3
    lines = limited.post(
        "/api/v1/models/mnist:predict", data=json.dumps(BODY) + "\n", content_type="application/x-ndjson"
    )
    assert json.loads(lines.text)["problem"]["status"] == 429
    assert limited.get("/api/v1/models").status_code == 200  # as the page asks for every two seconds
    other = limited.post("/api/v1/mnist", json=BODY, environ_base={"REMOTE_ADDR": "192.0.2.7"})
    assert other.status_code == 200
    assert all(client.post("/api/v1/mnist", json=BODY).status_code == 200 for _ in range(9))  # without the option


def test_keys_have_a_limit_each(backend, molecule_pool, models_dir, tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"phone:{KEY}\n{OTHER}\n")
    config = GatewayConfig(models_dir=models_dir, api_keys=keys, requests_per_minute=1)
    limited = create_app(config, backend, molecule_pool).test_client()

    def ask(key: str) -> int:
        return limited.post("/api/v1/mnist", json=BODY, headers={"X-API-Key": key}).status_code

    assert [ask(KEY), ask(KEY), ask(OTHER), ask(OTHER), ask("x" * 16)] == [200, 429, 200, 429, 401]
