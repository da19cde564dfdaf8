"""The gRPC transport on a loopback port: asked by the official client, attacked with raw frames."""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bookserve.serving.server.http2 import PREFACE, GrpcCall, GrpcConnection, Handler, Http2Limits
from bookserve.serving.wire import tensorflow_error_pb2
from model_servers import wait_until

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)


class Transport:
    """A loop in a thread that serves `handlers`."""

    def __init__(self, handlers: dict[bytes, Handler], limits: Http2Limits) -> None:
        self.connections: set[GrpcConnection] = set()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

        async def start() -> asyncio.Server:
            return await self.loop.create_server(
                lambda: GrpcConnection(handlers, limits, self.connections), "127.0.0.1", 0
            )

        self.server = asyncio.run_coroutine_threadsafe(start(), self.loop).result(10)
        self.port = self.server.sockets[0].getsockname()[1]

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def on_loop(self, work: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            work()
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


@contextmanager
def serving(handlers: dict[bytes, Handler], limits: Http2Limits | None = None) -> Iterator[Transport]:
    transport = Transport(handlers, limits or Http2Limits())
    try:
        yield transport
    finally:
        transport.close()


def echo(call: GrpcCall, message: bytes) -> None:
    call.reply(message)


def fail(call: GrpcCall, message: bytes) -> None:
    call.fail(tensorflow_error_pb2.INVALID_ARGUMENT, message.decode())


def break_down(call: GrpcCall, message: bytes) -> None:
    raise RuntimeError("secret detail")


class Held:
    """A handler that keeps its calls until they are let go."""

    def __init__(self) -> None:
        self.calls: list[GrpcCall] = []

    def __call__(self, call: GrpcCall, message: bytes) -> None:
        self.calls.append(call)


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def server(held: Held) -> Iterator[Transport]:
    with serving({b"/t/Echo": echo, b"/t/Fail": fail, b"/t/Break": break_down, b"/t/Hold": held}) as transport:
        yield transport


@contextmanager
def channel_to(transport: Transport, **options: int) -> Iterator[grpc.Channel]:
    given = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    given += [(f"grpc.{name}", value) for name, value in options.items()]
    with grpc.insecure_channel(transport.target, given) as channel:
        yield channel


# The official client


def test_many_calls_on_one_channel(server: Transport) -> None:
    with channel_to(server) as channel:
        call = channel.unary_unary("/t/Echo")
        for number in range(6000):
            message = b"%d" % number
            assert call(message, timeout=10) == message
    assert len(server.connections) <= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_calls_on_one_channel(server: Transport) -> None:
    with channel_to(server) as channel, ThreadPoolExecutor(8) as pool:
        call = channel.unary_unary("/t/Echo")

        def ask(worker: int) -> int:
            return sum(call(b"x" * 100, timeout=60) == b"x" * 100 for _ in range(125_000))

        assert sum(pool.map(ask, range(8))) == 1_000_000
        assert len(server.connections) == 1


def test_large_messages_both_ways(server: Transport) -> None:
    message = bytes(range(256)) * (40 << 10)  # 10 MiB
    with channel_to(server) as channel:
        call = channel.unary_unary("/t/Echo")
        assert call(message, timeout=60) == message
        futures = [call.future(message, timeout=60) for _ in range(4)]
        assert all(future.result() == message for future in futures)


@pytest.mark.parametrize("size", [0, 1, 16_378, 16_379, 16_380, 65_530, 65_535, 65_536, 262_144, 1_048_575, 1_048_577])
def test_messages_around_the_limits_of_frames_and_windows(server: Transport, size: int) -> None:
    with channel_to(server) as channel:
        assert channel.unary_unary("/t/Echo")(b"x" * size, timeout=30) == b"x" * size


def test_a_thousand_calls_at_a_time(server: Transport, held: Held) -> None:
    with channel_to(server) as channel:
        call = channel.unary_unary("/t/Hold")
        futures = [call.future(b"", timeout=60) for _ in range(1000)]
        wait_until(lambda: len(held.calls) == 1000, "all calls have arrived")
        server.on_loop(lambda: [call.reply(b"%d" % number) for number, call in enumerate(held.calls)] and None)
        assert {future.result() for future in futures} == {b"%d" % number for number in range(1000)}


def test_compressed_requests(server: Transport) -> None:
    for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        with grpc.insecure_channel(server.target, compression=algorithm) as channel:
            assert channel.unary_unary("/t/Echo")(b"abc" * 10_000, timeout=10) == b"abc" * 10_000


def test_a_compressed_bomb_and_a_large_message_are_refused() -> None:
    with serving({b"/t/Echo": echo}, Http2Limits(max_message_bytes=100_000)) as server:
        with grpc.insecure_channel(server.target, compression=grpc.Compression.Gzip) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/t/Echo")(b"\0" * 1_000_000, timeout=10)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        with channel_to(server) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/t/Echo")(b"\0" * 1_000_000, timeout=10)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert caught.value.details() == "Received message of 1000000 bytes larger than max (100000 bytes)"
            assert channel.unary_unary("/t/Echo")(b"still here", timeout=10) == b"still here"


