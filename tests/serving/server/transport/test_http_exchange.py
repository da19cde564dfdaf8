"""REST requests on a loopback port: by curl and http.client, and raw where no client would send them."""

import asyncio
import contextlib
import gzip
import http.client
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.transport.listeners import Api
from model_servers import wait_until
from transports import LoopFactory, Transport, serving_rest

MIB = 1 << 20
CLOSE = b"Connection: close\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
GET_AND_CLOSE = b"GET / HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def echo(exchange: HttpExchange) -> None:
    exchange.respond(200, f"{exchange.method} {exchange.path} ".encode() + exchange.body, "text/plain")


def break_down(exchange: HttpExchange) -> None:
    if exchange.path == "/connection":
        raise ConnectionRefusedError("secret address")
    raise RuntimeError("secret detail")


class Held:
    """A handler that keeps its exchanges until they are answered."""

    def __init__(self) -> None:
        self.exchanges: list[HttpExchange] = []

    def __call__(self, exchange: HttpExchange) -> None:
        self.exchanges.append(exchange)


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    factory: LoopFactory = request.param
    return factory


@pytest.fixture(scope="module")
def server() -> Iterator[Transport]:
    with serving_rest(echo) as transport:
        yield transport


def connected(transport: Transport) -> socket.socket:
    return socket.create_connection(("127.0.0.1", transport.rest_port), timeout=20)


def raw(transport: Transport, data: bytes) -> bytes:
    """Sends, and reads until the server closes."""
    with connected(transport) as client:
        client.sendall(data)
        return read_to_end(client)


