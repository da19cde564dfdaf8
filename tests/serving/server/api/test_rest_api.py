"""The addresses of the REST port: what each takes, and what is answered to everything else."""

import http.client
import json
from collections.abc import Iterator

import pytest

from model_servers import Server, server_starter, write_scale_model

METRICS = "/monitoring/prometheus/metrics"
PREDICT = b'{"instances": [[1, 2, 3]]}'
INFER = b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}'
TAILS = [b" x", b'{"instances":[2]}', b"]", b",", b"\n{}"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("rest_api")
    write_scale_model(folder / "scale", 1, 2.0)
    flags = (f"--model_base_path={folder / 'scale'}", "--model_name=scale", "--enable_metrics")
    with server_starter(folder) as start:
        yield start(*flags, "--rest_api_enable_cors_support")


def ask(
    server: Server, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    "path",
    [
        "/healthz",
        "/readyz",
        "/v1/models",
        "/v1/models/scale",
        "/v1/models/scale/versions/1/metadata",
        "/V1/Models/scale/METADATA",
        "/v1/models/nobody",
        "/v1/models/scale:predict",
        "/v1/nothing",
        "/v1/config",
        "/v2",
        "/v2/",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/scale",
        "/v2/models/scale/ready",
        "/v2/models/scale/versions/1/stats",
        "/v2/models/stats",
        "/v2/models/nobody",
        "/v2/models/scale/infer",
        "/nothing",
        METRICS,
    ],
)
def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    status, headers, body = ask(server, "GET", path)
    given, given_headers, nothing = ask(server, "HEAD", path)
    assert (given, nothing) == (status, b"")
    assert given_headers["Content-Type"] == headers["Content-Type"]
    assert given_headers["Allow"] == headers["Allow"]
    if path != METRICS and " not GET" not in body.decode():
        assert abs(int(given_headers["Content-Length"]) - len(body)) <= 1  # an error names the method


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/healthz", "GET, HEAD"),
        ("DELETE", "/readyz", "GET, HEAD"),
        ("POST", "/v2", "GET, HEAD"),
        ("OPTIONS", "/v2/health/ready", "GET, HEAD"),
        ("PATCH", "/v2/models/scale", "GET, HEAD"),
        ("PUT", "/v2/models/stats", "GET, HEAD"),
        ("HEAD", "/v2/repository/index", "POST"),
        ("GET", "/v2/models/scale/versions/1/infer", "POST"),
        ("TRACE", "/v2/repository/models/scale/unload", "POST"),
    ],
)
def test_another_method_gets_405_and_what_the_address_takes(
    server: Server, method: str, path: str, allowed: str
) -> None:
    status, headers, body = ask(server, method, path)
    assert (status, headers["Allow"]) == (405, allowed)
    if method != "HEAD":
        assert json.loads(body) == {"error": f"{path} takes {allowed.replace(', ', ' or ')}, not {method}"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models"),
        ("PUT", "/v1/models/scale:predict"),
        ("PATCH", "/v1/models/scale"),
        ("GET", "/v1/models/scale:predict"),
        ("POST", "/v1/models/scale:PREDICT"),
        ("POST", "/v1/config"),
        ("GET", "/v1/nothing"),
    ],
)
def test_under_v1_what_no_address_takes_is_malformed_as_in_tensorflow_serving(
    server: Server, method: str, path: str
) -> None:
    status, headers, body = ask(server, method, path)
    assert (status, headers["Allow"]) == (400, None)
    assert json.loads(body) == {"error": f"Malformed request: {method} {path}"}


@pytest.mark.parametrize("path", ["/v1/models/scale", "/v2/models/scale", "/healthz", "/nothing", METRICS])
def test_a_method_that_is_none_of_http_gets_501(server: Server, path: str) -> None:
    status, _, body = ask(server, "PROPFIND", path)
    assert (status, json.loads(body)) == (501, {"error": "there is no method PROPFIND here"})


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS"])
def test_the_metrics_take_any_method_as_in_tensorflow_serving(server: Server, method: str) -> None:
    status, headers, body = ask(server, method, METRICS)
    assert (status, headers["Content-Type"]) == (200, "text/plain")
    assert b":tensorflow:serving:request_count" in body


def test_pages_of_other_origins_read_the_models_and_never_the_config(server: Server) -> None:
    for method, path, leave in (
        ("GET", "/v1/models/scale", "*"),
        ("HEAD", "/v1/models/scale", "*"),
        ("GET", "/v1/nothing", "*"),
        ("PROPFIND", "/v1/models", "*"),
        ("GET", "/v1/config", None),
        ("DELETE", "/v1/models/nobody", None),
        ("GET", "/v2/models/scale", None),
        ("GET", "/healthz", None),
    ):
        assert ask(server, method, path)[1].get_all("Access-Control-Allow-Origin") == ([leave] if leave else None)


@pytest.mark.parametrize("tail", TAILS)
def test_text_after_the_json_is_refused(server: Server, tail: bytes) -> None:
    for path, body in (("/v1/models/scale:predict", PREDICT), ("/v2/models/scale/infer", INFER)):
        assert ask(server, "POST", path, body + b" \r\n")[0] == 200
        status, _, answer = ask(server, "POST", path, body + tail)
        offset = len(body + tail) - len(tail.lstrip())
        assert status == 400
        assert json.loads(answer) == {
            "error": f"JSON Parse error: The document root must not be followed by other values. at offset: {offset}"
        }
    for path in ("/v2/repository/index", "/v2/repository/models/nobody/load"):
        assert ask(server, "POST", path, b"{}" + tail)[0] == 400
