"""The REST transport on a loopback port, with raw requests."""

import asyncio
import gzip
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bookserve.serving.server.http1 import Http1Limits, HttpConnection, HttpExchange
from model_servers import wait_until


class Transport:
    def __init__(self, handler: Callable[[HttpExchange], None], limits: Http1Limits) -> None:
        self.connections: set[HttpConnection] = set()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

        async def start() -> asyncio.Server:
            return await self.loop.create_server(
                lambda: HttpConnection(handler, lambda message: message.encode(), limits, self.connections),
                "127.0.0.1",
                0,
            )

        self.server = asyncio.run_coroutine_threadsafe(start(), self.loop).result(10)
        self.port = self.server.sockets[0].getsockname()[1]

    def sweep(self, seconds_from_now: float) -> None:
        done = threading.Event()

        def run() -> None:
            for connection in list(self.connections):
                connection.sweep(self.loop.time() + seconds_from_now)
            done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(10)

    def close(self) -> None:
        def stop() -> None:
            self.server.close()
            for connection in list(self.connections):
                connection.abort()
            self.loop.call_later(0.05, self.loop.stop)

        self.loop.call_soon_threadsafe(stop)
        self.thread.join(10)
        self.loop.close()


def echo(exchange: HttpExchange) -> None:
    exchange.respond(200, exchange.method + b" " + exchange.path + b" " + exchange.body, b"text/plain")


def break_down(exchange: HttpExchange) -> None:
    raise RuntimeError("secret detail")


@contextmanager
def serving(handler: Callable[[HttpExchange], None] = echo, limits: Http1Limits | None = None) -> Iterator[Transport]:
    transport = Transport(handler, limits or Http1Limits())
    try:
        yield transport
    finally:
        transport.close()


def exchange(transport: Transport, data: bytes) -> bytes:
    """Sends, and reads until the server closes."""
    with socket.create_connection(("127.0.0.1", transport.port), timeout=10) as client:
        client.sendall(data)
        received = b""
        try:
            while part := client.recv(65536):
                received += part
        except ConnectionResetError:
            pass
        return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


CLOSE = b"Connection: close\r\n"


def test_an_answer_keeps_or_closes_the_connection_as_asked() -> None:
    with serving() as server:
        answer = exchange(
            server,
            b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n" + b"HEAD /h HTTP/1.1\r\nHost: x\r\n\r\n"
            b"POST /b HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"Content-Length: 2\r\n\r\nhi",
        )
        assert answer.count(b"HTTP/1.1 200 OK") == 3
        assert b"GET /a " in answer
        assert b"HEAD /h " not in answer
        assert answer.endswith(b"Connection: close\r\n\r\nPOST /b hi")
        old = exchange(server, b"GET /a HTTP/1.0\r\n\r\n")
        assert old.endswith(b"GET /a ")


def test_chunked_bodies_and_continue() -> None:
    with serving() as server:
        body = b"".join(b"1\r\n%c\r\n" % byte for byte in b"chunks") + b"0\r\n\r\n"
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n" + CLOSE + b"\r\n"
        answer = exchange(server, head + body)
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
        assert answer.endswith(b"POST / chunks")
        old = b"POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi"
        assert exchange(server, old).startswith(b"HTTP/1.1 200 OK")
        many = b"1\r\nx\r\n" * 500_000 + b"0\r\n\r\n"
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + CLOSE + b"\r\n"
        assert len(exchange(server, head + many)) > 500_000


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_compressed_bodies(encoding: bytes, compress: Callable[[bytes], bytes]) -> None:
    def head(size: int) -> bytes:
        expect = b"Expect: 100-continue\r\n"
        return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n" % (encoding, size) + (
            expect + CLOSE + b"\r\n"
        )

    with serving(limits=Http1Limits(max_body_bytes=2000)) as server:
        for body, code, end in (
            (compress(b"hello"), 200, b"POST / hello"),
            (compress(b"x" * 2001), 413, b"larger than 2000 bytes after decompression"),
            (b"nonsense", 400, b"not valid " + encoding),
            (compress(b"hello")[:-1], 400, b"ends early"),
            (compress(b"hello") * 2, 400, b"goes on after its end"),
        ):
            answer = exchange(server, head(len(body)) + body)
            assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
            answer = answer.partition(b"\r\n\r\n")[2]
            assert status(answer) == code
            assert answer.endswith(end)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"fff\r\n" + b"x" * 4095 + b"\r\n", 413),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 5000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 5000, 431),
        (b"\r\n" * 3000, 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nhi", 415),
    ],
)
def test_what_breaks_a_rule_or_a_limit_is_answered_and_cut(request_: bytes, code: int) -> None:
    with serving(limits=Http1Limits(max_body_bytes=2000, max_header_bytes=2000)) as server:
        assert status(exchange(server, request_)) == code
        assert status(exchange(server, b"GET / HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n")) == 200


def test_an_offered_upgrade_is_passed_over() -> None:
    with serving() as server:
        answer = exchange(server, b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI *")
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"GET /x ")


def test_a_fault_of_the_handler_keeps_its_detail() -> None:
    with serving(break_down) as server:
        answer = exchange(server, b"GET / HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n")
    assert status(answer) == 500
    assert b"secret" not in answer


def test_slow_requests_and_idle_connections_end() -> None:
    with serving() as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
            slow.sendall(b"GET / HT")
            wait_until(lambda: any(not connection.idle for connection in server.connections), "the head has begun")
            server.sweep(29)
            assert len(server.connections) == 1
            server.sweep(31)
            assert status(slow.recv(65536)) == 408
        wait_until(lambda: not server.connections, "the slow connection is closed")
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as idle:
            wait_until(lambda: any(connection.idle for connection in server.connections), "the connection is open")
            server.sweep(121)
            assert idle.recv(65536) == b""
        wait_until(lambda: not server.connections, "all connections are closed")


def test_a_pipeline_without_end_is_refused() -> None:
    held: list[HttpExchange] = []
    with serving(held.append) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        wait_until(lambda: len(held) == 64, "the queue is full")
        server.loop.call_soon_threadsafe(lambda: [exchange.respond(200, b"ok") for exchange in held])
        answer = b""
        while part := client.recv(65536):
            answer += part
    assert answer.count(b"HTTP/1.1 200 OK") == 64
    assert answer.count(b"HTTP/1.1 429 ") == 1


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Transport]:
    with serving() as transport:
        yield transport


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200), st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: x\r\n"]))
def test_any_bytes_leave_the_server_alive(fuzzed: Transport, noise: bytes, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", fuzzed.port), timeout=10) as client:
        client.sendall(start + noise)
        client.shutdown(socket.SHUT_WR)
        try:
            while client.recv(65536):
                pass
        except ConnectionResetError:
            pass
    assert status(exchange(fuzzed, b"GET / HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n")) == 200