def read_to_end(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            received += part
    return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def ask(
    transport: Transport,
    body: bytes | None = None,
    path: str = "/",
    method: str = "POST",
    **headers: str,
) -> tuple[int, bytes]:
    """By http.client, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", transport.rest_port, timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def curl(transport: Transport, *options: str, path: str = "/", data: bytes = b"") -> str:
    command = ["curl", "--silent", "--show-error", "--include", "--max-time", "20", *options, transport.url + path]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode()


# Requests and answers


def test_many_requests_on_one_connection(loop_factory: LoopFactory) -> None:
    with serving_rest(echo, loop_factory=loop_factory) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
        for number in range(1000):
            connection.request("POST", f"/{number}", b"%d" % number)
            assert connection.getresponse().read() == b"POST /%d %d" % (number, number)
        connection.close()
        assert server.idle


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, MIB, 10 * MIB])
def test_bodies_of_all_sizes(server: Transport, size: int) -> None:
    body = b"x" * size
    assert ask(server, body) == (200, b"POST / " + body)

    def pieces() -> Iterator[bytes]:
        for start in range(0, size, 100_000):
            yield body[start : start + 100_000]

    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
    connection.request("POST", "/", pieces(), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    assert connection.getresponse().read() == b"POST / " + body
    connection.close()
    assert server.held == 0


def test_a_body_above_64_mib_needs_the_flag(server: Transport) -> None:
    body = b"x" * (65 * MIB)
    with contextlib.suppress(ConnectionError):
        assert ask(server, body)[0] == 413
    with serving_rest(echo, max_request_bytes=100 * MIB) as wide:
        assert len(ask(wide, body)[1]) == len(body) + 7


def test_the_path_comes_without_the_query_and_decoded(server: Transport) -> None:
    assert ask(server, path="/a%20b/%C3%BC?c=d", method="GET") == (200, "GET /a b/ü ".encode())


def test_head_has_the_headers_alone(server: Transport) -> None:
    answer = raw(server, b"HEAD /h HTTP/1.1\r\nHost: x\r\n\r\n" + GET_AND_CLOSE)
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"content-length: 8" in head
    assert rest.startswith(b"HTTP/1.1 200 OK")  # of the next one: no body is between


def test_an_answer_keeps_or_closes_the_connection_as_asked(server: Transport) -> None:
    answer = raw(server, GET + POST + CLOSE + b"Content-Length: 2\r\n\r\nhi")
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.count(b"connection: close") == 1
    assert answer.endswith(b"POST / hi")


def test_http_1_0_closes_or_says_that_it_keeps_the_connection(server: Transport) -> None:
    answer = raw(server, b"GET /a HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"GET /a ")
    assert b"keep-alive" not in answer
    kept = b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    answer = raw(server, kept + b"GET /b HTTP/1.0\r\n\r\n")
    assert b"connection: keep-alive" in answer.partition(b"\r\n\r\n")[0]
    assert answer.endswith(b"GET /b ")


def test_curl_asks_as_it_likes(server: Transport) -> None:
    assert curl(server, "--http1.0").startswith("HTTP/1.0 200 OK")
    assert curl(server, "--http1.1", path="/x").endswith("GET /x ")
    assert curl(server, "--head", path="/x").rstrip().startswith("HTTP/1.1 200 OK")
    large = "x" * 100_000
    answer = curl(server, "--data-binary", "@-", "--header", "Expect: 100-continue", data=large.encode())
    assert answer.startswith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    assert answer.endswith("POST / " + large)
    answer = curl(server, "--data-binary", "@-", "--header", "Transfer-Encoding: chunked", data=large.encode())
    assert answer.endswith("POST / " + large)
    assert curl(server, "--http2", path="/up").endswith("GET /up ")  # the offer is passed over


def test_a_client_may_wait_for_continue(server: Transport) -> None:
    with connected(server) as client:
        client.sendall(POST + CLOSE + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hi")
        assert read_to_end(client).endswith(b"POST / hi")
        assert raw(server, b"POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi").startswith(
            b"HTTP/1.0 200 OK"
        )


def test_pipelined_requests_are_answered_in_order(server: Transport) -> None:
    asked = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(200))
    answer = raw(server, asked + GET_AND_CLOSE)
    assert answer.count(b"HTTP/1.1 200 OK") == 201
    places = [answer.index(b"GET /%d " % number) for number in range(200)]
    assert places == sorted(places)


def test_an_offered_upgrade_is_passed_over(server: Transport) -> None:
    for protocol in (b"h2c", b"websocket"):
        offer = b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: " + protocol
        offer += b"\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        answer = raw(server, offer + GET_AND_CLOSE)
        assert answer.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(encoding: str, compress: Callable[[bytes], bytes]) -> None:
    with serving_rest(echo, max_request_bytes=2000) as server:
        for body, code, text in (
            (compress(b"hello"), 200, "POST / hello"),
            (compress(b"x" * 2000), 200, "POST / " + "x" * 2000),
            (compress(b"x" * 2001), 413, "2000 bytes (--max_request_bytes) after decompression"),
            (b"nonsense", 400, f"not valid {encoding}"),
            (compress(b"hello")[:-1], 400, "ends early"),
            (compress(b"hello") * 2, 400, "goes on after its end"),
        ):
            found, answer = ask(server, body, Content_Encoding=encoding)
            assert (found, text in answer.decode()) == (code, True)


def test_any_encoding_that_ends_in_gzip_is_gzip(server: Transport) -> None:
    """As in TensorFlow Serving, which looks for the word alone."""
    assert ask(server, gzip.compress(b"hi"), Content_Encoding="x-gzip") == (200, b"POST / hi")
    assert ask(server, b"hi", Content_Encoding="identity") == (200, b"POST / hi")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_address_of_the_client(host: str) -> None:
    if host == "::1" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with serving_rest(lambda exchange: exchange.respond(200, exchange.peer.encode()), host=host) as server:
        connection = http.client.HTTPConnection(host, server.rest_port, timeout=20)
        connection.request("GET", "/")
        assert connection.getresponse().read() == host.encode()
        connection.close()


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


def test_a_fault_of_the_handler_keeps_its_detail(caplog: pytest.LogCaptureFixture) -> None:
    with serving_rest(break_down) as server:
        for path in ("/", "/connection"):
            assert ask(server, path=path) == (500, b"internal error")
    assert "fault while answering a request" in caplog.text


# What breaks a rule or a limit


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400, b"Host header"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, b"one Host header, this one has 2"),
        (b"GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", 400, b"one Host header"),
        (POST + b"Content-Length: 99999\r\n\r\n", 413, b"2000 bytes (--max_request_bytes)"),
        (CHUNKED + b"fff\r\n" + b"x" * 4095 + b"\r\n", 413, b"--max_request_bytes"),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, b"2000 bytes (--max_header_bytes)"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 5000 + b"\r\n\r\n", 431, b"--max_header_bytes"),
        (POST + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\nhi", 415, b"gzip, deflate or identity"),
        (CHUNKED + b"2\r\nhi\r\n0x\r\n\r\n", 400, b"chunks are malformed"),
        (CHUNKED + b"2\r\nhi\r\n0\r\nContent-Encoding: gzip\r\n\r\n", 400, b"trailers"),
    ],
)
def test_what_breaks_a_rule_or_a_limit_is_answered_and_cut(request_: bytes, code: int, text: bytes) -> None:
    with serving_rest(echo, max_request_bytes=2000, max_header_bytes=2000) as server:
        answer = raw(server, request_)
        assert status(answer) == code
        assert text in answer
        assert b"connection: close" in answer
        assert status(raw(server, GET_AND_CLOSE)) == 200


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 400),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: x\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * MIB, 431),
    ],
)
def test_what_the_library_refuses_has_no_body(server: Transport, request_: bytes, code: int) -> None:
    answer = raw(server, request_)
    assert status(answer) == code
    assert b"content-length: 0" in answer
    assert status(raw(server, GET_AND_CLOSE)) == 200


def test_a_body_that_breaks_off_is_not_handled() -> None:
    held = Held()
    with serving_rest(held) as server:
        for head in (
            b"Content-Length: 10\r\n\r\nx",
            b"Content-Length: 100000\r\n\r\nx",
            b"Transfer-Encoding: chunked\r\n\r\n5\r\nx",
        ):
            for orderly in (True, False):
                with connected(server) as client:
                    client.sendall(POST + head)
                    wait_until(lambda: not server.idle, "it is read")
                    if not orderly:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                wait_until(lambda: server.idle and server.held == 0, "nothing is under way", 2)
    assert held.exchanges == []


def test_a_body_that_is_declared_too_large_is_hardly_read(server: Transport) -> None:
    """Loopback's buffers hold some megabytes; the rest of 500 MB must not be taken from the client."""
    with connected(server) as client:
        client.sendall(POST + b"Content-Length: 500000000\r\n\r\n")
        assert status(client.recv(65536)) == 413
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 500_000_000:
                sent += client.send(b"x" * 1_000_000)
        assert sent < 50_000_000


@pytest.mark.parametrize(
    "endless",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX: ",  # a header
        CHUNKED + b"1\r\nx\r\n1;x=",  # a chunk's extension
        CHUNKED + b"0\r\nX: ",  # a trailer
    ],
)
def test_what_never_ends_is_cut_off(server: Transport, endless: bytes) -> None:
    with connected(server) as client:
        client.sendall(endless)
        sent = 0
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                sent += client.send(b"x" * 65536)
        assert sent < 200 * 65536
    wait_until(lambda: server.idle, "nothing is under way")


