"""Many or hostile clients at a running server: its memory, the others' requests, what is shed. Prints figures."""

import asyncio
import contextlib
import os
import random
import re
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from load import REST_BODY, REST_PATH, predict_request
from model_servers import Server, StartServer, answers, wait_until, write_scale_model
from raw_http2 import (
    DATA,
    END_HEADERS,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
    grpc_message,
    request,
    request_headers,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PREDICT = b"/tensorflow.serving.PredictionService/Predict"
POST = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (REST_PATH.encode(), len(REST_BODY), REST_BODY)


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    base = tmp_path / "models" / "scale"
    write_scale_model(base, 1, 2.0)
    return ["--model_name=scale", f"--model_base_path={base}"]


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 16_384), most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))


def resident_kib(server: Server) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


def say(text: str) -> None:
    print(text)  # noqa: T201 - figures to read, with pytest -s


def connect(port: int, *data: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.sendall(b"".join(data))
    return client


def is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)] * 1000


def probe(server: Server) -> float:
    began = time.monotonic()
    assert answers(f"{server.url}/healthz")
    return time.monotonic() - began


def test_idle_connections_cost_little(start_server: StartServer, flags: list[str]) -> None:
    server = start_server(*flags)
    with contextlib.ExitStack() as stack:
        for name, port, hello, most in (
            ("REST", server.rest_port, b"", 16),
            ("gRPC", server.grpc_port, PREFACE + frame(SETTINGS, 0, 0), 32),  # the library takes 20 to 23
        ):
            stack.enter_context(connect(port, hello))
            probe(server)
            before = resident_kib(server)
            for _ in range(1000):
                stack.enter_context(connect(port, hello))
            times = [probe(server) for _ in range(100)]
            each = (resident_kib(server) - before) / 1000
            say(f"1,000 idle {name} connections: {each:.1f} KiB each, probes p99 {p99(times):.1f} ms")
            assert each < most


def test_two_hundred_slow_clients_are_closed_in_time(start_server: StartServer, flags: list[str]) -> None:
    """With the default limits: 30 seconds for a request, and 10 for a handshake."""
    server = start_server(*flags)
    ways = [
        (server.rest_port, b"GET /v1/models/scale HTTP/1.1\r\nHost: x\r\nX-"),
        (server.rest_port, b"POST /v1/models/scale:predict HTTP/1.1\r\nContent-Length: 99999\r\n\r\n"),
        (server.grpc_port, PREFACE[:10]),
    ]
    slow = [connect(*ways[number % 3]) for number in range(200)]
    began = time.monotonic()
    times = []
    while slow:
        assert time.monotonic() - began < 120
        times.append(probe(server))
        for client in list(slow):
            if is_closed(client):
                slow.remove(client)
                client.close()
                continue
            with contextlib.suppress(OSError):
                client.send(b"x")
        time.sleep(0.5)
    say(f"200 slow clients: closed after {time.monotonic() - began:.1f} s, probes p99 {p99(times):.1f} ms")


def test_rapid_resets_do_not_harm_others(start_server: StartServer, flags: list[str]) -> None:
    server = start_server(*flags)
    before = resident_kib(server)
    headers = request_headers(PREDICT)
    resets = b"".join(
        frame(HEADERS, END_HEADERS, stream, headers) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
        for stream in range(1, 40_001, 2)
    )
    asked = predict_request()
    with grpc.insecure_channel(server.target) as channel, ThreadPoolExecutor(1) as pool:
        call = channel.unary_unary(PREDICT.decode())

        def attack() -> None:
            for _ in range(5):
                with (
                    connect(server.grpc_port, PREFACE, frame(SETTINGS, 0, 0)) as client,
                    contextlib.suppress(OSError),
                ):
                    client.sendall(resets)

        attacking = pool.submit(attack)
        asks = 0
        while not attacking.done() or asks < 100:
            assert call(asked, timeout=60)
            asks += 1
        attacking.result()
    grown = resident_kib(server) - before
    say(f"5 x 20,000 resets: {asks} of {asks} other calls answered, {grown} KiB more")
    assert grown < 32 << 10


