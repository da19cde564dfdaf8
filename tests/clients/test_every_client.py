"""The six clients against a real model server and a real gateway on loopback: they answer the same."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bookserve.clients import answers, errors
from bookserve.clients.answers import Prediction
from bookserve.clients.gateway_client import AsyncGatewayClient, GatewayClient
from bookserve.clients.grpc_client import AsyncGrpcClient, GrpcClient
from bookserve.clients.rest_client import AsyncRestClient, RestClient
from bookserve.clients.retries import ONCE
from gateway_servers import Servers

ROWS = np.array([[1.5, -2, 70.1], [0, 1e-3, 3e7]], np.float32)
Ask = Callable[..., Prediction]


@contextmanager
def blocking(servers: Servers, way: str) -> Iterator[Ask]:
    if way == "grpc":
        with GrpcClient(servers.model_server.target) as client:
            yield client.predict
    else:
        yield RestClient(servers.model_server.url).predict


@contextmanager
def asynchronous(servers: Servers, way: str) -> Iterator[Ask]:
    """Each call is made twice at once, in a client and an event loop of its own."""

    async def ask(*arguments: Any, **options: Any) -> Prediction:
        kind: Any = AsyncGrpcClient if way == "grpc" else AsyncRestClient
        target = servers.model_server.target if way == "grpc" else servers.model_server.url
        async with kind(target) as client:
            first, second = await asyncio.gather(*(client.predict(*arguments, **options) for _ in range(2)))
        np.testing.assert_array_equal(first.outputs["y"], second.outputs["y"])
        assert isinstance(first, Prediction)
        return first

    yield lambda *arguments, **options: asyncio.run(ask(*arguments, **options))


@pytest.mark.parametrize("way", ["grpc", "rest"])
@pytest.mark.parametrize("manner", [blocking, asynchronous])
def test_arrays_and_lists_give_arrays_of_the_contracts_types(servers: Servers, manner: Any, way: str) -> None:
    with manner(servers, way) as predict:
        answer = predict("scale", {"x": ROWS})
        assert (answer.model, answer.version, answer.outputs["y"].dtype) == ("scale", 2, np.float32)
        np.testing.assert_array_equal(answer.outputs["y"], ROWS * np.float32(3))
        answer = predict("scale", {"x": [[1, 2, 3]]}, version=1)  # whole numbers, for an input of float32
        assert (answer.version, answer.outputs["y"].tolist()) == (1, [[2, 4, 6]])
        with pytest.raises(errors.InvalidArgument, match=r"'x' of model 'scale' takes float32: it holds text"):
            predict("scale", {"x": [["a"]]})
        with pytest.raises(errors.InvalidArgument, match=r"no input 'z'; it has: x"):
            predict("scale", {"z": [[1]]})
        with pytest.raises(errors.InvalidArgument, match=r"no signature 'none'; it has: serving_default"):
            predict("scale", {"x": [[1]]}, signature="none")
        with pytest.raises(errors.NotFound):
            predict("nobody", {"x": [[1]]})
        with pytest.raises(ValueError, match="not both"):
            predict("scale", {"x": ROWS}, version=1, label="stable")


def test_the_gateway_takes_arrays_and_its_answers_become_arrays(servers: Servers) -> None:
    answer = GatewayClient(servers.gateway_url).tensors("scale", {"x": ROWS}, version=1)

    async def ask() -> list[dict[str, Any]]:
        async with AsyncGatewayClient(servers.gateway_url) as client:
            given = await asyncio.gather(*(client.tensors("scale", {"x": ROWS}, version=1) for _ in range(8)))
            assert [model["name"] for model in await client.models()] == ["scale", "wide"]
            assert (await client.model("scale"))["version"] == 2
            assert (await client.ready())["status"] == "ready"
            with pytest.raises(errors.NotFound, match="nobody"):
                await client.tensors("nobody", [1])
            return list(given)

    assert asyncio.run(ask()) == [answer] * 8
    np.testing.assert_array_equal(answers.columns(answer)["y"].astype(np.float32), ROWS * np.float32(2))
    assert answers.columns({"predictions": []}) == {}
    made = answers.columns({"predictions": [{"class": "a", "p": {"a": 0.75, "b": 0.25}}]})
    assert (made["class"].tolist(), made["p"].tolist()) == (["a"], [[0.75, 0.25]])


def test_a_long_list_is_streamed_in_asyncio(servers: Servers) -> None:
    taken = 0

    async def bodies() -> AsyncIterator[dict[str, Any]]:
        nonlocal taken
        for number in range(600):
            taken += 1
            await asyncio.sleep(0)
            yield {"inputs": {"x": np.full((1, 3), number, np.float32) if number != 299 else "a"}}

    async def ask() -> list[dict[str, Any]]:
        async with AsyncGatewayClient(servers.gateway_url) as client:
            streamed = client.lines("scale", bodies())
            found = [await anext(streamed)]
            assert taken <= 257  # what goes into a request, and the one that did not fit
            found += [answer async for answer in streamed]
            assert [answer async for answer in client.lines("scale", [])] == []
            with pytest.raises(errors.NotFound, match="nobody"):
                [answer async for answer in client.lines("nobody", [{"inputs": [1]}])]
        return found

    found = asyncio.run(ask())
    assert [answer["line"] for answer in found] == list(range(1, 601))
    assert found[599]["predictions"] == [{"y": [1797.0, 1797.0, 1797.0]}]
    assert found[299]["problem"]["status"] == 400


async def of_rest(url: str, timeout: float) -> None:
    async with AsyncRestClient(url, retry=ONCE) as client:
        await client.status("scale", timeout=timeout)


async def of_gateway(url: str, timeout: float) -> None:
    async with AsyncGatewayClient(url, retry=ONCE) as client:
        await client.models(timeout=timeout)


@pytest.mark.parametrize("ask", [of_rest, of_gateway])
def test_what_goes_wrong_is_told_by_kind_in_asyncio(servers: Servers, ask: Callable[..., Awaitable[None]]) -> None:
    async def run(url: str, timeout: float = 10) -> None:
        await ask(url, timeout)

    with pytest.raises(errors.Unavailable, match=r"nothing answers at http://127\.0\.0\.1:1"):
        asyncio.run(run("http://127.0.0.1:1"))
    with pytest.raises(errors.BadAnswer, match="is it a gRPC port"):
        asyncio.run(run(f"http://{servers.model_server.target}"))
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(errors.DeadlineExceeded):
        asyncio.run(run(f"http://127.0.0.1:{listener.getsockname()[1]}", 0.2))
    assert time.monotonic() - began < 2
    with pytest.raises(ValueError, match="no URL"):
        asyncio.run(run("127.0.0.1:8501"))


def test_a_task_that_is_cancelled_leaves_its_client_usable(servers: Servers, tmp_path: Path) -> None:
    async def run() -> None:
        async with AsyncRestClient(servers.model_server.url) as client:
            task = asyncio.create_task(client.predict("scale", {"x": np.ones((50_000, 3), np.float32)}))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await client.predict("scale", {"x": [[1, 1, 1]]})).outputs["y"].tolist() == [[3, 3, 3]]

    asyncio.run(run())
