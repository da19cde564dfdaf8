"""Classify, Regress and MultiInference on SavedModels that parse tf.Example, by the official stubs and over REST."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from bookserve.serving.wire import tensorflow_pb2
from model_servers import Server, server_starter, write_scale_model

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
PREDICT = "tensorflow/serving/predict"
FEATURES = {
    "x": tf.io.FixedLenFeature([1], tf.float32, default_value=[0.0]),
    "bias": tf.io.FixedLenFeature([1], tf.float32, default_value=[2.0]),
}


def write_tensorflow_1(path: Path) -> None:
    """half_plus_two over tf.Example: good signatures, and one for every way in which a signature can be wrong."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        serialized = tf.compat.v1.placeholder(tf.string, [None], name="tf_example")
        features = tf.io.parse_example(serialized, FEATURES)
        x = tf.identity(features["x"], name="x")
        half = tf.compat.v1.get_variable("half", initializer=0.5, use_resource=False)
        y = tf.add(tf.multiply(x, half), features["bias"], name="y")
        both = tf.concat([y, -y], axis=1)
        labels = tf.where(tf.greater(both, 0.0), tf.fill(tf.shape(both), "positive"), tf.fill(tf.shape(both), "not"))
        flat = tf.squeeze(y, axis=1)
        example = {"inputs": serialized}

        def signature(
            method: str, inputs: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor]
        ) -> tf.compat.v1.saved_model.build_signature_def:
            return tf.compat.v1.saved_model.build_signature_def(
                {alias: tf.compat.v1.saved_model.build_tensor_info(tensor) for alias, tensor in inputs.items()},
                {alias: tf.compat.v1.saved_model.build_tensor_info(tensor) for alias, tensor in outputs.items()},
                method,
            )

        session.run(tf.compat.v1.global_variables_initializer())
        builder = tf.compat.v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={
                "serving_default": signature(PREDICT, {"x": x}, {"y": y}),
                "classify": signature(CLASSIFY, example, {"classes": labels, "scores": both}),
                "scores": signature(CLASSIFY, example, {"scores": both}),
                "classes": signature(CLASSIFY, example, {"classes": labels}),
                "regress": signature(REGRESS, example, {"outputs": y}),
                "regress_flat": signature(REGRESS, example, {"outputs": flat}),
                "two_inputs": signature(CLASSIFY, example | {"x": x}, {"scores": both}),
                "other_input": signature(CLASSIFY, {"examples": serialized}, {"scores": both, "outputs": y}),
                "other_input_regress": signature(REGRESS, {"examples": serialized}, {"outputs": y}),
                "float_input": signature(CLASSIFY, {"inputs": x}, {"scores": both}),
                "three_outputs": signature(CLASSIFY, example, {"classes": labels, "scores": both, "y": y}),
                "other_outputs": signature(CLASSIFY, example, {"y": y}),
                "flat_scores": signature(CLASSIFY, example, {"scores": flat}),
                "flat_classes": signature(CLASSIFY, example, {"classes": tf.squeeze(labels[:, :1], axis=1)}),
                "double_scores": signature(CLASSIFY, example, {"scores": tf.cast(both, tf.float64)}),
                "number_classes": signature(CLASSIFY, example, {"classes": both}),
                "one_row_of_scores": signature(CLASSIFY, example, {"scores": both[:1]}),
                "one_row_of_classes": signature(CLASSIFY, example, {"classes": labels[:1]}),
                "unequal": signature(CLASSIFY, example, {"classes": labels, "scores": y}),
                "wide": signature(REGRESS, example, {"outputs": both}),
                "one_row": signature(REGRESS, example, {"outputs": y[:1]}),
                "double": signature(REGRESS, example, {"outputs": tf.cast(y, tf.float64)}),
            },
        )
        builder.save()


class Examples(tf.Module):
    """The same by TensorFlow 2: every signature has an input of its own."""

    def __init__(self) -> None:
        self.half = tf.Variable(0.5)

    def y(self, inputs: tf.Tensor) -> tf.Tensor:
        features = tf.io.parse_example(inputs, FEATURES)
        return features["x"] * self.half + features["bias"]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        y = self.y(inputs)
        return {"scores": y, "classes": tf.strings.as_string(y, precision=1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"outputs": self.y(inputs)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32), tf.TensorSpec([], tf.float32)])
    def scale(self, x: tf.Tensor, factor: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * factor}


