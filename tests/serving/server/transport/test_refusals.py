"""What the transport refuses by itself is counted by reason, and shown on the metrics page.

What the libraries refuse, such as bytes that are no HTTP, is not counted: they do not tell.
"""

import contextlib
import gzip
import socket
import struct
import urllib.request

import pytest

from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.transport.listeners import Api
from model_servers import StartServer, wait_until, write_scale_model
from raw_http2 import DATA, END_HEADERS, END_STREAM, HEADERS, RawClient, frame, grpc_message, request, request_headers
from transports import Transport, echo, serving, serving_rest


def answer(exchange: HttpExchange) -> None:
    exchange.respond(200, b"ok")


def ask(transport: Transport, data: bytes) -> bytes:
    """Sends, and reads until the server closes."""
    with socket.create_connection(("127.0.0.1", transport.rest_port), timeout=20) as client:
        client.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(65536):
                received += part
        return received


def post(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"400", "malformed"),
        (post(b"Transfer-Encoding: chunked", b"x\r\n"), b"400", "malformed"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 2000 + b"\r\n\r\n", b"431", "header_bytes"),
        (post(b"Content-Length: 101"), b"413", "request_bytes"),
        (post(b"Transfer-Encoding: chunked", b"70\r\n" + b"x" * 0x70), b"413", "request_bytes"),
        (post(b"Content-Encoding: br\r\nContent-Length: 1", b"x"), b"415", "encoding"),
        (post(b"Content-Encoding: gzip\r\nContent-Length: 1", b"x"), b"400", "encoding"),
        (post(b"Content-Length: 50", b"x"), b"408", "request_timeout"),
    ],
)
def test_rest_requests_that_are_refused(data: bytes, status: bytes, reason: str) -> None:
    with serving_rest(answer, max_request_bytes=100, max_header_bytes=1000, request_seconds=0.5) as server:
        assert ask(server, data).split()[1] == status
        assert server.refused(Api.REST) == {reason: 1}
        ask(server, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert server.refused(Api.REST) == {reason: 1}


def test_a_rest_bomb_counts_by_its_size() -> None:
    bomb = gzip.compress(bytes(100_000))
    with serving_rest(answer, max_request_bytes=1000) as server:
        ask(server, post(b"Content-Encoding: gzip\r\nContent-Length: %d" % len(bomb), bomb))
        assert server.refused(Api.REST) == {"request_bytes": 1}


def test_a_body_in_needlessly_small_chunks() -> None:
    with serving_rest(answer) as server:
        ask(server, post(b"Transfer-Encoding: chunked", b"1\r\nx\r\n" * 3000))
        assert server.refused(Api.REST) == {"chunks": 1}


def test_unfinished_rest_requests_above_the_limit_of_all() -> None:
    with serving_rest(answer, max_buffered_bytes=1000) as server:
        assert b" 503 " in ask(server, post(b"Content-Length: 100000", b"x" * 2000))
        assert server.refused(Api.REST) == {"buffered_bytes": 1}


HEAD = frame(HEADERS, END_HEADERS, 1, request_headers())
PART = frame(DATA, 0, 1, grpc_message(b"x" * 9)[:9])
WITH_GZIP = frame(HEADERS, END_HEADERS, 1, request_headers(grpc_encoding="gzip"))


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([frame(HEADERS, END_HEADERS, 1, request_headers(x="x" * 3000))], "header_bytes"),
        ([request(1, b"x", path=b"/t/Nothing")], "unknown_method"),
        ([frame(HEADERS, END_HEADERS | END_STREAM, 1, request_headers(content_type="text/html"))], "not_grpc"),
        ([frame(HEADERS, END_HEADERS | END_STREAM, 1, request_headers())], "malformed"),
        ([HEAD, PART, frame(DATA, END_STREAM, 1, b"")], "malformed"),
        ([HEAD, frame(DATA, END_STREAM, 1, grpc_message(b"1") + grpc_message(b"2"))], "malformed"),
        ([request(1, b"x" * 1001)], "request_bytes"),
        ([HEAD, frame(DATA, 0, 1, struct.pack(">BL", 0, 2**31))], "request_bytes"),
        ([WITH_GZIP, frame(DATA, END_STREAM, 1, grpc_message(b"x", compressed=True))], "encoding"),
        ([HEAD, frame(DATA, END_STREAM, 1, grpc_message(b"x", compressed=True))], "encoding"),
        ([HEAD, PART], "request_timeout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_grpc_calls_that_are_refused(frames: list[bytes], reason: str) -> None:
    with serving({b"/t/Echo": echo}, max_request_bytes=1000, max_header_bytes=2000, request_seconds=0.5) as server:
        with RawClient(server.port, *frames) as client:
            wait_until(lambda: bool(server.refused()), "something is refused")
            client.send(request(3, b"x"))
            client.read_until(lambda: 3 in client.ended())
            assert client.data(3) == grpc_message(b"x")  # the connection goes on
        assert server.refused() == {reason: 1}


def test_unfinished_calls_above_the_limit_of_all() -> None:
    with serving({b"/t/Echo": echo}, max_buffered_bytes=5) as server:
        with RawClient(server.port, HEAD, PART) as client:
            client.read_until(lambda: 1 in client.ended())
        assert server.refused() == {"buffered_bytes": 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_they_are_on_the_metrics_page(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory, workers: int
) -> None:
    models = tmp_path_factory.mktemp("models")
    write_scale_model(models / "scale", 1, 2.0)
    server = start_server(f"--model_root={models}", "--enable_metrics", f"--workers={workers}")
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as rest:
            rest.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b" 400 " in rest.recv(1000)
        with RawClient(server.grpc_port, request(1, b"", path=b"/t/Nothing")) as grpc:
            grpc.read_until(lambda grpc=grpc: 1 in grpc.ended())  # type: ignore[misc]
    with urllib.request.urlopen(f"{server.url}/monitoring/prometheus/metrics", timeout=20) as page:
        text = page.read().decode()
    assert "# TYPE :bookserve:refused_count counter\n" in text
    assert ':bookserve:refused_count{api="rest",reason="malformed"} 4\n' in text
    assert ':bookserve:refused_count{api="grpc",reason="unknown_method"} 4\n' in text
