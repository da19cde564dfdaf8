"""The gRPC transport on a loopback port: asked by the official client, attacked with raw frames."""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from bookserve.serving.server.transport.http2 import GrpcCall, Http2Limits
from bookserve.serving.server.transport.http2_frames import PREFACE
from bookserve.serving.wire import tensorflow_error_pb2
from model_servers import wait_until
from raw_http2 import (
    CONTINUATION,
    DATA,
    HEADERS,
    PING,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    RawClient,
    frame,
    grpc_message,
    request,
    request_headers,
)
from transports import GrpcTransport, LoopFactory, echo, serving


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
def server(held: Held) -> Iterator[GrpcTransport]:
    with serving({b"/t/Echo": echo, b"/t/Fail": fail, b"/t/Break": break_down, b"/t/Hold": held}) as transport:
        yield transport


@contextmanager
def channel_to(transport: GrpcTransport, **options: int) -> Iterator[grpc.Channel]:
    given = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    given += [(f"grpc.{name}", value) for name, value in options.items()]
    with grpc.insecure_channel(transport.target, given) as channel:
        yield channel


# The official client


def test_many_calls_on_one_channel(server: GrpcTransport) -> None:
    with channel_to(server) as channel:
        call = channel.unary_unary("/t/Echo")
        for number in range(6000):
            message = b"%d" % number
            assert call(message, timeout=10) == message
    assert len(server.connections) <= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_calls_on_one_channel(server: GrpcTransport) -> None:
    with channel_to(server) as channel, ThreadPoolExecutor(8) as pool:
        call = channel.unary_unary("/t/Echo")

        def ask(worker: int) -> int:
            return sum(call(b"x" * 100, timeout=60) == b"x" * 100 for _ in range(125_000))

        assert sum(pool.map(ask, range(8))) == 1_000_000
        assert len(server.connections) == 1


def test_large_messages_both_ways(server: GrpcTransport) -> None:
    message = bytes(range(256)) * (40 << 10)  # 10 MiB
    with channel_to(server) as channel:
        call = channel.unary_unary("/t/Echo")
        assert call(message, timeout=60) == message
        futures = [call.future(message, timeout=60) for _ in range(4)]
        assert all(future.result() == message for future in futures)


@pytest.mark.parametrize("size", [0, 1, 16_378, 16_379, 16_380, 65_530, 65_535, 65_536, 262_144, 1_048_575, 1_048_577])
def test_messages_around_the_limits_of_frames_and_windows(server: GrpcTransport, size: int) -> None:
    with channel_to(server) as channel:
        assert channel.unary_unary("/t/Echo")(b"x" * size, timeout=30) == b"x" * size


def test_a_thousand_calls_at_a_time(server: GrpcTransport, held: Held) -> None:
    with channel_to(server) as channel:
        call = channel.unary_unary("/t/Hold")
        futures = [call.future(b"", timeout=60) for _ in range(1000)]
        wait_until(lambda: len(held.calls) == 1000, "all calls have arrived")
        server.on_loop(lambda: [call.reply(b"%d" % number) for number, call in enumerate(held.calls)] and None)
        assert {future.result() for future in futures} == {b"%d" % number for number in range(1000)}


def test_compressed_requests(server: GrpcTransport) -> None:
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
            assert (
                caught.value.details()
                == "Received message of 1000000 bytes larger than max (100000 bytes, --max_request_bytes)"
            )
            assert channel.unary_unary("/t/Echo")(b"still here", timeout=10) == b"still here"


def test_errors_carry_code_and_message(server: GrpcTransport) -> None:
    with channel_to(server) as channel:
        for message in ("plain", "50 % of \n lines, ünïcode, 語", "x" * 1024):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/t/Fail")(message.encode(), timeout=10)
            assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, message)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t/Fail")(b"x" * 1025, timeout=10)
        assert caught.value.details() == "x" * 1024 + "...TRUNCATED"


def test_a_fault_of_the_handler_is_internal_and_keeps_its_detail(server: GrpcTransport) -> None:
    with channel_to(server) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t/Break")(b"", timeout=10)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
        assert channel.unary_unary("/t/Echo")(b"on", timeout=10) == b"on"