def write_tensorflow_2(path: Path) -> None:
    module = Examples()
    signatures = {"serving_default": module.classify, "regress": module.regress, "scale": module.scale}
    tf.saved_model.save(module, str(path), signatures=signatures)
    file = path / "saved_model.pb"
    model = tensorflow_pb2.SavedModel.FromString(file.read_bytes())
    default = tensorflow_pb2.TensorProto.FromString(tf.make_tensor_proto(10.0).SerializeToString())
    model.meta_graphs[0].signature_def["scale"].defaults["factor"].CopyFrom(default)
    file.write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("examples")
    write_tensorflow_1(folder / "half/123")
    write_tensorflow_2(folder / "half2/1")
    write_scale_model(folder / "scale", 1, 2.0)
    config = folder / "models.config"
    config.write_text(
        "model_config_list {"
        f'config {{ name: "half" base_path: "{folder}/half" model_platform: "tensorflow"'
        ' version_labels { key: "stable" value: 123 } }'
        f'config {{ name: "half2" base_path: "{folder}/half2" model_platform: "tensorflow" }}'
        f'config {{ name: "scale" base_path: "{folder}/scale" model_platform: "tensorflow" }}'
        "}"
    )
    with server_starter(folder) as start:
        yield start(
            f"--model_config_file={config}",
            "--allow_version_labels_for_unavailable_models",
            environment={"TF_CPP_MIN_LOG_LEVEL": None},
        )


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[prediction_service_pb2_grpc.PredictionServiceStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def example(**features: float) -> tf.train.Example:
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                name: tf.train.Feature(float_list=tf.train.FloatList(value=[value])) for name, value in features.items()
            }
        )
    )


def fill(request: Any, signature: str = "", *values: float, model: str = "half") -> Any:
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    request.input.example_list.examples.extend(example(x=value) for value in values)
    return request


def classify(signature: str, *values: float, model: str = "half") -> classification_pb2.ClassificationRequest:
    return fill(classification_pb2.ClassificationRequest(), signature, *values, model=model)


def regress(signature: str, *values: float, model: str = "half") -> regression_pb2.RegressionRequest:
    return fill(regression_pb2.RegressionRequest(), signature, *values, model=model)


def pairs(result: classification_pb2.ClassificationResult) -> list[list[tuple[str, float]]]:
    return [[(entry.label, entry.score) for entry in row.classes] for row in result.classifications]


# gRPC


def test_classify_gives_labels_and_scores(stub: Any) -> None:
    response = stub.Classify(classify("classify", 2, -10), timeout=30)
    assert pairs(response.result) == [[("positive", 3), ("not", -3)], [("not", -3), ("positive", 3)]]
    spec = response.model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == ("half", "classify", 123)


def test_classify_without_labels_or_without_scores(stub: Any) -> None:
    assert pairs(stub.Classify(classify("scores", 2), timeout=30).result) == [[("", 3), ("", -3)]]
    assert pairs(stub.Classify(classify("classes", 2), timeout=30).result) == [[("positive", 0), ("not", 0)]]


def test_regress_reads_columns_and_flat_outputs(stub: Any) -> None:
    for signature in ("regress", "regress_flat"):
        response = stub.Regress(regress(signature, 2, 4, 6), timeout=30)
        assert [entry.value for entry in response.result.regressions] == [3, 4, 5]
        assert (response.model_spec.signature_name, response.model_spec.version.value) == (signature, 123)


def test_a_context_is_shared_and_an_examples_own_features_win(stub: Any) -> None:
    request = regress("regress")
    request.input.example_list_with_context.context.CopyFrom(example(bias=10, x=100))
    request.input.example_list_with_context.examples.extend([example(x=2), example(), example(bias=0)])
    response = stub.Regress(request, timeout=30)
    assert [entry.value for entry in response.result.regressions] == [11, 60, 50]


