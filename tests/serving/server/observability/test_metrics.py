"""The metrics: their text format alone, and what a real server counts, compared with TensorFlow Serving's names."""

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from bookserve.serving.server.batching.batcher import BatchRun
from bookserve.serving.server.observability.metric_families import QUEUE_LENGTH
from bookserve.serving.server.observability.metrics import (
    DEFAULT_PATH,
    MAX_UNKNOWN_MODELS,
    Histogram,
    Key,
    Metrics,
    read_monitoring_config,
    render,
)
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire.open_inference_pb2 import ModelInferRequest
from model_servers import Server, StartServer, server_starter, wait_until, write_scale_model

# tensorflow_model_server's own: name -> (type, labels). From its sources, see the module that is tested.
ORIGINAL = {
    ":tensorflow:serving:request_count": ("counter", {"model_name", "status"}),
    ":tensorflow:serving:request_latency": ("histogram", {"model_name", "API", "entrypoint"}),
    ":tensorflow:serving:runtime_latency": ("histogram", {"model_name", "API", "runtime"}),
    ":tensorflow:serving:request_example_counts": ("histogram", {"model"}),
    ":tensorflow:serving:request_example_count_total": ("counter", {"model"}),
    ":tensorflow:serving:model_warmup_latency": ("histogram", {"model_path", "status"}),
    ":tensorflow:serving:model_warmup_records_read": ("counter", {"model_path", "status"}),
    ":tensorflow:serving:request_log_count": ("counter", {"model_name", "status_code"}),
    ":tensorflow:serving:batching_session:queuing_latency": ("histogram", {"thread_pool_name"}),
    ":tensorflow:serving:batching_session:wrapped_run_count": ("counter", set()),
    ":tensorflow:serving:batching_session:input_batch_size": ("histogram", set()),
    ":tensorflow:serving:batching_session:processed_batch_size": ("histogram", set()),
    ":tensorflow:serving:batching_session:padding_size": ("histogram", set()),
    ":tensorflow:cc:saved_model:load_attempt_count": ("counter", {"model_path", "status"}),
    ":tensorflow:cc:saved_model:load_latency": ("counter", {"model_path"}),
    ":tensorflow:core:graph_runs": ("counter", set()),
    ":tensorflow:core:graph_run_time_usecs": ("counter", set()),
    ":tensorflow:core:graph_run_time_usecs_histogram": ("histogram", set()),
    ":tensorflow:core:direct_session_runs": ("counter", set()),
}
KEY: Key = ("m", 1, "serving_default", "Predict", "GRPC", "onnx")


def series(page: str) -> dict[str, float]:
    """Every line but those of types: `name{labels}` -> value."""
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


# The format


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of the package prometheus")
def test_promtool_finds_nothing_but_the_names_of_tensorflow() -> None:
    metrics = Metrics()
    for number in range(100):
        metrics.predicted((f"m{number}", *KEY[1:]), 10, 20, 1, 3, 4)
        metrics.counts(f"m{number}", 1)
    page = render([metrics.snapshot([(QUEUE_LENGTH, ("m", "1"), 1)])])
    checked = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True)
    complaints = (checked.stdout + checked.stderr).decode().splitlines()
    of_names = ("contain ':'", '"_total" suffix', '"_count" suffix', "include type 'histogram'", "use base unit")
    assert [line for line in complaints if not any(part in line for part in of_names)] == []


def test_an_empty_page_names_every_metric_and_its_type() -> None:
    page = render([Metrics().snapshot()]).decode()
    assert page.endswith("\n")
    types = dict(line.split()[2:] for line in page.splitlines() if line.startswith("# TYPE"))
    assert {name: types.get(name) for name in ORIGINAL} == {name: kind for name, (kind, _) in ORIGINAL.items()}
    assert list(types) == sorted(types)
    helps = [line.split(None, 3)[2:] for line in page.splitlines() if line.startswith("# HELP")]
    assert [name for name, text in helps if text.strip()] == list(types)
    assert ":tensorflow:serving:batching_session:wrapped_run_count{} 0\n" in page


