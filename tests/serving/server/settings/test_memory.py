"""The limit of a process's memory: a request beyond it fails alone, and leaves room for those that follow."""

import re
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper

from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import to_array, to_proto
from model_servers import Server, StartServer, wait_until, write_graph, write_scale_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process holds")


def predict(server: Server, model: str, **inputs: object) -> messages.PredictResponse:
    request = messages.PredictRequest()
    request.model_spec.name = model
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(to_proto(np.asarray(value)))
    with grpc.insecure_channel(server.target) as channel:
        ask = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        return messages.PredictResponse.FromString(ask(request.SerializeToString(), timeout=120))


def write_zeros_model(base: Path) -> None:
    """Three tensors of the shape that a request names."""
    names = ("tiled", "expanded", "zeros")
    nodes = [
        helper.make_node("Tile", ["x", "shape"], ["tiled"]),
        helper.make_node("Expand", ["x", "shape"], ["expanded"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "w"]),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [name, f"{name}_1"]) for name in names]
    write_graph(base, 1, helper.make_graph(nodes, "zeros", inputs, outputs))


def test_what_a_refused_request_leaves_does_not_refuse_others(start_server: StartServer, tmp_path: Path) -> None:
    """ONNX Runtime keeps what it allocated for a run, here more than the server lets any request begin with."""
    write_zeros_model(tmp_path / "models" / "zeros")
    write_scale_model(tmp_path / "models" / "scale", 1, 2.0)
    server = start_server(f"--model_root={tmp_path / 'models'}", f"--max_memory_bytes={3 << 30}")
    for count in (10_000_000, 50_000_000):
        with pytest.raises(grpc.RpcError) as caught:
            predict(server, "zeros", x=np.array([[1.5, -2.0]], np.float32), shape=np.int64([count, 1]))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        wait_until(lambda: scales(server), "others are answered again")


def test_a_limit_below_what_a_server_needs_is_refused_with_the_least_that_is_enough(
    start_server: StartServer, tmp_path: Path
) -> None:
    write_scale_model(tmp_path / "models" / "scale", 1, 2.0)

    def least(given: int) -> int:
        refused = start_server(f"--model_root={tmp_path / 'models'}", f"--max_memory_bytes={given}", wait=False)
        assert refused.process.wait(60) != 0
        found = re.search(r"reserve and never use\. Give at least (\d+), or 0", refused.log.read_text())
        assert found, refused.log.read_text()
        return int(found[1])

    needed = least(100 << 20)
    least(needed - (4 << 20))  # starts differ by some pages
    assert scales(start_server(f"--model_root={tmp_path / 'models'}", f"--max_memory_bytes={needed + (4 << 20)}"))


def scales(server: Server) -> bool:
    x = np.array([[0.25, 3.0, -8.0]], np.float32)
    try:
        answer = predict(server, "scale", x=x)
    except grpc.RpcError:
        return False
    np.testing.assert_array_equal(to_array(answer.outputs["y"]), 2 * x)
    return True