def test_half_a_million_chunks_of_one_byte_are_refused_in_time(server: Transport) -> None:
    with connected(server) as client:
        began = time.monotonic()
        client.sendall(CHUNKED)
        with contextlib.suppress(ConnectionError):
            client.sendall(b"1\r\nx\r\n" * 500_000 + b"0\r\n\r\n")
        answer = read_to_end(client)
        taken = time.monotonic() - began
    assert answer == b"" or status(answer) == 400  # a reset may overtake the answer
    assert taken < 5
    assert status(raw(server, GET_AND_CLOSE)) == 200


def test_a_thousand_small_chunks_are_fine(server: Transport) -> None:
    body = b"".join(b"1\r\nx\r\n" for _ in range(1000)) + b"0\r\n\r\n"
    assert raw(server, POST + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n" + body).endswith(b"POST / " + b"x" * 1000)


def test_unfinished_bodies_have_one_limit_for_all_connections() -> None:
    head = POST + b"Content-Length: 100000\r\n\r\n"
    with serving_rest(echo, max_buffered_bytes=200_000) as server:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connected(server)) for _ in range(3)]
            for number, client in enumerate(clients, 1):
                client.sendall(head + b"x" * 60_000)
                wait_until(lambda number=number: server.held == number * 60_000, "it is held")  # type: ignore[misc]
            clients[0].sendall(b"x" * 30_000)
            answer = clients[0].recv(65536)
            assert status(answer) == 503
            assert b"--max_buffered_bytes" in answer
            wait_until(lambda: server.held == 120_000, "what is refused is not held")
            clients[1].sendall(b"x" * 40_000)
            assert status(clients[1].recv(65536)) == 200
            wait_until(lambda: server.held == 60_000, "what is complete is not held")
            assert status(raw(server, GET_AND_CLOSE)) == 200
        wait_until(lambda: server.held == 0, "nothing is held for clients that are gone")
        assert server.refused(Api.REST) == {"buffered_bytes": 1}


# Time


