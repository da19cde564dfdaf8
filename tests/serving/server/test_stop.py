"""SIGTERM and SIGINT under load: everything that was sent is answered, then the ports are closed, and the exit is 0."""

import random
import select
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from load import under_load
from model_servers import Server, StartServer, answers, wait_until, write_scale_model
from raw_http2 import DATA, END_HEADERS, GOAWAY, HEADERS, RawClient, frame, request_headers


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    base = tmp_path / "models" / "scale"
    write_scale_model(base, 1, 2.0)
    return ["--model_name=scale", f"--model_base_path={base}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_answers_everything(start_server: StartServer, flags: list[str], number: int) -> None:
    server = start_server(*flags)
    with under_load(server) as load:
        assert server.stop(number, timeout=60) == 0
    assert load.unanswered == []
    assert "stopped" in server.log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_stops_under_load_answer_everything(start_server: StartServer, flags: list[str]) -> None:
    unanswered = []
    for round_ in range(20):
        server = start_server(*flags)
        with under_load(server) as load:
            time.sleep(random.Random(round_).uniform(0, 0.3))
            began = time.monotonic()
            assert server.stop(random.Random(round_).choice((signal.SIGTERM, signal.SIGINT)), timeout=60) == 0
        unanswered += load.unanswered
        print(f"stop {round_}: {time.monotonic() - began:.1f} s, answered {load.answered}")  # noqa: T201 - to be read
    assert unanswered == []


def readiness(server: Server) -> int:
    try:
        with urllib.request.urlopen(f"{server.url}/readyz", timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_readiness_goes_first_while_requests_are_still_answered(start_server: StartServer, flags: list[str]) -> None:
    server = start_server(*flags, "--drain_seconds=20")
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set() and answers(f"{server.url}/healthz"):
            time.sleep(0.02)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        server.process.terminate()
        wait_until(lambda: readiness(server) == 503, "readiness is off")
        assert answers(f"{server.url}/v1/models/scale")  # whoever asks all the same is answered
    finally:
        stop.set()
        asking.join()
    assert server.process.wait(60) == 0


def test_what_crosses_the_goaway_does_not_break_the_connection(start_server: StartServer, flags: list[str]) -> None:
    """A client that sends before it has read that it should go elsewhere would take its calls for failed ones."""
    server = start_server(*flags)
    head = request_headers(b"/tensorflow.serving.PredictionService/Predict")
    with RawClient(server.grpc_port) as client:
        client.settle()
        server.process.send_signal(signal.SIGTERM)
        client.read_until(lambda: client.frames[-1].kind == GOAWAY)
        for stream in range(1, 21, 2):
            select.select([], [], [client.socket], 0.02)  # time for a reset to come
            client.send(frame(HEADERS, END_HEADERS, stream, head))
        assert client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert server.process.wait(60) == 0


def test_a_client_that_holds_its_connection_does_not_hold_up_the_stop(
    start_server: StartServer, flags: list[str]
) -> None:
    server = start_server(*flags, "--drain_seconds=2")
    head = frame(HEADERS, END_HEADERS, 1, request_headers(b"/tensorflow.serving.PredictionService/Predict"))
    with (
        socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as rest,
        RawClient(server.grpc_port, head, frame(DATA, 0, 1, b"\0")) as raw,
    ):
        rest.sendall(b"POST /v1/models/scale:predict HTTP/1.1\r\nContent-Length: 10\r\n\r\nx")
        raw.settle()
        assert server.stop(timeout=60) == 0
        assert "connections are dropped after --drain_seconds=2" in server.log.read_text()
