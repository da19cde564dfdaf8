"""Results of every type at rank 0, at rank 1 and without values: from every engine, over every protocol and form."""

import json
import struct
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flatbuffers
import grpc
import ml_dtypes
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import helper

from bookserve.serving.wire import open_inference_pb2, tensors
from bookserve.serving.wire.tensorflow_serving_pb2 import PredictRequest, PredictResponse
from bookserve.serving.wire.tensors import ELEMENT_TYPES, Array
from model_servers import Server, server_starter, write_graph

Arrays = Mapping[str, Array]
# The values that a tensor of rank 1 has; one of rank 0 has the last.
VALUES: dict[str, list[Any]] = {
    "float32": [-1.5e-7, 3.0, 1 / 3],
    "float64": [1e300, -2.0, 0.1],
    "float16": [-65504.0, 0.0, 0.333251953125],
    "bfloat16": [3e38, -1.0, 0.15625],
    **{
        name: [np.iinfo(name).min, 1, np.iinfo(name).max]
        for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
    "bool": [False, True, True],
    "object": [b"", 'Straße, "Ж"\n'.encode(), "été\t𝄞".encode()],
    "complex64": [0, 2 - 1j, 0.5 + 3j],
    "complex128": [1e300j, -1, 0.1 + 0.2j],
}
GROUPS = {
    "typed": [element.dtype.name for element in ELEMENT_TYPES if element.contents],
    "short": ["float16", "bfloat16"],  # which the Open Inference Protocol has as raw bytes alone
    "complex": ["complex64", "complex128"],
}
SHAPES: dict[str, tuple[int, ...]] = {"scalar": (), "vector": (3,), "empty": (0,), "table": (2, 0)}
DIMENSIONS: dict[str, list[str]] = {"scalar": [], "vector": ["n"], "empty": ["n"], "table": ["n", "w"]}


def arrays_of(group: str, shape: tuple[int, ...]) -> dict[str, Array]:
    """`in_TYPE` -> a tensor of that type."""
    arrays = {}
    for name in GROUPS[group]:
        dtype = ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
        values = VALUES[name] if shape == (3,) else VALUES[name][-1:] if shape == () else []
        arrays[f"in_{name}"] = np.array(values, dtype).reshape(shape)
    return arrays


def write_onnx(root: Path, group: str, kind: str) -> None:
    types = {element.dtype.name: helper.np_dtype_to_tensor_dtype(element.dtype) for element in ELEMENT_TYPES}
    sides = [
        [helper.make_tensor_value_info(f"{side}_{name}", types[name], DIMENSIONS[kind]) for name in GROUPS[group]]
        for side in ("in", "out")
    ]
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in GROUPS[group]]
    write_graph(root / f"onnx_{group}_{kind}", 1, helper.make_graph(nodes, "echo", *sides))


def write_tflite(root: Path, group: str, kind: str) -> None:
    """Each tensor goes through a Reshape to the rank that it has."""
    kinds = {"float32": "FLOAT32", "float64": "FLOAT64", "float16": "FLOAT16", "object": "STRING"}
    rank = len(DIMENSIONS[kind])
    made = schema.ModelT()
    shape = schema.BufferT()
    shape.data = list(np.full(rank, -1, np.int32).tobytes())
    graph = schema.SubGraphT()
    target = schema.TensorT()
    target.name, target.shape, target.buffer, target.type = "target", [rank], 1, schema.TensorType.INT32
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [target], [], [], []
    for name in GROUPS[group]:
        for side, into in (("in", graph.inputs), ("out", graph.outputs)):
            tensor = schema.TensorT()
            tensor.name, tensor.shape, tensor.shapeSignature = f"{side}_{name}", [1] * rank, [-1] * rank
            tensor.type, tensor.buffer = getattr(schema.TensorType, kinds.get(name, name.upper())), 0
            into.append(len(graph.tensors))
            graph.tensors.append(tensor)
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = [graph.inputs[-1], 0], [graph.outputs[-1]]
        graph.operators.append(operator)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RESHAPE
    made.version, made.operatorCodes, made.subgraphs, made.buffers = 3, [code], [graph], [schema.BufferT(), shape]
    builder = flatbuffers.Builder()
    builder.Finish(made.Pack(builder), b"TFL3")
    folder = root / f"tflite_{group}_{kind}" / "1"
    folder.mkdir(parents=True)
    (folder / "model.tflite").write_bytes(bytes(builder.Output()))


