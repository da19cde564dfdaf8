"""A stand-in for a model server: all seven models as simple functions of their inputs, in process or over gRPC."""

import threading
from collections.abc import Mapping
from concurrent import futures
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import numpy as np

from book_contracts import CONTRACTS
from bookserve.clients.answers import Signature, TensorInfo
from bookserve.export.contracts import Contract, Fingerprint, Preprocessing, Tensor
from bookserve.serving.wire import tensors
from bookserve.serving.wire.tensorflow_serving_pb2 import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    GetModelStatusRequest,
    GetModelStatusResponse,
    ModelVersionStatus,
    PredictRequest,
    PredictResponse,
    SignatureDefMap,
)

WORDS = ("<unk>", "<eos>", "N", "$", "the", "stock", "market", "do", "n't", "'s", "rose", "mr.", "corp.")


def signature_of(contract: Contract) -> Signature:
    return Signature(
        inputs={tensor.name: TensorInfo(tensor.dtype, tensor.shape) for tensor in contract.inputs},
        outputs={tensor.name: TensorInfo(tensor.dtype, tensor.shape) for tensor in contract.outputs},
    )


def classes_of(images: np.ndarray) -> np.ndarray:
    """What the stand-in picture models answer: the mean level, modulo 10."""
    return images.mean(axis=tuple(range(1, images.ndim))).astype(np.int64) % 10


