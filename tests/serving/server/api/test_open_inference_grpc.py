"""The Open Inference Protocol over gRPC: a real server asked with tritonclient's generated stub."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from onnx import TensorProto
from tritonclient.grpc import service_pb2

from model_servers import Server, server_starter, wait_until, write_echo_model, write_scale_model

TYPED = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    write_scale_model(folder / "scale", 1, 2.0)
    write_scale_model(folder / "scale", 2, 4.0)
    write_echo_model(folder / "echo", 1, TYPED)
    write_echo_model(folder / "half", 1, {"FP16": TensorProto.FLOAT16})
    (folder / "broken" / "1").mkdir(parents=True)
    (folder / "models.config").write_text(
        f'model_config_list {{ config {{ name: "scale" base_path: "{folder}/scale" model_platform: "tensorflow"'
        " model_version_policy { all {} } } }"
    )
    with server_starter(tmp_path_factory.mktemp("log")) as start:
        yield start(f"--model_root={folder}", "--max_num_load_retries=0")


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(server.target) as channel:
        yield tritonclient.grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel)


def request_of(**changes: Any) -> service_pb2.ModelInferRequest:
    fields = {
        "model_name": "scale",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3]}],
        "raw_input_contents": [np.float32([1, 2, 3]).tobytes()],
    }
    return service_pb2.ModelInferRequest(**(fields | changes))


def typed_input(**changes: Any) -> dict[str, Any]:
    fields = {"name": "x", "datatype": "FP32", "shape": [1, 3], "contents": {"fp32_contents": [1, 2, 3]}}
    return fields | changes


def test_probes_and_server_metadata(stub: Any) -> None:
    assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=10).live
    assert stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=10).ready
    metadata = stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=10)
    assert (metadata.name, list(metadata.extensions)) == (
        "bookserve",
        ["binary_tensor_data", "model_repository", "statistics"],
    )
    assert metadata.version


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("scale", "", True), ("scale", "1", True), ("scale", "9", False), ("broken", "", False), ("nobody", "", False)],
)
def test_model_ready(stub: Any, name: str, version: str, ready: bool) -> None:
    assert stub.ModelReady(service_pb2.ModelReadyRequest(name=name, version=version), timeout=10).ready is ready


def test_model_metadata(stub: Any) -> None:
    metadata = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="scale"), timeout=10)
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("scale", ["1", "2"], "onnxruntime_onnx")
    (x,), (y,) = metadata.inputs, metadata.outputs
    assert (x.name, x.datatype, list(x.shape)) == ("x", "FP32", [-1, 3])
    assert (y.name, y.datatype, list(y.shape)) == ("y", "FP32", [-1, 3])
    echo = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="echo", version="1"), timeout=10)
    assert {tensor.name: tensor.datatype for tensor in echo.inputs} == {f"in_{name}": name for name in TYPED}


def test_repository_index(stub: Any) -> None:
    def index(**fields: Any) -> list[tuple[str, str, str]]:
        response = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(**fields), timeout=10)
        assert all(bool(model.reason) == (model.state != "READY") for model in response.models)
        return [(model.name, model.version, model.state) for model in response.models]

    ready = [("echo", "1", "READY"), ("half", "1", "READY"), ("scale", "2", "READY"), ("scale", "1", "READY")]
    assert index(ready=True) == ready
    wait_until(lambda: index() == [("broken", "1", "UNAVAILABLE"), *ready], "the broken model has failed")
    with pytest.raises(grpc.RpcError, match="repository_name is not supported"):
        index(repository_name="r")


def test_raw_contents_are_answered_with_raw_contents(stub: Any) -> None:
    response = stub.ModelInfer(request_of(id="7", model_version="1"), timeout=10)
    assert (response.model_name, response.model_version, response.id) == ("scale", "1", "7")
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [1, 3])
    assert not output.HasField("contents")
    np.testing.assert_array_equal(np.frombuffer(response.raw_output_contents[0], np.float32), [2, 4, 6])


def test_typed_contents_are_answered_with_typed_contents(stub: Any) -> None:
    response = stub.ModelInfer(request_of(inputs=[typed_input()], raw_input_contents=[]), timeout=10)
    (output,) = response.outputs
    assert response.model_version == "2"
    assert not response.raw_output_contents
    assert list(output.contents.fp32_contents) == [4, 8, 12]


VALUES = {
    "BOOL": ("bool_contents", [True, False]),
    "UINT8": ("uint_contents", [0, 2**8 - 1]),
    "UINT16": ("uint_contents", [0, 2**16 - 1]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "INT8": ("int_contents", [-(2**7), 2**7 - 1]),
    "INT16": ("int_contents", [-(2**15), 2**15 - 1]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "FP32": ("fp32_contents", [-0.5, np.inf]),
    "FP64": ("fp64_contents", [1e300, -np.inf]),
    "BYTES": ("bytes_contents", [b"", "é".encode()]),
}


def test_every_typed_content_comes_back(stub: Any) -> None:
    inputs = [
        {"name": f"in_{name}", "datatype": name, "shape": [1, 2], "contents": {field: values}}
        for name, (field, values) in VALUES.items()
    ]
    response = stub.ModelInfer(
        request_of(model_name="echo", inputs=inputs, raw_input_contents=[], outputs=[{"name": "out_BYTES"}]), timeout=10
    )
    assert [output.name for output in response.outputs] == ["out_BYTES"]
    response = stub.ModelInfer(request_of(model_name="echo", inputs=inputs, raw_input_contents=[]), timeout=10)
    answered = {output.datatype: output for output in response.outputs}
    assert answered.keys() == TYPED.keys()
    for name, (field, values) in VALUES.items():
        assert list(getattr(answered[name].contents, field)) == values
        assert list(answered[name].shape) == [1, 2]


def test_parameters_are_accepted_and_the_signature_may_be_named(stub: Any) -> None:
    parameters = {"priority": {"int64_param": 1}, "signature_name": {"string_param": "serving_default"}}
    assert stub.ModelInfer(request_of(parameters=parameters), timeout=10).raw_output_contents


def error_of(stub: Any, request: service_pb2.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=10)
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": ""}, "the request names no model"),
        ({"model_version": "x"}, "model version 'x' is no version"),
        ({"inputs": []}, "the request has 0 inputs and 1 raw_input_contents"),
        ({"inputs": [], "raw_input_contents": []}, "Missing but required: {x}"),
        ({"raw_input_contents": []}, "input 'x' of shape [1, 3] needs 3 fp32_contents, the request has 0"),
        ({"raw_input_contents": [b"1234"]}, "of shape [1, 3] and datatype FP32 needs 12 bytes, the request has 4"),
        ({"inputs": [typed_input()]}, "input 'x' has contents, which raw_input_contents exclude"),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [3]}]},
            "input 'x' expects shape [?, 3], the request has [3]",
        ),
        ({"inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 3]}]}, "expects datatype FP32, the request has"),
        (
            {"inputs": [{"name": "x", "datatype": "BF16", "shape": [1, 3]}]},
            "expects datatype FP32, the request has BF16",
        ),
        ({"inputs": [{"name": "z", "datatype": "FP32", "shape": [1, 3]}]}, "the model has no input 'z'"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]}, "has a negative size"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2**40, 2**40]}]}, "the request has 12"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1] * 1_000_000}]}, "at most 64 are allowed"),
        ({"inputs": [typed_input(shape=[2**40, 3])], "raw_input_contents": []}, "the request has 3"),
        ({"inputs": [typed_input(contents={})], "raw_input_contents": []}, "needs 3 fp32_contents"),
        ({"inputs": [typed_input(), typed_input()], "raw_input_contents": []}, "input 'x' comes twice"),
        ({"outputs": [{"name": "q"}]}, "output tensor alias not found in signature: q"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "duplicate output tensor alias: y"),
        (
            {"outputs": [{"name": "y", "parameters": {"classification": {"int64_param": 3}}}]},
            "output 'y': 'classification' is not supported",
        ),
        (
            {
                "inputs": [
                    typed_input(contents=None, parameters={"shared_memory_region": {"string_param": "r"}}),
                ]
            },
            "input 'x': shared memory is not supported",
        ),
        ({"parameters": {"signature_name": {"int64_param": 1}}}, "'signature_name' must be a string"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_requests_that_do_not_fit(stub: Any, changes: dict[str, Any], message: str) -> None:
    code, details = error_of(stub, request_of(**changes))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert message in details


def test_what_is_not_there(stub: Any) -> None:
    assert error_of(stub, request_of(model_name="nobody")) == (
        grpc.StatusCode.NOT_FOUND,
        "Servable not found for request: Latest(nobody)",
    )
    assert error_of(stub, request_of(model_version="9"))[0] == grpc.StatusCode.NOT_FOUND
    code, details = error_of(stub, request_of(parameters={"signature_name": {"string_param": "s"}}))
    assert (code, details) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        'Serving signature key "s" not found. The model has: serving_default. Choose one with signature_name.',
    )
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="nobody"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_fp16_has_no_typed_contents(stub: Any) -> None:
    tensor = {"name": "in_FP16", "datatype": "FP16", "shape": [1, 1], "contents": {"fp32_contents": [1]}}
    request = request_of(model_name="half", inputs=[tensor], raw_input_contents=[])
    assert "FP16 has no typed contents" in error_of(stub, request)[1]


def test_typed_values_outside_their_type(stub: Any) -> None:
    tensor = {"name": "in_INT8", "datatype": "INT8", "shape": [1, 1], "contents": {"int_contents": [128]}}
    request = request_of(model_name="echo", inputs=[tensor], raw_input_contents=[])
    assert "input 'in_INT8': a value is outside the range of INT8" in error_of(stub, request)[1]


def test_bytes_that_are_no_message(server: Server) -> None:
    with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff\xff\xff", timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