def write_tensorflow(root: Path, group: str, kind: str) -> None:
    import tensorflow as tf

    specs = {
        name: tf.TensorSpec([None] * len(DIMENSIONS[kind]), tf.string if name == "object" else name, name=f"in_{name}")
        for name in GROUPS[group]
    }

    @tf.function(input_signature=list(specs.values()))
    def echo(*given: Any) -> Any:
        return {f"out_{name}": tf.identity(value) for name, value in zip(specs, given, strict=True)}

    module = tf.Module()
    module.echo = echo
    tf.saved_model.save(module, str(root / f"tensorflow_{group}_{kind}" / "1"), signatures=echo)


class Refused(Exception):
    """The server's status and message."""


def post(server: Server, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> tuple[bytes, Any]:
    request = urllib.request.Request(server.url + path, body, dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            raise Refused(error.code, error.read().decode()) from None


def call(server: Server, method: str, request: Any, answer: type[Any]) -> Any:
    with grpc.insecure_channel(server.target) as channel:
        stub = channel.unary_unary(method, type(request).SerializeToString, answer.FromString)
        try:
            return stub(request, timeout=60)
        except grpc.RpcError as error:
            raise Refused(error.code(), error.details()) from None


def plain(array: Array) -> Any:
    """For JSON, which has no complex numbers."""
    array = array.real if array.dtype.kind == "c" else array
    wide = array.astype(np.float64) if array.dtype.kind in "fV" else array
    listed = np.vectorize(bytes.decode, otypes=[object])(wide) if wide.dtype == object and wide.size else wide
    return listed.tolist()


def read(value: Any, like: Array) -> Array:
    """The array in a JSON value, which does not tell its type."""
    array = np.array(value, object)
    if like.dtype == object and array.size:
        array = np.vectorize(str.encode, otypes=[object])(array)
    return array.astype(like.dtype)


def predict(server: Server, model: str, inputs: Arrays, *, as_content: bool = True) -> dict[str, Array]:
    request = PredictRequest()
    request.model_spec.name = model
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(tensors.to_proto(array, as_content=as_content))
    answer = call(server, "/tensorflow.serving.PredictionService/Predict", request, PredictResponse)
    return {name: tensors.to_array(proto) for name, proto in answer.outputs.items()}


def predict_by_fields(server: Server, model: str, inputs: Arrays) -> dict[str, Array]:
    return predict(server, model, inputs, as_content=False)


def rows(server: Server, model: str, inputs: Arrays) -> dict[str, Array]:
    columns = {name: plain(np.atleast_1d(array)) for name, array in inputs.items()}
    instances = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    body, _ = post(server, f"/v1/models/{model}:predict", json.dumps({"instances": instances}).encode())
    predictions = json.loads(body)["predictions"]
    return {
        f"out_{name[3:]}": read([row[f"out_{name[3:]}"] for row in predictions], array)
        for name, array in inputs.items()
    }


def columns(server: Server, model: str, inputs: Arrays) -> dict[str, Array]:
    request = {"inputs": {name: plain(array) for name, array in inputs.items()}}
    body, _ = post(server, f"/v1/models/{model}:predict", json.dumps(request).encode())
    outputs = json.loads(body)["outputs"]
    return {f"out_{name[3:]}": read(outputs[f"out_{name[3:]}"], array) for name, array in inputs.items()}


def described(inputs: Arrays) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": list(array.shape), "datatype": tensors.element_of(array.dtype).open_inference}
        for name, array in inputs.items()
    ]


def v2_json(server: Server, model: str, inputs: Arrays) -> dict[str, Array]:
    given = [one | {"data": plain(array)} for one, array in zip(described(inputs), inputs.values(), strict=True)]
    body, _ = post(server, f"/v2/models/{model}/infer", json.dumps({"inputs": given}).encode())
    found = {}
    for output in json.loads(body)["outputs"]:
        like = inputs[f"in_{output['name'][4:]}"]
        assert output["datatype"] == tensors.element_of(like.dtype).open_inference
        found[output["name"]] = read(output["data"], like).reshape(output["shape"])
    return found


def to_bytes(array: Array) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    return b"".join(struct.pack("<I", len(value)) + value for value in array.ravel().tolist())


def from_bytes(data: bytes, like: Array, shape: list[int]) -> Array:
    if like.dtype != object:
        return np.frombuffer(data, like.dtype).reshape(shape)
    values = []
    while data:
        size = 4 + struct.unpack("<I", data[:4])[0]
        values.append(data[4:size])
        data = data[size:]
    return np.array(values, object).reshape(shape)


def v2_binary(server: Server, model: str, inputs: Arrays) -> dict[str, Array]:
    raw = [to_bytes(array) for array in inputs.values()]
    given = [
        one | {"parameters": {"binary_data_size": len(data)}} for one, data in zip(described(inputs), raw, strict=True)
    ]
    head = json.dumps({"inputs": given, "parameters": {"binary_data_output": True}}).encode()
    lengths = {"Inference-Header-Content-Length": str(len(head))}
    body, headers = post(server, f"/v2/models/{model}/infer", head + b"".join(raw), lengths)
    size = int(headers["Inference-Header-Content-Length"])
    found = {}
    for output in json.loads(body[:size])["outputs"]:
        end = size + output["parameters"]["binary_data_size"]
        found[output["name"]] = from_bytes(body[size:end], inputs[f"in_{output['name'][4:]}"], output["shape"])
        size = end
    assert size == len(body)
    return found


def v2_grpc(server: Server, model: str, inputs: Arrays, *, raw: bool = True) -> dict[str, Array]:
    request = open_inference_pb2.ModelInferRequest(model_name=model)
    for one, array in zip(described(inputs), inputs.values(), strict=True):
        tensor = request.inputs.add(**one)
        if raw:
            request.raw_input_contents.append(to_bytes(array))
        else:
            field = tensors.element_of(array.dtype).contents or "fp32_contents"
            getattr(tensor.contents, field).extend(np.ravel(plain(array)) if field == "fp32_contents" else array.flat)
    method = "/inference.GRPCInferenceService/ModelInfer"
    answer = call(server, method, request, open_inference_pb2.ModelInferResponse)
    found = {}
    for number, output in enumerate(answer.outputs):
        like = inputs[f"in_{output.name[4:]}"]
        if answer.raw_output_contents:
            found[output.name] = from_bytes(answer.raw_output_contents[number], like, list(output.shape))
        else:
            values = getattr(output.contents, tensors.element_of(like.dtype).contents)
            found[output.name] = np.array(list(values), like.dtype).reshape(list(output.shape))
    return found


def v2_grpc_typed(server: Server, model: str, inputs: Arrays) -> dict[str, Array]:
    return v2_grpc(server, model, inputs, raw=False)


PROTOCOLS = [predict, predict_by_fields, rows, columns, v2_json, v2_binary, v2_grpc, v2_grpc_typed]


def is_refused(protocol: Callable[..., Any], group: str) -> bool:
    """Whether the protocol itself cannot carry such a request; what it must not give is INTERNAL."""
    if group == "complex":
        return protocol not in (predict, predict_by_fields)
    return protocol is v2_grpc_typed and group == "short"


def check(server: Server, engine: str, groups: list[str], kinds: list[str]) -> None:
    wrong = []
    for group in groups:
        for kind in kinds:
            inputs = arrays_of(group, SHAPES[kind])
            model = f"{engine}_{group}_{kind}"
            for protocol in PROTOCOLS:
                if protocol is rows and kind in ("scalar", "empty"):
                    continue  # an instance is a row, and there has to be one
                where = f"{model} over {protocol.__name__}"
                try:
                    outputs = protocol(server, model, inputs)
                except Refused as refused:
                    status = refused.args[0]
                    if not is_refused(protocol, group) or status in (500, grpc.StatusCode.INTERNAL):
                        wrong.append(f"{where}: {refused}")
                    continue
                if is_refused(protocol, group):
                    wrong.append(f"{where}: answered")
                wrong += [f"{where}: {text}" for text in differences(inputs, outputs)]
    assert not wrong, "\n".join(wrong)


def differences(inputs: Arrays, outputs: Arrays) -> Iterator[str]:
    assert {f"in_{name[4:]}" for name in outputs} == inputs.keys()
    for name, array in inputs.items():
        found = outputs[f"out_{name[3:]}"]
        if (found.dtype, found.shape) != (array.dtype, array.shape):
            yield f"{name} is {found.dtype} {found.shape}"
        elif found.tolist() != array.tolist():
            yield f"{name} is {found.tolist()}, not {array.tolist()}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("types")
    for group in ("typed", "short"):
        for kind in SHAPES:
            write_onnx(folder / "models", group, kind)
    for kind in ("scalar", "vector", "empty"):
        write_tflite(folder / "models", "typed", kind)
    with server_starter(folder) as start:
        yield start(f"--model_root={folder / 'models'}", "--prefer_tflite_model", "--trial_seconds=0")


def test_results_of_onnx_runtime(server: Server) -> None:
    check(server, "onnx", ["typed", "short"], list(SHAPES))


def test_results_of_litert(server: Server) -> None:
    check(server, "tflite", ["typed"], ["scalar", "vector", "empty"])


@pytest.mark.slow
def test_results_of_tensorflow(tmp_path: Path) -> None:
    for group in GROUPS:
        for kind in SHAPES:
            write_tensorflow(tmp_path / "models", group, kind)
    with server_starter(tmp_path) as start:
        check(start(f"--model_root={tmp_path / 'models'}", "--trial_seconds=0"), "tensorflow", [*GROUPS], list(SHAPES))
