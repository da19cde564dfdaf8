"""Flow control, limits and time-outs of the gRPC transport, seen by a client that breaks or exhausts them."""

import contextlib
import gzip
import struct
import time
from collections.abc import Iterator

import grpc
import h2.config
import h2.connection
import h2.events
import pytest

from bookserve.serving.server.transport.http2 import GrpcCall, Http2Limits
from model_servers import wait_until
from raw_http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FULL_WINDOW,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    RawClient,
    frame,
    grpc_message,
    request,
    request_headers,
    settings_frame,
    uint32,
    window_update,
)
from transports import GrpcTransport, echo, serving

CANCEL, CALM, FLOW_CONTROL, REFUSED = 8, 11, 3, 7
ECHO = {b"/t/Echo": echo}
WIDE = settings_frame(window=2**31 - 1)


def big(call: GrpcCall, message: bytes) -> None:
    """Answers as many bytes as it was asked for."""
    call.reply(b"x" * int(message))


def swallow(call: GrpcCall, message: bytes) -> None:
    """Never answers."""


@pytest.fixture(scope="module")
def server() -> Iterator[GrpcTransport]:
    with serving({b"/t/Echo": echo, b"/t/Big": big, b"/t/Hold": swallow}) as transport:
        yield transport


def assert_others_unharmed(server: GrpcTransport) -> None:
    with grpc.insecure_channel(server.target) as channel:
        assert channel.unary_unary("/t/Echo")(b"fine", timeout=20) == b"fine"


# The windows that the client gives


def test_a_big_answer_stays_within_the_window_of_the_connection(server: GrpcTransport) -> None:
    with RawClient(server.port, request(1, b"200000", b"/t/Big"), settings=WIDE) as client:
        client.settle()
        assert len(client.data()) == FULL_WINDOW
        client.send(window_update(0, 1000))
        client.settle()
        assert len(client.data()) == FULL_WINDOW + 1000
        client.send(window_update(0, 1 << 20))
        client.read_until(lambda: 1 in client.ended())
        assert client.data() == grpc_message(b"x" * 200_000)


def test_small_answers_use_up_the_window_of_the_connection(server: GrpcTransport) -> None:
    """Each fits its stream's window and one frame; together they are more than the connection's."""
    streams = range(1, 201, 2)
    with RawClient(server.port, settings=WIDE) as client:
        client.send(*[request(stream, b"1000", b"/t/Big") for stream in streams])
        client.settle()
        assert len(client.data()) == FULL_WINDOW
        client.send(window_update(0, 100 * 1005))
        client.read_until(lambda: client.ended() == set(streams))
        assert all(client.data(stream) == grpc_message(b"x" * 1000) for stream in streams)


