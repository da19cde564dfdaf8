"""Retries within a deadline, over each transport, and long lists through the gateway."""

import asyncio
import json

import grpc
import numpy as np
import pytest

from book_contracts import CONTRACTS, write_manifests
from bookserve.clients import errors
from bookserve.clients.gateway_client import AsyncGatewayClient, GatewayClient
from bookserve.clients.grpc_client import AsyncGrpcClient, GrpcClient
from bookserve.clients.rest_client import AsyncRestClient, RestClient
from bookserve.clients.retries import ONCE, Retry
from gateway_servers import start_gateway
from stand_in_models import FakeServer, serve

IMAGES = np.zeros((1, 28, 28), np.uint8)
QUICK = Retry(attempts=4, first=0.01, longest=0.02)


class Failing:
    """Fails so many times with this error, then answers."""

    def __init__(self, times: int, error: errors.PredictError) -> None:
        self.times, self.error = times, error
        self.left: list[float] = []

    def __call__(self, seconds: float) -> str:
        self.left.append(seconds)
        if len(self.left) <= self.times:
            raise self.error
        return "answer"


def test_what_nobody_answered_is_asked_again_until_it_is_enough() -> None:
    ask = Failing(2, errors.Unavailable("away"))
    assert QUICK.call(ask, 10) == "answer"
    assert len(ask.left) == 3
    assert ask.left == sorted(ask.left, reverse=True)  # the deadline holds for all tries
    ask = Failing(9, errors.Unavailable("away"))
    with pytest.raises(errors.Unavailable):
        QUICK.call(ask, 10)
    assert len(ask.left) == 4
    ask = Failing(1, errors.Unavailable("away"))
    with pytest.raises(errors.Unavailable):
        ONCE.call(ask, 10)


@pytest.mark.parametrize(
    "error", [errors.InvalidArgument("x"), errors.DeadlineExceeded("x"), errors.NotFound("x"), errors.Internal("x")]
)
def test_nothing_else_is_asked_again(error: errors.PredictError) -> None:
    ask = Failing(1, error)
    with pytest.raises(type(error)):
        QUICK.call(ask, 10)
    assert len(ask.left) == 1


def test_no_try_begins_after_the_deadline_or_before_the_server_wants_one() -> None:
    away = errors.Unavailable("away")
    away.retry_after = 0.05  # the wait is random up to `longest` otherwise
    ask = Failing(99, away)
    with pytest.raises(errors.Unavailable):
        Retry(attempts=100, first=0.05, longest=0.05).call(ask, 0.2)
    assert len(ask.left) <= 4  # after 0, 50, 100 and 150 ms
    later = errors.Unavailable("full")
    later.retry_after = 5
    ask = Failing(1, later)
    with pytest.raises(errors.Unavailable):
        QUICK.call(ask, 1)
    assert len(ask.left) == 1


def test_grpc_asks_again(fake) -> None:
    fake.fail, fake.failures = grpc.StatusCode.UNAVAILABLE, 2
    with GrpcClient(fake.target, retry=Retry(attempts=5, first=0.01)) as client:
        assert client.predict("mnist", {"images": IMAGES}).version == 3
    assert len(fake.received) == 3


def test_asyncio_asks_again(fake) -> None:
    fake.fail, fake.failures = grpc.StatusCode.UNAVAILABLE, 2

    async def ask() -> int:
        async with AsyncGrpcClient(fake.target, retry=Retry(attempts=5, first=0.01)) as client:
            return (await client.predict("mnist", {"images": IMAGES})).version

    assert asyncio.run(ask()) == 3
    assert len(fake.received) == 3


@pytest.mark.parametrize(("retry", "calls"), [(ONCE, 1), (Retry(attempts=3, first=0.01), 3), (Retry(99, 0.01), 5)])
def test_grpc_asks_as_often_as_it_is_told(fake, retry: Retry, calls: int) -> None:
    fake.fail = grpc.StatusCode.UNAVAILABLE
    with GrpcClient(fake.target, retry=retry) as client, pytest.raises(errors.Unavailable):
        client.predict("mnist", {"images": IMAGES})
    assert len(fake.received) == calls  # gRPC makes no more than 5


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first": 0}, {"longest": -1}])
def test_retries_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 attempt, and seconds above 0"):
        Retry(**wrong)


def test_rest_and_gateway_ask_again(http_fake) -> None:
    http_fake.answer("GET", "/v1/models/m", {"error": "starting"}, 503)
    http_fake.answer("GET", "/api/v1/models", {"detail": "starting"}, 503)
    for ask, path in (
        (lambda: RestClient(http_fake.url, retry=QUICK).status("m"), "/v1/models/m"),
        (lambda: GatewayClient(http_fake.url, retry=QUICK).models(), "/api/v1/models"),
    ):
        with pytest.raises(errors.Unavailable, match="starting"):
            ask()
        assert [received[1] for received in http_fake.received].count(path) == 4


def test_rest_and_gateway_ask_again_in_asyncio(http_fake) -> None:
    http_fake.answer("GET", "/v1/models/m", {"error": "starting"}, 503)
    http_fake.answer("GET", "/api/v1/models", {"detail": "starting"}, 503)

    async def ask() -> None:
        async with AsyncRestClient(http_fake.url, retry=QUICK) as rest, AsyncGatewayClient(http_fake.url) as gateway:
            with pytest.raises(errors.Unavailable, match="starting"):
                await rest.status("m")
            models = asyncio.create_task(gateway.models())
            while not any(path == "/api/v1/models" for _, path, *_ in http_fake.received):
                await asyncio.sleep(0.001)
            http_fake.answer("GET", "/api/v1/models", {"models": []})
            assert await models == []

    asyncio.run(ask())
    assert [received[1] for received in http_fake.received].count("/v1/models/m") == 4


def test_a_long_list_goes_through_a_gateway_with_a_key(tmp_path) -> None:
    store = write_manifests(tmp_path / "models", ["linear"])
    (tmp_path / "keys").write_text("0123456789abcdef")
    fake = FakeServer(models=tuple(CONTRACTS))
    server = serve(fake)
    options = [f"--models-dir={store}", f"--model-server={fake.target}", f"--api-keys={tmp_path / 'keys'}"]
    gateway = start_gateway(tmp_path / "log", *options, host="127.0.0.1")
    try:
        taken = []

        def bodies():
            for x in range(2000):
                taken.append(x)
                yield {"x": "a"} if x == 1500 else {"x": x}

        client = GatewayClient(gateway.url, key="0123456789abcdef")
        answers = client.lines("linear", bodies())
        assert next(answers) == {"line": 1, "model": "linear", "version": 3, "predictions": [{"y": 2.0}]}
        assert len(taken) <= 257  # no more than a request's
        rest = list(answers)
        assert [answer["line"] for answer in rest] == list(range(2, 2001))
        assert [answer["predictions"] for answer in rest if answer["line"] != 1501] == [
            [{"y": 5.0 * x + 2}] for x in range(1, 2000) if x != 1500
        ]
        assert rest[1499]["problem"]["status"] == 400
        with pytest.raises(errors.Unauthenticated, match="API key"):
            list(GatewayClient(gateway.url).lines("linear", [{"x": 1}]))
        with pytest.raises(errors.NotFound):
            list(client.lines("nobody", [{"x": 1}]))
        assert json.loads(json.dumps(client.numbers("linear", [1.0])))["predictions"] == [{"y": 7.0}]
    finally:
        gateway.process.kill()
        gateway.process.wait()
        assert gateway.process.stdout is not None
        gateway.process.stdout.close()
        server.stop(None).wait()
