"""Signatures: what they take for their inputs, and the check of their method names."""

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_service_pb2_grpc, regression_pb2

from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.server.types.signatures import Signature, from_proto
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensors import to_proto
from model_servers import StartServer, write_scale_model


def signature(**defaults: np.ndarray) -> Signature:
    definition = tensorflow_pb2.SignatureDef()
    for name, number in (("a", tensorflow_pb2.DT_FLOAT), ("b", tensorflow_pb2.DT_INT64)):
        definition.inputs[name].name = f"{name}:0"
        definition.inputs[name].dtype = number
        definition.inputs[name].tensor_shape.dim.add().size = -1
    definition.outputs["y"].name = "y:0"
    definition.outputs["z"].name = "z:0"
    for name, array in defaults.items():
        definition.defaults[name].CopyFrom(to_proto(array))
    return from_proto("serving_default", definition)


A, B = np.float32([1, 2]), np.int64([3, 4])


def test_defaults_fill_in_what_is_missing() -> None:
    completed = signature(b=B).complete({"a": A})
    assert {name: array.tolist() for name, array in completed.items()} == {"a": [1, 2], "b": [3, 4]}
    given = {"a": A, "b": B + 1}
    assert signature(b=B).complete(given) == given


@pytest.mark.parametrize(
    ("defaults", "inputs", "message"),
    [
        (
            {},
            {"a": A},
            "input size does not match signature: 1!=2 len({a}) != len({a,b})."
            " Sent extra: {}. Missing but required: {b}.",
        ),
        (
            {},
            {"a": A, "z": B},
            "Signature input alias: b(feed name: b:0) not found in request and no default value provided."
            " Inputs expected to be in the request {a,z}, or default input alias set: ",
        ),
        (
            {"b": B},
            {"b": B},
            "Signature input alias: a(feed name: a:0) not found in request and no default value provided."
            " Inputs expected to be in the request {b}, or default input alias set: b",
        ),
        (
            {"b": B},
            {"a": A, "z": B},
            "Inputs contains invalid name. Used request inputs: a, request input: a,z",
        ),
        ({}, {"a": A, "b": A}, "Expects arg[1] to be int64 but float is provided: input 'b'"),
        ({"b": A}, {"a": A}, "Expects arg[1] to be int64 but float is provided: input 'b'"),
        ({}, {"a": A[:, None], "b": B}, "input 'a' expects shape [?], the request has [2, 1]"),
    ],
)
def test_inputs_that_do_not_fit(defaults: dict[str, Any], inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ServingError) as caught:
        signature(**defaults).complete(inputs)
    assert str(caught.value) == f"INVALID_ARGUMENT: {message}"


def test_an_input_of_a_type_that_numpy_lacks() -> None:
    definition = tensorflow_pb2.SignatureDef()
    definition.inputs["a"].dtype = tensorflow_pb2.DT_QUINT8
    with pytest.raises(ServingError, match=r"Expects arg\[0\] to be quint8 but float is provided: input 'a'"):
        from_proto("serving_default", definition).complete({"a": A})


def test_the_order_of_a_filter_changes_nothing() -> None:
    assert signature().choose_outputs(["z", "y"]) == signature().choose_outputs([]) == ("y", "z")


def test_a_default_that_cannot_be_read_is_none(caplog: pytest.LogCaptureFixture) -> None:
    definition = tensorflow_pb2.SignatureDef()
    definition.defaults["a"].dtype = tensorflow_pb2.DT_VARIANT
    assert from_proto("serving_default", definition).defaults == {}
    assert "the default of input 'a' cannot be used" in caplog.text


def with_method(version: Path, method: str) -> None:
    """Puts a saved_model.pb beside the graph of y = factor * x, which says so of the signature's method."""
    model = tensorflow_pb2.SavedModel()
    graph = model.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    definition = graph.signature_def["serving_default"]
    definition.method_name = method
    for infos, name in ((definition.inputs, "x"), (definition.outputs, "y")):
        infos[name].dtype = tensorflow_pb2.DT_FLOAT
        infos[name].tensor_shape.unknown_rank = True
    (version / "saved_model.pb").write_bytes(model.SerializeToString())


def test_the_check_of_method_names(start_server: StartServer, tmp_path: Path) -> None:
    models = tmp_path / "models"
    with_method(write_scale_model(models / "odd", 1, 2.0), "my/method")
    with_method(write_scale_model(models / "regress", 1, 2.0), "tensorflow/serving/regress")
    server = start_server(f"--model_root={models}", "--enable_signature_method_name_check=true")

    def predict(name: str) -> Any:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([[1, 2, 3]])))
        return stub.Predict(request, timeout=10)

    with grpc.insecure_channel(server.target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        assert list(predict("regress").outputs["y"].float_val) == [2, 4, 6]
        with pytest.raises(grpc.RpcError) as caught:
            predict("odd")
        assert (caught.value.code(), caught.value.details()) == (
            grpc.StatusCode.INTERNAL,
            "Expected prediction signature method_name to be one of {tensorflow/serving/predict,"
            " tensorflow/serving/classify, tensorflow/serving/regress}. Was: my/method",
        )
        classify = classification_pb2.ClassificationRequest()
        classify.model_spec.name = "regress"
        with pytest.raises(grpc.RpcError) as caught:
            stub.Classify(classify, timeout=10)
        assert (caught.value.code(), caught.value.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "Expected classification signature method_name to be tensorflow/serving/classify."
            " Was: tensorflow/serving/regress",
        )
        regress = regression_pb2.RegressionRequest()
        regress.model_spec.name = "odd"
        with pytest.raises(grpc.RpcError, match="Expected regression signature method_name to be tensorflow/serving"):
            stub.Regress(regress, timeout=10)