def test_labels_are_those_of_the_original() -> None:
    metrics = Metrics()
    metrics.predicted(KEY, 25, 100, 1, 50, 12)
    metrics.loaded(Path("/models/m/1"), True, 0.5)
    metrics.warmed_up(Path("/models/m/1"), "OK", 0.01, 7)
    metrics.logged("m", "OK")
    found: dict[str, set[str]] = {}
    for name in series(render([metrics.snapshot()]).decode()):
        metric, labels = name.rstrip("}").split("{")
        metric = re.sub("_(bucket|sum|count)$", "", metric) if re.sub("_count$", "", metric) in ORIGINAL else metric
        metric = re.sub("_(bucket|sum)$", "", metric)
        found.setdefault(metric, set()).update(set(re.findall(r'(\w+)="', labels)) - {"le"})
    assert {name: found[name] for name in ORIGINAL} == {name: labels for name, (_, labels) in ORIGINAL.items()}


def test_a_histogram_is_cumulative_and_its_bounds_are_written_as_the_original_writes_them() -> None:
    metrics = Metrics()
    for micros in (10.0, 10.5, 2_000_000_000.0):
        metrics.predicted(KEY, micros, 100, 3, 50, 7)
    page = render([metrics.snapshot()]).decode()
    name, labels = ":tensorflow:serving:request_latency", 'model_name="m",API="Predict",entrypoint="GRPC"'
    bounds = re.findall(rf'^{name}_bucket{{{labels},le="(.+)"}} ', page, re.MULTILINE)
    assert len(bounds) == 34
    assert bounds[:6] == ["10", "18", "32.4", "58.32", "104.976", "188.957"]
    assert bounds[-2:] == ["1.47476e+09", "+Inf"]
    values = series(page)
    counts = [values[f'{name}_bucket{{{labels},le="{bound}"}}'] for bound in bounds]
    assert (counts[0], counts[1], counts[-2], counts[-1]) == (1, 2, 2, 3)
    assert values[f"{name}_sum{{{labels}}}"] == 2_000_000_020.5
    assert values[f"{name}_count{{{labels}}}"] == 3
    assert values[':tensorflow:serving:request_example_count_total{model="m"}'] == 9
    assert values[':tensorflow:serving:request_example_counts_bucket{model="m",le="2"}'] == 0
    assert values[':tensorflow:serving:request_example_counts_bucket{model="m",le="4"}'] == 3
    assert values[':tensorflow:serving:runtime_latency_sum{model_name="m",API="Predict",runtime="ONNX"}'] == 21


def test_bounds_are_inclusive() -> None:
    histogram = Histogram((1, 2))
    for value in (1, 2, 3):
        histogram.add(value)
    assert histogram.values() == [1, 1, 1, 6]


def test_label_values_cannot_break_out_of_their_quotes() -> None:
    metrics = Metrics()
    metrics.failed('a"\\\n\x1b', "NOT_FOUND", 0, "")
    page = render([metrics.snapshot()]).decode()
    assert r':tensorflow:serving:request_count{model_name="a\"\\\n\\u001b",status="NOT_FOUND"} 1' in page.split("\n")


def test_the_runtime_of_tensorflow_is_called_as_there() -> None:
    metrics = Metrics()
    metrics.predicted((*KEY[:5], "tensorflow"), 1, 1, 1, 50, 1)
    assert 'runtime="TF1"' in render([metrics.snapshot()]).decode()


def test_runs_of_graphs_and_of_sessions_are_counted() -> None:
    metrics = Metrics()
    metrics.ran(BatchRun(1, 1.5, 4), "onnx")
    metrics.ran(BatchRun(1, 1.0005, 4), "tensorflow")
    values = series(render([metrics.snapshot()]).decode())
    assert values[":tensorflow:core:graph_runs{}"] == 2
    assert values[":tensorflow:core:graph_run_time_usecs{}"] == 500_500
    assert values[':tensorflow:core:graph_run_time_usecs_histogram_bucket{le="1000"}'] == 1
    assert values[':tensorflow:core:graph_run_time_usecs_histogram_bucket{le="512000"}'] == 2
    assert values[":tensorflow:core:direct_session_runs{}"] == 1


