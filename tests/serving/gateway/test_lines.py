"""NDJSON on `/api/v1/models/NAME:predict`: line by line through a real gateway, in little memory."""

import http.client
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from book_contracts import CONTRACTS, write_manifests
from bookserve.serving.gateway import lines
from bookserve.serving.gateway.problems import Problem
from documents import blocks
from gateway_servers import Gateway, start_gateway
from http_calls import post
from stand_in_models import FakeServer, serve

LINEAR = "/api/v1/models/linear:predict"


@pytest.fixture(scope="module")
def model_server() -> Iterator[FakeServer]:
    fake = FakeServer(models=tuple(CONTRACTS))
    server = serve(fake)
    yield fake
    server.stop(None).wait()


@pytest.fixture(scope="module")
def gateway(model_server: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("lines")
    store = write_manifests(folder / "models")
    options = [f"--models-dir={store}", f"--model-server={model_server.target}", "--body-seconds=4", "--max-streams=2"]
    running = start_gateway(folder / "log", *options, host="127.0.0.1")
    yield running
    running.process.kill()
    running.process.wait()
    assert running.process.stdout is not None
    running.process.stdout.close()


def _ask(gateway: Gateway, body: bytes, path: str = LINEAR) -> list[dict]:
    answer = post(gateway.port, path, body, lines.MEDIA_TYPE)
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == lines.MEDIA_TYPE
    return [json.loads(line) for line in answer.body.splitlines()]


def test_every_line_has_its_answer_and_one_request_asks_many(gateway, model_server) -> None:
    before = model_server.running
    answers = _ask(gateway, b"".join(b'{"x": %d}\n' % number for number in range(100)))
    assert [answer["line"] for answer in answers] == list(range(1, 101))
    assert [answer["predictions"] for answer in answers] == [[{"y": 5.0 * number + 2}] for number in range(100)]
    assert {answer["version"] for answer in answers} == {3}
    assert model_server.running - before <= 8  # 32 lines a request, and what came in between


def test_the_block_of_the_document_is_answered(gateway) -> None:
    (block,) = (block for block in blocks("serving/README.md") if block.first_line.startswith("printf "))
    text = block.text.replace(":8080/", f":{gateway.port}/")
    done = subprocess.run(["bash", "-e", "-c", text], capture_output=True, text=True, timeout=60, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer.get("predictions", answer) for answer in answers] == [[{"y": y}] for y in (7, 12, 17)]


def test_a_bad_line_has_its_problem_and_the_others_their_answers(gateway) -> None:
    answers = _ask(gateway, b'{"x": 1}\nnonsense\n{"x": "a"}\n\n{"y": 1}\n{"x": [2, 3]}')
    told = {answer["line"]: answer for answer in answers}
    assert told[1]["predictions"] == [{"y": 7.0}]
    assert told[2]["problem"]["given"].startswith("text that is no JSON")
    assert told[3]["problem"]["type"] == "urn:bookserve:problem:bad-value"
    assert told[5]["problem"]["field"] == "y"
    assert told[6]["predictions"] == [{"y": 12.0}, {"y": 17.0}]
    assert 4 not in told


@pytest.mark.parametrize(
    ("model", "bodies", "key", "expected"),
    [
        ("logistic", [{"x": [1, 2]}, {"x": [-5, 1]}], "class", ["1", "0"]),
        ("tox21", [{"smiles": "CCO"}, {"smiles": "c1ccccc1"}], "smiles", ["CCO", "c1ccccc1"]),
        ("tictactoe", [{"board": ["X", *[""] * 8]}] * 2, "move", [8, 8]),
        ("mnist", [{"pixels": [[7] * 28] * 28}] * 2, "class", ["7", "7"]),
    ],
)
def test_lines_of_every_task(gateway, model, bodies, key, expected) -> None:
    answers = _ask(gateway, b"\n".join(map(orjson.dumps, bodies)), f"/api/v1/models/{model}:predict")
    assert [answer["predictions"][0][key] for answer in answers] == expected


def test_an_answer_comes_while_the_list_is_still_sent(gateway) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=15)
    connection.putrequest("POST", LINEAR)
    connection.putheader("Content-Type", lines.MEDIA_TYPE)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    connection.send(b"9\r\n" + b'{"x": 1}\n' + b"\r\n")
    response = connection.getresponse()
    assert json.loads(response.readline())["predictions"] == [{"y": 7.0}]
    connection.send(b"9\r\n" + b'{"x": 2}\n' + b"\r\n")
    assert json.loads(response.readline())["predictions"] == [{"y": 12.0}]
    connection.send(b"0\r\n\r\n")
    assert response.readline() == b""
    connection.close()


