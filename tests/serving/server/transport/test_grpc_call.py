"""gRPC calls on a loopback port: asked by the official client, by `h2`, and with raw frames where no client will."""

import asyncio
import contextlib
import os
import resource
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from bookserve.serving.server.transport.grpc_call import GrpcCall, _seconds
from bookserve.serving.wire import tensorflow_error_pb2
from model_servers import wait_until
from raw_http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    RawClient,
    frame,
    grpc_message,
    request,
    request_headers,
)
from transports import LoopFactory, Transport, echo, serving

MIB = 1 << 20


def fail(call: GrpcCall, message: bytes) -> None:
    call.fail(tensorflow_error_pb2.INVALID_ARGUMENT, message.decode())


def break_down(call: GrpcCall, message: bytes) -> None:
    if message == b"a file":
        raise FileNotFoundError("secret path")
    raise RuntimeError("secret detail")


def headers_of(call: GrpcCall, message: bytes) -> None:
    """Answers the metadata of a name, and sends it back as trailers."""
    found = [value for name, value in call.scope["headers"] if name == message]
    call.trailers = [(message, value) for value in found]
    call.reply(b"|".join(found))


class Held:
    """A handler that keeps its calls until they are let go."""

    def __init__(self) -> None:
        self.calls: list[GrpcCall] = []

    def __call__(self, call: GrpcCall, message: bytes) -> None:
        self.calls.append(call)


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    factory: LoopFactory = request.param
    return factory


@pytest.fixture
def server(held: Held) -> Iterator[Transport]:
    handlers = {b"/t/Echo": echo, b"/t/Fail": fail, b"/t/Break": break_down, b"/t/Hold": held, b"/t/Meta": headers_of}
    with serving(handlers) as transport:
        yield transport


@contextmanager
def channel_to(transport: Transport, **options: int) -> Iterator[grpc.Channel]:
    given = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    given += [(f"grpc.{name}", value) for name, value in options.items()]
    with grpc.insecure_channel(transport.target, given) as channel:
        yield channel


