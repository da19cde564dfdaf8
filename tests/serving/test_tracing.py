"""Traces over gateway and model server, as a small collector of the test receives them (OTLP over HTTP)."""

import gzip
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from bookserve.serving.server.inference.trace import Record
from bookserve.serving.server.observability.tracing import Tracing
from bookserve.serving.wire import tensorflow_error_pb2
from gateway_pages import gateway
from model_servers import Server, server_starter, wait_until, write_scale_model

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"
ROWS = json.dumps({"instances": [[1, 2, 3]]}).encode()


class Collector:
    """Receives spans; `spans` has them with the service that sent them."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        spans.extend((attributes["service.name"], span) for span in scope.spans)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of_trace(self, trace: str) -> dict[str, Span]:
        """`SERVICE NAME` -> span; of several the last."""
        return {f"{service} {span.name}": span for service, span in list(self.spans) if span.trace_id.hex() == trace}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def both(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A model server and a gateway that send their spans at once."""
    folder = tmp_path_factory.mktemp("traced")
    write_scale_model(folder / "models" / "scale", 1, 2.0)
    with pytest.MonkeyPatch.context() as patch, server_starter(folder) as start:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # milliseconds
        server = start(f"--model_root={folder / 'models'}", f"--otlp_endpoint={collector.url}")
        with gateway(server.target, folder, f"--otlp-endpoint={collector.url}") as url:
            yield server, url


def post(url: str, traceparent: str = "") -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"} | ({"traceparent": traceparent} if traceparent else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, ROWS, headers), timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


def test_one_trace_goes_from_the_gateways_caller_to_the_engines_run(
    both: tuple[Server, str], collector: Collector
) -> None:
    _, url = both
    post(f"{url}/api/v1/scale")  # checks the contract, once
    began = time.time_ns()
    status, answer = post(f"{url}/api/v1/scale", SAMPLED)
    assert (status, answer["predictions"]) == (200, [{"y": [2, 4, 6]}])
    wait_until(lambda: len(collector.of_trace(TRACE)) == 5, "the spans come", seconds=20)
    spans = collector.of_trace(TRACE)
    parent = CALLER
    for name in (
        "bookserve-gateway POST /api/v1/scale",
        "bookserve-gateway Predict",
        "bookserve-model-server GRPC Predict",
    ):
        assert spans[name].parent_span_id.hex() == parent, name
        parent = spans[name].span_id.hex()
    for name in ("queue", "run"):
        assert spans[f"bookserve-model-server {name}"].parent_span_id.hex() == parent
    server = spans["bookserve-model-server GRPC Predict"]
    queue, run = spans["bookserve-model-server queue"], spans["bookserve-model-server run"]
    assert attributes(server)["bookserve.model"] == "scale"
    assert attributes(server)["bookserve.version"] == 1
    assert attributes(run)["bookserve.rows"] == 1
    assert attributes(run)["bookserve.engine"] == "onnx"
    for span in spans.values():
        assert began - 1e9 < span.start_time_unix_nano <= span.end_time_unix_nano < time.time_ns() + 1e9
        assert span.status.code == Status.STATUS_CODE_UNSET
    assert server.start_time_unix_nano <= queue.start_time_unix_nano
    assert queue.end_time_unix_nano == run.start_time_unix_nano
    assert run.end_time_unix_nano <= server.end_time_unix_nano
    assert [span.kind for span in (server, run)] == [Span.SPAN_KIND_SERVER, Span.SPAN_KIND_INTERNAL]


def test_what_fails_is_marked(both: tuple[Server, str], collector: Collector) -> None:
    _, url = both
    trace = "1" * 32
    status, _ = post(f"{url}/api/v1/scale?version=7", f"00-{trace}-{CALLER}-01")
    assert status == 404
    wait_until(lambda: len(collector.of_trace(trace)) >= 3, "the spans come", seconds=20)
    spans = collector.of_trace(trace)
    (call,) = (span for span in spans.values() if span.kind == Span.SPAN_KIND_CLIENT)
    assert call.status.code == Status.STATUS_CODE_ERROR
    assert attributes(call)["error.type"] == "NotFound"
    (server,) = (span for span in spans.values() if span.parent_span_id == call.span_id)
    assert attributes(server)["rpc.response.status_code"] == "NOT_FOUND"
    assert server.status.code == Status.STATUS_CODE_UNSET, "a client's mistake is no error of the server"
    assert "bookserve-model-server run" not in spans


