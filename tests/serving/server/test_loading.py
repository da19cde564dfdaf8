"""Loading as seen from outside of the process: slow, broken and lazy models, and stops meanwhile."""

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from model_servers import Server, StartServer, wait_until, write_graph, write_scale_model

POLL = "--file_system_poll_wait_seconds=0.05"


def write_endless_model(base: Path, version: int) -> None:
    """A version that never finishes loading, as its warm-up never ends; `y = x` after 2**62 rounds."""
    rounds = numpy_helper.from_array(np.int64(2**62), "rounds")
    go_on = numpy_helper.from_array(np.bool_(True), "go_on")
    flow = [
        helper.make_tensor_value_info("again", TensorProto.BOOL, []),
        helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
    ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["again"], ["again_"]), helper.make_node("Identity", ["value"], ["value_"])],
        "body",
        [helper.make_tensor_value_info("round", TensorProto.INT64, []), *flow],
        [
            helper.make_tensor_value_info("again_", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value_", TensorProto.FLOAT, None),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["rounds", "go_on", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [rounds, go_on],
    )
    write_graph(base, version, graph)


def get(server: Server, path: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, data=data), timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def states(server: Server, name: str) -> dict[str, str]:
    _, answer = get(server, f"/v1/models/{name}")
    return {entry["version"]: entry["state"] for entry in answer["model_version_status"]}


def predict(server: Server, name: str, timeout: float = 30.0) -> float:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones((1, 3), np.float32)))
    with grpc.insecure_channel(server.target) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=timeout)
    return float(response.outputs["y"].float_val[0])


def test_a_stop_while_a_version_loads(start_server: StartServer, tmp_path: Path) -> None:
    base = tmp_path / "m"
    write_scale_model(base, 1, 2.0)
    server = start_server("--model_name=m", f"--model_base_path={base}", POLL)
    write_endless_model(base, 2)
    wait_until(lambda: states(server, "m").get("2") == "LOADING", "2 loads")
    assert predict(server, "m") == 2
    assert get(server, "/v1/models/m/versions/2:predict", {"instances": [[1, 1, 1]]})[0] == 404
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


def test_a_stop_before_the_first_version_is_loaded(start_server: StartServer, tmp_path: Path) -> None:
    write_endless_model(tmp_path / "m", 1)
    server = start_server(f"--model_base_path={tmp_path / 'm'}", wait=False)
    wait_until(lambda: "Loading servable" in server.log.read_text(), "1 loads", 60)
    assert server.stop() == 0
    assert "stopped before the models were loaded" in server.log.read_text()


def test_a_version_that_is_removed_while_it_loads_and_a_model_beside_it(
    start_server: StartServer, tmp_path: Path
) -> None:
    write_scale_model(tmp_path / "root" / "m", 1, 2.0)
    server = start_server(f"--model_root={tmp_path / 'root'}", POLL, "--num_load_threads=2")
    write_endless_model(tmp_path / "root" / "m", 2)
    wait_until(lambda: states(server, "m").get("2") == "LOADING", "2 loads")
    write_scale_model(tmp_path / "root" / "other", 1, 5.0)
    wait_until(lambda: get(server, "/v1/models/other")[0] == 200, "the other model is found")
    wait_until(lambda: states(server, "other") == {"1": "AVAILABLE"}, "a load goes by the slow one")
    assert predict(server, "m") == 2


def test_a_reload_that_waits_holds_up_no_other(start_server: StartServer, tmp_path: Path) -> None:
    write_scale_model(tmp_path / "m", 1, 2.0)
    write_endless_model(tmp_path / "endless", 1)
    server = start_server("--model_name=m", f"--model_base_path={tmp_path / 'm'}")

    def request(*names: str) -> model_management_pb2.ReloadConfigRequest:
        reload = model_management_pb2.ReloadConfigRequest()
        for name in names:
            reload.config.model_config_list.config.add(
                name=name, base_path=str(tmp_path / name), model_platform="tensorflow"
            )
        return reload

    with grpc.insecure_channel(server.target) as channel:
        reload = model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest
        waiting = reload.future(request("m", "endless"), timeout=60)
        wait_until(lambda: get(server, "/v1/models/endless")[0] == 200, "the new model is named")
        assert states(server, "endless") == {"1": "LOADING"}
        assert not waiting.done()
        assert predict(server, "m") == 2
        reload(request("m"), timeout=60)
        assert predict(server, "m") == 2
        with pytest.raises(grpc.RpcError, match=r"\{name: endless version: 1\} due to error: CANCELLED: Loading of"):
            waiting.result()


