import contextlib
import io
import json
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from book_contracts import write_manifests
from bookserve.clients.gateway_client import GatewayClient
from bookserve.serving.gateway.main import main, reserve
from gateway_servers import BOOKSERVE, Gateway, start_gateway
from http_calls import Answer, ask, connect, get, open_raw, post, read_raw
from stand_in_models import FakeServer, serve


@pytest.fixture(scope="module")
def model_server() -> Iterator[FakeServer]:
    fake = FakeServer()
    server = serve(fake)
    yield fake
    fake.gate.set()
    server.stop(None).wait()


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Callable[..., Gateway]]:
    running: list[Gateway] = []

    store = f"--models-dir={write_manifests(tmp_path_factory.mktemp('models'))}"

    def start_one(*arguments: str, host: str = "127.0.0.1") -> Gateway:
        running.append(start_gateway(tmp_path_factory.mktemp("gateway") / "log", store, *arguments, host=host))
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


MNIST = "/api/v1/mnist"
PIXELS = json.dumps({"pixels": [[7] * 28] * 28})


def _post(gateway: Gateway, body: bytes | str | Iterable[bytes] = PIXELS) -> Answer:
    return post(gateway.port, MNIST, body)


def _metrics(gateway: Gateway) -> str:
    return get(gateway.port, "/metrics").body.decode()


def _head(*lines: str, path: str = MNIST, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


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
    answer = get(gateway.port, "/readyz")
    assert answer.status == 503
    assert f"127.0.0.1:{port}" in answer.problem()["detail"]
    assert "make serve" in answer.problem()["detail"]
    assert _post(gateway).status == 503
    assert get(gateway.port, "/healthz").json() == {"status": "ok"}
    server = serve(FakeServer(), port)
    wait_until(lambda: get(gateway.port, "/readyz").status == 200)
    assert _post(gateway).status == 200
    server.stop(None).wait()
    wait_until(lambda: get(gateway.port, "/readyz").status == 503)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_answers_what_is_in_flight_and_exits_with_0(start, model_server, number) -> None:
    gateway = start(f"--model-server={model_server.target}", "--drain-seconds=0.5")
    model_server.running = 0
    kept = connect(gateway.port)
    assert ask(kept, "GET", "/healthz").headers["Connection"] is None
    model_server.gate.clear()
    with futures.ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(_post, gateway) for _ in range(4)]
        wait_until(lambda: model_server.running == 4)
        gateway.process.send_signal(number)
        wait_until(lambda: get(gateway.port, "/readyz").status == 503)
        answer = ask(kept, "GET", "/healthz")  # on a connection from before the signal
        assert (answer.status, answer.body) == (200, b'{"status":"ok"}')
        assert answer.headers["Connection"] == "close"
        wait_until(lambda: not _listens(gateway.port))
        assert gateway.process.poll() is None
        model_server.gate.set()
        answers = [answer.result(15) for answer in waiting]
    assert [(answer.status, answer.json()["predictions"][0]["class"]) for answer in answers] == [(200, "7")] * 4
    assert gateway.process.wait(15) == 0
    kept.close()