def test_an_h2_client_that_gives_its_connection_no_window(server: GrpcTransport) -> None:
    """The `h2` package refuses a byte more than it has allowed."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.local_settings.initial_window_size = 1 << 20
    connection.initiate_connection()
    fields = [(":method", "POST"), (":scheme", "http"), (":path", "/t/Big"), (":authority", "x")]
    fields += [("content-type", "application/grpc"), ("te", "trailers")]
    for stream in (1, 3, 5):
        connection.send_headers(stream, fields)
        connection.send_data(stream, grpc_message(b"50000"), end_stream=True)
    connection.ping(b"settled?")
    received = 0
    ended: set[int] = set()
    settled = False
    with RawClient(server.port, settings=b"") as client:
        client.send(connection.data_to_send().removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        while ended != {1, 3, 5}:
            for event in connection.receive_data(client.socket.recv(1 << 20)):
                if isinstance(event, h2.events.DataReceived):
                    received += len(event.data)
                    if settled:
                        connection.increment_flow_control_window(len(event.data))
                elif isinstance(event, h2.events.StreamEnded):
                    ended.add(event.stream_id)
                elif isinstance(event, h2.events.PingAckReceived):
                    assert received == FULL_WINDOW
                    settled = True
                    connection.increment_flow_control_window(1 << 20)
            client.send(connection.data_to_send())
    assert received == 3 * 50_005


@pytest.mark.parametrize("size", [50, 5000, 50_000])
def test_an_answer_stays_within_the_window_of_its_stream(server: GrpcTransport, size: int) -> None:
    window = 40
    with RawClient(server.port, settings=settings_frame(window=window)) as client:
        client.send(window_update(0, 1 << 24), request(1, b"%d" % size, b"/t/Big"))
        client.settle()
        assert len(client.data()) == window
        client.send(window_update(1, 7))
        client.settle()
        assert len(client.data()) == window + 7
        client.send(window_update(1, size))
        client.read_until(lambda: 1 in client.ended())
        assert client.data() == grpc_message(b"x" * size)


def test_new_settings_change_the_windows_of_open_streams(server: GrpcTransport) -> None:
    with RawClient(server.port, settings=settings_frame(window=10)) as client:
        client.send(request(1, b"500", b"/t/Big"))
        client.settle()
        assert len(client.data()) == 10
        client.send(settings_frame(window=30))
        client.settle()
        assert len(client.data()) == 30
        client.send(settings_frame(window=0), window_update(1, 25))  # 20 in debt, then 5 beyond
        client.settle()
        assert len(client.data()) == 30
        client.send(window_update(1, 10))
        client.settle()
        assert len(client.data()) == 35
        client.send(settings_frame(window=1000))
        client.read_until(lambda: 1 in client.ended())
        assert client.data() == grpc_message(b"x" * 500)


@pytest.mark.parametrize(("max_frame", "size"), [(16_384, 16_380), (16_384, 100_000), (40_000, 100_000)])
def test_no_frame_is_larger_than_the_client_takes(server: GrpcTransport, max_frame: int, size: int) -> None:
    with RawClient(server.port, settings=settings_frame(window=1 << 20, max_frame=max_frame)) as client:
        client.send(window_update(0, 1 << 20), request(1, b"%d" % size, b"/t/Big"))
        client.read_until(lambda: 1 in client.ended())
        assert client.data() == grpc_message(b"x" * size)
        assert max(len(f.payload) for f in client.frames if f.kind == DATA) == min(max_frame, size + 5)


def test_blocked_answers_take_turns(server: GrpcTransport) -> None:
    with RawClient(server.port, settings=WIDE) as client:
        client.send(request(1, b"1000000", b"/t/Big"), request(3, b"1000000", b"/t/Big"))
        client.settle()
        client.send(window_update(0, 64 << 10))
        client.settle()
        assert min(len(client.data(1)), len(client.data(3))) > 16_000


def test_updates_of_windows_are_cheap_for_the_server(server: GrpcTransport) -> None:
    """2,000 answers wait for their own windows, while the connection's is opened byte by byte."""
    with RawClient(server.port, settings=settings_frame(window=0)) as client:
        client.send(*[request(stream, b"1", b"/t/Big") for stream in range(1, 4001, 2)])
        client.settle()
        began = time.monotonic()
        client.send(window_update(0, 1) * 100_000)
        client.settle()
        assert time.monotonic() - began < 15  # 100,000 looks at 2,000 calls would take a minute
    assert_others_unharmed(server)


# The windows that the server gives


def test_more_than_a_window_of_the_server_is_an_error() -> None:
    limits = Http2Limits(stream_window_bytes=70_000, connection_window_bytes=100_000)
    with serving(ECHO, limits) as server:
        with RawClient(server.port, frame(HEADERS, END_HEADERS, 1, request_headers())) as client:
            client.send(frame(DATA, 0, 1, struct.pack(">BL", 0, 1 << 20) + b"x" * 80_000))
            client.read_to_end()
            assert client.goaways() == [(FLOW_CONTROL, b"more data than the stream's window")]
        with RawClient(server.port, frame(HEADERS, END_HEADERS, 1, request_headers())) as client:
            client.send(frame(DATA, 0, 1, b"x" * 100_001))
            client.read_to_end()
            assert client.goaways() == [(FLOW_CONTROL, b"more data than the connection's window")]