def _resident_mib(gateway: Gateway) -> float:
    text = Path(f"/proc/{gateway.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found
    return int(found[1]) / 1024


def _stream(gateway: Gateway, count: int) -> int:
    """Sends so many lines of 1 kB and reads the answers meanwhile; how many there were."""
    import threading

    line = b'{"x": 1' + b" " * 990 + b"}\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as connection:
        head = f"POST {LINEAR} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {lines.MEDIA_TYPE}\r\n"
        connection.sendall(f"{head}Content-Length: {count * len(line)}\r\n\r\n".encode())
        sender = threading.Thread(target=lambda: [connection.sendall(line * 100) for _ in range(count // 100)])
        sender.start()
        answers = 0
        while piece := connection.recv(1 << 16):
            answers += piece.count(b'"line"')
        sender.join()
    return answers


@pytest.mark.slow
def test_a_list_beyond_the_limit_of_a_body_takes_little_memory(gateway) -> None:
    assert _stream(gateway, 1000) == 1000
    before = _resident_mib(gateway)
    assert _stream(gateway, 40_000) == 40_000  # 40 MB; a body may have 16 MiB
    assert _resident_mib(gateway) - before < 16


def test_a_line_without_end_is_refused(gateway) -> None:
    answers = _ask(gateway, b'{"x": 1}\n' + b" " * (3 << 20))
    assert answers[0]["predictions"] == [{"y": 7.0}]
    assert answers[-1]["line"] == 2
    assert answers[-1]["problem"]["status"] == 413
    assert "--max-json-bytes" in answers[-1]["problem"]["detail"]


def _open(gateway: Gateway) -> socket.socket:
    """A stream whose first line was answered, and of which more should come."""
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=15)
    head = (
        f"POST {LINEAR} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {lines.MEDIA_TYPE}\r\nContent-Length: 999\r\n\r\n"
    )
    connection.sendall(head.encode() + b'{"x": 1}\n')
    assert b"200 OK" in connection.recv(1 << 16)
    return connection


@pytest.mark.slow
def test_a_sender_that_stops_is_told_and_closed(gateway) -> None:
    with _open(gateway) as connection:
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
    assert b'"status":408' in received
    assert b"no line came within 4 s (--body-seconds)" in received


def test_more_streams_than_may_be_are_503(gateway) -> None:
    first, second = _open(gateway), _open(gateway)
    answer = post(gateway.port, LINEAR, b'{"x": 1}\n', lines.MEDIA_TYPE)
    assert answer.problem()["detail"].startswith("the gateway has too many streams (--max-streams)")
    first.close()
    second.close()
    deadline = time.monotonic() + 10
    while post(gateway.port, LINEAR, b'{"x": 1}\n', lines.MEDIA_TYPE).status != 200:
        assert time.monotonic() < deadline, "the streams of clients that went away are not closed"
        time.sleep(0.05)


def test_a_model_that_is_not_there_is_404(gateway) -> None:
    answer = post(gateway.port, "/api/v1/models/nobody:predict", b'{"x": 1}\n', lines.MEDIA_TYPE)
    assert answer.problem()["status"] == 404


def test_one_json_body_is_answered_as_at_the_short_path(gateway) -> None:
    assert post(gateway.port, LINEAR, b'{"x": [1, 2]}').json() == {
        "model": "linear",
        "version": 3,
        "predictions": [{"y": 7.0}, {"y": 12.0}],
    }


@pytest.mark.slow
def test_a_stream_is_ended_when_the_gateway_stops(model_server, tmp_path) -> None:
    store = write_manifests(tmp_path / "models")
    options = [f"--models-dir={store}", f"--model-server={model_server.target}", "--drain-seconds=0.1"]
    running = start_gateway(tmp_path / "log", *options, host="127.0.0.1")
    with _open(running) as connection:
        began = time.monotonic()
        assert running.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < 10
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
    assert b"the gateway is stopping" in received
    assert running.process.stdout is not None
    running.process.stdout.close()


def test_a_model_server_that_is_away_is_told_for_every_line() -> None:
    def ask(body: bytes) -> dict:
        raise Problem(503, "away")

    pieces = iter([b'{"x": 1}\n{"x": 2}\n', b""])
    told = list(lines.answers(lambda: next(pieces), ask, 32, 1000, "id"))
    assert [json.loads(line)["problem"]["status"] for line in told] == [503, 503]