def test_a_second_signal_ends_it_at_once(start, model_server) -> None:
    gateway = start(f"--model-server={model_server.target}", "--drain-seconds=300")
    gateway.process.send_signal(signal.SIGTERM)
    wait_until(lambda: get(gateway.port, "/readyz").status == 503)
    assert gateway.stop() == 1
    assert '"killed"' in gateway.log.read_text()


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
    command = [BOOKSERVE, "gateway", f"--port={gateway.port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"Error: port {gateway.port} of 127.0.0.1 is taken: choose another with --port\n"


def test_it_listens_on_an_address_of_ipv6(start) -> None:
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    gateway = start("--bind=::1", host="[::1]")
    with socket.create_connection(("::1", gateway.port), timeout=10) as connection:
        connection.sendall(_head("Connection: close", path="/healthz", method="GET"))
        assert read_raw(connection).startswith(b"HTTP/1.1 200 ")
    assert not _listens(gateway.port)  # at 127.0.0.1


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_an_address_of_another_machine_is_an_error_that_says_so() -> None:
    with pytest.raises(click.ClickException, match=r"cannot listen on 192\.0\.2\.1"):
        reserve("192.0.2.1", 0)


DECLARED = _head("Content-Length: 104857600")
CHUNKED = _head("Transfer-Encoding: chunked") + b"6400000\r\n"  # one chunk of 100 MiB


@pytest.mark.parametrize(("head", "body"), [(DECLARED, b""), (CHUNKED, b"x" * 100_001)], ids=["declared", "chunked"])
def test_an_upload_over_the_limit_is_413_with_the_reason(small_gateway, head, body) -> None:
    with open_raw(small_gateway.port, head + body) as connection:
        answer = read_raw(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert b"application/problem+json" in answer
    document = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert document["status"] == 413
    assert "100000 bytes (--max-body-bytes)" in document["detail"]
    assert re.fullmatch("[0-9a-f]{32}", document["request_id"])
    assert 'bookserve_gateway_refused_total{status="413"} ' in _metrics(small_gateway)


@pytest.mark.parametrize("head", [DECLARED, CHUNKED], ids=["declared", "chunked"])
def test_little_is_read_of_an_upload_over_the_limit(small_gateway, head) -> None:
    sent = 0
    with open_raw(small_gateway.port, head) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while sent < 100 << 20:
            sent += connection.send(b"x" * 65536)
    assert sent < 16 << 20  # the gateway's part is less: the kernel's buffers hold some, too


@pytest.fixture(scope="module")
def small_gateway(start) -> Gateway:
    """One whose bodies may have 100,000 bytes."""
    return start("--max-body-bytes=100000", "--drain-seconds=0")


def test_a_chunked_body_within_the_limit_is_as_good_as_any(gateway) -> None:
    assert _post(gateway, iter([PIXELS.encode()[:100], PIXELS.encode()[100:]])).status == 200


def test_half_a_million_chunks_of_one_byte_are_refused(start, model_server) -> None:
    gateway = start(
        f"--model-server={model_server.target}", "--body-seconds=60"
    )  # so that it is not the time that ends it
    with open_raw(gateway.port, _head("Transfer-Encoding: chunked")) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it hangs up long before the end
            connection.sendall(b"1\r\nx\r\n" * 500_000 + b"0\r\n\r\n")
        answer = read_raw(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert 'bookserve_gateway_refused_total{status="400"} ' in _metrics(gateway)
    assert _post(gateway).status == 200


def test_200_slow_clients_take_no_thread_and_are_closed(start, model_server) -> None:
    gateway = start(f"--model-server={model_server.target}", "--body-seconds=3")
    assert _post(gateway).status == 200
    threads = _threads(gateway)
    bodies = [open_raw(gateway.port, _head("Content-Length: 1000")) for _ in range(100)]
    heads = [open_raw(gateway.port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: ") for _ in range(100)]
    open_ones = {*bodies, *heads}
    answers: dict[socket.socket, bytes] = {}
    probed = 0
    deadline = time.monotonic() + 60
    while open_ones:
        assert time.monotonic() < deadline, f"{len(open_ones)} were not closed"
        for connection in list(open_ones):
            try:
                connection.sendall(b"a")
            except (BrokenPipeError, ConnectionResetError):
                answers.setdefault(connection, b"")
        if len(open_ones) == 200:
            assert get(gateway.port, "/healthz").status == 200
            assert _post(gateway).status == 200
            assert _threads(gateway) <= threads + 1
            probed += 1
        for connection in select.select(list(open_ones), [], [], 0.2)[0]:
            answers[connection] = read_raw(connection)
        open_ones -= answers.keys()
    assert probed > 1
    assert all(answers[connection].startswith(b"HTTP/1.1 408 ") for connection in bodies)
    assert b"did not arrive within 3 s (--body-seconds)" in answers[bodies[0]]
    assert not any(b" 200 " in answers[connection] for connection in heads)
    assert 'bookserve_gateway_refused_total{status="408"} 100.0\n' in _metrics(gateway)
    for connection in [*bodies, *heads]:
        connection.close()


def test_a_client_that_goes_on_after_its_refusal_is_cut_off(start, model_server) -> None:
    """The library reads a chunk size of more and more zeros for as long as they come."""
    gateway = start(f"--model-server={model_server.target}", "--body-seconds=0.5")
    deadline = time.monotonic() + 8
    connection = open_raw(gateway.port, _head("Transfer-Encoding: chunked"))
    with connection, pytest.raises(ConnectionError):  # noqa: PT012 - whichever of the sends it is
        while time.monotonic() < deadline:
            connection.sendall(b"0" * 30_000)
    assert 'bookserve_gateway_refused_total{status="408"} 1.0\n' in _metrics(gateway)


def _threads(gateway: Gateway) -> int:
    """How many threads the process has, or 0 where the system does not show that."""
    status = Path(f"/proc/{gateway.process.pid}/status")
    match = re.search(r"^Threads:\s+(\d+)$", status.read_text(), re.M) if status.exists() else None
    return int(match[1]) if match else 0


def test_more_requests_than_may_wait_are_503(start, model_server) -> None:
    gateway = start(f"--model-server={model_server.target}", "--concurrent=2", "--waiting=2")
    model_server.running = 0
    model_server.gate.clear()
    with futures.ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(_post, gateway) for _ in range(4)]
        wait_until(lambda: model_server.running == 2)
        wait_until(lambda: _post(gateway).status == 503)
        refused = _post(gateway)
        model_server.gate.set()
        statuses = [answer.result(15).status for answer in waiting]
    assert refused.headers["Retry-After"] == "1"
    assert "full" in refused.problem()["detail"]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 3
    assert _post(gateway).status == 200
    assert 'bookserve_gateway_refused_total{status="503"} ' in _metrics(gateway)


def test_names_with_underscores_do_not_pass_for_others(gateway) -> None:
    answer = get(gateway.port, "/healthz", {"X_Request_ID": "forged"})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])
    answer = get(gateway.port, "/healthz", {"X_Request_ID": "forged", "X-Request-ID": "mine"})
    assert answer.headers["X-Request-ID"] == "mine"
    answer = get(gateway.port, "/healthz", {"X-Request-ID": "mine", "X_Request_ID": "forged"})
    assert answer.headers["X-Request-ID"] == "mine"
    body = _head("Content_Length: 5", f"Content-Length: {len(PIXELS)}", "Content-Type: application/json")
    with open_raw(gateway.port, body + PIXELS.encode()) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_head_has_the_headers_of_get_and_no_body(gateway) -> None:
    connection = connect(gateway.port)
    whole, head = ask(connection, "GET", "/healthz"), ask(connection, "HEAD", "/healthz")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(whole.body))
    assert ask(connection, "GET", "/healthz").json() == {"status": "ok"}  # over the same connection
    connection.close()


def test_http_1_0_is_answered(gateway) -> None:
    """A proxy may speak it, as nginx does by default."""
    with open_raw(gateway.port, b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n") as connection:
        assert re.match(rb"HTTP/1\.[01] 200 ", read_raw(connection))


def test_paths_are_decoded_once_and_the_log_cannot_be_forged(start) -> None:
    gateway = start("--drain-seconds=0")
    assert get(gateway.port, "/a%0d%0a%7B%22event%22:1%7D%1b%5b2J").status == 404
    assert get(gateway.port, "/%2568ealthz").status == 404
    assert get(gateway.port, "/%68ealthz").status == 200
    assert get(gateway.port, "/%ff").status in (400, 404)
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
        b"POST /api/v1/mnist HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    ]
    for body in bodies:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=3) as connection:
            connection.sendall(body)
            connection.shutdown(socket.SHUT_WR)
            assert b" 200 " not in connection.recv(65536)
    assert _post(gateway).status == 200


def test_a_signal_during_the_start_leaves_no_process(tmp_path) -> None:
    with (tmp_path / "log").open("w") as log:
        command = [BOOKSERVE, "gateway", "--port=0", "--drain-seconds=0"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("url", ["127.0.0.1:8501", "file:///etc/passwd", "ftp://127.0.0.1"])
def test_the_model_servers_rest_is_a_url(url: str) -> None:
    done = CliRunner().invoke(main, ["--model-server-rest", url])
    assert done.exit_code == 2
    assert "give a URL such as http://127.0.0.1:8501" in done.output