def test_windows_are_given_back_as_data_is_read() -> None:
    limits = Http2Limits(stream_window_bytes=70_000, connection_window_bytes=100_000)
    with serving(ECHO, limits) as server:
        with RawClient(server.port, frame(HEADERS, END_HEADERS, 1, request_headers())) as client:
            client.send(frame(DATA, 0, 1, struct.pack(">BL", 0, 1 << 20) + b"x" * 30_000))
            client.settle()
            assert [f for f in client.frames if f.kind == 8 and f.stream == 1] == []
            client.send(frame(DATA, 0, 1, b"x" * 30_000))
            client.settle()
            updates = {f.stream: struct.unpack(">L", f.payload)[0] for f in client.frames if f.kind == 8}
            assert updates == {0: 60_005, 1: 60_005}
        with grpc.insecure_channel(server.target) as channel:
            message = b"x" * 3_000_000
            assert channel.unary_unary("/t/Echo")(message, timeout=60) == message


def test_padding_counts_in_the_windows_and_nowhere_else() -> None:
    limits = Http2Limits(stream_window_bytes=70_000, connection_window_bytes=100_000)
    padded = frame(DATA, 0x08, 1, b"\xff" + b"x" + b"\0" * 255)
    with (
        serving(ECHO, limits) as server,
        RawClient(server.port, frame(HEADERS, END_HEADERS, 1, request_headers())) as client,
    ):
        client.send(frame(DATA, 0, 1, struct.pack(">BL", 0, 300)), padded * 299, frame(DATA, END_STREAM, 1, b"x"))
        client.read_until(lambda: 1 in client.ended())
        assert client.data() == grpc_message(b"x" * 300)
        given = sum(struct.unpack(">L", f.payload)[0] for f in client.frames if f.kind == 8 and f.stream == 1)
        assert given > 299 * 257 - 70_000


# Limits


def test_more_calls_than_allowed_are_refused_for_another_try() -> None:
    with (
        serving({b"/t/Echo": echo, b"/t/Hold": swallow}, Http2Limits(max_streams=2)) as server,
        RawClient(server.port, *[request(stream, b"", b"/t/Hold") for stream in (1, 3, 5)]) as client,
    ):
        client.settle()
        assert client.resets() == {5: REFUSED}
        client.send(frame(RST_STREAM, 0, 1, uint32(CANCEL)), request(7, b"hi"))
        client.read_until(lambda: 7 in client.ended())
        assert client.data(7) == grpc_message(b"hi")
        advertised = next(f.payload for f in client.frames if f.kind == SETTINGS)
        assert struct.pack(">HL", 3, 2) in advertised


def test_connections_above_the_limit_are_turned_away() -> None:
    with serving(ECHO, Http2Limits(max_connections=2)) as server:
        with RawClient(server.port), RawClient(server.port) as second:
            wait_until(lambda: len(server.connections) == 2, "two connections are open")
            with RawClient(server.port) as third:
                third.read_to_end()
                ((code, reason),) = third.goaways()
                assert (code, reason) == (CALM, b"this port has 2 connections already (--max_connections)")
            second.send(request(1, b"hi"))
            second.read_until(lambda: 1 in second.ended())
        wait_until(lambda: not server.connections, "all connections are closed")
        assert_others_unharmed(server)


def test_headers_have_their_limits() -> None:
    with serving(ECHO, Http2Limits(max_header_bytes=1000)) as server:
        for frames in (
            [frame(HEADERS, END_HEADERS, 1, request_headers(bomb="x" * 2000))],
            [frame(HEADERS, END_HEADERS, 1, b"\x00\x01a\x01b" * 30)],  # short, but each field counts 32 bytes more
            [frame(HEADERS, END_HEADERS, 1, b"\x20" * 2000)],  # no field at all, but work
            [frame(HEADERS, 0, 1, b"\x00\x01a\x01b"), *[frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 50)] * 5],
        ):
            with RawClient(server.port, *frames) as client:
                client.read_to_end()
                ((code, reason),) = client.goaways()
                assert code == CALM
                assert b"--max_header_bytes" in reason