def answer_of(model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the stand-in models answer: simple functions of their inputs, of the contract's shapes and types."""
    value = inputs[CONTRACTS[model].inputs[0].name] if model in CONTRACTS else next(iter(inputs.values()))
    rows = len(value)
    match model:
        case "linear":
            return {"y": (5 * value[:, 0] + 2).astype(np.float32)}
        case "logistic":
            probability = (1 / (1 + np.exp(-value.sum(axis=1)))).astype(np.float32)
            return {"probability": probability, "class": (probability >= 0.5).astype(np.int64)}
        case "tox21":
            bits = value.sum(axis=1, dtype=np.float32)[:, None]
            probabilities = (bits / 1024 + np.arange(12, dtype=np.float32) / 24).astype(np.float32)
            return {"probabilities": probabilities, "nearest": np.minimum(bits[:, 0] / 32, 1)}  # ethanol: 0.1875
        case "ptb":
            # The word after the last one, and a little of all others.
            nexts = (value[:, -1] + 1) % len(WORDS)
            probabilities = np.full((rows, len(WORDS)), 0.01, np.float32)
            probabilities[np.arange(rows), nexts] = 1 - 0.01 * (len(WORDS) - 1)
            top = np.argsort(-probabilities, axis=1)[:, :10].astype(np.int32)
            return {
                "probabilities": probabilities,
                "top_ids": top,
                "top_probabilities": np.take_along_axis(probabilities, top, axis=1),
            }
        case "tictactoe":
            # Each free square more likely than the one before it.
            free = 1 - value.sum(axis=3).reshape(rows, 9)
            weights = free * np.arange(1, 10)
            probabilities = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
            return {"probabilities": probabilities, "value": np.full(rows, 0.25, np.float32)}
        case "wine":  # the more of the first column, the better
            share = (1 / (1 + np.exp(-value[:, 0]))).astype(np.float32)
            return {"label": (share >= 0.5).astype(np.int64), "scores": np.stack([1 - share, share], axis=1)}
        case "mood":  # of the last word
            scores = np.stack([-value[:, -1], value[:, -1] - 4.5], axis=1)
            return {"score": scores.astype(np.float32)}
        case "double":
            return {"y": 2 * value}
        case "solubility":  # of the fingerprint's bits
            return {"log_s": value.sum(axis=1, dtype=np.float32) / 4}
        case _:
            classes = classes_of(value)
            return {"probabilities": np.eye(10, dtype=np.float32)[classes], "classes": classes}


OTHERS = {
    contract.model: contract
    for contract in (
        Contract(
            "wine",
            1,
            (Tensor("x", "float32", (None, 3)),),
            (
                Tensor("label", "int64", (None,), ranks="scores"),
                Tensor("scores", "float32", (None, 2), unit="probability"),
            ),
            labels=("bad", "good"),
            columns=("acid", "sugar", "age"),
            task="tabular",
        ),
        replace(
            CONTRACTS["ptb"], model="mood", labels=("bad", "good"), outputs=(Tensor("score", "float32", (None, 2)),)
        ),
        replace(CONTRACTS["mnist"], model="letters", labels=tuple("abcdefghij")),
        Contract(
            "solubility",
            1,
            (Tensor("fingerprint", "uint8", (None, 512)),),
            (Tensor("log_s", "float32", (None,)),),
            preprocessing=Preprocessing("fingerprint", fingerprint=Fingerprint("morgan", radius=3, bits=512)),
            task="molecules",
        ),
        Contract("double", 1, (Tensor("x", "float32", (None, 2)),), (Tensor("y", "float32", (None, 2)),)),
    )
}


@dataclass
class FakeServer:
    """A model server on loopback that has version 3 of `models`, whose contracts are the book's, OTHERS, or given.

    Every Predict waits for `gate` and counts itself.
    """

    models: tuple[str, ...] = ("mnist",)
    target: str = ""
    gate: threading.Event = field(default_factory=threading.Event)
    running: int = 0
    contracts: Mapping[str, Contract] = field(default_factory=lambda: CONTRACTS | OTHERS)

    def predict(self, request: PredictRequest, context: grpc.ServicerContext) -> PredictResponse:
        model = self._model(request, context)
        self.running += 1
        self.gate.wait(20)
        inputs = {name: tensors.to_array(proto) for name, proto in request.inputs.items()}
        response = PredictResponse()
        response.model_spec.name = model
        response.model_spec.version.value = 3
        for name, array in answer_of(model, inputs).items():
            response.outputs[name].CopyFrom(tensors.to_proto(array))
        return response

    def metadata(self, request: GetModelMetadataRequest, context: grpc.ServicerContext) -> GetModelMetadataResponse:
        contract = self.contracts[self._model(request, context)]
        definitions = SignatureDefMap()
        signature = definitions.signature_def["serving_default"]
        for side, tensor in [
            *((signature.inputs, tensor) for tensor in contract.inputs),
            *((signature.outputs, tensor) for tensor in contract.outputs),
        ]:
            side[tensor.name].dtype = tensors.data_type(np.dtype(tensor.dtype))
            for place, size in enumerate(tensor.shape):
                # An engine knows the size of a version's vocabulary.
                known = len(WORDS) if side is signature.outputs and place else -1
                side[tensor.name].tensor_shape.dim.add().size = known if size is None else size
        response = GetModelMetadataResponse()
        response.model_spec.version.value = 3
        response.metadata["signature_def"].Pack(definitions)
        return response

    def status(self, request: GetModelStatusRequest, context: grpc.ServicerContext) -> GetModelStatusResponse:
        self._model(request, context)
        response = GetModelStatusResponse()
        response.model_version_status.add(version=3, state=ModelVersionStatus.AVAILABLE)
        return response

    def _model(self, request: Any, context: grpc.ServicerContext) -> str:
        name: str = request.model_spec.name
        if name not in self.models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name})")
        return name


def serve(fake: FakeServer, port: int = 0) -> grpc.Server:
    """Starts the stand-in on a port of loopback."""
    server = grpc.server(futures.ThreadPoolExecutor(16))
    prediction = {
        "Predict": _unary(fake.predict, PredictRequest, PredictResponse),
        "GetModelMetadata": _unary(fake.metadata, GetModelMetadataRequest, GetModelMetadataResponse),
    }
    model = {"GetModelStatus": _unary(fake.status, GetModelStatusRequest, GetModelStatusResponse)}
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", prediction),
            grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", model),
        ]
    )
    fake.target = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    fake.gate.set()
    server.start()
    return server


def _unary(method: Any, request: Any, response: Any) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(method, request.FromString, response.SerializeToString)
