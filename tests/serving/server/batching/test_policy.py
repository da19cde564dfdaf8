"""Batching parameters as flags of a real server: files, their errors, and files in version folders."""

import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from bookserve.serving.server.batching.policy import thread_pool
from bookserve.serving.wire.batching_parameters_pb2 import BatchingParameters
from model_servers import Server, StartServer, write_scale_model


def predict(server: Server, name: str, count: int) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones((count, 3), np.float32)))
    with grpc.insecure_channel(server.target) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)
    return tf.make_ndarray(response.outputs["y"])


@pytest.fixture
def two_models(tmp_path: Path) -> Path:
    """Model `own` with batching parameters in its folder, model `plain` without."""
    for name in ("own", "plain"):
        write_scale_model(tmp_path / "models" / name, 1, 2.0)
    (tmp_path / "models" / "own" / "1" / "batching_params.pbtxt").write_text("max_batch_size { value: 2 }")
    return tmp_path / "models"


def test_parameters_hold_for_every_model(start_server: StartServer, two_models: Path, tmp_path: Path) -> None:
    parameters = tmp_path / "batching.config"
    parameters.write_text(
        "max_batch_size { value: 4 } batch_timeout_micros { value: 1000 } num_batch_threads { value: 2 }"
        " max_enqueued_batches { value: 100 } allowed_batch_sizes: 1 allowed_batch_sizes: 4"
        ' thread_pool_name { value: "mine" }'
    )
    server = start_server(
        f"--model_root={two_models}",
        "--enable_batching",
        f"--batching_parameters_file={parameters}",
        "--enable_metrics",
    )
    for name in ("own", "plain"):
        assert predict(server, name, 3).tolist() == [[2, 2, 2]] * 3
        with pytest.raises(grpc.RpcError, match="Task size 5 is larger than maximum input batch size 4"):
            predict(server, name, 5)
    with urllib.request.urlopen(f"{server.url}/monitoring/prometheus/metrics", timeout=10) as response:
        page = response.read().decode()
    assert ':tensorflow:serving:batching_session:queuing_latency_count{thread_pool_name="mine"} 2' in page


def test_the_threads_of_a_file_without_a_name_have_the_originals() -> None:
    assert thread_pool(BatchingParameters()) == "batch_threads"


def test_parameters_in_a_versions_folder(start_server: StartServer, two_models: Path) -> None:
    server = start_server(f"--model_root={two_models}", "--enable_batching", "--enable_per_model_batching_parameters")
    with pytest.raises(grpc.RpcError, match="Task size 3 is larger than maximum input batch size 2"):
        predict(server, "own", 3)
    assert len(predict(server, "plain", 2000)) == 2000


@pytest.mark.parametrize(
    ("flags", "text", "message"),
    [
        ([], "", "batching_parameters_file is set without setting server_options.enable_batching to true."),
        (["--enable_batching"], "max_batch_size: 4", "INVALID_ARGUMENT: Invalid protobuf file: '"),
        (
            ["--enable_batching"],
            "max_batch_size { value: 4 } allowed_batch_sizes: 2",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 2; expected 4",
        ),
        (["--enable_batching"], "num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
        (["--enable_batching"], "num_batch_threads { value: 251 }", "num_batch_threads must be at most 250; was 251"),
        (
            [
                "--enable_batching",
                "--tensorflow_session_parallelism=1",
                "--tensorflow_intra_op_parallelism=1",
                "--tensorflow_inter_op_parallelism=1",
            ],
            "",
            "server_options.tensorflow_inter_op_parallelism) separately. You cannot configure all.",
        ),
    ],
    ids=["without the flag", "no message", "sizes", "threads", "more threads", "parallelism"],
)
def test_settings_that_make_no_sense_end_the_start(
    start_server: StartServer, two_models: Path, tmp_path: Path, flags: list[str], text: str, message: str
) -> None:
    parameters = tmp_path / "batching.config"
    parameters.write_text(text)
    server = start_server(f"--model_root={two_models}", f"--batching_parameters_file={parameters}", *flags, wait=False)
    assert server.process.wait(60) == 255
    log = server.log.read_text()
    assert "Failed to start server. Error: INVALID_ARGUMENT" in log
    assert message in log
    assert "Traceback" not in log