@pytest.mark.parametrize("flood", ["ping", "settings", "priority", "unknown", "empty data"])
def test_frames_that_carry_nothing_have_an_allowance_that_comes_back(flood: str) -> None:
    head = frame(HEADERS, END_HEADERS, 1, request_headers(b"/t/Hold"))
    frames = {
        "ping": frame(PING, 0, 0, b"12345678"),
        "settings": frame(SETTINGS, 0, 0),
        "priority": frame(PRIORITY, 0, 1, b"\0" * 5),
        "unknown": frame(99, 0, 0),
        "empty data": frame(DATA, 0, 1),
    }
    with (
        serving({b"/t/Hold": swallow}, Http2Limits(control_frames_per_second=10)) as server,
        RawClient(server.port, head) as client,
    ):
        client.send(frames[flood] * 7)
        client.settle()
        server.sweep(elapsed=1.0)
        client.send(frames[flood] * 7)
        client.settle()
        assert not client.closed
        client.send(frames[flood] * 20)
        client.read_to_end()
        assert client.goaways() == [(CALM, b"more than 10 control frames a second")]


def resets_by_client(stream: int) -> bytes:
    headers = frame(HEADERS, END_HEADERS, stream, request_headers(b"/t/Hold"))
    return headers + frame(RST_STREAM, 0, stream, uint32(CANCEL))


def resets_by_server(stream: int) -> bytes:
    """ "MadeYouReset" (CVE-2025-8671): the client makes the server reset the call, whose work goes on."""
    return request(stream, b"", b"/t/Hold") + window_update(stream, 0)


def resets_for_no_path(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x83")


@pytest.mark.parametrize("reset", [resets_by_client, resets_by_server, resets_for_no_path])
def test_resets_have_an_allowance_that_comes_back(reset: object) -> None:
    assert callable(reset)
    with (
        serving({b"/t/Hold": swallow}, Http2Limits(resets_per_second=1)) as server,
        RawClient(server.port) as client,
    ):
        client.send(*[reset(stream) for stream in range(1, 21, 2)])
        client.settle()
        server.sweep(elapsed=5.0)
        client.send(*[reset(stream) for stream in range(21, 31, 2)])
        client.settle()
        assert client.goaways() == []
        client.send(reset(31))
        client.read_to_end()
        assert client.goaways() == [(CALM, b"more than 1 calls a second were reset")]


def test_unfinished_requests_have_one_limit_for_all_connections() -> None:
    part = struct.pack(">BL", 0, 1_000_000) + b"x" * 50_000
    with serving(ECHO, max_buffered=200_000) as server:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(RawClient(server.port)) for _ in range(3)]
            for client in clients:
                client.send(frame(HEADERS, END_HEADERS, 1, request_headers()), frame(DATA, 0, 1, part))
                client.settle()
            assert server.buffered.used == 3 * 50_005
            clients[0].send(frame(DATA, 0, 1, b"x" * 60_000))
            clients[0].settle()
            (answer,) = [f for f in clients[0].frames if f.kind == HEADERS]
            assert b"--max_buffered_bytes" in answer.payload
            assert server.buffered.used == 2 * 50_005
            assert_others_unharmed(server)
        wait_until(lambda: server.buffered.used == 0, "nothing is held for clients that are gone")