def error_of(call: grpc.UnaryUnaryMultiCallable, message: bytes, **options: object) -> tuple[grpc.StatusCode, str]:
    """Code and details of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=20, **options)
    return caught.value.code(), caught.value.details()


def assert_others_unharmed(server: Transport) -> None:
    with channel_to(server) as channel:
        assert channel.unary_unary("/t/Echo")(b"fine", timeout=20) == b"fine"


class Asked:
    """One request by the `h2` package, which checks every frame of the answer against RFC 9113."""

    def __init__(
        self,
        port: int,
        body: bytes,
        *more: tuple[str, str],
        path: str = "/t/Echo",
        method: str = "POST",
        te: bool = True,
    ) -> None:
        self.headers: dict[str, str] = {}
        self.trailers: dict[str, str] = {}
        self.data = b""
        fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x")]
        fields += [("te", "trailers")] if te else []
        given = dict(more)
        if "content-type" not in given:
            fields.append(("content-type", "application/grpc"))
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        connection.initiate_connection()
        connection.send_headers(1, [*fields, *more], end_stream=not body)
        if body:
            connection.send_data(1, body, end_stream=True)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(connection.data_to_send())
            self._read(client, connection)

    def _read(self, client: socket.socket, connection: h2.connection.H2Connection) -> None:
        while received := client.recv(65536):
            for event in connection.receive_data(received):
                match event:
                    case h2.events.ResponseReceived():
                        self.headers = dict(event.headers)
                    case h2.events.TrailersReceived():
                        self.trailers = dict(event.headers)
                    case h2.events.DataReceived():
                        self.data += event.data
                        connection.acknowledge_received_data(event.flow_controlled_length, 1)
                    case h2.events.StreamEnded() | h2.events.StreamReset():
                        return
            client.sendall(connection.data_to_send())

    @property
    def status(self) -> int:
        """The gRPC status, in trailers or in headers alone."""
        return int((self.trailers or self.headers)["grpc-status"])

    @property
    def message(self) -> str:
        return (self.trailers or self.headers)["grpc-message"]


# Messages


def test_many_calls_on_one_channel(loop_factory: LoopFactory) -> None:
    with serving({b"/t/Echo": echo}, loop_factory=loop_factory) as server, channel_to(server) as channel:
        call = channel.unary_unary("/t/Echo")
        for number in range(3000):
            message = b"%d" % number
            assert call(message, timeout=10) == message
        wait_until(lambda: not server.calls, "nothing is under way")


def test_many_calls_of_the_asyncio_client(server: Transport) -> None:
    async def ask() -> list[bytes]:
        async with grpc.aio.insecure_channel(server.target) as channel:
            call = channel.unary_unary("/t/Echo")
            return list(await asyncio.gather(*[call(b"%d" % number, timeout=20) for number in range(1000)]))

    assert asyncio.run(ask()) == [b"%d" % number for number in range(1000)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_calls_on_one_channel(server: Transport) -> None:
    with channel_to(server) as channel, ThreadPoolExecutor(8) as pool:
        call = channel.unary_unary("/t/Echo")

        def ask(worker: int) -> int:
            return sum(call(b"x" * 100, timeout=60) == b"x" * 100 for _ in range(125_000))

        assert sum(pool.map(ask, range(8))) == 1_000_000


def test_large_messages_both_ways(server: Transport) -> None:
    message = bytes(range(256)) * (40 << 10)  # 10 MiB
    with channel_to(server) as channel:
        call = channel.unary_unary("/t/Echo")
        assert call(message, timeout=60) == message
        futures = [call.future(message, timeout=60) for _ in range(4)]
        assert all(future.result() == message for future in futures)
    assert server.held == 0


@pytest.mark.parametrize("size", [0, 1, 16_378, 16_379, 16_380, 65_530, 65_535, 65_536, 262_144, 1_048_571, 1_048_577])
def test_messages_around_the_sizes_of_frames_and_windows(server: Transport, size: int) -> None:
    with channel_to(server) as channel:
        assert channel.unary_unary("/t/Echo")(b"x" * size, timeout=30) == b"x" * size


@pytest.mark.parametrize("limit", [1000, 100_000, 3 * MIB])
def test_messages_around_the_limit(limit: int) -> None:
    with serving({b"/t/Echo": echo}, max_request_bytes=limit) as server, channel_to(server) as channel:
        call = channel.unary_unary("/t/Echo")
        for size in (limit - 1, limit):
            assert len(call(b"x" * size, timeout=30)) == size
        code, details = error_of(call, b"x" * (limit + 1))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details == (
            f"Received message of {limit + 1} bytes larger than max ({limit} bytes, --max_request_bytes)"
        )
        assert call(b"still here", timeout=10) == b"still here"
        assert server.held == 0


def test_a_message_above_64_mib_needs_the_flag(server: Transport) -> None:
    message = b"x" * (65 * MIB)
    with channel_to(server) as channel:
        code, _ = error_of(channel.unary_unary("/t/Echo"), message)
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    with serving({b"/t/Echo": echo}, max_request_bytes=100 * MIB) as wide, channel_to(wide) as channel:
        assert channel.unary_unary("/t/Echo")(message, timeout=60) == message


def test_a_message_of_four_gigabytes_is_refused_by_its_prefix(server: Transport) -> None:
    with RawClient(server.port, frame(HEADERS, END_HEADERS, 1, request_headers())) as client:
        client.send(frame(DATA, 0, 1, struct.pack(">BL", 0, 2**32 - 1)))
        client.read_until(lambda: 1 in client.ended())
        assert b"4294967295 bytes larger than max" in client.text(1)
    assert_others_unharmed(server)


def test_a_thousand_calls_at_a_time_on_one_connection(server: Transport, held: Held) -> None:
    with channel_to(server) as channel:
        call = channel.unary_unary("/t/Hold")
        futures = [call.future(b"", timeout=60) for _ in range(1000)]
        wait_until(lambda: len(held.calls) == 1000, "all calls have arrived")
        server.on_loop(lambda: [call.reply(b"%d" % number) for number, call in enumerate(held.calls)])
        assert {future.result() for future in futures} == {b"%d" % number for number in range(1000)}


def test_calls_have_one_limit_for_all_connections(held: Held) -> None:
    """Each takes memory, were it of headers alone."""
    with serving({b"/t/Hold": held}, max_buffered_bytes=160 << 10) as server:
        with RawClient(server.port), RawClient(server.port) as other:
            with RawClient(server.port) as many:
                many.send(
                    *[frame(HEADERS, END_HEADERS, number, request_headers(b"/t/Hold")) for number in range(1, 21, 2)]
                )
                wait_until(lambda: len(server.calls) == 10, "ten are under way")
                other.send(request(1, b"", b"/t/Hold"))
                other.read_until(lambda: 1 in other.ended())
                assert b"more than 10 calls are under way (--max_buffered_bytes)" in other.text(1)
            wait_until(lambda: not server.calls, "the ten are gone")
            other.send(request(3, b"", b"/t/Hold"))
            wait_until(lambda: len(held.calls) == 1, "another is taken")
        assert server.refused() == {"calls": 1}


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests(server: Transport, algorithm: grpc.Compression) -> None:
    with grpc.insecure_channel(server.target, compression=algorithm) as channel:
        call = channel.unary_unary("/t/Echo")
        for size in (10, 10_000, MIB):
            assert call(b"abc" * size, timeout=20) == b"abc" * size


def test_a_message_that_is_not_complete_is_said(server: Transport) -> None:
    for body in (b"", b"\0\0\0\0", grpc_message(b"hello")[:-1]):
        answer = Asked(server.port, body)
        assert (answer.status, answer.message) == (13, "the call ended without a complete message")
    assert server.refused() == {"malformed": 3}


def test_a_unary_call_carries_one_message(server: Transport) -> None:
    answer = Asked(server.port, grpc_message(b"one") + grpc_message(b"two"))
    assert (answer.status, answer.message) == (13, "a unary call carries one message")
    with RawClient(server.port, frame(HEADERS, END_HEADERS, 1, request_headers())) as client:
        client.send(frame(DATA, 0, 1, b"\0\0"), frame(DATA, 0, 1, grpc_message(b"one")[2:]))
        client.read_until(lambda: 1 in client.ended())  # answered as soon as its message is there
        assert client.data(1) == grpc_message(b"one")
    assert_others_unharmed(server)


def test_an_http2_library_reads_our_frames(server: Transport) -> None:
    """Requests with padding, in pieces and with trailers of their own, three at a time."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    answers: dict[int, bytes] = {}
    trailers: dict[int, dict[str, str]] = {}
    message = grpc_message(b"hi")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        fields = [(":method", "POST"), (":scheme", "http"), (":path", "/t/Echo"), (":authority", "x")]
        fields += [("content-type", "application/grpc"), ("te", "trailers")]
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


