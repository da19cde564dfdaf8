"""Floods of HTTP/2 and HTTP/1.1 at a real server: others are served at once, its memory stays, the flood has an end.

The kinds are those of the advisories of 2019 to 2025. Figures are printed: `pytest -s`.
"""

import contextlib
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import hpack
import pytest

from load import predict_request
from model_servers import Server, server_starter, write_scale_model
from raw_http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    RawClient,
    frame,
    grpc_message,
    request_headers,
    settings_frame,
    uint32,
    window_update,
)

PREDICT = b"/tensorflow.serving.PredictionService/Predict"
SECONDS = 1.0  # of each flood
MOST_WAIT = 1.0  # for /healthz, 19 times of 20; much more than the figures, for a machine with other work
MOST_GROWTH = 16 << 10  # KiB
MOST_GROWTH_OF_CALLS = 64 << 10  # where a flood keeps 2,048 calls under way; it comes only once, see below
MOST_BYTES = 256 << 20  # that a flood may send


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("floods")
    write_scale_model(folder / "scale", 1, 2.0)
    with server_starter(folder) as start:
        server = start("--model_name=scale", f"--model_base_path={folder / 'scale'}", "--request_seconds=5")
        # What is allocated with the first requests is not of a flood.
        with grpc.insecure_channel(server.target) as channel:
            for _ in range(500):
                channel.unary_unary(PREDICT.decode())(predict_request(), timeout=60)
        for _ in range(100):
            probe(server)
        yield server
        assert server.process.poll() is None
        assert "Traceback" not in server.log.read_text()


def resident_kib(server: Server) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


def probe(server: Server) -> float:
    """Seconds that /healthz takes on a connection of its own."""
    began = time.monotonic()
    with urllib.request.urlopen(f"{server.url}/healthz", timeout=30) as response:
        assert response.status == 200
    return time.monotonic() - began


@dataclass
class Flood:
    """What became of it."""

    patience: float  # seconds for the server to close, after the flood
    sent: int = 0
    received: int = 0
    closed: bool = False

    def run(self, port: int, first: bytes, pieces: Iterator[bytes], *, reads: bool) -> None:
        end = time.monotonic() + SECONDS
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client, contextlib.suppress(OSError):
            client.sendall(first)
            client.setblocking(False)
            pending = memoryview(b"")
            while time.monotonic() < end and self.sent < MOST_BYTES and not self.closed:
                pending = pending or memoryview(next(pieces, b""))
                try:
                    count = client.send(pending) if pending else 0
                    self.sent += count
                    pending = pending[count:]
                except BlockingIOError:
                    time.sleep(0.001)
                except OSError:
                    self.closed = True
                if reads or not pending:
                    self._read(client)
            if not self.closed:
                client.setblocking(True)
                client.settimeout(self.patience)
                self._read(client)

    def _read(self, client: socket.socket) -> None:
        try:
            while received := client.recv(1 << 20):
                self.received += len(received)
            self.closed = True
        except (BlockingIOError, TimeoutError):
            pass
        except OSError:
            self.closed = True


