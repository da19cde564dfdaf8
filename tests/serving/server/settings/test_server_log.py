"""The server's own log: formats, levels, and that no client can forge a line."""

import json
import logging
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bookserve.serving.server.settings.server_log import JsonFormatter, TextFormatter, printable
from model_servers import Server, StartServer, server_starter, wait_until, write_scale_model

FORGED = "x\n2026-01-01 00:00:00,000 I forged: \x1b[2J\u2028"


def log_record(message: str, *, fault: bool = False) -> logging.LogRecord:
    exc_info = None
    if fault:
        try:
            raise ValueError(FORGED)
        except ValueError:
            exc_info = sys.exc_info()
    return logging.LogRecord("name", logging.WARNING, "file", 1, "%s", (message,), exc_info)


def test_control_characters_become_escapes() -> None:
    assert printable("a\r\n\x1b\x7f\x9b\u2028é") == "a\\r\\n\\x1b\\x7f\\x9b\\u2028é"


def test_text_is_one_line_and_a_traceback_is_indented() -> None:
    (line,) = TextFormatter().format(log_record(FORGED)).splitlines()
    assert " W name: x\\n2026" in line
    first, *rest = TextFormatter().format(log_record("message", fault=True)).split("\n")
    assert first.endswith("W name: message")
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_json_is_one_object_a_line() -> None:
    record = log_record(FORGED, fault=True)
    record.fields = {"model": "m"}
    (line,) = JsonFormatter().format(record).splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"], entry["model"]) == ("warning", "name", FORGED, "m")
    assert "ValueError" in entry["exception"]


# Real servers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_scale_model(folder / "scale", 1, 2.0)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """One that writes JSON, with a line for every request that fails."""
    with server_starter(folder) as start:
        yield start(
            *("--model_name=scale", f"--model_base_path={folder / 'scale'}"),
            *("--log_format=json", "--log_requests=errors"),
        )


def entries(server: Server) -> list[dict[str, object]]:
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def request_line(server: Server, request_id: str) -> dict[str, object]:
    def lines() -> list[dict[str, object]]:
        return [entry for entry in entries(server) if entry.get("request_id") == request_id]

    wait_until(lambda: bool(lines()), f"the line of request {request_id}")
    (line,) = lines()
    return line


def ask(server: Server, path: str, body: bytes | None = None, **headers: str) -> int:
    request = urllib.request.Request(server.url + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_a_failed_rest_request_has_a_line_with_its_id(server: Server) -> None:
    assert ask(server, "/v1/models/foo:predict", b"{}", **{"x-request-id": "rest-1"}) == 404
    line = request_line(server, "rest-1")
    assert line["level"] == "warning"
    assert (line["entrypoint"], line["api"], line["model"], line["status"]) == ("REST", "predict", "foo", "NOT_FOUND")
    assert line["error"] == "Servable not found for request: Latest(foo)"


def test_a_failed_grpc_call_has_a_line_with_its_id(server: Server) -> None:
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=20, metadata=(("x-request-id", "grpc-1"),))
    line = request_line(server, "grpc-1")
    assert (line["entrypoint"], line["api"], line["status"]) == ("GRPC", "Predict", "INVALID_ARGUMENT")
    assert line["error"] == "Missing ModelSpec"


def test_a_request_that_succeeds_has_none(server: Server) -> None:
    body = b'{"instances": [[1, 2, 3]]}'
    assert ask(server, "/v1/models/scale:predict", body, **{"x-request-id": "good-1"}) == 200
    assert ask(server, "/v1/models/foo:predict", b"{}", **{"x-request-id": "bad-2"}) == 404
    request_line(server, "bad-2")
    assert not [entry for entry in entries(server) if entry.get("request_id") == "good-1"]


def test_lines_that_tools_look_for_are_there(server: Server) -> None:
    messages = [str(entry["message"]) for entry in entries(server)]
    for start in (
        f"Running gRPC ModelServer at 127.0.0.1:{server.grpc_port} ...",
        f"Exporting HTTP/REST API at:127.0.0.1:{server.rest_port} ...",
        "Building single TensorFlow model file config:  model_name: scale model_base_path: ",
        "Adding/updating models.",
        " (Re-)adding model: scale",
        "Successfully loaded servable version {name: scale version: 1}",
    ):
        assert any(message.startswith(start) for message in messages), start


def test_no_line_can_be_forged_as_text(start_server: StartServer, folder: Path) -> None:
    server = start_server("--model_name=scale", f"--model_base_path={folder / 'scale'}", "--log_requests=all")
    forged = "/v1/models/x%0A2026-01-01%20I%20forged%1B%5B2J%20status=OK:predict"
    assert ask(server, forged, b"{}", **{"x-request-id": "id-1"}) == 404
    assert ask(server, "/v1/models/scale", None, **{"x-request-id": "id-2"}) == 200
    wait_until(lambda: "id-2" in server.log.read_text(), "the line of the last request")
    text = server.log.read_text()
    (line,) = (line for line in text.splitlines() if "id-1" in line)
    assert 'model="x\\\\n2026-01-01 I forged' in line.replace("\\n", "\\\\n")
    assert "status=NOT_FOUND" in line
    assert "\x1b" not in text
    assert not any(line.startswith("2026-01-01 I forged") for line in text.splitlines())


@pytest.mark.parametrize(
    ("level", "flag", "shown"),
    [("0", "", True), ("1", "", False), ("1", "info", True), ("0", "warning", False), ("", "", True)],
)
def test_levels(start_server: StartServer, folder: Path, level: str, flag: str, shown: bool) -> None:
    server = start_server(
        *("--model_name=scale", f"--model_base_path={folder / 'scale'}", "--unknown=1"),
        *([f"--log_level={flag}"] if flag else []),
        environment={"TF_CPP_MIN_LOG_LEVEL": level},
    )
    text = server.log.read_text()
    assert ("Running gRPC ModelServer at" in text) == shown
    assert "W bookserve.serving.server.main: unknown argument: --unknown=1" in text