# Where it listens


def peer(call: GrpcCall, message: bytes) -> None:
    call.reply(call.peer.encode())


def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "grpc.sock")
    with (
        serving({b"/t/Echo": echo, b"/t/Peer": peer}, path=path),
        grpc.insecure_channel(f"unix:{path}") as channel,
    ):
        assert channel.unary_unary("/t/Echo")(b"x" * 3 * MIB, timeout=20) == b"x" * 3 * MIB
        assert channel.unary_unary("/t/Peer")(b"", timeout=20) == b""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_address_of_the_client(host: str) -> None:
    if host == "::1" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with serving({b"/t/Peer": peer}, host=host) as server, channel_to(server) as channel:
        assert channel.unary_unary("/t/Peer")(b"", timeout=20) == host.encode()


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


# What is asked wrongly


def test_an_unknown_method_is_unimplemented(server: Transport) -> None:
    with channel_to(server) as channel:
        found = error_of(channel.unary_unary("/t/Nothing"), b"")
    assert found == (grpc.StatusCode.UNIMPLEMENTED, "unknown method /t/Nothing")
    assert server.refused() == {"unknown_method": 1}


@pytest.mark.parametrize(
    ("method", "content_type"), [("GET", "application/grpc"), ("POST", "text/html"), ("POST", "application/json")]
)
def test_what_is_not_grpc_is_answered_with_415(server: Transport, method: str, content_type: str) -> None:
    answer = Asked(server.port, b"", ("content-type", content_type), method=method, te=False)
    assert answer.headers[":status"] == "415"
    assert server.refused() == {"not_grpc": 1}


