"""Messages between the processes of a server: both ends of a channel in one event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bookserve.serving.server.types.errors import ServingError, not_found
from bookserve.serving.server.workers.channel import Channel
from bookserve.serving.wire import tensorflow_error_pb2


@asynccontextmanager
async def channel(**handlers: Callable[..., Any]) -> AsyncIterator[tuple[Channel, Channel]]:
    """An end that asks, and one that has these handlers."""
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    asking, answering = Channel({}), Channel(handlers)
    await loop.create_unix_connection(lambda: asking, sock=near)
    await loop.create_unix_connection(lambda: answering, sock=far)
    try:
        yield asking, answering
    finally:
        await asking.close()
        await answering.lost.wait()


def test_answers_come_from_functions_and_coroutines() -> None:
    async def later(value: int) -> int:
        await asyncio.sleep(0)
        return -value

    async def ask() -> None:
        async with channel(now=lambda *values: values, later=later) as (asking, _):
            assert await asyncio.gather(asking.ask("later", 1), asking.ask("now", 2, "x"), asking.ask("later", 3)) == [
                -1,
                (2, "x"),
                -3,
            ]

    asyncio.run(ask())


def test_calls_are_taken_in_their_order_whatever_their_size() -> None:
    taken: list[int] = []

    def take(number: int, data: bytes) -> int:
        taken.append(number)
        return len(data)

    async def ask() -> None:
        async with channel(take=take) as (asking, _):
            sizes = [3 << 20, 0, 1 << 20, 5]
            answers = [asking.ask("take", number, bytes(size)) for number, size in enumerate(sizes)]
            asking.tell("take", 4, b"")
            assert await asking.ask("take", 5, b"x") == 1
            assert await asyncio.gather(*answers) == sizes
            assert taken == [0, 1, 2, 3, 4, 5]

    asyncio.run(ask())


def test_errors_reach_whoever_asked_and_others_are_answered() -> None:
    async def refuse() -> None:
        raise not_found("nothing here")

    def break_() -> None:
        raise ValueError("broken")

    async def ask() -> None:
        async with channel(refuse=refuse, break_=break_, go_on=lambda: 1) as (asking, _):
            with pytest.raises(ServingError, match="nothing here") as caught:
                await asking.ask("refuse")
            assert caught.value.code == tensorflow_error_pb2.NOT_FOUND
            with pytest.raises(ServingError, match="ValueError: broken") as caught:
                await asking.ask("break_")
            assert caught.value.code == tensorflow_error_pb2.UNKNOWN
            asking.tell("break_")
            assert await asking.ask("go_on") == 1

    asyncio.run(ask())


def test_an_end_that_is_gone_answers_nothing_any_more() -> None:
    async def ask() -> None:
        async with channel(never=asyncio.Event().wait) as (asking, answering):
            answer = asking.ask("never")
            await answering.close()
            with pytest.raises(ConnectionError):
                await answer
            assert asking.lost.is_set()
            asking.tell("never")
            with pytest.raises(ConnectionError):
                await asking.ask("never")

    asyncio.run(ask())
