"""The limit of a process's memory: a request beyond it fails alone, and leaves room for those that follow."""

import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from fuzz_models import write_onnx_models

from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import to_array, to_proto
from model_servers import Server, StartServer, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process holds")


def predict(server: Server, model: str, **inputs: object) -> messages.PredictResponse:
    request = messages.PredictRequest()
    request.model_spec.name = model
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(to_proto(np.asarray(value)))
    with grpc.insecure_channel(server.target) as channel:
        ask = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        return messages.PredictResponse.FromString(ask(request.SerializeToString(), timeout=120))


def test_what_a_refused_request_leaves_does_not_refuse_others(start_server: StartServer, tmp_path: Path) -> None:
    """ONNX Runtime keeps what it allocated for a run, here more than the server lets any request begin with."""
    write_onnx_models(tmp_path / "models")
    server = start_server(f"--model_root={tmp_path / 'models'}", f"--max_memory_bytes={3 << 30}")
    x = np.array([[1.5, -2.0]], np.float32)
    for count in (10**7, 5 * 10**7, 10**8, 2 * 10**8):
        with pytest.raises(grpc.RpcError) as caught:
            predict(server, "lengths", x=x, repeats=np.int64([count, 1]))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        wait_until(lambda: answers_sum(server), "others are answered again")


def answers_sum(server: Server) -> bool:
    x = np.array([[0.25, 3.0]], np.float32)
    try:
        answer = predict(server, "pair", a=x, b=2 * x)
    except grpc.RpcError:
        return False
    np.testing.assert_array_equal(to_array(answer.outputs["sum"]), 3 * x)
    return True