def test_a_deadline_ends_the_call_on_the_server_too(server: GrpcTransport, held: Held) -> None:
    with channel_to(server) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t/Hold")(b"", timeout=0.2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: not held.calls[0].open, "the server has closed the call")
        server.on_loop(lambda: held.calls[0].reply(b"too late"))
        assert channel.unary_unary("/t/Echo")(b"on", timeout=10) == b"on"


def test_a_cancelled_call_is_closed(server: GrpcTransport, held: Held) -> None:
    with channel_to(server) as channel:
        future = channel.unary_unary("/t/Hold").future(b"", timeout=30)
        wait_until(lambda: len(held.calls) == 1, "the call has arrived")
        future.cancel()
        wait_until(lambda: not held.calls[0].open, "the server has closed the call")


def test_the_calls_of_a_client_that_is_gone_are_closed(server: GrpcTransport, held: Held) -> None:
    """From then on their place in the model's queue is passed over."""
    with RawClient(server.port, *[request(stream, b"", b"/t/Hold") for stream in (1, 3, 5)]):
        wait_until(lambda: len(held.calls) == 3, "the calls have arrived")
        assert all(call.open for call in held.calls)
    wait_until(lambda: not any(call.open for call in held.calls), "they are closed")


def test_keep_alive_pings_are_answered(server: GrpcTransport, held: Held) -> None:
    options = {"keepalive_time_ms": 100, "keepalive_timeout_ms": 2000, "http2.max_pings_without_data": 0}
    with channel_to(server, **options) as channel:
        future = channel.unary_unary("/t/Hold").future(b"", timeout=30)
        wait_until(lambda: len(held.calls) == 1, "the call has arrived")
        end = time.monotonic() + 1.0  # ten pings' time
        wait_until(lambda: time.monotonic() > end, "time for pings")
        server.on_loop(lambda: held.calls[0].reply(b"alive"))
        assert future.result() == b"alive"


def test_drain_answers_what_is_under_way_and_moves_the_client_on(server: GrpcTransport, held: Held) -> None:
    with channel_to(server) as channel:
        future = channel.unary_unary("/t/Hold").future(b"", timeout=30)
        wait_until(lambda: len(held.calls) == 1, "the call has arrived")
        (old,) = server.connections
        server.on_loop(old.drain)
        assert channel.unary_unary("/t/Echo")(b"elsewhere", timeout=10) == b"elsewhere"
        server.on_loop(lambda: held.calls[0].reply(b"answered"))
        assert future.result() == b"answered"
        wait_until(lambda: old not in server.connections, "the drained connection is closed")
        assert channel.unary_unary("/t/Echo")(b"again", timeout=10) == b"again"
        assert len(server.connections) == 1


# Streaming calls


def count_down(call: GrpcCall, message: bytes) -> None:
    for number in range(int(message), 0, -1):
        call.send(b"%d" % number)
    call.finish()


def answer_each(call: GrpcCall, message: bytes | None) -> None:
    if message is None:
        call.finish()
    elif message == b"fail":
        call.fail(tensorflow_error_pb2.ABORTED, "as asked")
    elif message == b"break":
        raise RuntimeError("secret detail")
    elif message:
        call.send(message * 2)


@pytest.fixture
def streaming() -> Iterator[GrpcTransport]:
    with serving({b"/t/Count": count_down}, streams={b"/t/Each": answer_each}) as transport:
        yield transport


def test_one_message_may_have_many_answers(streaming: GrpcTransport) -> None:
    with channel_to(streaming) as channel:
        call = channel.unary_stream("/t/Count")
        assert list(call(b"3", timeout=20)) == [b"3", b"2", b"1"]
        assert list(call(b"0", timeout=20)) == []
        assert sum(map(int, call(b"20000", timeout=60))) == 20_000 * 20_001 // 2
    assert streaming.buffered.used == 0