def test_errors_carry_code_and_message(server: Transport) -> None:
    with channel_to(server) as channel:
        for message in ("plain", "50 % of \n lines, ünïcode, 語", "x" * 1024):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/t/Fail")(message.encode(), timeout=10)
            assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, message)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t/Fail")(b"x" * 1025, timeout=10)
        assert caught.value.details() == "x" * 1024 + "...TRUNCATED"


def test_a_fault_of_the_handler_is_internal_and_keeps_its_detail(server: Transport) -> None:
    with channel_to(server) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t/Break")(b"", timeout=10)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
        assert channel.unary_unary("/t/Echo")(b"on", timeout=10) == b"on"


def test_a_deadline_ends_the_call_on_the_server_too(server: Transport, held: Held) -> None:
    with channel_to(server) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t/Hold")(b"", timeout=0.2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: not held.calls[0].open, "the server has closed the call")
        server.on_loop(lambda: held.calls[0].reply(b"too late"))
        assert channel.unary_unary("/t/Echo")(b"on", timeout=10) == b"on"


def test_a_cancelled_call_is_closed(server: Transport, held: Held) -> None:
    with channel_to(server) as channel:
        future = channel.unary_unary("/t/Hold").future(b"", timeout=30)
        wait_until(lambda: len(held.calls) == 1, "the call has arrived")
        future.cancel()
        wait_until(lambda: not held.calls[0].open, "the server has closed the call")


def test_keep_alive_pings_are_answered(server: Transport, held: Held) -> None:
    options = {"keepalive_time_ms": 100, "keepalive_timeout_ms": 2000, "http2.max_pings_without_data": 0}
    with channel_to(server, **options) as channel:
        future = channel.unary_unary("/t/Hold").future(b"", timeout=30)
        wait_until(lambda: len(held.calls) == 1, "the call has arrived")
        end = time.monotonic() + 1.0  # ten pings' time
        wait_until(lambda: time.monotonic() > end, "time for pings")
        server.on_loop(lambda: held.calls[0].reply(b"alive"))
        assert future.result() == b"alive"


def test_drain_answers_what_is_under_way_and_moves_the_client_on(server: Transport, held: Held) -> None:
    with channel_to(server) as channel:
        future = channel.unary_unary("/t/Hold").future(b"", timeout=30)
        wait_until(lambda: len(held.calls) == 1, "the call has arrived")
        (old,) = server.connections
        server.on_loop(old.drain)
        assert channel.unary_unary("/t/Echo")(b"elsewhere", timeout=10) == b"elsewhere"
        server.on_loop(lambda: held.calls[0].reply(b"answered"))
        assert future.result() == b"answered"
        wait_until(lambda: old not in server.connections, "the drained connection is closed")
        assert len(server.connections) == 1


# Raw frames


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">HBBBL", len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def request_headers(path: bytes = b"/t/Echo", **more: str) -> bytes:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")]
    fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    fields += [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]
    return hpack.Encoder().encode(fields)


