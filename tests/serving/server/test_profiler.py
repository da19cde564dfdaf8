"""TensorFlow's profiler client against a server whose model TensorFlow runs."""

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from model_servers import Server, server_starter


class Double(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def double(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x + x}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("profiled")
    module = Double()
    tf.saved_model.save(module, str(folder / "double/1"), signatures={"serving_default": module.double})
    with server_starter(folder) as start:
        yield start("--model_name=double", f"--model_base_path={folder / 'double'}")


def test_a_trace_catches_requests(server: Server, tmp_path: Path) -> None:
    stop = threading.Event()
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "double"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))

    def ask() -> None:
        with grpc.insecure_channel(server.target) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while not stop.wait(0.01):
                stub.Predict(request, timeout=60)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        tf.profiler.experimental.client.trace(f"grpc://{server.target}", str(tmp_path), 500)
    finally:
        stop.set()
        thread.join()
    (trace,) = tmp_path.rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    assert server.stop() == 0