def test_what_the_server_could_not_do_is_an_error(collector: Collector) -> None:
    trace = "4" * 32
    tracing = Tracing(collector.url, 0)
    record = Record("GRPC", "Predict", True, "", lambda record, code, message, _: tracing.ended(record, code, message))
    record.traceparent = f"00-{trace}-{CALLER}-01"
    record.end(tensorflow_error_pb2.INTERNAL, "internal error", 0)
    tracing.close()
    (span,) = collector.of_trace(trace).values()
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "internal error")
    assert attributes(span)["error.type"] == "INTERNAL"


def test_a_caller_that_does_not_sample_is_followed_in_that(both: tuple[Server, str], collector: Collector) -> None:
    server, url = both
    trace = "2" * 32
    for target in (f"{url}/api/v1/scale", f"{server.url}/v1/models/scale:predict"):
        assert post(target, f"00-{trace}-{CALLER}-00")[0] == 200
        assert post(target, f"00-{'3' * 32}-{CALLER}-01")[0] == 200  # comes after it
    wait_until(lambda: "bookserve-model-server REST predict" in collector.of_trace("3" * 32), "the other comes")
    assert collector.of_trace(trace) == {}


def test_rest_and_requests_without_a_trace_and_no_probes(both: tuple[Server, str], collector: Collector) -> None:
    server, url = both
    for path in (f"{url}/healthz", f"{url}/readyz", f"{server.url}/readyz"):
        urllib.request.urlopen(path, timeout=10).close()
    assert post(f"{server.url}/v1/models/scale:predict", "no traceparent")[0] == 200

    def roots() -> list[Span]:
        return [span for _, span in list(collector.spans) if span.name == "REST predict" and not span.parent_span_id]

    wait_until(lambda: bool(roots()), "the span comes", seconds=20)
    (root,) = roots()
    below = {span.name for _, span in collector.spans if span.trace_id == root.trace_id}
    assert below == {"REST predict", "queue", "run"}
    names = {span.name for _, span in collector.spans}
    assert not [name for name in names if "readyz" in name or "healthz" in name or "read" in name], names


@pytest.mark.slow
def test_a_collector_that_is_away_fails_no_request_and_delays_no_stop(tmp_path: Path) -> None:
    write_scale_model(tmp_path / "models" / "scale", 1, 2.0)
    with server_starter(tmp_path) as start:
        server = start(f"--model_root={tmp_path / 'models'}", "--otlp_endpoint=http://127.0.0.1:9")
        for _ in range(20):
            assert post(f"{server.url}/v1/models/scale:predict")[0] == 200
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 12


@pytest.mark.parametrize(("command", "option"), [("gateway", "--otlp-endpoint"), ("model-server", "--otlp_endpoint")])
@pytest.mark.parametrize(
    ("before", "endpoint", "text"),
    [
        (
            "sys.modules['opentelemetry'] = None;",
            "http://127.0.0.1:4318",
            "missing: pip install 'bookserve[telemetry]'",
        ),
        ("", "127.0.0.1:4318", "'127.0.0.1:4318' is no URL of a collector: give one such as http://127.0.0.1:4318"),
    ],
)
def test_what_is_missing_is_said_in_a_line(
    command: str, option: str, before: str, endpoint: str, text: str, tmp_path: Path
) -> None:
    code = f"import sys; {before} from bookserve.clients.command_line import main; main()"
    own = [f"--model_root={tmp_path}"] if command == "model-server" else []
    done = subprocess.run(
        [sys.executable, "-c", code, command, f"{option}={endpoint}", *own], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    told = done.stdout + done.stderr  # the model server tells wrong flags on standard output, as the original does
    assert text in " ".join(told.split()), told
    assert "Traceback" not in told


def test_nothing_of_it_is_imported_where_it_is_off() -> None:
    code = (
        "import sys; import bookserve.serving.server.model_server, bookserve.serving.gateway.main;"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