def test_snapshots_of_several_processes_add_up_even_as_json() -> None:
    """What two processes counted renders as what one would have counted."""
    one, two, both = Metrics(), Metrics(), Metrics()
    for number, metrics in enumerate((one, two)):
        for counted in (metrics, both):
            counted.predicted(KEY, 10.0 * number + 5, 100, 2, 50, 3)
            counted.predicted(("m", number, "s", "Predict", "REST", "onnx"), 1, 1, 1, 50, 1)
            counted.failed("gone", "NOT_FOUND", 0, "")
            counted.ran(BatchRun(0, 1, 4, 1), "onnx")
            counted.identified("m", 1, "a-b")
    snapshots = [json.loads(json.dumps(m.snapshot([(QUEUE_LENGTH, ("m", "1"), 3)]))) for m in (one, two)]
    assert render(snapshots) == render([both.snapshot([(QUEUE_LENGTH, ("m", "1"), 6)])])
    assert series(render(snapshots).decode())[':bookserve:queue_length{model_name="m",version="1"}'] == 6


def test_made_up_model_names_make_no_endless_series() -> None:
    metrics = Metrics()
    metrics.models = frozenset({"known"})
    for number in range(10 * MAX_UNKNOWN_MODELS):
        metrics.failed(f"made-up-{number}", "NOT_FOUND", 0, "")
    metrics.failed("known", "NOT_FOUND", 0, "")
    values = series(render([metrics.snapshot()]).decode())
    counted = {name: value for name, value in values.items() if name.startswith(":tensorflow:serving:request_count")}
    assert len(counted) == MAX_UNKNOWN_MODELS + 2
    assert values[':tensorflow:serving:request_count{model_name="(other)",status="NOT_FOUND"}'] == 900
    assert values[':tensorflow:serving:request_count{model_name="known",status="NOT_FOUND"}'] == 1


def test_versions_that_come_and_go_make_no_endless_series() -> None:
    metrics = Metrics()
    for version in range(1, 3000):
        metrics.loaded(Path(f"/m/{version}"), True, 0.1)
        metrics.predicted(("m", version, "s", "Predict", "GRPC", "onnx"), 1, 1, 1, 50, 1)
    assert len(metrics.snapshot()["/tensorflow/cc/saved_model/load_latency"]) <= 500
    assert len(metrics.snapshot()["/bookserve/signature_request_count"]) <= 500
    assert 'load_latency{model_path="/m/2999"}' in render([metrics.snapshot()]).decode()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("prometheus_config { enable: true }", DEFAULT_PATH),
        ('prometheus_config { enable: true path: "/metrics" }', "/metrics"),
        ('prometheus_config { path: "/metrics" }', None),
        ("", None),
    ],
)
def test_monitoring_config(tmp_path: Path, text: str, path: str | None) -> None:
    file = tmp_path / "monitoring.config"
    file.write_text(text)
    assert read_monitoring_config(file) == path


def test_a_monitoring_config_that_makes_no_sense(tmp_path: Path) -> None:
    file = tmp_path / "monitoring.config"
    with pytest.raises(ServingError, match="Invalid protobuf file: "):
        read_monitoring_config(file)
    file.write_text("prometheus { }")
    with pytest.raises(ServingError, match="Invalid protobuf file: "):
        read_monitoring_config(file)
    file.write_text('prometheus_config { enable: true path: "metrics" }')
    with pytest.raises(ServingError, match="must begin with '/'"):
        read_monitoring_config(file)


# A real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("metrics")
    write_scale_model(folder / "scale", 1, 2.0)
    (folder / "scale/1/assets.extra").mkdir(exist_ok=True)
    (folder / "scale/1/assets.extra/mlmd_uuid").write_text("3f1a-77\n")
    config = folder / "monitoring.config"
    config.write_text('prometheus_config { enable: true path: "/metrics" }')
    with server_starter(folder) as start:
        yield start("--model_name=scale", f"--model_base_path={folder / 'scale'}", f"--monitoring_config_file={config}")


def fetch(
    server: Server, path: str = "/metrics", method: str = "GET", body: bytes | None = None
) -> tuple[int, str, str]:
    request = urllib.request.Request(server.url + path, body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def predict_over_grpc(server: Server, rows: int, name: str = "scale") -> predict_pb2.PredictResponse:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones((rows, 3), np.float32)))
    with grpc.insecure_channel(server.target) as channel:
        return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=20)


