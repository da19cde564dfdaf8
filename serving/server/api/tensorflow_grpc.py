"""TensorFlow Serving's gRPC services over the inference core: decode, call, encode.

`handlers` is what the transport dispatches on. Predict answers from a callback, without a coroutine a call.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from bookserve.serving.server.inference import requests
from bookserve.serving.server.inference.requests import Prediction
from bookserve.serving.server.models.catalog import Models
from bookserve.serving.server.transport.grpc_call import GrpcCall, Handler
from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.server.types.examples import CLASSIFY, REGRESS
from bookserve.serving.server.types.signatures import find_signature
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.predict_messages import PredictRequests, write_response
from bookserve.serving.wire.tensors import TensorError

log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)


def handlers(manager: Models, *, tensor_content: bool) -> dict[bytes, Handler]:
    """The handler of each method path; `tensor_content` answers packed bytes instead of typed fields."""
    services: dict[str, Handler] = {
        "PredictionService/Predict": _predict(manager, tensor_content),
        "PredictionService/Classify": _queued(
            messages.ClassificationRequest,
            lambda request, call, done: requests.classify_or_regress(manager, CLASSIFY, request, call, done),
        ),
        "PredictionService/Regress": _queued(
            messages.RegressionRequest,
            lambda request, call, done: requests.classify_or_regress(manager, REGRESS, request, call, done),
        ),
        "PredictionService/MultiInference": _queued(
            messages.MultiInferenceRequest,
            lambda request, call, done: requests.multi_inference(manager, request, call, done),
        ),
        "PredictionService/GetModelMetadata": unary(
            messages.GetModelMetadataRequest, lambda request: requests.metadata(manager, request)
        ),
        "ModelService/GetModelStatus": unary(
            messages.GetModelStatusRequest, lambda request: requests.status(manager, request)
        ),
    }
    return {f"/tensorflow.serving.{path}".encode(): handler for path, handler in services.items()}


def unary(request_type: type[Request], answer: Callable[[Request], Message]) -> Handler:
    """The handler of a method that is answered at once; a ServingError that `answer` raises becomes the status."""

    def handle(call: GrpcCall, data: bytes) -> None:
        try:
            call.reply(answer(parse(request_type, data)).SerializeToString())
        except ServingError as error:
            call.fail(error.code, error.message)

    return handle


def _queued(request_type: type[Request], start: Callable[[Request, GrpcCall, Callable[[Any], None]], None]) -> Handler:
    """For methods whose responses come from a callback as complete messages."""

    def handle(call: GrpcCall, data: bytes) -> None:
        def done(result: Message | ServingError) -> None:
            if isinstance(result, ServingError):
                call.fail(result.code, result.message)
            else:
                call.reply(result.SerializeToString())

        try:
            start(parse(request_type, data), call, done)
        except ServingError as error:
            call.fail(error.code, error.message)

    return handle


def _predict(manager: Models, tensor_content: bool) -> Handler:
    reader = PredictRequests()

    def handle(call: GrpcCall, data: bytes) -> None:
        def done(result: Prediction | ServingError) -> None:
            if not call.open:
                return
            if isinstance(result, ServingError):
                call.fail(result.code, result.message)
                return
            try:
                answer = write_response(
                    result.model, result.version, result.signature, result.outputs, as_content=tensor_content
                )
            except Exception:
                log.exception("fault while encoding an answer of %s", result.model)
                call.fail(tensorflow_error_pb2.INTERNAL, "internal error")
            else:
                call.reply(answer)

        try:
            request, inputs = reader.read(data)
            if not request.HasField("model_spec"):
                raise invalid_argument("Missing ModelSpec")
            servable = requests.find(manager, request.model_spec, call)
            signature = find_signature(servable.engine.signatures, request.model_spec.signature_name)
            if inputs is None:
                inputs = reader.tensors(request, data)
            requests.predict(servable, signature, inputs, list(request.output_filter), call, done)
        except TensorError as error:
            call.fail(tensorflow_error_pb2.INVALID_ARGUMENT, f"tensor parsing error: {error}")
        except DecodeError:
            call.fail(tensorflow_error_pb2.INVALID_ARGUMENT, _no_message(messages.PredictRequest))
        except ServingError as error:
            call.fail(error.code, error.message)

    return handle


def parse(request_type: type[Request], data: bytes) -> Request:
    """The message in `data`. Raises ServingError (INVALID_ARGUMENT) when it is none of that type."""
    try:
        return request_type.FromString(data)
    except DecodeError:
        raise invalid_argument(_no_message(request_type)) from None


def _no_message(request_type: type[Message]) -> str:
    return f"the message is no {request_type.DESCRIPTOR.full_name}"
