"""Answers of many values are written by a thread, and their errors told as ever."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from bookserve.serving.server.api import rest_handlers
from bookserve.serving.server.api.rest_handlers import RestAnswer, answer_with
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import unavailable
from bookserve.serving.wire.json_text import JsonError
from model_servers import wait_until
from transports import Transport, serving_rest

MANY = rest_handlers._MANY_VALUES + 1


class Writer:
    """A handler whose answer has as many values as the path says; it waits until `go`, and may raise `error`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.threads: list[str] = []
        self.error: Exception | None = None

    def __call__(self, exchange: HttpExchange) -> None:
        answer_with(exchange, self._encode, len)(np.zeros(int(exchange.path[1:])))

    def _encode(self, result: np.ndarray) -> RestAnswer:
        self.threads.append(threading.current_thread().name)
        if len(result) >= MANY:
            assert self.go.wait(20)
        if self.error is not None:
            raise self.error
        return RestAnswer(str(len(result)).encode())


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def server(writer: Writer) -> Iterator[Transport]:
    with serving_rest(writer) as server:
        yield server


def ask(server: Transport, count: int) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)) as connection:
        connection.request("GET", f"/{count}")
        response = connection.getresponse()
        return response.status, response.read()


def test_others_are_answered_while_many_values_are_written(server: Transport, writer: Writer) -> None:
    answers: list[tuple[int, bytes]] = []
    waiting = threading.Thread(target=lambda: answers.append(ask(server, MANY)))
    waiting.start()
    wait_until(lambda: len(writer.threads) == 1, "the answer is being written")
    assert ask(server, MANY - 1) == (200, str(MANY - 1).encode())
    assert not answers
    writer.go.set()
    waiting.join(20)
    assert answers == [(200, str(MANY).encode())]
    assert [name.startswith("answers") for name in writer.threads] == [True, False]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (JsonError("no JSON for that"), 400, "no JSON for that"),
        (unavailable("not so"), 503, "not so"),
        (RuntimeError("secret"), 500, "internal error"),
        (MemoryError(), 429, "memory"),
    ],
)
@pytest.mark.parametrize("count", [MANY, MANY - 1])
def test_errors_of_a_thread_are_those_of_the_loop(
    server: Transport, writer: Writer, error: Exception, status: int, text: str, count: int
) -> None:
    writer.error = error
    writer.go.set()
    told, body = ask(server, count)
    assert told == status
    assert text in json.loads(body)["error"]
