import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from bookserve.clients.gateway_client import GatewayClient
from bookserve.serving.gateway.main import reserve
from stand_in_models import FakeServer, serve


@pytest.fixture(scope="module")
def model_server() -> Iterator[FakeServer]:
    fake = FakeServer()
    server = serve(fake)
    yield fake
    fake.gate.set()
    server.stop(None).wait()


@dataclass
class Gateway:
    """A gateway process."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


def start_gateway(log: Path, *arguments: str) -> Gateway:
    command = [str(Path(sys.executable).with_name("bookserve")), "gateway", "--port=0", *arguments]
    with log.open("w") as errors_file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors_file, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    match = re.fullmatch(r"gateway ready on http://127\.0\.0\.1:(\d+) \(model server .*\)\n", line)
    assert match, f"{line!r}\n{log.read_text()}"
    return Gateway(process, int(match[1]), log)


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Callable[..., Gateway]]:
    running: list[Gateway] = []

    def start_one(*arguments: str) -> Gateway:
        running.append(start_gateway(tmp_path_factory.mktemp("gateway") / "log", *arguments))
        return running[-1]

    yield start_one
    for gateway in running:
        if gateway.process.poll() is None:
            gateway.process.kill()
        gateway.process.wait()
        assert gateway.process.stdout is not None
        gateway.process.stdout.close()


@pytest.fixture(scope="module")
def gateway(model_server, start) -> Gateway:
    """One gateway for all tests that leave it as it is."""
    return start(f"--model-server={model_server.target}", "--body-seconds=1")


def wait_until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


PIXELS = json.dumps({"pixels": [[7] * 28] * 28})


def _connect(gateway: Gateway) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=15)


def _get(gateway: Gateway, path: str) -> tuple[int, dict[str, Any]]:
    connection = _connect(gateway)
    connection.request("GET", path)
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


def _post(gateway: Gateway, body: object = PIXELS, **headers: str) -> tuple[int, dict[str, Any]]:
    connection = _connect(gateway)
    connection.request("POST", "/api/v1/mnist", body, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


def test_a_picture_goes_all_the_way(gateway) -> None:
    pixels = np.zeros((28, 28), np.uint8)
    pixels[10:18, 12:16] = 200  # mean 8.16
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    client = GatewayClient(gateway.url)
    answer = client.mnist([file.getvalue(), file.getvalue()])
    assert [prediction["class"] for prediction in answer["predictions"]] == ["8", "8"]
    assert answer["version"] == 3
    assert client.ready() == {"status": "ready", "models": {"mnist": 3}}
    assert client.model("mnist")["versions"][0]["state"] == "AVAILABLE"


def test_it_starts_without_a_model_server_and_finds_it_when_it_comes(start) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    gateway = start(f"--model-server=127.0.0.1:{port}")
    status, problem = _get(gateway, "/readyz")
    assert status == 503
    assert f"127.0.0.1:{port}" in problem["detail"]
    assert "make serve" in problem["detail"]
    assert _post(gateway)[0] == 503
    assert _get(gateway, "/healthz") == (200, {"status": "ok"})
    server = serve(FakeServer(), port)
    wait_until(lambda: _get(gateway, "/readyz")[0] == 200)
    assert _post(gateway)[0] == 200
    server.stop(None).wait()
    wait_until(lambda: _get(gateway, "/readyz")[0] == 503)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_answers_what_is_in_flight_and_exits_with_0(start, model_server, number) -> None:
    gateway = start(f"--model-server={model_server.target}", "--drain-seconds=0.5")
    model_server.running = 0
    kept = _connect(gateway)
    kept.request("GET", "/healthz")
    kept.getresponse().read()
    model_server.gate.clear()
    with futures.ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(_post, gateway) for _ in range(4)]
        wait_until(lambda: model_server.running == 4)
        gateway.process.send_signal(number)
        wait_until(lambda: _get(gateway, "/readyz")[0] == 503)
        kept.request("GET", "/healthz")  # on a connection from before the signal
        response = kept.getresponse()
        assert (response.status, response.read()) == (200, b'{"status":"ok"}')
        assert response.headers["Connection"] == "close"
        wait_until(lambda: not _listens(gateway.port))
        assert gateway.process.poll() is None
        model_server.gate.set()
        answers = [answer.result(15) for answer in waiting]
    assert [(status, answer["predictions"][0]["class"]) for status, answer in answers] == [(200, "7")] * 4
    assert gateway.process.wait(15) == 0
    kept.close()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_it_is_one_process(gateway) -> None:
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children")
    if not children.exists():
        pytest.skip("this kernel does not list children")
    _post(gateway)
    assert children.read_text() == ""


def test_a_taken_port_is_an_error_that_says_so(gateway) -> None:
    with pytest.raises(click.ClickException) as caught:
        reserve("127.0.0.1", gateway.port)
    assert caught.value.message == f"port {gateway.port} of 127.0.0.1 is taken: choose another with --port"


def test_an_address_of_another_machine_is_an_error_that_says_so() -> None:
    with pytest.raises(click.ClickException, match=r"cannot listen on 192\.0\.2\.1"):
        reserve("192.0.2.1", 0)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        head = "POST /api/v1/mnist HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 104857600\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 413 ")
    assert "connection: close" in answer.lower()
    assert "application/problem+json" in answer
    assert "--max-body-bytes" in answer


def test_a_chunked_body_counts_as_it_comes(start, model_server) -> None:
    gateway = start(f"--model-server={model_server.target}", "--max-body-bytes=100000")
    small, large = [PIXELS.encode()], (b"x" * 10_000 for _ in range(100))
    assert _post(gateway, iter(small))[0] == 200
    try:
        status, problem = _post(gateway, large)
    except (BrokenPipeError, ConnectionResetError):
        status, problem = 413, {"detail": "100000"}  # it hung up while the body was still being sent
    assert status == 413
    assert "100000" in problem["detail"]


def test_many_small_chunks_are_no_trouble(gateway) -> None:
    chunk = b"1\r\nx\r\n"
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        head = (
            b"POST /api/v1/mnist HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        try:
            connection.sendall(head + chunk * 500_000 + b"0\r\n\r\n")
            answer = connection.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            answer = b"HTTP/1.1 400 "
    assert answer.split()[1] == b"400"
    assert time.monotonic() - started < 3
    assert _get(gateway, "/healthz")[0] == 200


def test_slow_bodies_take_no_thread_and_end(gateway) -> None:
    connections = [socket.create_connection(("127.0.0.1", gateway.port), timeout=10) for _ in range(100)]
    for connection in connections:
        connection.sendall(b"POST /api/v1/mnist HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    started = time.monotonic()
    assert _post(gateway)[0] == 200
    assert time.monotonic() - started < 1
    for connection in connections:
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
        connection.close()


def test_refusals_are_counted(start) -> None:
    gateway = start("--max-body-bytes=1024", "--drain-seconds=0")
    assert _post(gateway, b"x" * 2000)[0] == 413
    connection = _connect(gateway)
    connection.request("GET", "/metrics")
    assert b'bookserve_gateway_refused_total{status="413"} 1\n' in connection.getresponse().read()
    connection.close()


def test_more_requests_than_may_wait_are_503(start, model_server) -> None:
    gateway = start(f"--model-server={model_server.target}", "--concurrent=2", "--waiting=2")
    model_server.running = 0
    model_server.gate.clear()
    with futures.ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(_post, gateway) for _ in range(4)]
        wait_until(lambda: model_server.running == 2)
        wait_until(lambda: _post(gateway)[0] == 503)
        model_server.gate.set()
        statuses = [answer.result(15)[0] for answer in waiting]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 3
    assert _post(gateway)[0] == 200


def test_paths_are_decoded_once_and_the_log_cannot_be_forged(start) -> None:
    gateway = start("--drain-seconds=0")
    assert _get(gateway, "/a%0d%0a%7B%22event%22:1%7D%1b%5b2J")[0] == 404
    assert _get(gateway, "/%2568ealthz")[0] == 404
    assert _get(gateway, "/%68ealthz")[0] == 200
    assert _get(gateway, "/%ff")[0] in (400, 404)
    gateway.stop()
    log = gateway.log.read_bytes()
    lines = [json.loads(line) for line in log.splitlines()]
    assert {line["event"] for line in lines} <= {"request", "draining", "stopped", "problem", "refused"}
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f-\xff]", log)
    assert any(line.get("path", "").startswith("/a\r\n") for line in lines)


def test_broken_http_harms_nobody(gateway) -> None:
    rng = np.random.default_rng(0)
    bodies = [
        rng.bytes(2000),
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /api/v1/mnist HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    ]
    for body in bodies:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=3) as connection:
            connection.sendall(body)
            connection.shutdown(socket.SHUT_WR)
            assert b" 200 " not in connection.recv(65536)
    assert _post(gateway)[0] == 200


def test_a_signal_during_the_start_leaves_no_process(tmp_path) -> None:
    with (tmp_path / "log").open("w") as log:
        command = [str(Path(sys.executable).with_name("bookserve")), "gateway", "--port=0", "--drain-seconds=0"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) in (0, -signal.SIGTERM)
