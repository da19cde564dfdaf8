"""Endurance of loading: many models, many reloads, many swaps under load. Prints the curve of resident memory."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from model_servers import Server, StartServer, wait_until, write_graph, write_scale_model

pytestmark = pytest.mark.slow


def resident_mib(server: Server) -> float:
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def descriptors(server: Server) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def threads(server: Server) -> int:
    return len(list(Path(f"/proc/{server.pid}/task").iterdir()))


def write_large_model(base: Path, version: int) -> None:
    """`y = x @ w` with 4 MiB of weights."""
    weights = np.full((1024, 1024), version, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1024])],
        [numpy_helper.from_array(weights, "w")],
    )
    write_graph(base, version, graph)


def request_of(name: str, width: int) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones((1, width), np.float32)))
    return request


def test_300_models(start_server: StartServer, tmp_path: Path) -> None:
    root = tmp_path / "root"
    curve = []
    for count in (1, 100, 200, 300):
        for number in range(count):
            if not (root / f"m{number}").exists():
                write_scale_model(root / f"m{number}", 1, float(number))
        server = start_server(f"--model_root={root}")
        with grpc.insecure_channel(server.target) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            for number in range(count):
                response = stub.Predict(request_of(f"m{number}", 3), timeout=30)
                assert list(response.outputs["y"].float_val) == [float(number)] * 3
        curve.append((count, resident_mib(server)))
        assert server.stop() == 0
    print("models, resident MiB:", ", ".join(f"{count}: {size:.0f}" for count, size in curve))  # noqa: T201
    assert (curve[-1][1] - curve[0][1]) / 299 < 1.0  # MiB a model


def test_300_models_of_which_ten_are_loaded(start_server: StartServer, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for number in range(300):
        write_scale_model(root / f"m{number}", 1, float(number))
    server = start_server(f"--model_root={root}", "--lazy_loading", "--max_loaded_models=10")
    curve = [resident_mib(server)]
    with grpc.insecure_channel(server.target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for _ in range(3):
            for number in range(300):
                response = stub.Predict(request_of(f"m{number}", 3), timeout=30)
                assert list(response.outputs["y"].float_val) == [float(number)] * 3
            curve.append(resident_mib(server))
    print("rounds over 300 lazy models, resident MiB:", ", ".join(f"{size:.1f}" for size in curve))  # noqa: T201
    assert curve[-1] - curve[1] < 5
    assert server.stop() == 0


def test_200_reloads_of_one_model_leave_nothing_behind(start_server: StartServer, tmp_path: Path) -> None:
    base = tmp_path / "root" / "m"
    write_large_model(base, 1)
    write_large_model(base, 2)
    server = start_server("--model_name=m", f"--model_base_path={base}")
    curve, before = [], (0, 0)
    with grpc.insecure_channel(server.target) as channel:
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for round_ in range(200):
            version = 1 + round_ % 2
            request = model_management_pb2.ReloadConfigRequest()
            text_format.Parse(
                f'config {{ name: "m" base_path: "{base}" model_platform: "tensorflow"'
                f" model_version_policy {{ specific {{ versions: {version} }} }} }}",
                request.config.model_config_list,
            )
            models.HandleReloadConfigRequest(request, timeout=30)

            def swapped(version: int = version) -> bool:
                response = predictions.Predict(request_of("m", 1024), timeout=30)
                assert response.outputs["y"].float_val[0] == 1024 * response.model_spec.version.value
                return bool(response.model_spec.version.value == version)

            wait_until(swapped, f"version {version} serves")
            if round_ % 20 == 19:
                wait_until(lambda: server.log.read_text().count("Unloaded") > round_, "the old version has gone")  # noqa: B023
                curve.append(resident_mib(server))
            if round_ == 19:
                before = descriptors(server), threads(server)
    print("every 20 reloads, resident MiB:", ", ".join(f"{size:.1f}" for size in curve))  # noqa: T201
    assert curve[-1] - curve[0] < 10
    wait_until(lambda: descriptors(server) <= before[0], "no descriptor is left over")
    wait_until(lambda: threads(server) <= before[1], "no thread is left over")
    assert server.stop() == 0


def test_100_swaps_under_load(start_server: StartServer, tmp_path: Path) -> None:
    """No request fails, and every answer is wholly from one version."""
    base = tmp_path / "m"
    write_scale_model(base, 1, 1.0)
    server = start_server("--model_name=m", f"--model_base_path={base}", "--file_system_poll_wait_seconds=0.05")
    stop = threading.Event()
    seen: set[int] = set()
    answers = [0, 0, 0]

    def ask(place: int) -> None:
        request = request_of("m", 3)
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones((16, 3), np.float32)))
        with grpc.insecure_channel(server.target) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while not stop.is_set():
                response = stub.Predict(request, timeout=30)
                version = response.model_spec.version.value
                assert list(response.outputs["y"].float_val) == [float(version)] * 48
                seen.add(version)
                answers[place] += 1

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask, place) for place in range(3)]
        try:
            for version in range(2, 102):
                write_scale_model(base, version, float(version))
                wait_until(lambda version=version: version in seen, f"version {version} answers", 60)  # type: ignore[misc]
        finally:
            stop.set()
        for asked in asking:
            asked.result()
    print(f"{sum(answers)} answers over 100 swaps, none failed")  # noqa: T201
    assert server.stop() == 0