def test_a_call_that_takes_no_trailers_is_told_why(server: Transport) -> None:
    """Without them its answer has no place for the status: it was an empty 500, after the model had run."""
    answer = Asked(server.port, grpc_message(b"hi"), te=False)
    assert (answer.status, answer.headers[":status"]) == (grpc.StatusCode.INTERNAL.value[0], "200")
    assert "te: trailers" in answer.message


def test_a_content_type_may_name_its_codec(server: Transport) -> None:
    answer = Asked(server.port, grpc_message(b"hi"), ("content-type", "application/grpc+proto"))
    assert (answer.status, answer.data) == (0, grpc_message(b"hi"))
    assert answer.headers["content-type"] == "application/grpc"


def test_what_is_no_http2_is_turned_away(server: Transport) -> None:
    with RawClient(server.port, preface=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", settings=b"") as client:
        client.read_to_end()
    assert_others_unharmed(server)


def test_an_unsupported_encoding_is_told_what_is_supported(server: Transport) -> None:
    """doc/compression.md of gRPC: UNIMPLEMENTED, with the header that says which encodings there are."""
    answer = Asked(server.port, grpc_message(b"x", compressed=True), ("grpc-encoding", "snappy"))
    assert answer.status == 12
    assert answer.message == "grpc-encoding snappy is not supported: use gzip, deflate or identity"
    assert answer.headers["grpc-accept-encoding"] == "identity,deflate,gzip"


def test_a_compressed_message_without_an_encoding_is_internal(server: Transport) -> None:
    for more in ((), (("grpc-encoding", "identity"),)):
        answer = Asked(server.port, grpc_message(b"x", compressed=True), *more)
        assert (answer.status, "no grpc-encoding" in answer.message) == (13, True)


def test_a_message_that_does_not_decompress_is_internal(server: Transport) -> None:
    answer = Asked(server.port, grpc_message(b"x", compressed=True), ("grpc-encoding", "gzip"))
    assert answer.status == 13
    assert answer.message.startswith("the message does not decompress: ")
    assert server.refused() == {"encoding": 1}


def test_a_message_that_is_not_marked_is_taken_as_it_is(server: Transport) -> None:
    answer = Asked(server.port, grpc_message(b"x"), ("grpc-encoding", "gzip"))
    assert (answer.status, answer.data) == (0, grpc_message(b"x"))


def test_big_headers_fail_their_call_alone(server: Transport, held: Held) -> None:
    with channel_to(server) as channel:
        futures = [channel.unary_unary("/t/Hold").future(b"x" * 500_000, timeout=60) for _ in range(4)]
        wait_until(lambda: len(held.calls) == 4, "the others are under way")
        for size in (20_000, 200_000):
            code, details = error_of(channel.unary_unary("/t/Echo"), b"", metadata=[("x-big", "a" * size)])
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "larger than 16384 (--max_header_bytes)" in details
        server.on_loop(lambda: [call.reply(b"fine") for call in held.calls])
        assert [future.result() for future in futures] == [b"fine"] * 4
    assert server.refused() == {"header_bytes": 2}


def test_metadata_comes_and_goes_with_binary_values(server: Transport) -> None:
    binary = bytes(range(256))
    with channel_to(server) as channel:
        call = channel.unary_unary("/t/Meta")
        answer, done = call.with_call(b"x-some-bin", timeout=10, metadata=[("x-some-bin", binary)])
        assert answer
        assert dict(done.trailing_metadata())["x-some-bin"] == binary
        answer, done = call.with_call(b"x-text", timeout=10, metadata=[("x-text", "a b"), ("x-text", "c")])
        assert answer == b"a b|c"
        assert [value for name, value in done.trailing_metadata() if name == "x-text"] == ["a b", "c"]


# Errors


def test_errors_carry_code_and_message(server: Transport) -> None:
    with channel_to(server) as channel:
        call = channel.unary_unary("/t/Fail")
        for message in ("plain", "50 % of \n lines, ünïcode, 語, \x7f", "x" * 1024):
            assert error_of(call, message.encode()) == (grpc.StatusCode.INVALID_ARGUMENT, message)
        assert error_of(call, b"x" * 1025)[1] == "x" * 1024 + "...TRUNCATED"


def test_a_status_message_is_percent_encoded(server: Transport) -> None:
    text = "50 % of \n lines, ünïcode: ~!@#&"
    answer = Asked(server.port, grpc_message(text.encode()), path="/t/Fail")
    assert answer.message == "50 %25 of %0A lines, %C3%BCn%C3%AFcode: ~!@#&"
    assert unquote(answer.message) == text
    assert answer.trailers == {}  # an error alone is headers that end the stream


def test_a_fault_of_the_handler_is_internal_and_keeps_its_detail(
    server: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    with channel_to(server) as channel:
        for message in (b"", b"a file"):
            assert error_of(channel.unary_unary("/t/Break"), message) == (grpc.StatusCode.INTERNAL, "internal error")
        assert channel.unary_unary("/t/Echo")(b"on", timeout=10) == b"on"
    assert "fault while answering a call of /t/Break" in caplog.text


# Deadlines, and clients that go


def test_a_deadline_ends_the_call_on_the_server_too(loop_factory: LoopFactory, held: Held) -> None:
    with serving({b"/t/Hold": held, b"/t/Echo": echo}, loop_factory=loop_factory) as server:
        with channel_to(server) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/t/Hold")(b"", timeout=1)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            wait_until(lambda: not held.calls[0].open, "the server has closed the call")
            server.on_loop(lambda: held.calls[0].reply(b"too late"))
            assert channel.unary_unary("/t/Echo")(b"on", timeout=10) == b"on"
        wait_until(lambda: not server.calls, "nothing is under way")


def test_the_text_of_a_deadline_is_tensorflow_servings(server: Transport, held: Held) -> None:
    """The official client says its own text first; `h2` has no clock."""
    answer = Asked(server.port, grpc_message(b"hi"), ("grpc-timeout", "200m"), path="/t/Hold")
    assert (answer.status, answer.message) == (4, "Timed out waiting for notification")
    assert not held.calls[0].open
    assert held.calls[0].timeout == pytest.approx(0.2)


def test_a_call_whose_deadline_is_over_is_not_handled(server: Transport, held: Held) -> None:
    with RawClient(server.port) as client:
        client.send(frame(HEADERS, END_HEADERS, 1, request_headers(b"/t/Hold", grpc_timeout="50m")))
        time.sleep(0.2)
        client.send(frame(DATA, END_STREAM, 1, grpc_message(b"late")))
        client.read_until(lambda: 1 in client.ended())
        assert b"Timed out waiting for notification" in client.text(1)
    assert held.calls == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [(b"1H", 3600.0), (b"123456789S", 123456789.0), (b"2M", 120.0), (b"400m", 0.4), (b"5u", 5e-6), (b"6n", 6e-9)],
)
def test_time_outs(text: bytes, expected: float) -> None:
    assert _seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["S", "1", "1x", "-1S", "1.5S", "9" * 21 + "S"])
