"""TensorFlow Serving's gRPC services over the inference core: decode, call, encode.

`handlers` is what the transport dispatches on. Predict answers from a callback, without a coroutine a call.
"""

from google.protobuf.message import DecodeError

from bookserve.serving.server.api.grpc_handlers import answer_with, fail, not_a, queued, unary
from bookserve.serving.server.inference import requests
from bookserve.serving.server.inference.requests import Prediction
from bookserve.serving.server.models.catalog import Catalog
from bookserve.serving.server.transport.grpc_call import GrpcCall, Handler
from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.server.types.examples import CLASSIFY, REGRESS
from bookserve.serving.server.types.signatures import find_signature
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.predict_messages import PredictRequests, write_response
from bookserve.serving.wire.tensors import TensorError


def handlers(catalog: Catalog, *, tensor_content: bool) -> dict[bytes, Handler]:
    """The handler of each method path; `tensor_content` answers packed bytes instead of typed fields."""
    services: dict[str, Handler] = {
        "PredictionService/Predict": _predict(catalog, tensor_content),
        "PredictionService/Classify": queued(
            messages.ClassificationRequest,
            lambda request, call, done: requests.classify_or_regress(catalog, CLASSIFY, request, call, done),
        ),
        "PredictionService/Regress": queued(
            messages.RegressionRequest,
            lambda request, call, done: requests.classify_or_regress(catalog, REGRESS, request, call, done),
        ),
        "PredictionService/MultiInference": queued(
            messages.MultiInferenceRequest,
            lambda request, call, done: requests.multi_inference(catalog, request, call, done),
        ),
        "PredictionService/GetModelMetadata": unary(
            messages.GetModelMetadataRequest, lambda request: requests.metadata(catalog, request)
        ),
        "ModelService/GetModelStatus": unary(
            messages.GetModelStatusRequest, lambda request: requests.status(catalog, request)
        ),
    }
    return {f"/tensorflow.serving.{path}".encode(): handler for path, handler in services.items()}


def _predict(catalog: Catalog, tensor_content: bool) -> Handler:
    reader = PredictRequests()

    def encode(result: Prediction) -> bytes:
        return write_response(result.model, result.version, result.signature, result.outputs, as_content=tensor_content)

    def handle(call: GrpcCall, data: bytes) -> None:
        try:
            request, inputs = reader.read(data)
            if not request.HasField("model_spec"):
                raise invalid_argument("Missing ModelSpec")
            servable = requests.find(catalog, request.model_spec, call)
            signature = find_signature(servable.engine.signatures, request.model_spec.signature_name)
            if inputs is None:
                inputs = reader.tensors(request, data)
            done = answer_with(call, encode)
            requests.predict(servable, signature, inputs, list(request.output_filter), call, done)
        except TensorError as error:
            fail(call, invalid_argument(f"tensor parsing error: {error}"))
        except DecodeError:
            fail(call, not_a(messages.PredictRequest))
        except ServingError as error:
            fail(call, error)

    return handle