def test_random_bytes_and_frames_leave_the_server_alive(start_server: StartServer, flags: list[str]) -> None:
    server = start_server(*flags)
    noise = random.Random(7)
    seeds = [
        PREFACE + frame(SETTINGS, 0, 0) + request(1, predict_request(), PREDICT),
        PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, request_headers(PREDICT)),
        POST,
        b"POST /v1/models/scale:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ]
    rounds = 0
    end = time.monotonic() + 60
    while time.monotonic() < end:
        data = bytearray(noise.choice(seeds))
        for _ in range(noise.randint(1, 8)):
            place = noise.randrange(len(data))
            match noise.randrange(4):
                case 0:
                    data[place] = noise.randrange(256)
                case 1:
                    del data[place : place + noise.randrange(20)]
                case 2:
                    data[place:place] = noise.randbytes(noise.randrange(50))
                case 3:
                    data[place:place] = frame(
                        noise.randrange(12), noise.randrange(256), noise.randrange(8), noise.randbytes(8)
                    )
        with connect(noise.choice((server.grpc_port, server.rest_port)), bytes(data)) as client:
            client.settimeout(0.005)
            with contextlib.suppress(OSError):
                client.recv(65536)
        rounds += 1
    probe(server)
    with grpc.insecure_channel(server.target) as channel:
        assert channel.unary_unary(PREDICT.decode())(predict_request(), timeout=60)
    assert "Traceback" not in server.log.read_text()
    say(f"{rounds} mutated requests: alive")
    assert server.stop(timeout=60) == 0


async def ask_rest(port: int, end: float, times: list[float]) -> Counter[str]:
    seen: Counter[str] = Counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < end:
        began = time.monotonic()
        writer.write(POST)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.findall(rb"(?i)content-length: (\d+)", head)
        await reader.readexactly(int(length[0]))
        seen[head.split(b" ")[1].decode()] += 1
        times.append(time.monotonic() - began)
    writer.close()
    return seen


async def ask_grpc(target: str, number: int, end: float, times: list[float]) -> Counter[str]:
    seen: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.unary_unary(PREDICT.decode())
        asked = predict_request()
        while time.monotonic() < end:
            began = time.monotonic()
            try:
                await call(asked, timeout=60)
                seen["200"] += 1
            except grpc.aio.AioRpcError as error:
                seen[error.code().name] += 1
            times.append(time.monotonic() - began)
    return seen


def test_ten_times_the_connections_are_served_or_told_so(start_server: StartServer, flags: list[str]) -> None:
    server = start_server(*flags, "--max_queued_requests=64")
    ways: dict[str, Callable[[int, float, list[float]], object]] = {
        "REST": lambda number, end, times: ask_rest(server.rest_port, end, times),
        "gRPC": lambda number, end, times: ask_grpc(server.target, number, end, times),
    }

    async def run(way: str, connections: int) -> tuple[Counter[str], list[float]]:
        times: list[float] = []
        end = time.monotonic() + 8
        counts = await asyncio.gather(*[ways[way](number, end, times) for number in range(connections)])  # type: ignore[call-overload]
        return sum(counts, Counter()), times

    for way in ways:
        seen, times = asyncio.run(run(way, 16))
        before = resident_kib(server)
        say(f"{way}  16 connections: {dict(seen)}, p99 {p99(times):.1f} ms")
        seen, times = asyncio.run(run(way, 160))
        grown = resident_kib(server) - before
        say(f"{way} 160 connections: {dict(seen)}, p99 {p99(times):.1f} ms, {grown} KiB more")
        assert set(seen) <= {"200", "429", "RESOURCE_EXHAUSTED"}
        assert grown < 32 << 10
        seen, times = asyncio.run(run(way, 16))
        say(f"{way}  16 connections: {dict(seen)}, p99 {p99(times):.1f} ms")


def test_disconnecting_clients_leave_nothing_behind(start_server: StartServer, flags: list[str]) -> None:
    server = start_server(*flags)

    def files() -> int:
        return len(os.listdir(f"/proc/{server.pid}/fd"))  # noqa: PTH208

    probe(server)
    before = files()
    for number in range(100):
        body = grpc_message(predict_request())
        head = PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, request_headers(PREDICT))
        connect(server.grpc_port, head, frame(DATA, 1, 1, body)[: 9 + number]).close()
        rest = b"POST %b HTTP/1.1\r\nContent-Length: 5000\r\n\r\n{" % REST_PATH.encode()
        connect(server.rest_port, rest).close()
        probe(server)
    wait_until(lambda: files() <= before, "every connection is closed")
    assert server.stop(signal.SIGTERM, timeout=60) == 0
    assert "Traceback" not in server.log.read_text()