def say(name: str, waits: list[float], grown: int, end: str) -> None:
    p50, p95 = waits[len(waits) // 2] * 1000, waits[int(len(waits) * 0.95)] * 1000
    print(f"{name:28s} /healthz p50 {p50:5.1f} p95 {p95:6.1f} ms, {grown:6d} KiB more{end}")  # noqa: T201 - figures


def flood(
    server: Server,
    port: int,
    first: bytes,
    pieces: Iterator[bytes],
    name: str,
    most: int,
    *,
    reads: bool = True,
    cut_off: bool = False,
) -> None:
    """Runs it beside probes, and checks what the others feel of it, and whether it is cut off where it must be."""
    before = highest = resident_kib(server)
    result = Flood(patience=10.0 if cut_off else 0.2)
    thread = threading.Thread(target=result.run, args=(port, first, pieces), kwargs={"reads": reads})
    thread.start()
    waits = [probe(server)]
    while thread.is_alive() or len(waits) < 20:
        waits.append(probe(server))
        highest = max(highest, resident_kib(server))
        time.sleep(0.01)
    thread.join()
    waits.sort()
    say(name, waits, highest - before, f", {result.sent >> 10} KiB sent, {'closed' if result.closed else 'open'}")
    assert waits[int(len(waits) * 0.95)] < MOST_WAIT
    assert highest - before < most
    assert result.closed or not cut_off


def assert_others_unharmed(server: Server) -> None:
    with grpc.insecure_channel(server.target) as channel:
        assert channel.unary_unary(PREDICT.decode())(predict_request(), timeout=60)


# HTTP/2

HELLO = PREFACE + frame(SETTINGS, 0, 0)
CALL = request_headers(PREDICT)
ONE_CALL = HELLO + frame(HEADERS, END_HEADERS, 1, CALL)


def again(*frames: bytes) -> Iterator[bytes]:
    """The same, for ever, some hundred at a time."""
    data = b"".join(frames)
    many = data * max(1, 30_000 // len(data))
    while True:
        yield many


def by_stream(make: Callable[[int], bytes], first: int = 1) -> Iterator[bytes]:
    """Frames of ever new streams."""
    for stream in range(first, 2**31, 200):
        yield b"".join(make(number) for number in range(stream, stream + 200, 2))


def headers(stream: int, flags: int = 0) -> bytes:
    return frame(HEADERS, END_HEADERS | flags, stream, CALL)


def whole(stream: int) -> bytes:
    """A call that is answered."""
    return headers(stream) + frame(DATA, END_STREAM, stream, grpc_message(predict_request()))


def literal(name: bytes, value: bytes) -> bytes:
    """A header field that is not kept in a table."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def churn() -> Iterator[bytes]:
    """Calls that fill the header table anew with each, over and over."""
    encoder = hpack.Encoder()
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", PREDICT), (b":authority", b"x")]
    fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    for stream in range(1, 2**31, 2):
        more = [(b"x-%d-%d" % (stream, number), b"y" * 500) for number in range(12)]
        block = encoder.encode(fields + more)
        yield frame(HEADERS, END_HEADERS, stream, block) + frame(RST_STREAM, 0, stream, uint32(8))


def bombs() -> Iterator[bytes]:
    """Calls whose headers are one byte each, of the table's 4,000."""
    prefix = hpack.Encoder().encode([(b":method", b"POST"), (b":scheme", b"http"), (b":path", PREDICT)])
    big = b"\x40\x01x" + b"\x7f\x81\x1e" + b"y" * 4000  # literal with indexing, of 4,000 bytes
    yield frame(HEADERS, END_HEADERS, 1, prefix + big) + frame(RST_STREAM, 0, 1, uint32(8))
    for stream in range(3, 2**31, 2):
        yield frame(HEADERS, END_HEADERS, stream, prefix + b"\xbe" * 16_000)


FLOODS: dict[str, tuple[bytes, Callable[[], Iterator[bytes]]]] = {
    "SETTINGS (2019-9515)": (HELLO, lambda: again(frame(SETTINGS, 0, 0))),
    "SETTINGS that change windows": (
        HELLO,
        lambda: again(settings_frame(window=1), settings_frame(window=2**31 - 1)),
    ),
    "PING (2019-9512)": (HELLO, lambda: again(frame(PING, 0, 0, bytes(8)))),
    "PRIORITY (2019-9513)": (HELLO, lambda: by_stream(lambda n: frame(PRIORITY, 0, n, uint32(n - 1) + b"\x10"))),
    "unknown frames": (HELLO, lambda: again(frame(99, 0, 0, bytes(8)))),
    "RST_STREAM (2019-9514)": (HELLO, lambda: by_stream(lambda n: headers(n) + frame(DATA, 0, n, b"\xff" * 9))),
    "rapid reset (2023-44487)": (
        HELLO,
        lambda: by_stream(lambda n: headers(n) + frame(RST_STREAM, 0, n, uint32(8))),
    ),
    "rapid reset of whole calls": (HELLO, lambda: by_stream(lambda n: whole(n) + frame(RST_STREAM, 0, n, uint32(8)))),
    "MadeYouReset (2025-8671)": (HELLO, lambda: by_stream(lambda n: whole(n) + window_update(n, 0))),
    "MadeYouReset by overflow": (HELLO, lambda: by_stream(lambda n: whole(n) + window_update(n, 2**31 - 1))),
    "MadeYouReset by PRIORITY": (HELLO, lambda: by_stream(lambda n: whole(n) + frame(PRIORITY, 0, n, b"1234"))),
    "data after END_STREAM": (
        HELLO,
        lambda: by_stream(lambda n: whole(n) + frame(DATA, END_STREAM, n, grpc_message(predict_request()))),
    ),
    "CONTINUATION (2024-27316)": (
        HELLO + frame(HEADERS, 0, 1, CALL),
        lambda: again(frame(CONTINUATION, 0, 1, literal(b"a", b"b") * 200)),
    ),
    "empty CONTINUATION": (HELLO + frame(HEADERS, 0, 1, CALL), lambda: again(frame(CONTINUATION, 0, 1))),
    "empty DATA (2019-9518)": (ONE_CALL, lambda: again(frame(DATA, 0, 1))),
    "padded DATA": (ONE_CALL, lambda: again(frame(DATA, 0x08, 1, b"\xff" + bytes(255)))),
    "empty HEADERS": (HELLO, lambda: by_stream(lambda n: frame(HEADERS, END_HEADERS | END_STREAM, n))),
    "0-length headers (2019-9516)": (
        HELLO + frame(HEADERS, 0, 1, CALL),
        lambda: again(frame(CONTINUATION, 0, 1, literal(b"", b"") * 300)),
    ),
    "resource loop (2019-9513)": (
        HELLO,
        lambda: by_stream(lambda n: headers(n) + frame(PRIORITY, 0, n, uint32(max(0, n - 2)) + b"\xff")),
    ),
    "header table churn": (HELLO, churn),
    "header bombs (2016-6581)": (HELLO, bombs),
    "table size updates": (
        HELLO + frame(HEADERS, 0, 1, b""),
        lambda: again(frame(CONTINUATION, 0, 1, b"\x20\x3f\xe1\x1f" * 500)),
    ),
    "WINDOW_UPDATE": (ONE_CALL, lambda: again(window_update(1, 1), window_update(0, 1))),
    "WINDOW_UPDATE overflow": (ONE_CALL, lambda: again(window_update(0, 2**31 - 1))),
    "calls without a message": (HELLO, lambda: by_stream(lambda n: headers(n, END_STREAM))),
    "calls that do not end": (HELLO, lambda: by_stream(headers)),
    "not gRPC": (
        HELLO,
        lambda: by_stream(
            lambda n: frame(HEADERS, END_HEADERS | END_STREAM, n, request_headers(PREDICT, content_type="text/html"))
        ),
    ),
}
# These are refused by the end of their connection. Others cost the server no more than proper calls do, or have their
# calls refused, and go on.
CUT_OFF = (
    "rapid reset (2023-44487)",
    "rapid reset of whole calls",
    "CONTINUATION (2024-27316)",
    "0-length headers (2019-9516)",
    "header bombs (2016-6581)",
    "table size updates",
    "WINDOW_UPDATE overflow",
)
# These keep as many calls under way as one connection may have, each of some 20 KiB.
MANY_CALLS = ("RST_STREAM (2019-9514)", "calls without a message", "calls that do not end", "resource loop (2019-9513)")
FAST = (
    "SETTINGS (2019-9515)",
    "PING (2019-9512)",
    "RST_STREAM (2019-9514)",
    "rapid reset (2023-44487)",
    "MadeYouReset (2025-8671)",
    "CONTINUATION (2024-27316)",
    "empty DATA (2019-9518)",
    "0-length headers (2019-9516)",
    "header table churn",
)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in FAST)) for kind in FLOODS])
def test_a_flood_of_http2_harms_nobody(server: Server, kind: str) -> None:
    first, pieces = FLOODS[kind]
    most = MOST_GROWTH_OF_CALLS if kind in MANY_CALLS else MOST_GROWTH
    flood(server, server.grpc_port, first, pieces(), kind, most, cut_off=kind in CUT_OFF)
    assert_others_unharmed(server)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MANY_CALLS)