def predict_over_rest(server: Server, body: Any, model: str = "scale") -> int:
    request = urllib.request.Request(f"{server.url}/v1/models/{model}:predict", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


class Increase:
    """By how much the series grow."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.before = series(fetch(server)[2])

    def of(self, name: str) -> float:
        return series(fetch(self.server)[2]).get(name, 0) - self.before.get(name, 0)


def test_the_page_is_plain_text_for_any_method(server: Server) -> None:
    status, content_type, page = fetch(server)
    assert (status, content_type) == (200, "text/plain")
    assert page.startswith("# HELP ")
    assert fetch(server, method="PUT")[0] == 200
    assert fetch(server, DEFAULT_PATH)[0] == 404


def test_grpc_predict_is_counted(server: Server) -> None:
    increase = Increase(server)
    for rows in (1, 4):
        predict_over_grpc(server, rows)
    with pytest.raises(grpc.RpcError):
        predict_over_grpc(server, 1, name="foo")
    count = ":tensorflow:serving:request_count"
    assert increase.of(f'{count}{{model_name="scale",status="OK"}}') == 2
    assert increase.of(f'{count}{{model_name="foo",status="NOT_FOUND"}}') == 1
    labels = 'model_name="scale",API="Predict",entrypoint="GRPC"'
    assert increase.of(f":tensorflow:serving:request_latency_count{{{labels}}}") == 2
    assert increase.of(f":tensorflow:serving:request_latency_sum{{{labels}}}") > 0
    runtime = 'model_name="scale",API="Predict",runtime="ONNX"'
    assert increase.of(f":tensorflow:serving:runtime_latency_count{{{runtime}}}") == 2
    assert increase.of(':tensorflow:serving:request_example_count_total{model="scale"}') == 5
    assert increase.of(':tensorflow:serving:request_example_counts_count{model="scale"}') == 2
    queuing = 'thread_pool_name="model_server_batch_threads"'
    assert increase.of(f":tensorflow:serving:batching_session:queuing_latency_count{{{queuing}}}") == 2
    assert increase.of(":tensorflow:serving:batching_session:wrapped_run_count{}") == 2
    assert increase.of(":tensorflow:serving:batching_session:processed_batch_size_sum{}") == 5
    signature = 'model_name="scale",version="1",signature_name="serving_default",status="OK"'
    assert increase.of(f":bookserve:signature_request_count{{{signature}}}") == 2
    assert increase.of(':bookserve:response_bytes_count{model_name="scale",entrypoint="GRPC"}') == 2


def test_every_rest_call_is_counted(server: Server) -> None:
    increase = Increase(server)
    assert predict_over_rest(server, {"instances": [[1, 2, 3], [1, 2, 3]]}) == 200
    assert predict_over_rest(server, {"instances": [["a"]]}) == 400
    assert predict_over_rest(server, {}, model="foo") == 404
    assert fetch(server, "/v1/models/scale")[0] == 200
    assert fetch(server, "/v1/models/scale/metadata")[0] == 200
    assert fetch(server, "/v1/models/scale/versions/9")[0] == 404
    count = ":tensorflow:serving:request_count"
    assert increase.of(f'{count}{{model_name="scale",status="OK"}}') == 3
    assert increase.of(f'{count}{{model_name="scale",status="INVALID_ARGUMENT"}}') == 1
    assert increase.of(f'{count}{{model_name="scale",status="NOT_FOUND"}}') == 1
    assert increase.of(f'{count}{{model_name="foo",status="NOT_FOUND"}}') == 1
    latency = ":tensorflow:serving:request_latency_count"
    assert increase.of(f'{latency}{{model_name="scale",API="predict",entrypoint="REST"}}') == 1
    assert increase.of(f'{latency}{{model_name="scale",API="",entrypoint="REST"}}') == 2
    assert (
        increase.of(':tensorflow:serving:runtime_latency_count{model_name="scale",API="predict",runtime="ONNX"}') == 1
    )


def test_rest_calls_that_name_no_model_are_counted_without_a_name(server: Server) -> None:
    increase = Increase(server)
    assert fetch(server, "/v1/foo")[0] == 400
    assert fetch(server, "/v1/models/scale:foo", "POST", b"{}")[0] == 400
    assert fetch(server, "/v1/models")[0] == 200
    assert fetch(server, "/elsewhere")[0] == 404
    count = ':tensorflow:serving:request_count{model_name="",status='
    assert increase.of(f'{count}"INVALID_ARGUMENT"}}') == 2
    assert increase.of(f'{count}"OK"}}') == 1
    assert increase.of(f'{count}"NOT_FOUND"}}') == 0


def test_the_open_inference_protocol_is_counted_too(server: Server) -> None:
    increase = Increase(server)
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
    assert fetch(server, "/v2/models/scale/infer", "POST", json.dumps(body).encode())[0] == 200
    assert fetch(server, "/v2/models/gone/infer", "POST", json.dumps(body).encode())[0] == 404
    call = ModelInferRequest(model_name="scale")
    call.inputs.add(name="x", datatype="FP32", shape=[1, 3]).contents.fp32_contents.extend([1, 2, 3])
    with grpc.insecure_channel(server.target) as channel:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(call.SerializeToString(), timeout=20)
    latency = ":tensorflow:serving:request_latency_count"
    assert increase.of(f'{latency}{{model_name="scale",API="infer",entrypoint="REST"}}') == 1
    assert increase.of(f'{latency}{{model_name="scale",API="ModelInfer",entrypoint="GRPC"}}') == 1
    assert increase.of(':tensorflow:serving:request_count{model_name="gone",status="NOT_FOUND"}') == 1


def test_probes_and_the_page_itself_are_not_counted(server: Server) -> None:
    increase = Increase(server)
    for path in ("/healthz", "/readyz", "/metrics"):
        assert fetch(server, path)[0] == 200
    counts = [name for name in series(fetch(server)[2]) if name.startswith(":tensorflow:serving:request_count")]
    assert all(increase.of(name) == 0 for name in counts)


def test_loads_and_what_is_loaded(server: Server) -> None:
    values = series(fetch(server)[2])
    (path,) = (name.split('"')[1] for name in values if name.startswith(":tensorflow:cc:saved_model:load_latency"))
    assert path.endswith("/scale/1")
    assert values[f':tensorflow:cc:saved_model:load_attempt_count{{model_path="{path}",status="success"}}'] == 1
    assert values[f':tensorflow:cc:saved_model:load_latency{{model_path="{path}"}}'] > 0
    warmed_up = f'model_path="{path}",status="OK"'
    assert values[f":tensorflow:serving:model_warmup_latency_count{{{warmed_up}}}"] == 1
    assert values[':tensorflow:serving:mlmd_map{model_name="scale",version="1",mlmd_uuid="3f1a-77"}'] == 1
    assert values[f":tensorflow:serving:model_warmup_records_read{{{warmed_up}}}"] == 0
    assert values[':bookserve:model_version_state{model_name="scale",version="1",state="AVAILABLE"}'] == 1
    assert values[':bookserve:queue_length{model_name="scale",version="1"}'] == 0
    assert values[':bookserve:requests_in_flight{model_name="scale",version="1"}'] == 0


def test_metrics_are_off_unless_asked_for(start_server: StartServer, tmp_path: Path) -> None:
    write_scale_model(tmp_path / "scale", 1, 2.0)
    server = start_server("--model_name=scale", f"--model_base_path={tmp_path / 'scale'}")
    assert fetch(server, DEFAULT_PATH)[0] == 404


def test_the_short_flag_turns_them_on_and_failed_loads_are_counted(start_server: StartServer, tmp_path: Path) -> None:
    write_scale_model(tmp_path / "scale", 1, 2.0)
    server = start_server(
        *("--model_name=scale", f"--model_base_path={tmp_path / 'scale'}", "--enable_metrics"),
        "--max_num_load_retries=0",
    )
    assert fetch(server, DEFAULT_PATH)[0] == 200
    (tmp_path / "scale" / "2.tmp").mkdir()
    (tmp_path / "scale" / "2.tmp" / "model.onnx").write_bytes(b"not a graph")
    (tmp_path / "scale" / "2.tmp").rename(tmp_path / "scale" / "2")
    path = tmp_path / "scale" / "2"
    failed = f':tensorflow:cc:saved_model:load_attempt_count{{model_path="{path}",status="fail"}}'
    wait_until(lambda: series(fetch(server, DEFAULT_PATH)[2]).get(failed) == 1, "the failed load is counted")
    assert (
        ':bookserve:model_version_state{model_name="scale",version="2",state="END"}' in fetch(server, DEFAULT_PATH)[2]
    )
