"""The REST transport on a loopback port, with raw requests."""

import contextlib
import gzip
import socket
import struct
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bookserve.serving.server.transport.http1 import Http1Limits, HttpExchange
from model_servers import wait_until
from transports import HttpTransport, serving_rest


def echo(exchange: HttpExchange) -> None:
    exchange.respond(200, exchange.method + b" " + exchange.path + b" " + exchange.body, b"text/plain")


def break_down(exchange: HttpExchange) -> None:
    raise RuntimeError("secret detail")


def exchange(transport: HttpTransport, data: bytes) -> bytes:
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
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
GET_AND_CLOSE = b"GET / HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n"


def connected(transport: HttpTransport) -> socket.socket:
    return socket.create_connection(("127.0.0.1", transport.port), timeout=20)


def test_an_answer_keeps_or_closes_the_connection_as_asked() -> None:
    with serving_rest(echo) as server:
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
    with serving_rest(echo) as server:
        body = b"".join(b"1\r\n%c\r\n" % byte for byte in b"chunks") + b"0\r\n\r\n"
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n" + CLOSE + b"\r\n"
        answer = exchange(server, head + body)
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
        assert answer.endswith(b"POST / chunks")
        old = b"POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi"
        assert exchange(server, old).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_compressed_bodies(encoding: bytes, compress: Callable[[bytes], bytes]) -> None:
    def head(size: int) -> bytes:
        expect = b"Expect: 100-continue\r\n"
        return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n" % (encoding, size) + (
            expect + CLOSE + b"\r\n"
        )

    with serving_rest(echo, Http1Limits(max_body_bytes=2000)) as server:
        for body, code, end in (
            (compress(b"hello"), 200, b"POST / hello"),
            (compress(b"x" * 2001), 413, b"2000 bytes (--max_request_bytes) after decompression"),
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
    with serving_rest(echo, Http1Limits(max_body_bytes=2000, max_header_bytes=2000)) as server:
        assert status(exchange(server, request_)) == code
        assert status(exchange(server, b"GET / HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n")) == 200


def test_an_offered_upgrade_is_passed_over() -> None:
    with serving_rest(echo) as server:
        answer = exchange(server, b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI *")
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"GET /x ")


def test_a_fault_of_the_handler_keeps_its_detail() -> None:
    with serving_rest(break_down) as server:
        answer = exchange(server, b"GET / HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n")
    assert status(answer) == 500
    assert b"secret" not in answer


def test_slow_requests_and_idle_connections_end() -> None:
    with serving_rest(echo) as server:
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
    with (
        serving_rest(held.append) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        wait_until(lambda: len(held) == 64, "the queue is full")
        server.loop.call_soon_threadsafe(lambda: [exchange.respond(200, b"ok") for exchange in held])
        answer = b""
        while part := client.recv(65536):
            answer += part
    assert answer.count(b"HTTP/1.1 200 OK") == 64
    assert answer.count(b"HTTP/1.1 429 ") == 1


def test_connections_above_the_limit_are_turned_away() -> None:
    with serving_rest(echo, Http1Limits(max_connections=2)) as server:
        with connected(server) as first, connected(server) as second:
            wait_until(lambda: len(server.connections) == 2, "two connections are open")
            answer = exchange(server, GET)
            assert status(answer) == 503
            assert b"this port has 2 connections already (--max_connections)" in answer
            for client in (first, second):
                client.sendall(GET)
                assert status(client.recv(65536)) == 200
        wait_until(lambda: not server.connections, "all connections are closed")
        assert status(exchange(server, GET_AND_CLOSE)) == 200


@pytest.mark.parametrize(
    "endless",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX: ",  # a header
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n1;x=",  # a chunk's extension
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",  # a trailer
    ],
)
def test_what_never_ends_is_cut_off(endless: bytes) -> None:
    with serving_rest(echo) as server, connected(server) as client:
        client.sendall(endless)
        wait_until(lambda: any(not connection.idle for connection in server.connections), "the request has begun")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                client.sendall(b"x" * 65536)
        with contextlib.suppress(ConnectionError):
            assert status(client.recv(65536)) in (400, 431)
        wait_until(lambda: not server.connections, "the connection is closed")


def test_many_trailers_are_refused_and_none_counts_as_a_header() -> None:
    start = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + CLOSE + b"\r\n2\r\nhi\r\n0\r\n"
    with serving_rest(echo, Http1Limits(max_header_bytes=2000)) as server:
        assert exchange(server, start + b"Content-Encoding: gzip\r\n\r\n").endswith(b"POST / hi")
        assert status(exchange(server, start + b"A: b\r\n" * 2000 + b"\r\n")) == 431


def test_a_head_behind_a_large_body_in_one_read_is_not_too_large() -> None:
    """What the next request's head is counted by begins with it, however the bytes arrive."""
    with serving_rest(echo, Http1Limits(max_header_bytes=2000)) as server, connected(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000 + b"GET /n HT")
        received = b""
        while b"x" * 100_000 not in received:
            received += client.recv(1 << 20)
        client.sendall(b"TP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n")
        assert client.recv(65536).endswith(b"GET /n ")


def test_a_body_that_is_declared_too_large_is_hardly_read() -> None:
    """Loopback's buffers hold some megabytes; the rest of 500 MB must not be taken from the client."""
    with serving_rest(echo) as server, connected(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500000000\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 500_000_000:
                sent += client.send(b"x" * 1_000_000)
        assert sent < 50_000_000


def test_half_a_million_chunks_of_one_byte() -> None:
    with serving_rest(echo) as server, connected(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + CLOSE + b"\r\n")
        client.sendall(b"1\r\nx\r\n" * 500_000 + b"0\r\n\r\n")
        answer = b""
        while part := client.recv(1 << 20):
            answer += part
        assert answer.endswith(b"x" * 500_000)


def test_gzip_bombs_of_both_kinds() -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    with serving_rest(echo, Http1Limits(max_body_bytes=1_000_000)) as server:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\n" + CLOSE
        answer = exchange(server, head + b"Content-Length: %d\r\n\r\n" % len(bomb) + bomb)
        assert status(answer) == 413
        assert b"--max_request_bytes" in answer
        cut = bomb[:-20]
        assert status(exchange(server, head + b"Content-Length: %d\r\n\r\n" % len(cut) + cut)) == 413
        small = gzip.compress(b"hi")
        assert exchange(server, head + b"Content-Length: %d\r\n\r\n" % len(small) + small).endswith(b"POST / hi")


def test_unfinished_bodies_have_one_limit_for_all_connections() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    with serving_rest(echo, max_buffered=200_000) as server:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connected(server)) for _ in range(3)]
            for number, client in enumerate(clients, 1):
                client.sendall(head + b"x" * 60_000)
                wait_until(lambda number=number: server.buffered.used == number * 60_000, "it is held")  # type: ignore[misc]
            clients[0].sendall(b"x" * 30_000)
            answer = clients[0].recv(65536)
            assert status(answer) == 503
            assert b"--max_buffered_bytes" in answer
            assert server.buffered.used == 120_000
            clients[1].sendall(b"x" * 40_000)
            assert status(clients[1].recv(65536)) == 200
            wait_until(lambda: server.buffered.used == 60_000, "what is complete is not held")
            assert status(exchange(server, GET_AND_CLOSE)) == 200
        wait_until(lambda: server.buffered.used == 0, "nothing is held for clients that are gone")