def test_a_flood_that_comes_again_takes_no_more_memory(server: Server, kind: str) -> None:
    first, pieces = FLOODS[kind]
    for most in (MOST_GROWTH_OF_CALLS, MOST_GROWTH_OF_CALLS, MOST_GROWTH, MOST_GROWTH, MOST_GROWTH):
        flood(server, server.grpc_port, first, pieces(), kind, most)


def test_a_client_that_gives_no_window_holds_its_own_answers_alone(server: Server) -> None:
    """CVE-2019-9517 and the stall of CVE-2019-9511: a thousand answers that nobody reads."""
    before = resident_kib(server)
    with RawClient(server.grpc_port, settings=settings_frame(window=0)) as client:
        client.send(*[whole(stream) for stream in range(1, 2001, 2)])
        client.settle()
        waits = sorted(probe(server) for _ in range(20))
        grown = resident_kib(server) - before
        assert client.data() == b""
        assert_others_unharmed(server)
        client.send(settings_frame(window=65_535), window_update(0, 1 << 20))
        client.read_until(lambda: len(client.ended()) == 1000)
        assert len({client.data(stream) for stream in range(1, 2001, 2)}) == 1
    say("1,000 answers, no window", waits, grown, "")
    assert waits[18] < MOST_WAIT
    assert grown < MOST_GROWTH_OF_CALLS


