"""gRPC's health checking service, grpc.health.v1, for TensorFlow Serving's names of services and for the full ones.

Unlike TensorFlow Serving, where the answer never changes, it is NOT_SERVING from the moment the server begins to drain.
"""

import weakref
from collections.abc import Mapping

from google.protobuf.message import DecodeError

from bookserve.serving.server.api.grpc_handlers import unary
from bookserve.serving.server.transport.grpc_call import GrpcCall, Handler
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.grpc_health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

# "" is the server as a whole; TensorFlow Serving knows that, and its services by their short names.
SERVICES = (
    *("", "ModelService", "PredictionService"),
    *("tensorflow.serving.ModelService", "tensorflow.serving.PredictionService"),
    *("inference.GRPCInferenceService", "bookserve.ModelAdminService"),
)


class Health:
    """Answers Check, List and Watch."""

    def __init__(self) -> None:
        self._draining = False
        self._watching: weakref.WeakSet[GrpcCall] = weakref.WeakSet()  # calls of known services

    @property
    def handlers(self) -> Mapping[bytes, Handler]:
        """The handler of each method path."""
        return {
            b"/grpc.health.v1.Health/Check": self._check,
            b"/grpc.health.v1.Health/List": unary(HealthListRequest, lambda _: self._list()),
            b"/grpc.health.v1.Health/Watch": self._watch,
        }

    def drain(self) -> None:
        """Tells all who watch that the server goes, and those who ask from now on."""
        self._draining = True
        for call in list(self._watching):
            self._say_goodbye(call)

    def _check(self, call: GrpcCall, data: bytes) -> None:
        service = _service(call, data)
        if service in SERVICES:
            call.reply(self._status().SerializeToString())
        elif service is not None:
            call.fail(tensorflow_error_pb2.NOT_FOUND, f"unknown service {service}: use one of {_known()}")

    def _list(self) -> HealthListResponse:
        return HealthListResponse(statuses=dict.fromkeys(SERVICES, self._status()))

    def _watch(self, call: GrpcCall, data: bytes) -> None:
        service = _service(call, data)
        if service not in SERVICES:
            if service is not None:
                call.send(HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN).SerializeToString())
        elif self._draining:
            self._say_goodbye(call)
        else:
            call.send(self._status().SerializeToString())
            self._watching.add(call)

    def _say_goodbye(self, call: GrpcCall) -> None:
        call.send(self._status().SerializeToString())
        call.fail(tensorflow_error_pb2.UNAVAILABLE, "the server is stopping")

    def _status(self) -> HealthCheckResponse:
        status = HealthCheckResponse.NOT_SERVING if self._draining else HealthCheckResponse.SERVING
        return HealthCheckResponse(status=status)


def _service(call: GrpcCall, data: bytes) -> str | None:
    try:
        return HealthCheckRequest.FromString(data).service
    except DecodeError:
        call.fail(tensorflow_error_pb2.INVALID_ARGUMENT, "the message is no grpc.health.v1.HealthCheckRequest")
        return None


def _known() -> str:
    return ", ".join(repr(name) for name in SERVICES)