def test_answers_that_are_not_read_have_the_same_limit() -> None:
    """A client without window asks for 100 answers of 1 MiB."""
    with serving({b"/t/Echo": echo, b"/t/Big": big}, max_buffered=10 << 20) as server:
        with RawClient(server.port, settings=settings_frame(window=0)) as client:
            client.send(*[request(stream, b"1000000", b"/t/Big") for stream in range(1, 201, 2)])
            client.settle()
            assert len(client.ended()) == 90
            assert server.buffered.used == 10 * 1_000_005
            client.send(window_update(0, 1 << 30), *[window_update(stream, 1 << 21) for stream in range(1, 21, 2)])
            client.read_until(lambda: len(client.ended()) == 100)
            assert len(client.data()) == 10 * 1_000_005
            assert server.buffered.used == 0
        assert_others_unharmed(server)


def test_a_client_that_does_not_read_its_socket_is_bounded_too() -> None:
    """Windows and frames are wide open, so answers wait in the socket: what does not fit the limit is refused."""
    wide = settings_frame(window=2**31 - 1, max_frame=2**24 - 1)
    with serving({b"/t/Echo": echo, b"/t/Big": big}, max_buffered=16 << 20) as server:
        with RawClient(server.port, window_update(0, 2**30), settings=wide) as client:
            with contextlib.suppress(ConnectionError):
                client.send(*[request(stream, b"1000000", b"/t/Big") for stream in range(1, 201, 2)])
            wait_until(lambda: server.buffered.used > 8 << 20, "answers wait")
            assert server.buffered.used <= 16 << 20
            assert_others_unharmed(server)
            client.read_until(lambda: len(client.ended()) == 100)
        wait_until(lambda: server.buffered.used == 0, "nothing is held any more")


def test_a_compressed_bomb_is_cut_off() -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    with serving(ECHO, Http2Limits(max_message_bytes=1_000_000)) as server, RawClient(server.port) as client:
        headers = request_headers(grpc_encoding="gzip")
        client.send(frame(HEADERS, END_HEADERS, 1, headers))
        client.send(frame(DATA, END_STREAM, 1, grpc_message(bomb, compressed=True)))
        client.read_until(lambda: 1 in client.ended())
        assert b"--max_request_bytes" in client.frames[-1].payload


def test_a_message_of_four_gigabytes_is_refused_by_its_prefix(server: GrpcTransport) -> None:
    with RawClient(server.port, frame(HEADERS, END_HEADERS, 1, request_headers())) as client:
        client.send(frame(DATA, 0, 1, struct.pack(">BL", 0, 2**32 - 1)))
        client.read_until(lambda: 1 in client.ended())
        assert any(b"4294967295 bytes larger than max" in f.payload for f in client.frames)
        client.settle()
        assert client.resets() == {1: 0}  # the client need not send the rest


def test_a_message_in_one_frame_has_the_same_limit() -> None:
    with (
        serving(ECHO, Http2Limits(max_message_bytes=1000)) as server,
        RawClient(server.port, request(1, b"x" * 1000), request(3, b"x" * 1001)) as client,
    ):
        client.read_until(lambda: client.ended() == {1, 3})
        assert client.data(1) == grpc_message(b"x" * 1000)
        assert client.data(3) == b""
        assert any(b"1001 bytes larger than max (1000 bytes" in f.payload for f in client.frames)


# Time


def test_a_request_that_does_not_end_is_ended(server: GrpcTransport) -> None:
    with RawClient(server.port, frame(HEADERS, END_HEADERS, 1, request_headers())) as client:
        client.send(request(3, b"", b"/t/Hold"), frame(DATA, 0, 1, b"\0"))
        client.settle()
        server.sweep(0)
        server.sweep(29)
        client.settle()
        assert client.ended() == set()
        server.sweep(31)
        client.read_until(lambda: 1 in client.ended())
        client.settle()
        assert any(b"not complete after 30 seconds (--request_seconds)" in f.payload for f in client.frames)
        assert client.ended() == {1}  # what waits for the model is another matter