def test_windows_that_open_byte_by_byte_are_cheap(server: Server) -> None:
    """CVE-2019-9511."""
    with RawClient(server.grpc_port, settings=settings_frame(window=0)) as client:
        client.send(*[whole(stream) for stream in range(1, 1001, 2)])
        client.settle()
        waits = []
        for _ in range(30):
            client.send(*[window_update(stream, 1) for stream in range(1, 1001, 2)])
            waits.append(probe(server))
        client.read_until(lambda: len(client.data()) == 30 * 500)
    waits.sort()
    say("windows of one byte", waits, 0, "")
    assert waits[28] < MOST_WAIT


# HTTP/1.1

POST = b"POST /v1/models/scale:predict HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

HTTP1_FLOODS: dict[str, tuple[bytes, Callable[[], Iterator[bytes]]]] = {
    "a header without end": (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", lambda: again(b"x" * 30_000)),
    "headers without end": (b"GET / HTTP/1.1\r\nHost: x\r\n", lambda: again(b"a: b\r\n")),
    "empty lines": (b"\r\n", lambda: again(b"\r\n")),
    "chunks of one byte": (CHUNKED, lambda: again(b"1\r\nx\r\n")),
    "a chunk's extension": (CHUNKED + b"1;", lambda: again(b"x")),
    "a chunk size without end": (CHUNKED, lambda: again(b"0")),
    "a trailer without end": (CHUNKED + b"0\r\nx: ", lambda: again(b"x")),
    "a body above its limit": (POST + b"Content-Length: 900000000\r\n\r\n", lambda: again(b"x" * 30_000)),
    "requests, answers unread": (GET, lambda: again(GET)),
}
GOES_ON = ("requests, answers unread", "empty lines")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * ("chunks" not in kind)) for kind in HTTP1_FLOODS]
)
def test_a_flood_of_http1_harms_nobody(server: Server, kind: str) -> None:
    first, pieces = HTTP1_FLOODS[kind]
    reads, cut_off = "unread" not in kind, kind not in GOES_ON
    flood(server, server.rest_port, first, pieces(), kind, MOST_GROWTH, reads=reads, cut_off=cut_off)
    assert_others_unharmed(server)