def test_a_tensorflow_2_model(stub: Any) -> None:
    response = stub.Classify(classify("", 2, 3, model="half2"), timeout=30)
    assert pairs(response.result) == [[("3.0", 3)], [("3.5", 3.5)]]
    assert response.model_spec.signature_name == "serving_default"
    response = stub.Regress(regress("regress", 2, 3, model="half2"), timeout=30)
    assert [entry.value for entry in response.result.regressions] == [3, 3.5]


def tasks(*signatures: tuple[str, str], model: str = "half", values: tuple[float, ...] = (2.0, 4.0)) -> Any:
    request = inference_pb2.MultiInferenceRequest()
    for name, method in signatures:
        task = request.tasks.add(method_name=method)
        task.model_spec.name = model
        task.model_spec.signature_name = name
    request.input.example_list.examples.extend(example(x=value) for value in values)
    return request


@pytest.mark.parametrize(
    ("model", "classifying", "version", "classes"),
    [
        ("half", "scores", 123, [[("", 3), ("", -3)], [("", 4), ("", -4)]]),
        ("half2", "serving_default", 1, [[("3.0", 3)], [("4.0", 4)]]),
    ],
)
def test_multi_inference_answers_every_task(
    stub: Any, model: str, classifying: str, version: int, classes: list[list[tuple[str, float]]]
) -> None:
    response = stub.MultiInference(tasks(("regress", REGRESS), (classifying, CLASSIFY), model=model), timeout=30)
    regression, classification = response.results
    assert [entry.value for entry in regression.regression_result.regressions] == [3, 4]
    assert pairs(classification.classification_result) == classes
    specs = [(result.model_spec.signature_name, result.model_spec.version.value) for result in response.results]
    assert specs == [("regress", version), (classifying, version)]


def test_multi_inference_of_one_task(stub: Any) -> None:
    response = stub.MultiInference(tasks(("", CLASSIFY), model="half2"), timeout=30)
    assert pairs(response.results[0].classification_result) == [[("3.0", 3)], [("4.0", 4)]]
    assert response.results[0].model_spec.signature_name == "serving_default"


def test_concurrent_requests_get_their_own_answers(stub: Any) -> None:
    def ask(value: int) -> float:
        response = stub.Regress(regress("regress", value), timeout=60)
        return response.result.regressions[0].value

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(64))) == [value / 2 + 2 for value in range(64)]


def edited(request: Any, change: Callable[[Any], object]) -> Any:
    change(request)
    return request


