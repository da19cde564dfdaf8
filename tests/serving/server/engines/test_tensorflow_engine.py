"""SavedModels without an ONNX graph, made by TensorFlow 1's and 2's APIs, served and asked by the official stubs."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from model_servers import Server, server_starter


class Half(tf.Module):
    """TensorFlow Serving's half_plus_two, and a signature of strings."""

    def __init__(self) -> None:
        self.a = tf.Variable(0.5)

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
    def half_plus_two(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * self.a + 2.0}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def upper(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"upper": tf.strings.upper(text), "length": tf.strings.length(text)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="text")])
    def scalar(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"same": tf.identity(text), "length": tf.strings.length(text)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def split(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"words": tf.strings.split(text), "length": tf.strings.length(text)}

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32), tf.TensorSpec([2], tf.int32)])
    def shaped(self, x: tf.Tensor, shape: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.reshape(x, shape)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def positive(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, message="x must not be negative")]):
            return {"y": tf.identity(x)}


def write_tensorflow_1(path: Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 1], name="x")
        factor = tf.compat.v1.get_variable("factor", initializer=3.0, use_resource=False)
        y = tf.multiply(x, factor, name="y")
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(path), {"x": x}, {"y": y})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tensorflow")
    half = Half()
    signatures = {"serving_default": half.half_plus_two, "upper": half.upper, "positive": half.positive}
    signatures |= {"scalar": half.scalar, "split": half.split, "shaped": half.shaped}
    tf.saved_model.save(half, str(folder / "models/half/1"), signatures=signatures)
    write_tensorflow_1(folder / "models/old/7")
    with server_starter(folder) as start:
        yield start(f"--model_root={folder / 'models'}")


def ask(
    server: Server, model: str, signature: str, outputs: tuple[str, ...] = (), **inputs: object
) -> dict[str, object]:
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    with grpc.insecure_channel(server.target) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)
    return {alias: tf.make_ndarray(tensor).tolist() for alias, tensor in response.outputs.items()}


def test_a_feed_of_another_rank_is_served_as_tensorflow_serving_serves_it(server: Server) -> None:
    """The declared shape is [?, 1]; TensorFlow Serving's own documentation feeds [3]."""
    assert ask(server, "half", "", x=np.float32([1, 2, 5])) == {"y": [2.5, 3.0, 4.5]}
    assert ask(server, "half", "serving_default", x=np.float32([[1], [2]])) == {"y": [[2.5], [3.0]]}


def test_strings_and_several_outputs(server: Server) -> None:
    assert ask(server, "half", "upper", text=[b"ab", b"c"]) == {"upper": [b"AB", b"C"], "length": [2, 1]}
    assert ask(server, "half", "upper", outputs=("length",), text=[b"ab", b"c"]) == {"length": [2, 1]}


def test_scalars_are_answered(server: Server) -> None:
    assert ask(server, "half", "scalar", text=b"a\0b") == {"same": b"a\0b", "length": 3}


def test_a_ragged_output_is_refused_and_the_others_are_answered(server: Server) -> None:
    assert ask(server, "half", "split", outputs=("length",), text=[b"a b", b"c"]) == {"length": [3, 1]}
    with pytest.raises(grpc.RpcError) as caught:
        ask(server, "half", "split", text=[b"a b", b"c"])
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "output 'words' is not one dense tensor" in caught.value.details()


def test_a_shape_that_does_not_fit_is_the_requests_fault(server: Server) -> None:
    for x, shape in ((np.float32([[1, 2, 3]]), [2, 2]), (np.empty((0, 3), np.float32), [0, 2**31 - 1])):
        with pytest.raises(grpc.RpcError) as caught:
            ask(server, "half", "shaped", x=x, shape=np.int32(shape))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "{{node" not in caught.value.details()


def test_a_tensorflow_1_model(server: Server) -> None:
    assert ask(server, "old", "", x=np.float32([[1], [2]])) == {"y": [[3.0], [6.0]]}


def test_what_the_graph_refuses_keeps_its_status(server: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(server, "half", "positive", x=np.float32([1, -1]))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "x must not be negative" in caught.value.details()
    with pytest.raises(grpc.RpcError) as caught:
        ask(server, "half", "", x=["a"])
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "Expects arg[0] to be float but string is provided" in caught.value.details()
    assert ask(server, "half", "positive", x=np.float32([1])) == {"y": [1.0]}