def test_many_messages_may_have_many_answers(streaming: GrpcTransport) -> None:
    with channel_to(streaming) as channel:
        call = channel.stream_stream("/t/Each")
        messages = [b"a", b"", b"b" * 500_000, b"c"]
        assert list(call(iter(messages), timeout=20)) == [message * 2 for message in messages if message]
        assert list(call(iter([]), timeout=20)) == []
        with pytest.raises(grpc.RpcError) as caught:
            list(call(iter([b"a", b"fail", b"b"]), timeout=20))
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ABORTED, "as asked")
        with pytest.raises(grpc.RpcError) as caught:
            list(call(iter([b"break"]), timeout=20))
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    with grpc.insecure_channel(streaming.target, compression=grpc.Compression.Gzip) as channel:
        call = channel.stream_stream("/t/Each")
        assert list(call(iter([b"z" * 10_000] * 3), timeout=20)) == [b"z" * 20_000] * 3
    assert streaming.buffered.used == 0


def test_a_message_of_a_stream_has_its_limit() -> None:
    limits = Http2Limits(max_message_bytes=1000)
    with serving({}, limits, streams={b"/t/Each": answer_each}) as server, channel_to(server) as channel:
        answers = channel.stream_stream("/t/Each")(iter([b"x" * 1000, b"x" * 1001]), timeout=20)
        assert next(answers) == b"x" * 2000
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_messages_of_a_stream_may_be_cut_anywhere(streaming: GrpcTransport) -> None:
    data = grpc_message(b"one") + grpc_message(b"two") + grpc_message(b"three")
    for size in (1, 4, 7, 9):
        parts = [frame(DATA, 0, 1, data[start : start + size]) for start in range(0, len(data), size)]
        with RawClient(streaming.port, frame(HEADERS, 4, 1, request_headers(b"/t/Each")), *parts) as client:
            client.settle()
            assert client.data() == grpc_message(b"oneone") + grpc_message(b"twotwo") + grpc_message(b"threethree")
            assert client.ended() == set()
            client.send(frame(DATA, 1, 1))
            client.read_until(lambda: client.ended() == {1})
    with RawClient(streaming.port, frame(HEADERS, 4, 1, request_headers(b"/t/Each"))) as client:
        client.send(frame(DATA, 1, 1, data[:5]))
        client.read_until(lambda: client.ended() == {1})
        assert b"without a complete message" in client.frames[-1].payload


def test_a_streaming_call_does_not_hold_up_a_drain(streaming: GrpcTransport) -> None:
    done = threading.Event()

    def ask() -> Iterator[bytes]:
        yield b"a"
        done.wait(60)

    with channel_to(streaming) as channel:
        answers = channel.stream_stream("/t/Each")(ask(), timeout=60)
        assert next(answers) == b"aa"
        assert streaming.buffered.used == 0
        (connection,) = streaming.connections
        assert connection.idle
        streaming.on_loop(connection.drain)
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        done.set()
        wait_until(lambda: not streaming.connections, "the drained connection is closed")


def test_a_drain_ends_the_connection_once_the_last_unary_call_is_answered(held: Held) -> None:
    handlers, streams = {b"/t/Hold": held}, {b"/t/Each": answer_each}
    with (
        serving(handlers, streams=streams) as server,
        RawClient(server.port, request(1, b"", b"/t/Hold")) as client,
    ):
        client.send(frame(HEADERS, 4, 3, request_headers(b"/t/Each")), frame(DATA, 0, 3, grpc_message(b"a")))
        client.settle()
        (connection,) = server.connections
        server.on_loop(connection.drain)
        client.read_until(lambda: any(f.kind == PING and not f.flags for f in client.frames))
        ping = next(f for f in client.frames if f.kind == PING and not f.flags)
        client.send(frame(PING, 1, 0, ping.payload))
        client.settle()
        assert [reason for _, reason in client.goaways()] == [b"draining", b"drained"]
        assert not client.closed
        client.send(request(5, b"", b"/t/Hold"))
        client.settle()
        assert client.resets() == {5: 7}  # refused: to be repeated elsewhere
        server.on_loop(lambda: held.calls[0].reply(b"answered"))
        client.read_to_end()
        assert client.closed
        assert client.data(1) == grpc_message(b"answered")
        status = next(f for f in client.frames if f.stream == 3 and f.flags & 1)
        assert b"grpc-status\x0214" in status.payload