def test_a_body_that_trickles_in_is_cut_off() -> None:
    """A byte now and then does not stretch the time."""
    with serving_rest(echo, request_seconds=0.6) as server:
        for head in (
            b"Content-Length: 100\r\n\r\n",
            b"Content-Length: 100000\r\n\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n",
        ):
            with connected(server) as slow:
                began = time.monotonic()
                slow.sendall(POST + head)
                slow.settimeout(0.1)
                answer = b""
                while not answer and time.monotonic() - began < 5:
                    slow.sendall(b"1\r\nx\r\n" if b"chunked" in head else b"x")
                    with contextlib.suppress(TimeoutError):
                        answer = slow.recv(65536)
                assert status(answer) == 408
                assert b"not complete after 0.6 seconds (--request_seconds)" in answer
                assert 0.5 < time.monotonic() - began < 2
        assert server.refused(Api.REST) == {"request_timeout": 3}
        assert server.held == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_client_that_goes_on_after_its_refusal_is_cut_off(host: str) -> None:
    """The library reads a chunk size of more and more zeros for as long as they come."""
    with serving_rest(echo, host=host, request_seconds=0.6) as server:
        with (
            socket.create_connection((host, server.rest_port), timeout=20) as endless,
            socket.create_connection((host, server.rest_port), timeout=20) as refused,
        ):
            refused.sendall(POST + b"Content-Length: 50\r\n\r\nx")
            end = time.monotonic() + 20
            endless.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
            with pytest.raises(ConnectionError):  # noqa: PT012 - whichever of the sends it is
                while time.monotonic() < end:
                    endless.sendall(b"0" * 30_000)
            assert status(read_to_end(refused)) == 408
        assert server.refused(Api.REST) == {"request_timeout": 2}


def test_headers_that_trickle_in_are_closed_in_time() -> None:
    with serving_rest(echo, request_seconds=0.6) as server, connected(server) as slow:
        began = time.monotonic()
        slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 5:
                slow.sendall(b"x")
                slow.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if not slow.recv(65536):
                        break
        assert 0.5 < time.monotonic() - began < 2


def test_an_idle_connection_is_closed() -> None:
    with serving_rest(echo, rest_idle_seconds=0.5) as server, connected(server) as idle:
        idle.sendall(GET)
        assert status(idle.recv(65536)) == 200
        began = time.monotonic()
        assert idle.recv(65536) == b""
        assert time.monotonic() - began < 2


def test_a_request_may_wait_long_for_its_answer() -> None:
    held = Held()
    with (
        serving_rest(held, request_seconds=0.2, rest_idle_seconds=0.2, rest_api_timeout_in_ms=0) as server,
        connected(server) as client,
    ):
        client.sendall(GET)
        wait_until(lambda: len(held.exchanges) == 1, "the request has arrived")
        time.sleep(1)
        server.on_loop(lambda: held.exchanges[0].respond(200, b"late"))
        assert client.recv(65536).endswith(b"late")


def test_a_request_that_waits_too_long_is_answered_with_504() -> None:
    held = Held()
    with serving_rest(held, rest_api_timeout_in_ms=200) as server:
        began = time.monotonic()
        assert ask(server, method="GET") == (504, b"Timed out waiting for notification")
        assert time.monotonic() - began < 2
        assert not held.exchanges[0].open


@pytest.mark.parametrize("orderly", [True, False])
def test_a_request_whose_client_goes_away_is_dropped_within_a_second(orderly: bool) -> None:
    held = Held()
    with serving_rest(held) as server:
        with connected(server) as client:
            client.sendall(GET)
            wait_until(lambda: len(held.exchanges) == 1, "the request has arrived")
            if not orderly:  # as a process that is killed with unread data: RST
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_until(lambda: not held.exchanges[0].open, "it is closed", 1)
        wait_until(lambda: server.idle, "nothing is under way", 1)


def test_a_client_that_does_not_read_may_not_go_on_asking() -> None:
    """60 MB of requests whose answers nobody reads do not all get into the server."""
    one = POST + b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000
    with serving_rest(echo) as server, connected(server) as client:
        client.settimeout(1)
        with pytest.raises(TimeoutError):
            client.sendall(one * 200)


# The end of the server


