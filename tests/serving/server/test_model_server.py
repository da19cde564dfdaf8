"""The model server as a process, asked by the official TensorFlow Serving stubs and over REST."""

import errno
import http.client
import importlib.metadata
import json
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from click.testing import CliRunner
from onnx import TensorProto, helper
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from bookserve.serving.server.main import main
from model_servers import (
    Server,
    StartServer,
    answers,
    free_port,
    server_starter,
    wait_until,
    write_graph,
    write_scale_model,
)


def request_of(x: Any, name: str = "scale", **spec: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.asarray(x, np.float32)))
    return request


def post(server: Server, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data=data, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def get(server: Server, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(server.url + path, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture
def scale(tmp_path: Path) -> Path:
    base = tmp_path / "models" / "scale"
    write_scale_model(base, 1, 2.0)
    return base


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that only ask."""
    folder = tmp_path_factory.mktemp("shared")
    write_scale_model(folder / "scale", 1, 2.0)
    with server_starter(folder) as start:
        yield start("--model_name=scale", f"--model_base_path={folder / 'scale'}")


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target) as channel:
        yield channel


# gRPC


def test_predict_answers_typed_fields_and_the_version(channel: grpc.Channel) -> None:
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(
        request_of([[1, 2, 3], [4, 5, 6]]), timeout=10
    )
    assert response.model_spec.name == "scale"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"
    assert list(response.outputs["y"].float_val) == [2, 4, 6, 8, 10, 12]
    assert tf.make_ndarray(response.outputs["y"]).shape == (2, 3)


def test_predict_may_answer_tensor_content(start_server: StartServer, scale: Path) -> None:
    server = start_server(
        "--model_name=scale", f"--model_base_path={scale}", "--enable_serialization_as_tensor_content"
    )
    with grpc.insecure_channel(server.target) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(
            request_of([[1, 2, 3]]), timeout=10
        )
    assert not response.outputs["y"].float_val
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["y"]), [[2, 4, 6]])


def without_spec(request: predict_pb2.PredictRequest) -> predict_pb2.PredictRequest:
    request.ClearField("model_spec")
    return request


def with_signature(request: predict_pb2.PredictRequest, name: str) -> predict_pb2.PredictRequest:
    request.model_spec.signature_name = name
    return request


def with_filter(request: predict_pb2.PredictRequest, *names: str) -> predict_pb2.PredictRequest:
    request.output_filter.extend(names)
    return request


def with_input(request: predict_pb2.PredictRequest, name: str, value: Any) -> predict_pb2.PredictRequest:
    request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def renamed(request: predict_pb2.PredictRequest, name: str) -> predict_pb2.PredictRequest:
    request.inputs[name].CopyFrom(request.inputs["x"])
    del request.inputs["x"]
    return request


ROW = [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("request_", "code", "details"),
    [
        (without_spec(request_of(ROW)), grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec"),
        (request_of(ROW, name=""), grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (
            request_of(ROW, name="foo"),
            grpc.StatusCode.NOT_FOUND,
            "Servable not found for request: Latest(foo)",
        ),
        (
            request_of(ROW, version=7),
            grpc.StatusCode.NOT_FOUND,
            "Servable not found for request: Specific(scale, 7)",
        ),
        (
            request_of(ROW, label="canary"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "Unrecognized servable version label: canary",
        ),
        (
            with_signature(request_of(ROW), "x"),
            grpc.StatusCode.FAILED_PRECONDITION,
            'Serving signature key "x" not found. The model has: serving_default. Choose one with signature_name.',
        ),
        (
            with_input(request_of(ROW), "z", 1.0),
            grpc.StatusCode.INVALID_ARGUMENT,
            "input size does not match signature: 2!=1 len({x,z}) != len({x})."
            " Sent extra: {z}. Missing but required: {}.",
        ),
        (
            renamed(request_of(ROW), "z"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "Signature input alias: x(feed name: x) not found in request and no default value provided."
            " Inputs expected to be in the request {z}, or default input alias set: ",
        ),
        (
            with_filter(request_of(ROW), "q"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "output tensor alias not found in signature: q Outputs expected to be in the set {y}.",
        ),
        (
            with_filter(request_of(ROW), "y", "y"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "duplicate output tensor alias: y",
        ),
        (
            with_input(request_of(ROW), "x", [["a", "b", "c"]]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "Expects arg[0] to be float but string is provided: input 'x'",
        ),
        (
            request_of([[1.0, 2.0]]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "input 'x' expects shape [?, 3], the request has [1, 2]",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_predict_errors_are_tensorflow_servings(
    channel: grpc.Channel, request_: predict_pb2.PredictRequest, code: grpc.StatusCode, details: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request_, timeout=10)
    assert (caught.value.code(), caught.value.details()) == (code, details)


def test_a_tiny_message_cannot_ask_for_a_huge_tensor(channel: grpc.Channel) -> None:
    request = request_of(ROW)
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(1.0, shape=[65536, 3]))
    request.inputs["x"].tensor_shape.dim[1].size = 65536
    with pytest.raises(grpc.RpcError) as caught:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("tensor parsing error: x")


def test_bytes_that_are_no_message(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff\xff", timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/tensorflow.serving.PredictionService/Foo")(b"", timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_model_status(channel: grpc.Channel) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "scale"
    (status,) = stub.GetModelStatus(request, timeout=10).model_version_status
    assert (status.version, status.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    request.model_spec.version.value = 9
    with pytest.raises(grpc.RpcError, match="Could not find version 9 of model scale"):
        stub.GetModelStatus(request, timeout=10)
    request.model_spec.name = "foo"
    request.model_spec.ClearField("version")
    with pytest.raises(grpc.RpcError, match="Could not find any versions of model foo"):
        stub.GetModelStatus(request, timeout=10)


def test_model_metadata(channel: grpc.Channel) -> None:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "scale"
    response = stub.GetModelMetadata(request, timeout=10)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    x = signatures.signature_def["serving_default"].inputs["x"]
    assert (x.dtype, [dim.size for dim in x.tensor_shape.dim]) == (tf.float32.as_datatype_enum, [-1, 3])
    request.metadata_field[:] = ["foo"]
    with pytest.raises(grpc.RpcError, match="Metadata field foo is not supported"):
        stub.GetModelMetadata(request, timeout=10)
    del request.metadata_field[:]
    with pytest.raises(grpc.RpcError, match="must specify at least one metadata_field"):
        stub.GetModelMetadata(request, timeout=10)


# REST


def test_rest_rows_and_columns(server: Server) -> None:
    path = "/v1/models/scale:predict"
    assert post(server, path, {"instances": [[1, 2, 3]]}) == (200, {"predictions": [[2, 4, 6]]})
    assert post(server, path, {"instances": [{"x": [1, 2, 3]}]}) == (200, {"predictions": [[2, 4, 6]]})
    assert post(server, path, {"inputs": [[1, 2, 3]]}) == (200, {"outputs": [[2, 4, 6]]})
    assert post(server, path, {"inputs": {"x": [[0.5, 1, 2]]}}) == (200, {"outputs": [[1, 2, 4]]})
    assert post(server, "/v1/models/scale/versions/1:predict", {"instances": [[1, 2, 3]]})[0] == 200


DEEP = b"[" * 900 + b"1" + b"]" * 900


def test_rest_writes_what_is_no_number_as_tensorflow_serving_does(server: Server) -> None:
    request = urllib.request.Request(
        server.url + "/v1/models/scale:predict", data=b'{"instances": [[NaN, -Infinity, 1.5]]}'
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.read() == b'{\n    "predictions": [[NaN, -Infinity, 3.0]\n    ]\n}'


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/v1/models/foo:predict", {"instances": [[1]]}, 404, "Servable not found for request: Latest(foo)"),
        (
            "/v1/models/scale/versions/9:predict",
            {"instances": [[1]]},
            404,
            "Servable not found for request: Specific(scale, 9)",
        ),
        (
            "/v1/models/scale/labels/canary:predict",
            {"instances": [[1]]},
            400,
            "Unrecognized servable version label: canary",
        ),
        ("/v1/models/scale:foo", {}, 400, "Malformed request: POST /v1/models/scale:foo"),
        ("/v1/models/scale:predict", b"", 400, "JSON Parse error: The document is empty"),
        ("/v1/models/scale:predict", b"{", 400, "JSON Parse error: "),
        ("/v1/models/scale:predict", b"[" * 100_000, 400, "JSON Parse error: "),
        ("/v1/models/scale:predict", b'{"instances": NaN' + b"[" * 100_000, 400, "JSON Parse error: "),
        ("/v1/models/scale:predict", b'{"instances": %b}' % DEEP, 400, "lists nested 899 levels deep"),
        ("/v1/models/scale:predict", b'{"inputs": %b, "x": NaN}' % DEEP, 400, "lists nested 900 levels deep"),
        (
            "/v1/models/scale:classify",
            b'{"examples": %b}' % DEEP,
            400,
            "Example must be JSON object but got JSON Array",
        ),
        ("/v1/models/scale:regress", b'{"examples": [{"x": %b}]}' % DEEP, 400, "unexpected JSON type: Array"),
        ("/v1/models/scale:regress", b'{"context": NaN, "examples": ' + b"[" * 100_000, 400, "JSON Parse error: "),
        ("/v1/models/scale:predict", [1], 400, "JSON Value: [1] Is not object"),
        (
            "/v1/models/foo:predict",
            {"signature_name": 5},
            400,
            "JSON Value: {\"signature_name\":5} not formatted correctly. 'signature_name' key must be a string value.",
        ),
        ("/v1/models/scale:PREDICT", {}, 400, "Malformed request: POST /v1/models/scale:PREDICT"),
        ("/v1/models/scale:predict/", {}, 400, "Malformed request: POST /v1/models/scale:predict/"),
        ("/v1/models/scale:regress", {"examples": [{}]}, 400, "No regression inputs found in SignatureDef: "),
        ("/v1/models/scale:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        (
            "/v1/models/scale:predict",
            {"instances": [[1, 2, 3]], "inputs": [[1, 2, 3]]},
            400,
            "expecting only one of 'inputs' or 'instances' keys to exist",
        ),
        (
            "/v1/models/scale:predict",
            {"signature_name": "x", "instances": [[1, 2, 3]]},
            400,
            'Serving signature name: "x" not found in signature def',
        ),
        ("/v1/models/scale:predict", {"instances": []}, 400, "No values in 'instances' array"),
        (
            "/v1/models/scale:predict",
            {"instances": [[1, 2, 3], [1, "a", 3]]},
            400,
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT:"
            ' JSON Value: "a" Type: String is not of expected type: float',
        ),
        (
            "/v1/models/scale:predict",
            {"instances": [[1, 2, 3], [1, 2]]},
            400,
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT:"
            " Expecting tensor size: 3 but got: 2",
        ),
        (
            "/v1/models/scale:predict",
            {"instances": [[1, True, 3]]},
            400,
            "JSON Value: true Type: True is not of expected type: float",
        ),
        (
            "/v1/models/scale:predict",
            {"instances": [[1, None, 3]]},
            400,
            "JSON Value: null Type: Null is not of expected type: float",
        ),
        ("/v1/models/scale:predict", {"instances": [{"z": [1]}]}, 400, "does not have named input: z"),
        (
            "/v1/models/scale:predict",
            {"instances": [{"x": [1]}, [1]]},
            400,
            "Expecting object but got list at item 1 of input list",
        ),
        ("/v1/models/scale:predict", {"inputs": {"z": [1]}}, 400, "Missing named input: x in 'inputs' object."),
        ("/v1/models/scale:predict", {"inputs": [[1, 2]]}, 400, "input 'x' expects shape [?, 3]"),
    ],
)
def test_rest_errors(server: Server, path: str, body: Any, status: int, error: str) -> None:
    given, answer = post(server, path, body)
    assert given == status
    assert error in answer["error"]


def test_rest_paths(server: Server) -> None:
    body = {"instances": [[1, 2, 3]]}
    answer = (200, {"predictions": [[2, 4, 6]]})
    assert post(server, "/V1/Models/scale/Versions/01:predict", body) == answer
    assert post(server, "/v1/models/sc%61le:predict?a=b", body) == answer
    assert post(server, "/v1/models/scale:predict", b'{"instances": [[1, 2, 3]], "instances": [[0, 0, 0]]}') == answer
    assert get(server, "/v1/models/scale/labels/any")[0] == 200
    assert get(server, "/v1/models/scale/labels/any/metadata") == (
        400,
        {"error": "Unrecognized servable version label: any"},
    )
    for path in ("/v1/models/versions/1", "/v1/models/labels/any", "/v1/models/versions/1/metadata"):
        assert get(server, path) == (400, {"error": "Missing model name in request."})
    assert get(server, "/V1/Models")[0] == 200
    for path in ("/foo", "/v1", "/v1models/scale:predict"):
        error = f"nothing is served at {path}: the models are under /v1/models"
        assert post(server, path, body) == (404, {"error": error})


@pytest.mark.parametrize("digits", ["9223372036854775808", "1" * 5000])
@pytest.mark.parametrize("rest", [":predict", ":classify", "", "/metadata"])
def test_rest_a_version_that_is_no_int64_has_an_empty_answer(server: Server, digits: str, rest: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=10)
    connection.request("POST" if rest.startswith(":") else "GET", f"/v1/models/scale/versions/{digits}{rest}", b"{}")
    response = connection.getresponse()
    assert (response.status, response.read()) == (400, b"")
    connection.close()


def test_rest_status_metadata_and_probes(server: Server) -> None:
    assert get(server, "/v1/models/scale") == (
        200,
        {
            "model_version_status": [
                {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
            ]
        },
    )
    status, metadata = get(server, "/v1/models/scale/versions/1/metadata")
    assert status == 200
    assert metadata["model_spec"] == {"name": "scale", "signature_name": "", "version": "1"}
    inputs = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]
    assert inputs["x"]["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}, {"size": "3", "name": ""}],
        "unknown_rank": False,
    }
    versions = get(server, "/v1/models/scale")[1]["model_version_status"]
    assert get(server, "/v1/models") == (
        200,
        {"models": [{"name": "scale", "labels": {}, "model_version_status": versions}]},
    )
    assert get(server, "/v1/models/foo")[0] == 404
    assert get(server, "/nothing")[0] == 404
    assert answers(f"{server.url}/healthz")


def test_rest_reads_gzip_and_refuses_a_bomb(start_server: StartServer, scale: Path) -> None:
    import gzip

    server = start_server("--model_name=scale", f"--model_base_path={scale}", "--max_request_bytes=1000000")
    path = "/v1/models/scale:predict"
    gzipped = {"Content-Encoding": "gzip"}
    body = gzip.compress(b'{"instances": [[1, 2, 3]]}')
    assert post(server, path, body, gzipped) == (200, {"predictions": [[2, 4, 6]]})
    assert post(server, path, gzip.compress(b" " * 2_000_000), gzipped)[0] == 413
    assert post(server, path, b"no gzip", gzipped)[0] == 400
    assert post(server, path, body, {"Content-Encoding": "br"})[0] == 415


def test_rest_refuses_a_large_body_without_reading_it(start_server: StartServer, scale: Path) -> None:
    server = start_server("--model_name=scale", f"--model_base_path={scale}", "--max_request_bytes=1000")
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=10)
    connection.putrequest("POST", "/v1/models/scale:predict")
    connection.putheader("Content-Length", "100000000")
    connection.endheaders()
    connection.send(b"{")
    response = connection.getresponse()
    assert response.status == 413
    assert "larger than 1000 bytes" in json.loads(response.read())["error"]
    connection.close()


def test_rest_keeps_the_order_of_pipelined_requests(server: Server) -> None:
    import socket

    def encoded(value: int) -> bytes:
        body = json.dumps({"instances": [[value, 0, 0]]}).encode()
        return b"POST /v1/models/scale:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=10) as client:
        health = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        client.sendall(b"".join(encoded(value) for value in range(20)) + health)
        received = b""
        while data := client.recv(65536):
            received += data
    bodies = [part.split(b"\r\n\r\n", 1)[1] for part in received.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert [json.loads(body)["predictions"][0][0] for body in bodies[:-1]] == [2 * value for value in range(20)]
    assert bodies[-1] == b"ok\n"


# Versions


def test_a_new_version_takes_over_without_a_failed_request(start_server: StartServer, scale: Path) -> None:
    """Requests before, during and after ten swaps: none fails, and every answer is wholly from one version."""
    server = start_server("--model_name=scale", f"--model_base_path={scale}")
    stop = threading.Event()
    counts = {"answers": 0}
    versions: set[int] = set()

    def ask() -> None:
        with grpc.insecure_channel(server.target) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while not stop.is_set():
                response = stub.Predict(request_of([[1, 1, 1]]), timeout=10)
                version = response.model_spec.version.value
                assert list(response.outputs["y"].float_val) == [2.0 * version] * 3
                versions.add(version)
                counts["answers"] += 1

    def ask_rest() -> None:
        while not stop.is_set():
            status, answer = post(server, "/v1/models/scale:predict", {"instances": [[1, 1, 1], [1, 1, 1]]})
            assert status == 200
            first, second = answer["predictions"]
            assert first == second
            counts["answers"] += 1

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask), pool.submit(ask), pool.submit(ask_rest)]
        try:
            for version in range(2, 12):
                write_scale_model(scale, version, 2.0 * version)
                wait_until(lambda version=version: version in versions, f"version {version} answers")  # type: ignore[misc]
        finally:
            stop.set()
        for asked in asking:
            asked.result()
    assert counts["answers"] > 20
    status = {entry["version"]: entry["state"] for entry in get(server, "/v1/models/scale")[1]["model_version_status"]}
    assert status["11"] == "AVAILABLE"
    assert set(status.values()) <= {"AVAILABLE", "UNLOADING", "END"}


def test_a_broken_version_leaves_the_old_one_serving(start_server: StartServer, scale: Path) -> None:
    server = start_server("--model_name=scale", f"--model_base_path={scale}", "--max_num_load_retries=0")
    (scale / "2.tmp").mkdir()
    (scale / "2.tmp" / "model.onnx").write_bytes(b"not a graph")
    (scale / "2.tmp").rename(scale / "2")

    def failed() -> bool:
        entries = get(server, "/v1/models/scale")[1]["model_version_status"]
        return any(entry["version"] == "2" and entry["state"] == "END" for entry in entries)

    wait_until(failed, "version 2 has failed")
    entry = get(server, "/v1/models/scale/versions/2")[1]["model_version_status"][0]
    assert entry["status"]["error_code"] == "FAILED_PRECONDITION"
    assert "model.onnx does not load" in entry["status"]["error_message"]
    assert post(server, "/v1/models/scale:predict", {"instances": [[1, 1, 1]]})[1] == {"predictions": [[2, 2, 2]]}
    write_scale_model(scale, 3, 6.0)
    wait_until(
        lambda: post(server, "/v1/models/scale:predict", {"instances": [[1, 1, 1]]})[1]["predictions"] == [[6, 6, 6]],
        "version 3 serves",
    )


def test_config_file_policies_labels_and_changes(start_server: StartServer, tmp_path: Path, scale: Path) -> None:
    for version in (2, 3):
        write_scale_model(scale, version, 2.0 * version)
    config = tmp_path / "models.config"

    def write(policy: str, more: str = "") -> None:
        config.write_text(
            f'model_config_list {{ config {{ name: "scale" base_path: "{scale}" model_platform: "tensorflow"'
            f" model_version_policy {{ {policy} }}"
            ' version_labels { key: "stable" value: 2 } version_labels { key: "canary" value: 3 } } '
            f"{more} }}"
        )

    write("specific { versions: 2 versions: 3 }")
    server = start_server(
        f"--model_config_file={config}",
        "--model_config_file_poll_wait_seconds=1",
        "--allow_version_labels_for_unavailable_models",
    )
    body = {"instances": [[1, 1, 1]]}
    for label in ("stable", "canary"):  # the ports open when one version of the model is available
        path = f"/v1/models/scale/labels/{label}:predict"
        wait_until(lambda path=path: post(server, path, body)[0] == 200, f"{label} serves")  # type: ignore[misc]
    assert post(server, "/v1/models/scale/labels/stable:predict", body)[1] == {"predictions": [[4, 4, 4]]}
    assert post(server, "/v1/models/scale/labels/canary:predict", body)[1] == {"predictions": [[6, 6, 6]]}
    assert post(server, "/v1/models/scale/versions/1:predict", body)[0] == 404
    (entry,) = get(server, "/v1/models")[1]["models"]
    assert entry["labels"] == {"canary": "3", "stable": "2"}
    states = {version["version"]: version["state"] for version in entry["model_version_status"]}
    assert states == {"2": "AVAILABLE", "3": "AVAILABLE"}
    other = tmp_path / "models" / "other"
    write_scale_model(other, 5, 10.0)
    write("all {}", f'config {{ name: "other" base_path: "{other}" model_platform: "tensorflow" }}')
    wait_until(lambda: post(server, "/v1/models/other:predict", body)[0] == 200, "the new model is served")
    wait_until(lambda: post(server, "/v1/models/scale/versions/1:predict", body)[0] == 200, "the new policy holds")
    for content, message in (
        ("model_config_list {", "Failed to read ModelServerConfig file: INVALID_ARGUMENT: Invalid protobuf file: "),
        ("", "failed to ReloadConfig: FAILED_PRECONDITION: Cannot transition to requested config. It is only legal"),
        ('model_config_list { config { name: "x" base_path: "x" } }', "failed to ReloadConfig: INVALID_ARGUMENT: Exp"),
    ):
        config.write_text(content)
        wait_until(lambda message=message: message in server.log.read_text(), "the broken file is noticed")  # type: ignore[misc]
        assert post(server, "/v1/models/other:predict", body)[0] == 200
    config.write_text("model_config_list {}")
    wait_until(lambda: get(server, "/v1/models")[1] == {"models": []}, "no model is served any more")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_ports_open_when_the_last_model_has_a_version(
    start_server: StartServer, tmp_path: Path, scale: Path, workers: int
) -> None:
    late = tmp_path / "models" / "late"
    config = tmp_path / "models.config"
    config.write_text(
        "model_config_list {"
        f'config {{ name: "late" base_path: "{late}" model_platform: "tensorflow" }}'
        f'config {{ name: "scale" base_path: "{scale}" model_platform: "tensorflow" }} }}'
    )
    server = start_server(f"--model_config_file={config}", f"--workers={workers}", wait=False)
    wait_until(lambda: "ports stay closed until there is a version of: late" in server.log.read_text(), "it waits", 60)
    wait_until(lambda: "loaded servable version {name: scale" in server.log.read_text(), "the other is loaded", 60)
    for port in (server.grpc_port, server.rest_port):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
    write_scale_model(late, 1, 3.0)
    body = {"instances": [[1, 1, 1]]}
    wait_until(lambda: answers(f"{server.url}/readyz"), "the ports open", 60)
    for name, factor in (("scale", 2), ("late", 3)):
        assert post(server, f"/v1/models/{name}:predict", body) == (200, {"predictions": [[factor] * 3]})
    shutil.rmtree(late / "1")
    wait_until(lambda: not answers(f"{server.url}/readyz"), "a model has no version any more")
    assert post(server, "/v1/models/scale:predict", body)[0] == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_fails_for_good_ends_the_start(
    start_server: StartServer, tmp_path: Path, scale: Path, workers: int
) -> None:
    broken = tmp_path / "models" / "broken" / "3"
    broken.mkdir(parents=True)
    (broken / "model.onnx").write_bytes(b"no graph")
    config = tmp_path / "models.config"
    config.write_text(
        "model_config_list {"
        f'config {{ name: "broken" base_path: "{broken.parent}" model_platform: "tensorflow" }}'
        f'config {{ name: "scale" base_path: "{scale}" model_platform: "tensorflow" }} }}'
    )
    retries = ("--max_num_load_retries=1", "--load_retry_interval_micros=1000")
    server = start_server(f"--model_config_file={config}", *retries, f"--workers={workers}", wait=False)
    assert server.process.wait(120) == 255
    log = server.log.read_text()
    assert "Retrying of Loading servable: {name: broken version: 3} retry: 1" in log
    beginning = "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: {{name: broken"
    assert f"{beginning} version: 3}} due to error: FAILED_PRECONDITION: " in log


def test_a_model_that_mixes_its_rows_is_not_batched(start_server: StartServer, tmp_path: Path) -> None:
    """`total` has no batch dimension, so two requests must never run as one."""
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)],
        "total",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("total", TensorProto.FLOAT, [])],
    )
    base = tmp_path / "models" / "total"
    write_graph(base, 1, graph)
    server = start_server("--model_name=total", f"--model_base_path={base}")

    def ask(value: int) -> tuple[int, Any]:
        return post(server, "/v1/models/total:predict", {"inputs": [[value, value, value]]})

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(64))) == [(200, {"outputs": 3 * value}) for value in range(64)]


# The process


def test_the_server_never_imports_tensorflow(scale: Path) -> None:
    code = (
        "import sys, threading, os, signal\n"
        "from bookserve.serving.server import model_server\n"
        "from bookserve.serving.server.settings import flags\n"
        "import asyncio\n"
        "async def run():\n"
        f"    server = model_server.ModelServer(flags.parse(['--port={free_port()}', '--bind_address=127.0.0.1',"
        f" '--model_base_path={scale}', '--drain_quiet_seconds=0.01'])[0])\n"
        "    await server.start()\n"
        "    await server.drain()\n"
        "asyncio.run(run())\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('tensorflow', 'keras', 'flask', 'grpc')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model_base_path="], "Both server_options.model_base_path and server_options.model_config_file are empty!"),
        (["--model_config_file=/nowhere/models.config"], "Invalid protobuf file: '/nowhere/models.config'"),
        (["--port=0", "--model_base_path=/x"], "At least one of server_options.grpc_port or"),
        (["--port=abc"], "--port=abc: expected a whole number"),
        (["--ssl_config_file=/x", "--model_base_path=/y"], "Invalid protobuf file: '/x'"),
        (["--use_alts_credentials"], "--use_alts_credentials is not supported"),
    ],
)
def test_a_start_that_cannot_work_says_why(start_server: StartServer, flags: list[str], message: str) -> None:
    server = start_server(*flags, wait=False)
    assert server.process.wait(20) == 255
    assert message in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_a_full_queue_refuses_instead_of_growing(start_server: StartServer, scale: Path) -> None:
    server = start_server("--model_name=scale", f"--model_base_path={scale}", "--max_queued_requests=1")
    outcomes: list[grpc.StatusCode] = []
    with grpc.insecure_channel(server.target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        calls = [stub.Predict.future(request_of([[1, 2, 3]]), timeout=30) for _ in range(500)]
        for call in calls:
            outcomes.append(call.code())
    assert set(outcomes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert post(server, "/v1/models/scale:predict", {"instances": [[1, 1, 1]]})[0] == 200


@pytest.mark.parametrize("installed", [True, False])
def test_the_versions_are_told_in_the_words_of_the_original(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        version = importlib.metadata.version

        def without_tensorflow(name: str) -> str:
            if name == "tensorflow":
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(importlib.metadata, "version", without_tensorflow)
    told = CliRunner().invoke(main, ["--version"])
    assert told.exit_code == 0
    lines = dict(line.split(": ") for line in told.output.splitlines())
    assert lines["TensorFlow ModelServer"] == f"bookserve {importlib.metadata.version('bookserve')}"
    assert lines["TensorFlow Library"] == (tf.__version__ if installed else "not installed")
    assert lines["ONNX Runtime"] == onnxruntime.__version__