def test_a_broken_model_at_the_start_stops_nobody(start_server: StartServer, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_scale_model(root / "good", 1, 2.0)
    (root / "bad" / "1").mkdir(parents=True)
    (root / "bad" / "1" / "model.onnx").write_bytes(b"no graph")
    server = start_server(f"--model_root={root}")  # with five retries, a minute apart
    assert predict(server, "good") == 2
    _, answer = get(server, "/v1/models/bad")
    (entry,) = answer["model_version_status"]
    assert "does not load" in entry["status"]["error_message"]


def test_a_damaged_new_version_leaves_the_old_one_serving(start_server: StartServer, tmp_path: Path) -> None:
    base = tmp_path / "m"
    write_scale_model(base, 1, 2.0)
    server = start_server("--model_name=m", f"--model_base_path={base}", "--max_num_load_retries=0", POLL)
    staged = write_scale_model(tmp_path / "staging", 2, 3.0)
    (staged / "assets.extra").mkdir()
    (staged / "assets.extra" / "manifest.json").write_text('{"files": {"model.onnx": "0123"}}')
    staged.rename(base / "2")
    wait_until(lambda: states(server, "m").get("2") == "END", "2 is refused")
    message = get(server, "/v1/models/m/versions/2")[1]["model_version_status"][0]["status"]["error_message"]
    assert "model.onnx is not the file that its manifest tells of" in message
    assert predict(server, "m") == 2


def test_lazy_models_load_on_their_first_request(start_server: StartServer, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for number in range(8):
        write_scale_model(root / f"m{number}", 1, float(number))
    (root / "bad" / "1").mkdir(parents=True)
    (root / "bad" / "1" / "model.onnx").write_bytes(b"no graph")
    write_endless_model(root / "slow", 1)
    flags = ("--lazy_loading", "--max_loaded_models=3", "--rest_api_enable_cors_support")
    server = start_server(f"--model_root={root}", *flags)
    assert states(server, "m0") == {"1": "START"}
    with urllib.request.urlopen(f"{server.url}/v1/models/m0/metadata", timeout=10) as response:
        assert response.headers.get_all("Access-Control-Allow-Origin") == ["*"]  # once, though it was asked twice

    def ask_rest(number: int) -> float:
        status, answer = get(server, f"/v1/models/m{number}:predict", {"instances": [[1, 1, 1]]})
        assert status == 200, answer
        return float(answer["predictions"][0][0])

    with ThreadPoolExecutor(16) as pool:
        numbers = [number for number in range(8) for _ in range(5)]
        by_rest = pool.map(ask_rest, numbers)
        by_grpc = pool.map(lambda number: predict(server, f"m{number}"), numbers)
        assert list(by_rest) == list(by_grpc) == [float(number) for number in numbers]
    loaded = [name for name in (f"m{number}" for number in range(8)) if states(server, name) == {"1": "AVAILABLE"}]
    assert 1 <= len(loaded) <= 3
    assert get(server, "/v1/models/m0/metadata")[0] == 200  # loads it, too
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}
    for name in ("m4", "m5", "m6", "m7"):
        status, answer = get(server, f"/v2/models/{name}/infer", {"inputs": [tensor]})
        assert (status, answer["outputs"][0]["data"][0]) == (200, float(name[1:]))

    with pytest.raises(grpc.RpcError, match="failed: FAILED_PRECONDITION") as caught:
        predict(server, "bad")
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as caught:
        predict(server, "slow", timeout=0.5)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert states(server, "slow") == {"1": "LOADING"}
    assert predict(server, "m1") == 1
    assert server.stop() == 0


def test_a_limit_of_loaded_models_needs_lazy_loading(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(f"--model_root={tmp_path}", "--max_loaded_models=3", wait=False)
    assert server.process.wait(60) == 255
    assert "--max_loaded_models needs --lazy_loading" in server.log.read_text()