COMMON: list[tuple[Callable[[Any], object], grpc.StatusCode, str]] = [
    (lambda r: r.ClearField("model_spec"), grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec"),
    (lambda r: setattr(r.model_spec, "name", ""), grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified."),
    (
        lambda r: setattr(r.model_spec, "name", "foo"),
        grpc.StatusCode.NOT_FOUND,
        "Servable not found for request: Latest(foo)",
    ),
    (
        lambda r: setattr(r.model_spec.version, "value", 7),
        grpc.StatusCode.NOT_FOUND,
        "Servable not found for request: Specific(half, 7)",
    ),
    (
        lambda r: setattr(r.model_spec, "version_label", "canary"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "Unrecognized servable version label: canary",
    ),
    (
        lambda r: setattr(r.model_spec, "signature_name", "x"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "No signature was found with the name: x",
    ),
    (lambda r: r.ClearField("input"), grpc.StatusCode.INVALID_ARGUMENT, "Input is empty."),
]


@pytest.mark.parametrize(("change", "code", "details"), COMMON, ids=[details for _, _, details in COMMON])
def test_what_classify_and_regress_refuse_alike(
    stub: Any, change: Callable[[Any], object], code: grpc.StatusCode, details: str
) -> None:
    for call, request in ((stub.Classify, classify("classify", 1)), (stub.Regress, regress("regress", 1))):
        with pytest.raises(grpc.RpcError) as caught:
            call(edited(request, change), timeout=30)
        assert (caught.value.code(), caught.value.details()) == (code, details)


@pytest.mark.parametrize(
    ("request_", "details"),
    [
        (classify("two_inputs", 1), "Expected one input Tensor."),
        (regress("two_inputs", 1), "Expected one input Tensor."),
        (classify("three_outputs", 1), "Expected one or two output Tensors, found 3"),
        (classify("other_input", 1), 'No classification inputs found in SignatureDef: inputs {\n  key: "examples"'),
        (
            classify("other_outputs", 1),
            'Expected classification signature outputs to contain at least one of "classes" or "scores".'
            " Signature was: inputs {",
        ),
        (classify("float_input", 1), "Expects arg[0] to be float but string is provided"),
        (classify("flat_scores", 1), "Expected Tensor shape: [batch_size num_classes] but got [1]"),
        (classify("flat_classes", 1), "Expected Tensor shape: [batch_size num_classes] but got [1]"),
        (classify("double_scores", 1), "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        (classify("number_classes", 1), "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        (classify("one_row_of_scores", 1, 2), "Expected scores output batch size of 2. Got: 1"),
        (classify("one_row_of_classes", 1, 2), "Expected classes output batch size of 2. Got: 1"),
        (classify("unequal", 1), "Tensors class and score should match in dim_size(1). Got 2 vs. 1"),
        (regress("classify", 1), "Expected one output Tensor."),
        (regress("other_input_regress", 1), 'No regression inputs found in SignatureDef: inputs {\n  key: "examples"'),
        (regress("scores", 1), "No regression outputs found in SignatureDef: inputs {"),
        (
            regress("wide", 1),
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [1,2]",
        ),
        (regress("one_row", 1, 2), "Input batch size did not match output batch size: 2 vs. 1"),
        (regress("double", 1), "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE"),
        (classify("", 1, model="scale"), 'No classification inputs found in SignatureDef: inputs {\n  key: "x"'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_signatures_and_outputs_of_another_form(stub: Any, request_: Any, details: str) -> None:
    call = stub.Classify if isinstance(request_, classification_pb2.ClassificationRequest) else stub.Regress
    with pytest.raises(grpc.RpcError) as caught:
        call(request_, timeout=30)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(details)


def test_the_servers_log_holds_no_line_of_tensorflows(stub: Any, server: Server) -> None:
    assert stub.Regress(regress("regress", 4.0), timeout=30).result.regressions[0].value == 4.0
    ours = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ [IWE] bookserve\.")
    lines = server.log.read_text().splitlines()
    assert lines
    assert [line for line in lines if not ours.match(line)] == []


def test_bytes_that_are_no_example_are_the_graphs_complaint(stub: Any, server: Server) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half"
    request.model_spec.signature_name = "regress"
    request.inputs["inputs"].CopyFrom(tf.make_tensor_proto([b"\xff\xff"]))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request, timeout=30)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "Could not parse example input" in caught.value.details()


def second_task(name: str) -> Any:
    request = tasks(("regress", REGRESS), ("scores", CLASSIFY))
    request.tasks[1].model_spec.name = name
    return request


@pytest.mark.parametrize(
    ("request_", "code", "details"),
    [
        (
            inference_pb2.MultiInferenceRequest(),
            grpc.StatusCode.INVALID_ARGUMENT,
            "ModelSpec has no name specified.",
        ),
        (second_task(""), grpc.StatusCode.INVALID_ARGUMENT, "Found ModelSpec with an empty model name."),
        (
            second_task("half2"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            tasks(("regress", REGRESS), ("regress", REGRESS)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "Duplicate evaluation of signature: regress",
        ),
        (
            tasks(("x", REGRESS)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "Requested signature not found in model graph: x",
        ),
        (
            tasks(("", PREDICT)),
            grpc.StatusCode.UNIMPLEMENTED,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        (tasks(("regress", REGRESS), values=()), grpc.StatusCode.INVALID_ARGUMENT, "Input is empty."),
        (
            tasks(("regress", REGRESS), ("wide", REGRESS)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]",
        ),
        (tasks(("", REGRESS), model="foo"), grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(foo)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_multi_inference_errors(stub: Any, request_: Any, code: grpc.StatusCode, details: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.MultiInference(request_, timeout=30)
    assert (caught.value.code(), caught.value.details()) == (code, details)


# Predict on signatures with defaults


def predict(stub: Any, **inputs: Any) -> list[float]:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half2"
    request.model_spec.signature_name = "scale"
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    return list(stub.Predict(request, timeout=30).outputs["y"].float_val)


def test_an_input_with_a_default_may_be_left_out(stub: Any) -> None:
    assert predict(stub, x=[1.0, 2.0]) == [10, 20]
    assert predict(stub, x=[1.0, 2.0], factor=3.0) == [3, 6]


@pytest.mark.parametrize(
    ("inputs", "details"),
    [
        (
            {"factor": 1.0},
            "Signature input alias: x(feed name: scale_x:0) not found in request and no default value provided."
            " Inputs expected to be in the request {factor}, or default input alias set: factor",
        ),
        (
            {"x": [1.0], "z": 1.0},
            "Inputs contains invalid name. Used request inputs: x, request input: x,z",
        ),
        (
            {"x": [1.0], "factor": 1.0, "z": 1.0},
            "input size does not match signature: 3!=2 len({factor,x,z}) != len({factor,x})."
            " Sent extra: {z}. Missing but required: {}.",
        ),
        ({"x": ["a"]}, "Expects arg[1] to be float but string is provided: input 'x'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_defaults_do_not_excuse_wrong_inputs(stub: Any, inputs: dict[str, Any], details: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        predict(stub, **inputs)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, details)


# REST


def post(server: Server, path: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data=data)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_rest_classify_and_regress(server: Server) -> None:
    body = {"signature_name": "classify", "examples": [{"x": 2.0}, {"x": [-10.0]}]}
    assert post(server, "/v1/models/half:classify", body) == (
        200,
        {"results": [[["positive", 3.0], ["not", -3.0]], [["not", -3.0], ["positive", 3.0]]]},
    )
    body = {"signature_name": "regress", "context": {"bias": 10.0}, "examples": [{"x": 2.0}, {"bias": 0.5}]}
    for place in ("half", "half/versions/123", "half/labels/stable", "%68alf"):
        assert post(server, f"/v1/models/{place}:regress", body) == (200, {"results": [11.0, 0.5]})
    assert post(server, "/V1/Models/half2:classify", {"examples": [{"x": 3.0}]}) == (200, {"results": [[["3.5", 3.5]]]})


@pytest.mark.parametrize(
    ("verb", "body", "status", "error"),
    [
        ("classify", b"", 400, "JSON Parse error: The document is empty"),
        ("regress", {"examples": []}, 400, "'examples' value is an empty array"),
        ("classify", {}, 400, "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
        ("regress", {"signature_name": "classify", "examples": [{"x": 1}]}, 400, "Expected one output Tensor."),
        (
            "regress",
            {"signature_name": "regress", "examples": [{"x": 1}]},
            400,
            "Data types don't match. Data type: int64 but expected type: float",
        ),
        (
            "regress",
            {"signature_name": "nope", "examples": [{"x": 1.0}]},
            400,
            "No signature was found with the name: nope",
        ),
        ("Classify", {"examples": [{"x": 1.0}]}, 400, "Malformed request: POST /v1/models/half:Classify"),
    ],
)
def test_rest_errors(server: Server, verb: str, body: Any, status: int, error: str) -> None:
    given, answer = post(server, f"/v1/models/half:{verb}", body)
    assert given == status
    assert error in answer["error"]


def test_rest_shows_the_defaults(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/v1/models/half2/metadata", timeout=30) as response:
        signatures = json.load(response)["metadata"]["signature_def"]["signature_def"]
    assert signatures["scale"]["defaults"]["factor"]["float_val"] == [10.0]
    assert signatures["regress"]["defaults"] == {}


def test_rest_reads_the_body_before_it_looks_for_the_model(server: Server) -> None:
    assert post(server, "/v1/models/foo:classify", {})[0] == 400
    assert post(server, "/v1/models/foo:classify", {"examples": [{}]}) == (
        404,
        {"error": "Servable not found for request: Latest(foo)"},
    )
