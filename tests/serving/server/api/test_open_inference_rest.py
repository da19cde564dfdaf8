"""The Open Inference Protocol over REST: a real server, asked with raw HTTP."""

import gzip
import http.client
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from model_servers import Server, server_starter, write_echo_model, write_scale_model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    write_scale_model(folder / "scale", 1, 2.0)
    write_echo_model(folder / "words", 1, {"BYTES": TensorProto.STRING})
    write_echo_model(folder / "mixed", 3, {"BOOL": TensorProto.BOOL, "FP16": TensorProto.FLOAT16})
    (folder / "broken" / "1").mkdir(parents=True)
    with server_starter(tmp_path_factory.mktemp("log")) as start:
        yield start(f"--model_root={folder}", "--max_num_load_retries=0")


def ask(
    server: Server, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=10)
    try:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def infer(
    server: Server, body: Any, tail: bytes = b"", model: str = "scale", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Posts JSON with a tail of binary data, whose beginning the header tells."""
    head = json.dumps(body).encode()
    lengths = {"Inference-Header-Content-Length": str(len(head))} if tail else {}
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(server, "POST", f"/v2/models/{model}/infer", head + tail, lengths | sent)


def x(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]} | changes


def binary(size: int, **changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": size}} | changes


ROW = np.float32([1, 2, 3]).tobytes()


def test_probes_and_server_metadata(server: Server) -> None:
    model = {"name": "scale", "ready": True}
    for path, told in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/scale/ready", model),
        ("/v2/models/scale/versions/1/ready", model),
    ):
        status, _, body = ask(server, "GET", path)
        assert (status, json.loads(body)) == (200, told)
    for path in ("/v2", "/v2/"):
        status, headers, body = ask(server, "GET", path)
        assert (status, headers["Content-Type"]) == (200, "application/json")
        metadata = json.loads(body)
        assert metadata.pop("version")
        assert metadata == {"name": "bookserve", "extensions": ["binary_tensor_data", "model_repository", "statistics"]}


@pytest.mark.parametrize("path", ["/v2/models/mixed", "/v2/models/mixed/versions/3", "/v2/models/m%69xed"])
def test_model_metadata(server: Server, path: str) -> None:
    status, _, body = ask(server, "GET", path)
    assert status == 200
    assert json.loads(body) == {
        "name": "mixed",
        "versions": ["3"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "in_BOOL", "datatype": "BOOL", "shape": [-1, -1]},
            {"name": "in_FP16", "datatype": "FP16", "shape": [-1, -1]},
        ],
        "outputs": [
            {"name": "out_BOOL", "datatype": "BOOL", "shape": [-1, -1]},
            {"name": "out_FP16", "datatype": "FP16", "shape": [-1, -1]},
        ],
    }


def test_repository_index(server: Server) -> None:
    def index(body: Any) -> list[dict[str, str]]:
        status, _, answer = ask(server, "POST", "/v2/repository/index", body)
        assert status == 200
        entries: list[dict[str, str]] = json.loads(answer)
        return entries

    ready = {"version": "1", "state": "READY", "reason": ""}
    assert [entry["name"] for entry in index(None)] == ["broken", "mixed", "scale", "words"]
    assert index({"ready": True})[1:] == [{"name": "scale"} | ready, {"name": "words"} | ready]
    assert "holds no model" in index({})[0]["reason"]


@pytest.mark.parametrize("data", [[1, 2, 3], [[1, 2, 3]], [[1.0, 2, 3.0]]])
def test_json_in_json_out(server: Server, data: Any) -> None:
    status, headers, body = infer(server, {"id": "a7", "inputs": [x(data=data)]})
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == {
        "id": "a7",
        "model_name": "scale",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2, 4, 6]}],
    }


def test_absent_and_null_are_the_same(server: Server) -> None:
    body = {"id": None, "parameters": None, "outputs": None, "inputs": [x(parameters=None)]}
    status, _, answer = infer(server, body)
    assert status == 200
    assert "id" not in json.loads(answer)


def test_binary_in_json_out(server: Server) -> None:
    status, headers, body = infer(server, {"inputs": [binary(12)]}, ROW)
    assert (status, headers["Inference-Header-Content-Length"]) == (200, None)
    assert json.loads(body)["outputs"][0]["data"] == [2, 4, 6]


@pytest.mark.parametrize(
    "asked",
    [
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
        {"parameters": {"binary_data_output": True}, "outputs": [{"name": "y"}]},
    ],
)
def test_json_in_binary_out(server: Server, asked: dict[str, Any]) -> None:
    status, headers, body = infer(server, {"inputs": [x()]} | asked)
    assert (status, headers["Content-Type"]) == (200, "application/octet-stream")
    length = int(headers["Inference-Header-Content-Length"])
    (output,) = json.loads(body[:length])["outputs"]
    assert output == {"name": "y", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    np.testing.assert_array_equal(np.frombuffer(body[length:], np.float32), [2, 4, 6])


def test_binary_for_some_outputs_only(server: Server) -> None:
    inputs = [
        {"name": "in_BOOL", "datatype": "BOOL", "shape": [1, 2], "data": [True, False]},
        {"name": "in_FP16", "datatype": "FP16", "shape": [2, 1], "parameters": {"binary_data_size": 4}},
    ]
    parameters = {"binary_data_output": True}
    outputs = [{"name": "out_FP16"}, {"name": "out_BOOL", "parameters": {"binary_data": False}}]
    body = {"inputs": inputs, "parameters": parameters, "outputs": outputs}
    status, headers, answer = infer(server, body, np.float16([0.5, 2]).tobytes(), model="mixed")
    assert status == 200
    length = int(headers["Inference-Header-Content-Length"])
    first, second = json.loads(answer[:length])["outputs"]
    assert (first["name"], first["parameters"]) == ("out_FP16", {"binary_data_size": 4})
    assert (second["name"], second["data"]) == ("out_BOOL", [True, False])
    assert np.frombuffer(answer[length:], np.float16).tolist() == [0.5, 2]
    body["outputs"] = [{"name": "out_FP16", "parameters": {"binary_data": False}}]
    status, _, answer = infer(server, body, np.float16([0.5, 2]).tobytes(), model="mixed")
    assert json.loads(answer)["outputs"][0]["data"] == [0.5, 2]


def test_fp16_as_json_stays_in_its_range(server: Server) -> None:
    inputs = [
        {"name": "in_BOOL", "datatype": "BOOL", "shape": [1, 1], "data": [True]},
        {"name": "in_FP16", "datatype": "FP16", "shape": [1, 1], "data": [1e6]},
    ]
    status, _, body = infer(server, {"inputs": inputs}, model="mixed")
    assert status == 400
    assert "input 'in_FP16': JSON Value: 1000000.0 is too large a number for type: half" in json.loads(body)["error"]


def test_words(server: Server) -> None:
    tensor = {"name": "in_BYTES", "datatype": "BYTES", "shape": [2, 1], "data": ["é", ""]}
    status, _, body = infer(server, {"inputs": [tensor]}, model="words")
    assert status == 200
    assert json.loads(body)["outputs"][0]["data"] == ["é", ""]
    packed = struct.pack("<I", 2) + "é".encode() + struct.pack("<I", 0)
    del tensor["data"]
    tensor["parameters"] = {"binary_data_size": len(packed)}
    body = infer(server, {"inputs": [tensor], "parameters": {"binary_data_output": True}}, packed, model="words")[2]
    assert body.endswith(b"}" + packed)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_requests(server: Server, encoding: str, compress: Any) -> None:
    head = json.dumps({"inputs": [binary(12)]}).encode()
    headers = {"Content-Encoding": encoding, "Inference-Header-Content-Length": str(len(head))}
    status, _, body = ask(server, "POST", "/v2/models/scale/infer", compress(head + ROW), headers)
    assert status == 200
    assert json.loads(body)["outputs"][0]["data"] == [2, 4, 6]


def test_what_is_not_finite_goes_in_binary_only(server: Server) -> None:
    nan = np.float32([np.nan, np.inf, 1]).tobytes()
    status, _, body = infer(server, {"inputs": [binary(12)]}, nan)
    assert status == 400
    assert "output 'y' has a value that is not finite" in json.loads(body)["error"]
    status, _, body = infer(server, {"inputs": [binary(12)], "parameters": {"binary_data_output": True}}, nan)
    assert status == 200
    np.testing.assert_array_equal(np.frombuffer(body[-12:], np.float32), np.float32([np.nan, np.inf, 2]))


@pytest.mark.parametrize(
    ("body", "tail", "message"),
    [
        (b"", b"", "JSON Parse error: The document is empty"),
        (b"{", b"", "JSON Parse error: "),
        (b"[" * 100_000, b"", "JSON Parse error: "),
        ([1], b"", "the request must be an object"),
        ({}, b"", "the request has no 'inputs'"),
        ({"inputs": {}}, b"", "the request: 'inputs' must be a list"),
        ({"inputs": [1]}, b"", "an element of 'inputs' must be an object"),
        ({"inputs": []}, b"", "Missing but required: {x}"),
        ({"inputs": [{}]}, b"", "an input has no 'name'"),
        ({"inputs": [x(name=3)]}, b"", "an input: 'name' must be a string"),
        ({"inputs": [{"name": "x", "shape": [1, 3], "data": [1]}]}, b"", "input 'x' has no 'datatype'"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "data": [1]}]}, b"", "input 'x' has no 'shape'"),
        ({"inputs": [x(name="z")]}, b"", "the model has no input 'z': its inputs are x"),
        ({"inputs": [x(), x()]}, b"", "input 'x' comes twice"),
        ({"inputs": [x(datatype="INT64")]}, b"", "input 'x' expects datatype FP32, the request has INT64"),
        ({"inputs": [x(datatype="BF16")]}, b"", "expects datatype FP32, the request has BF16"),
        ({"inputs": [x(shape=[3])]}, b"", "input 'x' expects shape [?, 3], the request has [3]"),
        ({"inputs": [x(shape=[1, "3"])]}, b"", "'shape' must be a list of whole numbers"),
        ({"inputs": [x(shape=[True, 3])]}, b"", "'shape' must be a list of whole numbers"),
        ({"inputs": [x(shape=[-1, 3])]}, b"", "shape [-1, 3] has a negative size"),
        ({"inputs": [x(shape=[2**40, 2**40])]}, b"", "needs 1208925819614629174706176 values, its data has 3"),
        ({"inputs": [x(shape=[0, 2**63, 3], data=[])]}, b"", "too large for a tensor without values"),
        ({"inputs": [x(shape=[1] * 100)]}, b"", "100 dimensions, at most 64"),
        ({"inputs": [x(data=[1, 2])]}, b"", "input 'x' of shape [1, 3] needs 3 values, its data has 2"),
        ({"inputs": [x(data=[[1], [2], [3]])]}, b"", "input 'x' has shape [1, 3], its data is nested as [3, 1]"),
        ({"inputs": [x(data=[1, "a", 3])]}, b"", "input 'x': JSON Value: \"a\" Type: String is not of expected type"),
        ({"inputs": [x(data=[1, True, 3])]}, b"", "input 'x': JSON Value: true Type: "),
        ({"inputs": [x(data=[[1, 2], [3]])]}, b"", "input 'x': "),
        ({"inputs": [x(data={"a": 1})]}, b"", "Type: Object is not of expected type: float"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3]}]}, b"", "has neither 'data' nor the parameter"),
        ({"inputs": [binary(12)]}, b"", "binary_data_size is 12, but only 0 bytes are left behind the JSON"),
        ({"inputs": [binary(12)]}, ROW[:8], "binary_data_size is 12, but only 8 bytes are left"),
        ({"inputs": [binary(12)]}, ROW + b"x", "13 bytes follow the JSON, but the inputs' binary_data_size add up to"),
        ({"inputs": [x()]}, ROW, "12 bytes follow the JSON, but the inputs' binary_data_size add up to 0"),
        ({"inputs": [binary(8)]}, ROW[:8], "of shape [1, 3] and datatype FP32 needs 12 bytes, the request has 8"),
        ({"inputs": [binary(12, shape=[2**40, 2**40])]}, ROW, "the request has 12"),
        ({"inputs": [binary(-1)]}, ROW, "'binary_data_size' must be a number of bytes"),
        ({"inputs": [binary(12, data=[1, 2, 3])]}, ROW, "input 'x' has both 'data' and 'binary_data_size'"),
        ({"inputs": [x(parameters={"binary_data_size": "12"})]}, b"", "'binary_data_size' must be a number of bytes"),
        ({"inputs": [x(parameters=[1])]}, b"", "input 'x': 'parameters' must be an object"),
        (
            {"inputs": [x(parameters={"shared_memory_region": "r"})]},
            b"",
            "input 'x': shared memory is not supported",
        ),
        ({"inputs": [x()], "outputs": [{"name": "q"}]}, b"", "output tensor alias not found in signature: q"),
        ({"inputs": [x()], "outputs": [{"name": "y"}, {"name": "y"}]}, b"", "output 'y' is requested twice"),
        ({"inputs": [x()], "outputs": ["y"]}, b"", "an element of 'outputs' must be an object"),
        (
            {"inputs": [x()], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
            b"",
            "output 'y': 'binary_data' must be true or false",
        ),
        (
            {"inputs": [x()], "outputs": [{"name": "y", "parameters": {"classification": 2}}]},
            b"",
            "output 'y': 'classification' is not supported",
        ),
        (b'{"id": "\\ud800", "inputs": [], "more": NaN}', b"", "'id' holds half a surrogate pair"),
        ({"inputs": [x()], "id": 7}, b"", "the request: 'id' must be a string"),
        ({"inputs": [x()], "parameters": {"signature_name": "s"}}, b"", 'Serving signature key "s" not found.'),
        ({"inputs": [x()], "parameters": {"signature_name": 1}}, b"", "'signature_name' must be a string"),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_requests_that_do_not_fit(server: Server, body: Any, tail: bytes, message: str) -> None:
    if isinstance(body, bytes):
        status, _, answer = ask(server, "POST", "/v2/models/scale/infer", body)
    else:
        status, _, answer = infer(server, body, tail)
    assert status == 400
    assert message in json.loads(answer)["error"]


@pytest.mark.parametrize("header", ["-1", "x", "", "1e2", "99999", "9" * 5000])
def test_a_wrong_length_of_the_json(server: Server, header: str) -> None:
    head = json.dumps({"inputs": [binary(12)]}).encode()
    headers = {"Inference-Header-Content-Length": header.encode("latin-1").decode("latin-1")}
    status, _, body = ask(server, "POST", "/v2/models/scale/infer", head + ROW, headers)
    assert status == 400
    assert "expected the length of the JSON at the beginning of the body" in json.loads(body)["error"]
    for length in (0, len(head) - 1, len(head) + 1):
        headers = {"Inference-Header-Content-Length": str(length)}
        status, _, body = ask(server, "POST", "/v2/models/scale/infer", head + ROW, headers)
        assert status == 400
        assert json.loads(body)["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/v2/models/nobody/infer", 404, "Servable not found for request: Latest(nobody)"),
        ("POST", "/v2/models/scale/versions/9/infer", 404, "Servable not found for request: Specific(scale, 9)"),
        ("POST", "/v2/models/scale/versions/stable/infer", 400, "model version 'stable' is no version"),
        ("GET", "/v2/models/nobody", 404, "Servable not found"),
        ("GET", "/v2/models/scale/versions/x", 400, "model version 'x' is no version"),
        ("GET", "/v2/models/nobody/ready", 404, "there is no model 'nobody'"),
        ("GET", "/v2/models/broken/ready", 503, "model 'broken' is not loaded"),
        ("GET", "/v2/models/scale/versions/9/ready", 503, "version 9 of model 'scale' is not loaded"),
        ("GET", "/v2/models/scale/infer", 405, "/v2/models/scale/infer takes POST, not GET"),
        ("PUT", "/v2/models/scale", 405, "takes GET or HEAD, not PUT"),
        ("POST", "/v2/health/live", 405, "takes GET or HEAD, not POST"),
        ("GET", "/v2/repository/index", 405, "takes POST, not GET"),
        ("GET", "/v2/repository/models/scale/load", 405, "takes POST, not GET"),
        ("POST", "/v2/models/scale/stats", 405, "takes GET or HEAD, not POST"),
        ("GET", "/v2/models/nobody/stats", 404, "Servable not found for request: Latest(nobody)"),
        ("GET", "/v2/models/broken/stats", 404, "Servable not found for request: Latest(broken)"),
        ("GET", "/v2/models/scale/versions/9/stats", 404, "Servable not found for request: Specific(scale, 9)"),
        ("GET", "/v2/models/scale/versions/x/stats", 400, "model version 'x' is no version"),
        ("GET", "/v2/models/scale/config", 404, "nothing is served at /v2/models/scale/config"),
        ("GET", "/v2x", 404, "nothing is served at /v2x"),
    ],
)
def test_what_is_not_there(server: Server, method: str, path: str, status: int, message: str) -> None:
    given, headers, body = ask(server, method, path, {"inputs": [x()]})
    assert given == status
    assert message in json.loads(body)["error"]
    allowed = message.partition(" takes ")[2] or message.removeprefix("takes ")
    assert headers["Allow"] == (allowed.split(",")[0].replace(" or ", ", ") if status == 405 else None)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "JSON Parse error"),
        (b"[]", "the request must be an object"),
        (b'{"ready": 1}', "'ready' must be true or false"),
        (b'{"repository_name": "r"}', "repository_name is not supported"),
    ],
)
def test_index_requests_that_do_not_fit(server: Server, body: bytes, message: str) -> None:
    status, _, answer = ask(server, "POST", "/v2/repository/index", body)
    assert status == 400
    assert message in json.loads(answer)["error"]
