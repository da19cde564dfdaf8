"""gRPC's server reflection, grpc.reflection.v1 and v1alpha: lets grpcurl and its like list and describe the services.

TensorFlow Serving has none; it is off unless asked for.
"""

from collections.abc import Iterable, Mapping

from google.protobuf.message import DecodeError

from bookserve.serving.server.transport.grpc_call import GrpcCall, StreamHandler
from bookserve.serving.wire import grpc_health_pb2, tensorflow_error_pb2, tensorflow_services_pb2
from bookserve.serving.wire.grpc_reflection_pb2 import (
    DESCRIPTOR,
    ServerReflectionRequest,
    ServerReflectionResponse,
)
from bookserve.serving.wire.pool import POOL

# Imported so that they are in the pool.
_DESCRIBED = (DESCRIPTOR, grpc_health_pb2.DESCRIPTOR, tensorflow_services_pb2.DESCRIPTOR)
_NAME = "grpc.reflection.v1.ServerReflection"


class Reflection:
    """Answers ServerReflectionInfo for the services of these method paths, such as b"/package.Service/Method".

    What cannot be described, as its messages are not defined here, is not listed either.
    """

    def __init__(self, paths: Iterable[bytes]) -> None:
        names = {path.split(b"/")[1].decode() for path in paths} | {_NAME}
        self._services = sorted(name for name in names if _is_described(name))

    @property
    def streams(self) -> Mapping[bytes, StreamHandler]:
        """The handler of each method path; v1alpha has the same messages."""
        return {
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo".encode(): self._handle
            for version in ("v1", "v1alpha")
        }

    def _handle(self, call: GrpcCall, data: bytes | None) -> None:
        if data is None:
            call.finish()
            return
        try:
            request = ServerReflectionRequest.FromString(data)
        except DecodeError:
            call.fail(tensorflow_error_pb2.INVALID_ARGUMENT, "the message is no ServerReflectionRequest")
            return
        response = ServerReflectionResponse(valid_host=request.host, original_request=request)
        try:
            self._fill(response, request)
        except KeyError as error:
            response.error_response.error_code = tensorflow_error_pb2.NOT_FOUND
            response.error_response.error_message = str(error.args[0])
        call.send(response.SerializeToString())

    def _fill(self, response: ServerReflectionResponse, request: ServerReflectionRequest) -> None:
        """Raises KeyError for what is not known here."""
        match request.WhichOneof("message_request"):
            case "list_services":
                for name in self._services:
                    response.list_services_response.service.add(name=name)
            case "file_by_filename":
                _add_file(response, request.file_by_filename)
            case "file_containing_symbol":
                _add_file(response, POOL.FindFileContainingSymbol(request.file_containing_symbol).name)
            case "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                POOL.FindMessageTypeByName(name)
                response.all_extension_numbers_response.base_type_name = name
            case _:  # proto3 has no extensions
                raise KeyError("no extensions are known here")


def _is_described(service: str) -> bool:
    try:
        POOL.FindServiceByName(service)
    except KeyError:
        return False
    return True


def _add_file(response: ServerReflectionResponse, name: str) -> None:
    """Adds a file and all that it imports."""
    waiting, seen = [POOL.FindFileByName(name)], {name}
    while waiting:
        file = waiting.pop()
        response.file_descriptor_response.file_descriptor_proto.append(file.serialized_pb)
        for dependency in file.dependencies:
            if dependency.name not in seen:
                seen.add(dependency.name)
                waiting.append(dependency)