class Large:
    """Answers 5 MB, and counts the requests."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, exchange: HttpExchange) -> None:
        self.asked += 1
        exchange.respond(200, b"x" * 5_000_000)


def test_answers_that_are_not_read_are_bounded() -> None:
    large = Large()
    with serving_rest(large, max_buffered=20 << 20) as server, connected(server) as slow:
        slow.sendall(GET * 30)
        wait_until(lambda: large.asked == 30, "all are asked")
        wait_until(lambda: not server.connections, "the connection is dropped")
        assert server.buffered.used == 0


def test_a_client_that_does_not_read_at_all_is_cut_off() -> None:
    large = Large()
    with serving_rest(large) as server, connected(server) as slow:
        slow.sendall(GET * 2)
        wait_until(lambda: large.asked == 2, "both are asked")
        for seconds in (0, 59, 59, 61):
            assert server.buffered.used > 0
            server.sweep(seconds)
        wait_until(lambda: not server.connections, "the connection is cut off")
        assert server.buffered.used == 0


def test_a_slow_but_steady_reader_gets_everything() -> None:
    large = b"x" * 40_000_000  # far more than the sockets hold
    with serving_rest(lambda exchange: exchange.respond(200, large)) as server, connected(server) as slow:
        slow.sendall(GET_AND_CLOSE)
        size = sweeps = 0
        unsent = [0]
        while part := slow.recv(1 << 20):
            size += len(part)
            left = [connection._transport.get_write_buffer_size() for connection in list(server.connections)]
            if left != unsent:  # the server has come to write more, so time may go on
                unsent = left
                sweeps += 1
                server.sweep(50 * sweeps)
        assert size > len(large)
        assert sweeps > 3
        assert server.buffered.used == 0


def test_a_client_that_does_not_read_may_not_go_on_asking() -> None:
    """60 MB of requests whose answers nobody reads do not all get into the server."""
    ask = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
    with serving_rest(echo) as server, connected(server) as client:
        client.settimeout(1)
        with pytest.raises(TimeoutError):
            client.sendall(ask * 200)
        assert server.buffered.used < 40_000_000


def test_a_body_that_trickles_in_is_cut_off() -> None:
    with serving_rest(echo) as server, connected(server) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx")
        wait_until(lambda: any(not connection.idle for connection in server.connections), "the request has begun")
        server.sweep(29)
        slow.sendall(b"x")
        server.sweep(31)
        answer = slow.recv(65536)
        assert status(answer) == 408
        assert b"--request_seconds" in answer


def test_a_request_that_waits_for_its_answer_is_neither_slow_nor_idle() -> None:
    held: list[HttpExchange] = []
    with serving_rest(held.append, Http1Limits(answer_seconds=0)) as server, connected(server) as client:
        client.sendall(GET)
        wait_until(lambda: len(held) == 1, "the request has arrived")
        server.sweep(1000)
        server.on_loop(lambda: held[0].respond(200, b"late"))
        assert client.recv(65536).endswith(b"late")


@pytest.mark.parametrize("orderly", [True, False])
def test_the_requests_of_a_client_that_is_gone_are_closed(orderly: bool) -> None:
    held: list[HttpExchange] = []
    with serving_rest(held.append) as server:
        with connected(server) as client:
            client.sendall(GET * 3)
            wait_until(lambda: len(held) == 3, "the requests have arrived")
            if not orderly:  # as a process that is killed with unread data: RST
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: not any(exchange.open for exchange in held), "they are closed")


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[HttpTransport]:
    with serving_rest(echo) as transport:
        yield transport


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200), st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nHost: x\r\n"]))
def test_any_bytes_leave_the_server_alive(fuzzed: HttpTransport, noise: bytes, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", fuzzed.port), timeout=10) as client:
        client.sendall(start + noise)
        client.shutdown(socket.SHUT_WR)
        try:
            while client.recv(65536):
                pass
        except ConnectionResetError:
            pass
    assert status(exchange(fuzzed, b"GET / HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n")) == 200