def connect(server: Transport, *frames: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    client.sendall(PREFACE + frame(SETTINGS, 0, 0) + b"".join(frames))
    return client


def frames_until_closed(client: socket.socket) -> list[tuple[int, int, int, bytes]]:
    data = b""
    try:
        while received := client.recv(65536):
            data += received
    except ConnectionResetError:
        pass
    found = []
    while len(data) >= 9:
        high, low, kind, flags, stream = struct.unpack_from(">HBBBL", data)
        length = high << 8 | low
        found.append((kind, flags, stream, data[9 : 9 + length]))
        data = data[9 + length :]
    return found


def assert_others_unharmed(server: Transport) -> None:
    with channel_to(server) as channel:
        assert channel.unary_unary("/t/Echo")(b"fine", timeout=10) == b"fine"


message = struct.pack(">BL", 0, 2) + b"hi"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([frame(HEADERS, 4, 2, request_headers())], 1),
        ([frame(HEADERS, 4, 0, request_headers())], 1),
        ([frame(HEADERS, 5, 1, request_headers()), frame(DATA, 1, 3, message)], 1),
        ([frame(DATA, 1, 1, message)], 1),
        ([frame(HEADERS, 4, 1, b"\x80")], 9),
        ([frame(HEADERS, 4, 1, request_headers(bomb="x" * 20_000))], 11),
        ([frame(CONTINUATION, 4, 1, b"")], 1),
        ([frame(HEADERS, 0, 1, b""), frame(DATA, 0, 1, b"")], 1),
        ([frame(HEADERS, 0, 1, b""), frame(CONTINUATION, 0, 1, b"")], 11),
        ([frame(HEADERS, 0x0C, 1, b"\xff")], 1),
        ([frame(PUSH_PROMISE, 4, 1, b"")], 1),
        ([frame(PING, 0, 0, b"short")], 6),
        ([frame(SETTINGS, 0, 0, b"short")], 6),
        ([frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 2**31))], 3),
        ([frame(SETTINGS, 0, 0, struct.pack(">HL", 5, 1))], 1),
        ([frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", 0))], 3),
        ([frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", 2**31 - 1))], 3),
        ([frame(WINDOW_UPDATE, 0, 9, struct.pack(">L", 1))], 1),
        ([frame(RST_STREAM, 0, 9, struct.pack(">L", 8))], 1),
        ([struct.pack(">HBBBL", 0xFFFF, 0xFF, DATA, 0, 1)], 6),
    ],
)
def test_a_broken_protocol_closes_the_connection_with_its_reason(
    server: Transport, frames: list[bytes], code: int
) -> None:
    with connect(server, *frames) as client:
        goaways = [payload for kind, _, _, payload in frames_until_closed(client) if kind == GOAWAY]
    assert [struct.unpack(">L", payload[4:8])[0] for payload in goaways] == [code]
    assert_others_unharmed(server)


def test_what_is_no_http2_is_turned_away(server: Transport) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert any(kind == GOAWAY for kind, *_ in frames_until_closed(client))
    assert_others_unharmed(server)


FLOODS = {
    "continuation": [frame(HEADERS, 0, 1, b"\x00\x01a\x01b")]
    + [frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 100)] * 2000,
    "ping": [frame(PING, 0, 0, b"12345678")] * 20_000,
    "settings": [frame(SETTINGS, 0, 0, b"")] * 20_000,
    "rapid reset": [
        frame(HEADERS, 4, stream, request_headers()) + frame(RST_STREAM, 0, stream, struct.pack(">L", 8))
        for stream in range(1, 40_001, 2)
    ],
}


@pytest.mark.parametrize("flood", FLOODS)
def test_floods_are_cut_off(server: Transport, flood: str) -> None:
    with channel_to(server) as channel:
        call = channel.unary_unary("/t/Echo")
        assert call(b"before", timeout=10) == b"before"
        with connect(server) as client:
            with contextlib.suppress(ConnectionError):  # cut off while we were still sending
                client.sendall(b"".join(FLOODS[flood]))
            frames_until_closed(client)  # fails by its time-out while the server keeps the connection
        assert call(b"after", timeout=10) == b"after"


def test_a_call_reset_by_a_slow_reader_is_bounded(server: Transport) -> None:
    """A client that gives no window gets nothing, costs a bounded amount, and hinders nobody."""
    with connect(server, frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 0))) as client:
        for stream in range(1, 201, 2):
            client.sendall(frame(HEADERS, 4, stream, request_headers()) + frame(DATA, 1, stream, message))
        assert_others_unharmed(server)
        for stream in range(1, 201, 2):
            client.sendall(frame(WINDOW_UPDATE, 0, stream, struct.pack(">L", 3)))
            client.sendall(frame(WINDOW_UPDATE, 0, stream, struct.pack(">L", 100)))
        decoder = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        decoder.initiate_connection()
        bodies: dict[int, bytes] = {}
        ended: set[int] = set()
        pending = b""
        while len(ended) < 100:
            pending += client.recv(65536)
            while len(pending) >= 9:
                high, low, kind, flags, stream = struct.unpack_from(">HBBBL", pending)
                length = high << 8 | low
                if len(pending) < 9 + length:
                    break
                payload, pending = pending[9 : 9 + length], pending[9 + length :]
                if kind == DATA:
                    bodies[stream] = bodies.get(stream, b"") + payload
                if kind == HEADERS and flags & 1:
                    ended.add(stream)
    assert bodies == dict.fromkeys(range(1, 201, 2), message)


