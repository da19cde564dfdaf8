"""What the transports refuse by themselves is counted by reason, and shown on the metrics page."""

import gzip
import socket
import struct
import urllib.request

import pytest

from bookserve.serving.server.transport.http1 import Http1Limits, HttpExchange
from bookserve.serving.server.transport.http2 import Http2Limits
from model_servers import StartServer, wait_until, write_scale_model
from raw_http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    RawClient,
    frame,
    grpc_message,
    request,
    request_headers,
)
from transports import HttpTransport, echo, serving, serving_rest


def answer(exchange: HttpExchange) -> None:
    exchange.respond(200, b"ok")


def ask(transport: HttpTransport, data: bytes) -> bytes:
    """Sends, and reads until the server closes."""
    with socket.create_connection(("127.0.0.1", transport.port), timeout=20) as client:
        client.sendall(data)
        received = b""
        while part := client.recv(65536):
            received += part
        return received


def post(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400", "malformed"),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", b"400", "malformed"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 2000, b"431", "header_bytes"),
        (b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 2000 + b"\r\n", b"431", "header_bytes"),
        (post(b"Content-Length: 101"), b"413", "request_bytes"),
        (post(b"Transfer-Encoding: chunked", b"70\r\n" + b"x" * 0x70), b"413", "request_bytes"),
        (post(b"Content-Encoding: br\r\nContent-Length: 1", b"x"), b"415", "encoding"),
        (post(b"Content-Encoding: gzip\r\nContent-Length: 1", b"x"), b"400", "encoding"),
    ],
)
def test_rest_requests_that_are_refused(data: bytes, status: bytes, reason: str) -> None:
    with serving_rest(answer, Http1Limits(max_body_bytes=100, max_header_bytes=1000)) as server:
        assert ask(server, data).split()[1] == status
        assert server.refused == {reason: 1}
        ask(server, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert server.refused == {reason: 1}


def test_a_rest_bomb_counts_by_its_size() -> None:
    bomb = gzip.compress(bytes(100_000))
    with serving_rest(answer, Http1Limits(max_body_bytes=1000)) as server:
        ask(server, post(b"Content-Encoding: gzip\r\nContent-Length: %d" % len(bomb), bomb))
        assert server.refused == {"request_bytes": 1}


def test_rest_connections_above_the_limit_and_slow_requests() -> None:
    with serving_rest(answer, Http1Limits(max_connections=1, request_seconds=10)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as first:
            first.sendall(b"GET / HTTP/1.1\r\nHost")
            wait_until(lambda: bool(server.connections), "the first is there")
            assert b" 503 " in ask(server, b"")
            assert server.refused == {"connections": 1}
            wait_until(lambda: len(server.connections) == 1, "the second is gone")
            wait_until(lambda: not next(iter(server.connections)).idle, "the request has begun")
            server.sweep(seconds_from_now=11)
            assert b" 408 " in first.recv(1000)
        assert server.refused == {"connections": 1, "request_timeout": 1}


def test_unfinished_rest_requests_above_the_limit_of_all() -> None:
    with serving_rest(answer, max_buffered=1000) as server:
        assert b" 503 " in ask(server, post(b"Content-Length: 5000", b"x" * 2000))
        assert server.refused == {"buffered_bytes": 1}


HEADERS_AND_PART = frame(HEADERS, END_HEADERS, 1, request_headers()) + frame(DATA, 0, 1, grpc_message(b"x" * 9)[:9])


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([frame(DATA, 0, 1)], "protocol"),
        ([frame(HEADERS, 0, 1, request_headers()), frame(PING, 0, 0, bytes(8))], "protocol"),
        ([frame(PING, 0, 0, b"short")], "frame_size"),
        ([frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 2**31))], "flow_control"),
        ([frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff")], "compression"),
        ([frame(HEADERS, END_HEADERS, 1, request_headers(x="x" * 3000))], "header_bytes"),
        ([frame(HEADERS, 0, 1), *[frame(CONTINUATION, 0, 1, bytes(500))] * 5], "header_bytes"),
        ([frame(PING, 0, 0, bytes(8))] * 20, "flood"),
        ([request(1, b"x", path=b"/t/Nothing")], "unknown_method"),
        ([frame(HEADERS, END_HEADERS | END_STREAM, 1, request_headers(content_type="text/html"))], "not_grpc"),
        ([frame(HEADERS, END_HEADERS | END_STREAM, 1, request_headers())], "malformed"),
        ([request(1, b"x" * 1001)], "request_bytes"),
        ([frame(HEADERS, END_HEADERS, n, request_headers()) for n in (1, 3, 5)], "streams"),
        ([HEADERS_AND_PART + frame(DATA, END_STREAM, 1, b"")], "malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_grpc_calls_and_connections_that_are_refused(frames: list[bytes], reason: str) -> None:
    limits = Http2Limits(max_message_bytes=1000, max_header_bytes=2000, max_streams=2, control_frames_per_second=10)
    with serving({b"/t/Echo": echo}, limits) as server:
        with RawClient(server.port, *frames) as client:
            wait_until(lambda: bool(server.refused), "something is refused")
            client.send(frame(RST_STREAM, 0, 1, bytes(4)))
        wait_until(lambda: not server.connections, "the connection is gone")
        assert server.refused == {reason: 1}


@pytest.mark.parametrize(("encoding", "compressed"), [("br", b"x"), ("gzip", b"x")])
def test_messages_that_do_not_decompress(encoding: str, compressed: bytes) -> None:
    headers = frame(HEADERS, END_HEADERS, 1, request_headers(grpc_encoding=encoding))
    with serving({b"/t/Echo": echo}) as server:
        with RawClient(server.port, headers, frame(DATA, END_STREAM, 1, grpc_message(compressed, compressed=True))):
            wait_until(lambda: bool(server.refused), "something is refused")
        assert server.refused == {"encoding": 1}


def test_grpc_connections_above_the_limit_and_slow_ones() -> None:
    limits = Http2Limits(max_connections=1, handshake_seconds=5, request_seconds=10, keepalive_seconds=1000)
    with serving({b"/t/Echo": echo}, limits) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent:
            wait_until(lambda: bool(server.connections), "it is there")
            server.sweep(seconds_from_now=6)
            while silent.recv(1000):
                pass
        assert server.refused == {"handshake_timeout": 1}
        wait_until(lambda: not server.connections, "it is gone")
        with RawClient(server.port, HEADERS_AND_PART) as first:
            first.settle()
            with RawClient(server.port) as second:
                second.read_to_end()
            server.sweep()
            server.sweep(seconds_from_now=11)
            first.read_until(lambda: 1 in first.ended())
        assert server.refused == {"handshake_timeout": 1, "connections": 1, "request_timeout": 1}


def test_unfinished_calls_above_the_limit_of_all() -> None:
    with serving({b"/t/Echo": echo}, max_buffered=5) as server:
        with RawClient(server.port, HEADERS_AND_PART) as client:
            client.read_until(lambda: 1 in client.ended())
        assert server.refused == {"buffered_bytes": 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_they_are_on_the_metrics_page(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory, workers: int
) -> None:
    models = tmp_path_factory.mktemp("models")
    write_scale_model(models / "scale", 1, 2.0)
    server = start_server(f"--model_root={models}", "--enable_metrics", f"--workers={workers}")
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as rest:
            rest.sendall(b"nonsense\r\n\r\n")
            assert b" 400 " in rest.recv(1000)
        with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=20) as grpc:
            grpc.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while grpc.recv(1000):
                pass
    with urllib.request.urlopen(f"{server.url}/monitoring/prometheus/metrics", timeout=20) as page:
        text = page.read().decode()
    assert "# TYPE :bookserve:refused_count counter\n" in text
    assert ':bookserve:refused_count{api="rest",reason="malformed"} 4\n' in text
    assert ':bookserve:refused_count{api="grpc",reason="protocol"} 4\n' in text