def test_a_malformed_time_out_is_an_error_as_with_grpcs_own_servers(server: Transport, text: str) -> None:
    answer = Asked(server.port, grpc_message(b"hi"), ("grpc-timeout", text))
    assert answer.status == grpc.StatusCode.INTERNAL.value[0]
    assert "grpc-timeout" in answer.message


def test_a_port_that_had_no_file_for_a_connection_is_served_again(caplog: pytest.LogCaptureFixture) -> None:
    """The library gives up there: the port was dead from then on, while readiness and REST were fine."""
    with serving({b"/t/Echo": echo}) as server:
        with pytest.raises(urllib.error.HTTPError, match="404"):  # while it starts, the library of REST needs files
            urllib.request.urlopen(server.url, timeout=20)
        clients = [socket.socket() for _ in range(5)]
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)  # every number below it is taken
        os.close(lowest)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, allowed[1]))
            for client in clients:
                client.connect(("127.0.0.1", server.port))
            wait_until(lambda: "gRPC takes no connections" in caplog.text, "the library has given up")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, allowed)
            for client in clients:
                client.close()
        assert_others_unharmed(server)


def test_a_cancelled_call_is_closed(loop_factory: LoopFactory, held: Held) -> None:
    with serving({b"/t/Hold": held}, loop_factory=loop_factory) as server, channel_to(server) as channel:
        future = channel.unary_unary("/t/Hold").future(b"", timeout=30)
        wait_until(lambda: len(held.calls) == 1, "the call has arrived")
        future.cancel()
        wait_until(lambda: not held.calls[0].open, "the server has closed the call", 2)
        wait_until(lambda: not server.calls, "nothing is under way")