def test_an_http2_library_reads_our_frames(server: Transport) -> None:
    """The `h2` package checks every frame against the state that RFC 9113 allows."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    answers: dict[int, bytes] = {}
    trailers: dict[int, dict[str, str]] = {}
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/t/Echo"),
            (":authority", "x"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        for stream in (1, 3, 5):
            connection.send_headers(stream, fields)
            connection.send_data(stream, message[:4], pad_length=7)
            connection.send_data(stream, message[4:])
            connection.send_headers(stream, [("x-trailer", "yes")], end_stream=True)
        client.sendall(connection.data_to_send())
        while len(trailers) < 3:
            for event in connection.receive_data(client.recv(65536)):
                if isinstance(event, h2.events.DataReceived):
                    answers[event.stream_id] = answers.get(event.stream_id, b"") + event.data
                elif isinstance(event, h2.events.TrailersReceived):
                    trailers[event.stream_id] = dict(event.headers)
            client.sendall(connection.data_to_send())
    assert answers == dict.fromkeys((1, 3, 5), message)
    assert trailers == {stream: {"grpc-status": "0"} for stream in (1, 3, 5)}


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Transport]:
    with serving({b"/t/Echo": echo}) as transport:
        yield transport


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_leave_the_server_alive(fuzzed: Transport, noise: bytes, framed: bool) -> None:
    with socket.create_connection(("127.0.0.1", fuzzed.port), timeout=10) as client:
        client.sendall((PREFACE + frame(SETTINGS, 0, 0) if framed else b"") + noise)
        client.shutdown(socket.SHUT_WR)
        frames_until_closed(client)
    with connect(fuzzed, frame(HEADERS, 4, 1, request_headers()), frame(DATA, 1, 1, message)) as client:
        data = b""
        while message not in data:
            received = client.recv(65536)
            assert received
            data += received


def test_a_connection_that_says_nothing_is_closed() -> None:
    with (
        serving({b"/t/Echo": echo}, Http2Limits(preface_seconds=0.1)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as client,
    ):
        wait_until(lambda: len(server.connections) == 1, "the connection is open")
        (connection,) = server.connections

        def sweep() -> bool:
            server.on_loop(lambda: connection.sweep(server.loop.time(), 0.1))
            return not server.connections

        wait_until(sweep, "the silent connection is closed")
        assert frames_until_closed(client)[0][0] == SETTINGS
