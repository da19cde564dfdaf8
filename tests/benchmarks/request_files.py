"""The request of a model in the files that the generators of load send, for each protocol."""

import base64
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bookserve.serving.wire import open_inference_pb2, tensors
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import Array
from measurements import MeasurementError
from processes import HOST

_PREFIX = struct.Struct(">BL")  # of a gRPC message: whether it is compressed, and its length
_ANSWER_SECONDS = 60


@dataclass(frozen=True)
class RequestFiles:
    """One request over gRPC and over REST: where it is sent, the files that hold it, and its right answer."""

    grpc_method: str
    grpc_body: Path  # with its prefix
    rest_path: str
    rest_script: Path  # Lua, for wrk
    read_answer: Callable[[bytes], Array]  # takes `y` out of an answer over gRPC
    expected: Array

    def check_answer(self, grpc_port: int) -> int:
        """Asks once over gRPC; returns the length of the answer, with its prefix, where it is the right one."""
        options = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(f"{HOST}:{grpc_port}", options) as channel:
            try:
                call = channel.unary_unary(f"/{self.grpc_method}")
                answer = call(self.grpc_body.read_bytes()[_PREFIX.size :], timeout=_ANSWER_SECONDS, wait_for_ready=True)
            except grpc.RpcError as error:
                raise MeasurementError(f"the server does not answer: {error.details()}") from error
        y = self.read_answer(answer)
        if y.size != self.expected.size or not np.allclose(y.ravel(), self.expected.ravel(), rtol=1e-3, atol=1e-2):
            raise MeasurementError(f"the server answers {y.ravel()[:10]}, not {self.expected.ravel()[:10]}")
        return _PREFIX.size + len(answer)


def tensorflow_serving(folder: Path, name: str, x: Array, expected: Array) -> RequestFiles:
    """The model's input `x` in TensorFlow Serving's protocol; the files are written into the folder."""
    request = messages.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tensors.to_proto(x))
    body, script = _write(folder, "tensorflow-serving", request.SerializeToString(), {"instances": x.tolist()})

    method = "tensorflow.serving.PredictionService/Predict"
    return RequestFiles(method, body, f"v1/models/{name}:predict", script, _read_prediction, expected)


def picture(folder: Path, name: str, form: str, file: bytes, expected: Array) -> RequestFiles:
    """A picture's file as the model's input `x`: base64 over REST, a string over gRPC. `form` names the files."""
    request = messages.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tensors.to_proto(np.array([file], dtype=object)))
    value = {"instances": [{"b64": base64.b64encode(file).decode()}]}
    body, script = _write(folder, form, request.SerializeToString(), value)
    method = "tensorflow.serving.PredictionService/Predict"
    return RequestFiles(method, body, f"v1/models/{name}:predict", script, _read_prediction, expected)


def open_inference(folder: Path, name: str, x: Array, expected: Array) -> RequestFiles:
    """The model's input `x` in the Open Inference Protocol; the files are written into the folder."""
    request = open_inference_pb2.ModelInferRequest(model_name=name, raw_input_contents=[x.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    body, script = _write(folder, "open-inference", request.SerializeToString(), {"inputs": [tensor]})

    def read_answer(answer: bytes) -> Array:
        contents = open_inference_pb2.ModelInferResponse.FromString(answer).raw_output_contents
        return np.frombuffer(b"".join(contents), np.float32)

    method = "inference.GRPCInferenceService/ModelInfer"
    return RequestFiles(method, body, f"v2/models/{name}/infer", script, read_answer, expected)


def _read_prediction(answer: bytes) -> Array:
    return tensors.to_array(messages.PredictResponse.FromString(answer).outputs["y"])


def _write(folder: Path, form: str, message: bytes, value: Mapping[str, Any]) -> tuple[Path, Path]:
    grpc_body, rest_body, script = (folder / f"{form}.{suffix}" for suffix in ("grpc", "json", "lua"))
    grpc_body.write_bytes(_PREFIX.pack(0, len(message)) + message)
    rest_body.write_text(json.dumps(value))
    script.write_text(f"wrk.method = 'POST'\nlocal file = io.open('{rest_body}')\nwrk.body = file:read('*a')\n")
    return grpc_body, script