def test_many_deadlines_at_a_time_harm_no_other_call(server: Transport, held: Held) -> None:
    """The library ends a connection whose client resets more than some 200 calls at a time."""
    with channel_to(server) as channel:
        call = channel.unary_unary("/t/Hold")
        other = call.future(b"", timeout=60)
        wait_until(lambda: len(held.calls) == 1, "it has arrived")
        for future in [call.future(b"", timeout=0.3) for _ in range(150)]:
            assert future.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: len(server.calls) == 1, "the others are ended on the server, too")
        server.on_loop(lambda: held.calls[0].reply(b"fine"))
        assert other.result() == b"fine"


@pytest.mark.parametrize("orderly", [True, False])
def test_the_calls_of_a_client_that_is_gone_are_closed(server: Transport, held: Held, orderly: bool) -> None:
    """From then on their place in the model's queue is passed over."""
    with RawClient(server.port, *[request(stream, b"", b"/t/Hold") for stream in (1, 3, 5)]) as client:
        wait_until(lambda: len(held.calls) == 3, "the calls have arrived")
        assert all(call.open for call in held.calls)
        if not orderly:  # as a process that is killed with unread data: RST
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: not any(call.open for call in held.calls), "they are closed", 2)
    wait_until(lambda: server.idle, "nothing is under way")


def test_a_client_that_goes_in_the_middle_of_a_message_leaves_nothing(server: Transport, held: Held) -> None:
    with RawClient(server.port, frame(HEADERS, END_HEADERS, 1, request_headers(b"/t/Hold"))) as client:
        client.send(frame(DATA, 0, 1, grpc_message(b"x" * 10_000)[:9000]))
        wait_until(lambda: server.held == 9000, "a part is held")
    wait_until(lambda: server.held == 0 and not server.calls, "nothing is held", 2)
    assert held.calls == []


def test_a_request_that_does_not_end_is_ended() -> None:
    with (
        serving({b"/t/Echo": echo}, request_seconds=0.5) as server,
        RawClient(server.port, frame(HEADERS, END_HEADERS, 1, request_headers()), frame(DATA, 0, 1, b"\0")) as client,
    ):
        began = time.monotonic()
        client.read_until(lambda: 1 in client.ended())
        assert b"not complete after 0.5 seconds (--request_seconds)" in client.text(1)
        assert time.monotonic() - began < 2
        assert server.refused() == {"request_timeout": 1}


def test_headers_without_a_message_are_reset_in_time() -> None:
    """By the library, a second after the limit, and without a status."""
    with (
        serving({b"/t/Echo": echo}, request_seconds=0.5) as server,
        RawClient(server.port, frame(HEADERS, END_HEADERS, 1, request_headers())) as client,
    ):
        began = time.monotonic()
        client.read_until(lambda: 1 in client.resets())
        assert time.monotonic() - began < 4
        wait_until(lambda: not server.calls, "nothing is under way")


def test_a_request_that_trickles_in_is_ended() -> None:
    with (
        serving({b"/t/Echo": echo}, request_seconds=0.5) as server,
        RawClient(server.port, frame(HEADERS, END_HEADERS, 1, request_headers())) as client,
    ):
        began = time.monotonic()
        client.send(frame(DATA, 0, 1, struct.pack(">BL", 0, 1000)))
        while 1 not in client.ended() and time.monotonic() - began < 5:
            with contextlib.suppress(OSError):
                client.send(frame(DATA, 0, 1, b"x"))
            client.read_for(0.05)
        assert b"--request_seconds" in client.text(1)
        assert time.monotonic() - began < 2