def test_an_answer_that_is_not_read_is_dropped_and_others_go_on() -> None:
    with (
        serving({b"/t/Echo": echo, b"/t/Big": big}) as server,
        RawClient(server.port, settings=settings_frame(window=1000)) as client,
    ):
        client.send(request(1, b"5000", b"/t/Big"), request(3, b"5000", b"/t/Big"))
        client.settle()
        server.sweep(0)
        client.send(window_update(3, 100))  # this one is slow, but reads
        client.settle()
        server.sweep(59)
        server.sweep(61)
        client.settle()
        assert client.resets() == {1: CANCEL}
        client.send(window_update(3, 10_000))
        client.read_until(lambda: 3 in client.ended())
        assert client.data(3) == grpc_message(b"x" * 5000)
        assert server.buffered.used == 0


def test_a_client_that_leaves_its_socket_full_is_cut_off() -> None:
    with (
        serving({b"/t/Big": big}) as server,
        RawClient(server.port, window_update(0, 2**30), settings=WIDE) as client,
    ):
        client.send(request(1, b"50000000", b"/t/Big"))
        wait_until(lambda: server.buffered.used > 0, "the answer waits")

        def stuck() -> bool:
            server.sweep(0)
            server.sweep(61)
            return not server.connections

        wait_until(stuck, "the connection is cut off")
        assert server.buffered.used == 0
        client.read_to_end()
        assert len(client.data()) < 50_000_000


def test_an_idle_connection_is_sent_away_without_harm() -> None:
    with serving(ECHO) as server, grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary("/t/Echo")
        assert call(b"1", timeout=20) == b"1"
        server.sweep(0)
        server.sweep(3599)
        assert len(server.connections) == 1
        server.sweep(3601)
        wait_until(lambda: not server.connections, "the idle connection is closed")
        assert call(b"2", timeout=20) == b"2"


def test_a_connection_in_use_is_not_idle() -> None:
    with (
        serving({b"/t/Echo": echo, b"/t/Hold": swallow}) as server,
        RawClient(server.port, request(1, b"", b"/t/Hold")) as client,
    ):
        client.settle()
        server.sweep(3601)
        server.sweep(2 * 3601)
        client.settle()
        assert client.goaways() == []
        client.send(frame(RST_STREAM, 0, 1, uint32(CANCEL)), request(3, b"hi"))
        client.settle()
        server.sweep(3 * 3601)
        client.settle()
        assert client.goaways() == []


def test_an_old_connection_is_sent_away_and_its_calls_have_a_grace() -> None:
    limits = Http2Limits(age_seconds=100, age_grace_seconds=5)
    with (
        serving({b"/t/Echo": echo, b"/t/Hold": swallow}, limits) as server,
        RawClient(server.port, request(1, b"", b"/t/Hold")) as client,
    ):
        client.settle()
        server.sweep(89)
        client.settle()
        assert client.goaways() == []
        server.sweep(111)
        client.read_until(lambda: bool(client.goaways()))
        assert client.goaways()[0] == (0, b"draining")
        server.sweep(115)
        client.settle()
        assert not client.closed
        server.sweep(117)
        client.read_to_end()
        assert client.closed


def test_a_silent_peer_is_asked_and_dropped_when_it_does_not_answer() -> None:
    limits = Http2Limits(keepalive_seconds=10, keepalive_timeout_seconds=5)
    with serving(ECHO, limits) as server, RawClient(server.port) as client:
        client.settle()
        server.sweep(0)
        server.sweep(9)
        assert not any(f.kind == PING and not f.flags for f in client.frames)
        server.sweep(11)
        client.read_until(lambda: any(f.kind == PING and not f.flags for f in client.frames))
        ping = next(f for f in client.frames if f.kind == PING and not f.flags)
        client.send(frame(PING, 1, 0, ping.payload))
        client.settle()
        server.sweep(17)
        client.settle()
        assert not client.closed
        server.sweep(18)
        server.sweep(29)  # asks again
        server.sweep(33)
        assert len(server.connections) == 1
        server.sweep(35)
        client.read_to_end()
        assert client.closed
