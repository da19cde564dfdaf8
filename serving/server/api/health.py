"""gRPC's health checking service, grpc.health.v1, with TensorFlow Serving's names of services.

Unlike TensorFlow Serving, where the answer never changes, it is NOT_SERVING from the moment the server begins to drain.
"""

import weakref
from collections.abc import Mapping

from google.protobuf.message import DecodeError

from bookserve.serving.server.transport.grpc_call import GrpcCall, Handler
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.grpc_health_pb2 import HealthCheckRequest, HealthCheckResponse

# "" is the server as a whole.
SERVICES = ("", "ModelService", "PredictionService")


class Health:
    """Answers Check and Watch."""

    def __init__(self) -> None:
        self._draining = False
        self._watching: weakref.WeakSet[GrpcCall] = weakref.WeakSet()  # calls of known services

    @property
    def handlers(self) -> Mapping[bytes, Handler]:
        """The handler of each method path."""
        return {b"/grpc.health.v1.Health/Check": self._check, b"/grpc.health.v1.Health/Watch": self._watch}

    def drain(self) -> None:
        """Tells all who watch that the server goes, and those who ask from now on."""
        self._draining = True
        for call in list(self._watching):
            self._say_goodbye(call)

    def _check(self, call: GrpcCall, data: bytes) -> None:
        service = _service(call, data)
        if service in SERVICES:
            call.reply(self._status())
        elif service is not None:
            call.fail(tensorflow_error_pb2.NOT_FOUND, f"unknown service {service}: use one of {_known()}")

    def _watch(self, call: GrpcCall, data: bytes) -> None:
        service = _service(call, data)
        if service not in SERVICES:
            if service is not None:
                call.send(HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN).SerializeToString())
        elif self._draining:
            self._say_goodbye(call)
        else:
            call.send(self._status())
            self._watching.add(call)

    def _say_goodbye(self, call: GrpcCall) -> None:
        call.send(self._status())
        call.fail(tensorflow_error_pb2.UNAVAILABLE, "the server is stopping")

    def _status(self) -> bytes:
        status = HealthCheckResponse.NOT_SERVING if self._draining else HealthCheckResponse.SERVING
        return HealthCheckResponse(status=status).SerializeToString()


def _service(call: GrpcCall, data: bytes) -> str | None:
    try:
        return HealthCheckRequest.FromString(data).service
    except DecodeError:
        call.fail(tensorflow_error_pb2.INVALID_ARGUMENT, "the message is no grpc.health.v1.HealthCheckRequest")
        return None


def _known() -> str:
    return ", ".join(repr(name) for name in SERVICES)