def test_a_drain_closes_connections_behind_their_answers_and_answers_what_comes() -> None:
    held = Held()
    with serving_rest(held) as server, connected(server) as first, connected(server) as second:
        first.sendall(GET)
        wait_until(lambda: len(held.exchanges) == 1, "the request has arrived")
        activity = server.drain()
        assert (activity.requests, activity.idle) == (1, False)
        second.sendall(GET)
        wait_until(lambda: len(held.exchanges) == 2, "the request has arrived")
        server.on_loop(lambda: [exchange.respond(200, b"answered") for exchange in held.exchanges])
        for client in (first, second):
            answer = read_to_end(client)
            assert b"connection: close" in answer
            assert answer.endswith(b"answered")
        server.start_to_finish().result(5)


def test_a_stop_answers_what_is_under_way(loop_factory: LoopFactory) -> None:
    held = Held()
    with serving_rest(held, loop_factory=loop_factory) as server, connected(server) as client:
        client.sendall(GET)
        wait_until(lambda: len(held.exchanges) == 1, "the request has arrived")
        server.drain()
        finished = server.start_to_finish()
        time.sleep(0.2)
        server.on_loop(lambda: held.exchanges[0].respond(200, b"answered"))
        assert read_to_end(client).endswith(b"answered")
        finished.result(5)


# Smuggling: one interpretation of every request, or none

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "framing",
    [
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        b"Content-Length : 1\r\n\r\nx",
        b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        b"Content-Length: 1, 1\r\n\r\nx",
        b"Content-Length: +1\r\n\r\nx",
        b"Content-Length: 0x1\r\n\r\nx",
        b"Content-Length: 1_0\r\n\r\nx",
        b"Content-Length: \xb2\r\n\r\nx",
        b"Content-Length:\r\n\r\nx",
        b"Content-Length: 18446744073709551617\r\n\r\nx",
        b"X: a\rContent-Length: 5\r\nContent-Length: 1\r\n\r\nx",
        b"X: a\r\n Content-Length: 1\r\n\r\nx",
        b"X: a\0b\r\nContent-Length: 1\r\n\r\nx",
        b"Nonsense\r\nContent-Length: 1\r\n\r\nx",
        b"Transfer-Encoding: chunked\r\n\r\n1;a=b\nx\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n10000000000000001\r\nx\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n\r\nx\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
    ],
)
def test_ambiguous_framing_is_refused_and_nothing_behind_it_is_read(server: Transport, framing: bytes) -> None:
    answer = raw(server, POST + framing + SMUGGLED)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert status(answer) == 400
    assert b"smuggled" not in answer


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 41\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 41\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    ],
)
def test_chunks_outweigh_a_length_and_the_connection_ends(server: Transport, framing: bytes) -> None:
    """RFC 9112, 6.3: what follows may be of another's making."""
    answer = raw(server, POST + framing + SMUGGLED)
    assert answer.endswith(b"POST / x")
    assert b"connection: close" in answer


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Transfer-Encoding: CHUNKED\r\n\r\n1\r\nx\r\n0\r\n\r\n", b"x"),
        (b"Transfer-Encoding:\tchunked \r\n\r\n1\r\nx\r\n0\r\n\r\n", b"x"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", b"x"),
        (b"Transfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n000\r\n\r\n", b"x"),
        (b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", b"x"),
        (b"Content-Length: 01\r\n\r\nx", b"x"),
    ],
)
def test_unusual_framing_has_one_meaning(server: Transport, framing: bytes, body: bytes) -> None:
    """What follows is the next request, as any other reader of these bytes would say."""
    answer = raw(server, POST + framing + GET_AND_CLOSE)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"POST / " + body + b"HTTP/1.1" in answer


def test_a_body_of_get_is_passed_over_and_not_read_as_a_request(server: Transport) -> None:
    for framing in (
        b"Content-Length: %d\r\n\r\n%b" % (len(SMUGGLED), SMUGGLED),
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
    ):
        answer = raw(server, b"GET /a HTTP/1.1\r\nHost: x\r\n" + framing + GET_AND_CLOSE)
        assert b"smuggled" not in answer
        assert answer.startswith(b"HTTP/1.1 200 OK")


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200), st.sampled_from([b"", b"GET / HTTP/1.1\r\n", POST, CHUNKED]))
def test_any_bytes_leave_the_server_alive(server: Transport, noise: bytes, start: bytes) -> None:
    with connected(server) as client:
        client.sendall(start + noise)
        client.shutdown(socket.SHUT_WR)
        read_to_end(client)
    assert status(raw(server, GET_AND_CLOSE)) == 200
