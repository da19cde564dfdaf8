"""Triton's own clients, HTTP and gRPC, against a real server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from model_servers import Server, server_starter, wait_until, write_echo_model, write_scale_model

DATATYPES = {
    "BOOL": (TensorProto.BOOL, np.bool_),
    "UINT8": (TensorProto.UINT8, np.uint8),
    "UINT16": (TensorProto.UINT16, np.uint16),
    "UINT32": (TensorProto.UINT32, np.uint32),
    "UINT64": (TensorProto.UINT64, np.uint64),
    "INT8": (TensorProto.INT8, np.int8),
    "INT16": (TensorProto.INT16, np.int16),
    "INT32": (TensorProto.INT32, np.int32),
    "INT64": (TensorProto.INT64, np.int64),
    "FP16": (TensorProto.FLOAT16, np.float16),
    "FP32": (TensorProto.FLOAT, np.float32),
    "FP64": (TensorProto.DOUBLE, np.float64),
    "BYTES": (TensorProto.STRING, np.object_),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    write_scale_model(folder / "scale", 1, 2.0)
    write_scale_model(folder / "linear", 1, 2.0, width=1)
    write_echo_model(folder / "echo", 1, {name: number for name, (number, _) in DATATYPES.items()})
    with server_starter(tmp_path_factory.mktemp("log")) as start:
        yield start(f"--model_root={folder}")


Api = tuple[ModuleType, Any]  # the client's module, and a client


@pytest.fixture(scope="module", params=["http", "grpc"])
def api(request: pytest.FixtureRequest, server: Server) -> Iterator[Api]:
    module = tritonclient.http if request.param == "http" else tritonclient.grpc
    port = server.rest_port if request.param == "http" else server.grpc_port
    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield module, client


def x_of(module: ModuleType, rows: Any) -> Any:
    array = np.asarray(rows, np.float32)
    tensor = module.InferInput("x", array.shape, "FP32")
    tensor.set_data_from_numpy(array)
    return tensor


def test_probes(api: Api) -> None:
    _, client = api
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scale")
    assert client.is_model_ready("scale", "1")
    assert not client.is_model_ready("scale", "9")
    assert not client.is_model_ready("nobody")


def test_metadata_and_index(api: Api) -> None:
    module, client = api
    as_json = {"as_json": True} if module is tritonclient.grpc else {}
    assert client.get_server_metadata(**as_json)["name"] == "bookserve"
    metadata = client.get_model_metadata("scale", **as_json)
    assert metadata["platform"] == "onnxruntime_onnx"
    (tensor,) = metadata["inputs"]
    assert (tensor["name"], tensor["datatype"], [int(size) for size in tensor["shape"]]) == ("x", "FP32", [-1, 3])
    index = client.get_model_repository_index(**as_json)
    entries = index["models"] if as_json else index
    assert [(entry["name"], entry["version"], entry["state"]) for entry in entries] == [
        ("echo", "1", "READY"),
        ("linear", "1", "READY"),
        ("scale", "1", "READY"),
    ]


def test_infer(api: Api) -> None:
    module, client = api
    result = client.infer(
        "scale",
        [x_of(module, [[1, 2, 3], [4, 5, 6]])],
        model_version="1",
        outputs=[module.InferRequestedOutput("y")],
        request_id="seven",
        parameters={"signature_name": "serving_default", "anything": 3},
    )
    np.testing.assert_array_equal(result.as_numpy("y"), [[2, 4, 6], [8, 10, 12]])
    response = result.get_response() if module is tritonclient.http else result.get_response(as_json=True)
    assert (response["model_name"], response["model_version"], response["id"]) == ("scale", "1", "seven")


def test_errors(api: Api) -> None:
    module, client = api
    wrong = module.InferInput("x", [1, 3], "INT32")
    wrong.set_data_from_numpy(np.zeros((1, 3), np.int32))
    for arguments, options, message in (
        (("nobody", [x_of(module, [[1, 2, 3]])]), {}, r"Servable not found for request: Latest\(nobody\)"),
        (("scale", [wrong]), {}, "input 'x' expects datatype FP32, the request has INT32"),
        (("scale", [x_of(module, [[1, 2]])]), {}, r"input 'x' expects shape \[\?, 3\], the request has \[1, 2\]"),
        (("scale", [x_of(module, [[1, 2, 3]])]), {"model_version": "one"}, "model version 'one' is no version"),
        (
            ("scale", [x_of(module, [[1, 2, 3]])]),
            {"outputs": [module.InferRequestedOutput("y", class_count=2)]},
            "'classification' is not supported",
        ),
    ):
        with pytest.raises(InferenceServerException, match=message):
            client.infer(*arguments, **options)


def tensors_of(shape: tuple[int, ...]) -> st.SearchStrategy[dict[str, np.ndarray]]:
    """One tensor of every type; text alone: ONNX Runtime's strings are text, whatever a server's protocol can carry."""
    text = st.text(max_size=4).map(str.encode)
    return st.fixed_dictionaries(
        {
            name: hnp.arrays(dtype, shape, elements=text if dtype is np.object_ else None)
            for name, (_, dtype) in DATATYPES.items()
        }
    )


# All of one shape: what the outputs of a request without values are follows from the names of dimensions.
tensors = hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=3).flatmap(tensors_of)


@settings(deadline=None, max_examples=20)
@given(tensors)
def test_every_datatype_comes_back(api: Api, arrays: dict[str, np.ndarray]) -> None:
    module, client = api
    inputs = []
    for name, array in arrays.items():
        assert np_to_triton_dtype(array.dtype) == name
        tensor = module.InferInput(f"in_{name}", array.shape, name)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    result = client.infer("echo", inputs)
    for name, array in arrays.items():
        read = result.as_numpy(f"out_{name}")
        assert read.shape == array.shape
        assert read.dtype == array.dtype or not array.size  # of which the HTTP client forgets the type
        np.testing.assert_array_equal(read, array)


@settings(deadline=None, max_examples=20)
@given(tensors)
def test_every_datatype_comes_back_as_json(server: Server, arrays: dict[str, np.ndarray]) -> None:
    module = tritonclient.http
    inputs, outputs = [], []
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            array[~np.isfinite(array)] = 0
        tensor = module.InferInput(f"in_{name}", array.shape, name)
        tensor.set_data_from_numpy(array, binary_data=False)
        inputs.append(tensor)
        outputs.append(module.InferRequestedOutput(f"out_{name}", binary_data=False))
    with module.InferenceServerClient(f"127.0.0.1:{server.rest_port}") as client:
        result = client.infer("echo", inputs, outputs=outputs)
    for name, array in arrays.items():
        read = result.as_numpy(f"out_{name}")
        expected = np.array([value.decode() for value in array.ravel()], object) if name == "BYTES" else array
        np.testing.assert_array_equal(read, expected.reshape(array.shape))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(server: Server, algorithm: str) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.rest_port}") as client:
        result = client.infer(
            "scale",
            [x_of(tritonclient.http, [[1, 2, 3]])],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
    np.testing.assert_array_equal(result.as_numpy("y"), [[2, 4, 6]])
    with tritonclient.grpc.InferenceServerClient(server.target) as client:
        result = client.infer("scale", [x_of(tritonclient.grpc, [[1, 2, 3]])], compression_algorithm=algorithm)
    np.testing.assert_array_equal(result.as_numpy("y"), [[2, 4, 6]])


def test_a_large_tensor(api: Api) -> None:
    module, client = api
    rows = np.arange(600_000, dtype=np.float32).reshape(-1, 3)
    np.testing.assert_array_equal(client.infer("scale", [x_of(module, rows)]).as_numpy("y"), 2 * rows)


def test_asyncio(server: Server) -> None:
    async def ask() -> list[float]:
        async with tritonclient.grpc.aio.InferenceServerClient(server.target) as client:
            results = await asyncio.gather(
                *(client.infer("scale", [x_of(tritonclient.grpc, [[value, 0, 0]])]) for value in range(50))
            )
        return [result.as_numpy("y")[0, 0] for result in results]

    assert asyncio.run(ask()) == [2.0 * value for value in range(50)]


def test_a_drain_turns_readiness_off(tmp_path: Path) -> None:
    write_scale_model(tmp_path / "scale", 1, 2.0)
    with server_starter(tmp_path) as start:
        server = start(f"--model_root={tmp_path}", "--drain_quiet_seconds=60", "--drain_seconds=60")
        http = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.rest_port}")
        grpc = tritonclient.grpc.InferenceServerClient(server.target)
        assert http.is_server_ready()
        assert grpc.is_server_ready()
        server.process.terminate()
        wait_until(lambda: not http.is_server_ready(), "readiness is off over HTTP")
        assert not grpc.is_server_ready()
        assert http.is_server_live()
        assert grpc.infer("scale", [x_of(tritonclient.grpc, [[1, 2, 3]])]).as_numpy("y").tolist() == [[2, 4, 6]]
        http.close()
        grpc.close()