# Raw frames


def assert_others_unharmed(server: GrpcTransport) -> None:
    with channel_to(server) as channel:
        assert channel.unary_unary("/t/Echo")(b"fine", timeout=10) == b"fine"


message = grpc_message(b"hi")


def test_the_text_of_a_deadline_is_tensorflow_servings(server: GrpcTransport, held: Held) -> None:
    """The official client says its own text first; this one has no clock."""
    with RawClient(server.port) as client:
        headers = frame(HEADERS, 4, 1, request_headers(b"/t/Hold", grpc_timeout="200m"))
        client.send(headers, frame(DATA, 1, 1, grpc_message(b"hi")))  # at once: the time runs from the headers on
        client.read_until(lambda: 1 in client.ended())
        (trailers,) = [frame.payload for frame in client.frames if frame.kind == HEADERS and frame.stream == 1]
    assert b"grpc-status\x014" in trailers
    assert b"Timed out waiting for notification" in trailers
    assert not held.calls[0].open


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
    server: GrpcTransport, frames: list[bytes], code: int
) -> None:
    with RawClient(server.port, *frames) as client:
        client.read_to_end()
    assert [given for given, _ in client.goaways()] == [code]
    assert_others_unharmed(server)


def test_what_is_no_http2_is_turned_away(server: GrpcTransport) -> None:
    with RawClient(server.port, preface=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", settings=b"") as client:
        client.read_to_end()
    assert client.goaways() == [(1, b"this port speaks gRPC (HTTP/2) only")]
    assert_others_unharmed(server)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_after_a_fault_of_the_peer_nothing_is_written_any_more(held: Held, loop_factory: LoopFactory) -> None:
    """Neither the answers that come later nor the drain of the server may stumble over what is half closed."""
    with (
        serving({b"/t/Hold": held}, loop_factory=loop_factory) as server,
        RawClient(server.port, request(1, b"", b"/t/Hold"), frame(PING, 0, 0, b"short")) as client,
    ):
        wait_until(lambda: len(held.calls) == 1 and not held.calls[0].open, "the call has come and gone")
        for connection in list(server.connections):
            server.on_loop(connection.drain)
            server.on_loop(lambda connection=connection: connection.sweep(connection._loop.time() + 1e6, 1.0))  # type: ignore[misc]
            server.on_loop(connection.close)
        server.on_loop(lambda: held.calls[0].reply(b"late"))
        client.read_to_end()
        assert [code for code, _ in client.goaways()] == [6]
        assert server.buffered.used == 0


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
def test_floods_are_cut_off(server: GrpcTransport, flood: str) -> None:
    with channel_to(server) as channel:
        call = channel.unary_unary("/t/Echo")
        assert call(b"before", timeout=10) == b"before"
        with RawClient(server.port) as client:
            with contextlib.suppress(ConnectionError):  # cut off while we were still sending
                client.send(*FLOODS[flood])
            client.read_to_end()  # fails by its time-out while the server keeps the connection
        assert call(b"after", timeout=10) == b"after"


def test_an_http2_library_reads_our_frames(server: GrpcTransport) -> None:
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
def fuzzed() -> Iterator[GrpcTransport]:
    with serving({b"/t/Echo": echo}) as transport:
        yield transport


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_leave_the_server_alive(fuzzed: GrpcTransport, noise: bytes, framed: bool) -> None:
    with socket.create_connection(("127.0.0.1", fuzzed.port), timeout=10) as client:
        client.sendall((PREFACE + frame(SETTINGS, 0, 0) if framed else b"") + noise)
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(65536):
                pass
    with RawClient(fuzzed.port, request(1, b"hi")) as other:
        other.read_until(lambda: 1 in other.ended())
        assert other.data(1) == message


def test_a_connection_that_says_nothing_is_closed() -> None:
    with (
        serving({b"/t/Echo": echo}, Http2Limits(handshake_seconds=0.1)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10),
    ):
        wait_until(lambda: len(server.connections) == 1, "the connection is open")
        server.sweep(1.0)
        wait_until(lambda: not server.connections, "the silent connection is closed")