def test_keep_alive_pings_are_answered(server: Transport, held: Held) -> None:
    options = {"keepalive_time_ms": 100, "keepalive_timeout_ms": 2000, "http2.max_pings_without_data": 0}
    with channel_to(server, **options) as channel:
        future = channel.unary_unary("/t/Hold").future(b"", timeout=30)
        wait_until(lambda: len(held.calls) == 1, "the call has arrived")
        time.sleep(1)  # ten pings' time
        server.on_loop(lambda: held.calls[0].reply(b"alive"))
        assert future.result() == b"alive"


# The end of the server


def test_a_stop_answers_what_is_under_way(loop_factory: LoopFactory, held: Held) -> None:
    with serving({b"/t/Hold": held}, loop_factory=loop_factory) as server, channel_to(server) as channel:
        future = channel.unary_unary("/t/Hold").future(b"", timeout=30)
        wait_until(lambda: len(held.calls) == 1, "the call has arrived")
        activity = server.drain()
        assert (activity.requests, activity.idle) == (1, False)
        finished = server.start_to_finish()
        time.sleep(0.2)
        assert not finished.done()
        server.on_loop(lambda: held.calls[0].reply(b"answered"))
        assert future.result() == b"answered"
        finished.result(5)


def test_a_stop_drops_what_is_not_answered_in_time(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    with (
        serving({b"/t/Hold": held}, drain_seconds=0.5) as server,
        channel_to(server, enable_retries=0) as channel,
    ):
        future = channel.unary_unary("/t/Hold").future(b"", timeout=30)
        wait_until(lambda: len(held.calls) == 1, "the call has arrived")
        began = time.monotonic()
        server.start_to_finish(0.5).result(10)
        assert time.monotonic() - began < 3
        wait_until(lambda: not held.calls[0].open, "it is closed")
        with pytest.raises(grpc.RpcError) as caught:
            future.result()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


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


STREAMS = {b"/t/Each": answer_each}


@pytest.fixture
def streaming() -> Iterator[Transport]:
    with serving({b"/t/Count": count_down}, streams=STREAMS) as transport:
        yield transport


def test_one_message_may_have_many_answers(streaming: Transport) -> None:
    with channel_to(streaming) as channel:
        call = channel.unary_stream("/t/Count")
        assert list(call(b"3", timeout=20)) == [b"3", b"2", b"1"]
        assert list(call(b"0", timeout=20)) == []
        assert sum(map(int, call(b"20000", timeout=60))) == 20_000 * 20_001 // 2


def test_many_messages_may_have_many_answers(streaming: Transport) -> None:
    with channel_to(streaming) as channel:
        call = channel.stream_stream("/t/Each")
        messages = [b"a", b"", b"b" * 500_000, b"c"]
        assert list(call(iter(messages), timeout=20)) == [message * 2 for message in messages if message]
        assert list(call(iter([]), timeout=20)) == []
    with grpc.insecure_channel(streaming.target, compression=grpc.Compression.Gzip) as channel:
        call = channel.stream_stream("/t/Each")
        assert list(call(iter([b"z" * 10_000] * 3), timeout=20)) == [b"z" * 20_000] * 3
    assert streaming.held == 0


@pytest.mark.parametrize(
    ("last", "code", "details"),
    [(b"fail", grpc.StatusCode.ABORTED, "as asked"), (b"break", grpc.StatusCode.INTERNAL, "internal error")],
)
def test_a_stream_may_fail_behind_its_answers(
    streaming: Transport, last: bytes, code: grpc.StatusCode, details: str
) -> None:
    with channel_to(streaming) as channel:
        answers = channel.stream_stream("/t/Each")(iter([b"a", last, b"b"]), timeout=20)
        assert next(answers) == b"aa"
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert (caught.value.code(), caught.value.details()) == (code, details)


def test_a_message_of_a_stream_has_its_limit() -> None:
    with serving({}, streams=STREAMS, max_request_bytes=1000) as server, channel_to(server) as channel:
        answers = channel.stream_stream("/t/Each")(iter([b"x" * 1000, b"x" * 1001]), timeout=20)
        assert next(answers) == b"x" * 2000
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert server.refused() == {"request_bytes": 1}


def test_messages_of_a_stream_may_be_cut_anywhere(streaming: Transport) -> None:
    data = grpc_message(b"one") + grpc_message(b"two") + grpc_message(b"three")
    answer = grpc_message(b"oneone") + grpc_message(b"twotwo") + grpc_message(b"threethree")
    for size in (1, 4, 7, 9):
        parts = [frame(DATA, 0, 1, data[start : start + size]) for start in range(0, len(data), size)]
        with RawClient(streaming.port, frame(HEADERS, END_HEADERS, 1, request_headers(b"/t/Each")), *parts) as client:
            client.read_until(lambda client=client: client.data() == answer)  # type: ignore[misc]
            assert client.ended() == set()
            client.send(frame(DATA, END_STREAM, 1))
            client.read_until(lambda client=client: client.ended() == {1})  # type: ignore[misc]
    with RawClient(streaming.port, frame(HEADERS, END_HEADERS, 1, request_headers(b"/t/Each"))) as client:
        client.send(frame(DATA, END_STREAM, 1, data[:5]))
        client.read_until(lambda: client.ended() == {1})
        assert b"without a complete message" in client.text(1)


def test_a_cancelled_stream_leaves_nothing(streaming: Transport) -> None:
    more = threading.Event()

    def ask() -> Iterator[bytes]:
        yield b"a"
        more.wait(20)

    with channel_to(streaming) as channel:
        answers = channel.stream_stream("/t/Each")(ask(), timeout=60)
        assert next(answers) == b"aa"
        answers.cancel()
        wait_until(lambda: not streaming.calls, "nothing is under way", 2)
        more.set()


def test_a_streaming_call_does_not_hold_up_a_drain(streaming: Transport) -> None:
    done = threading.Event()

    def ask() -> Iterator[bytes]:
        yield b"a"
        done.wait(60)

    with channel_to(streaming) as channel:
        answers = channel.stream_stream("/t/Each")(ask(), timeout=60)
        assert next(answers) == b"aa"
        assert streaming.idle
        assert streaming.drain().idle
        finished = streaming.start_to_finish()
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        # The details are in the trailers, see below; this client may report the end of the connection instead.
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        done.set()
        finished.result(5)


def test_a_stream_that_a_drain_ends_is_told_why() -> None:
    call = frame(HEADERS, END_HEADERS, 1, request_headers(b"/t/Each")), frame(DATA, 0, 1, grpc_message(b"a"))
    with serving({}, streams=STREAMS) as server:
        with RawClient(server.port, *call) as client:
            client.read_until(lambda: client.data() == grpc_message(b"aa"))
            finished = server.start_to_finish()
            client.read_until(lambda: client.ended() == {1})
            assert b"grpc-status: 14\ngrpc-message: this connection is closed by the server" in client.text(1)
        finished.result(5)


# Noise


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
        with contextlib.suppress(ConnectionResetError):
            while client.recv(65536):
                pass
    with RawClient(fuzzed.port, request(1, b"hi")) as other:
        other.read_until(lambda: 1 in other.ended())
        assert other.data(1) == grpc_message(b"hi")


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=60), st.binary(max_size=60), st.booleans())
def test_any_message_is_answered(fuzzed: Transport, first: bytes, second: bytes, ends: bool) -> None:
    """Whatever the gRPC framing says, in two pieces."""
    with RawClient(fuzzed.port, frame(HEADERS, END_HEADERS, 1, request_headers(grpc_encoding="gzip"))) as client:
        client.send(frame(DATA, 0, 1, first), frame(DATA, END_STREAM if ends else 0, 1, second))
        if ends:
            client.read_until(lambda: 1 in client.ended())
            assert not client.closed
    wait_until(lambda: not fuzzed.calls and fuzzed.held == 0, "nothing is under way")
