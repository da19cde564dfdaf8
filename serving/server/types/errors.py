"""The one error of the model server and the table that maps its codes to gRPC and HTTP.

A `ServingError` carries a canonical status code and a message that is meant for the client. Any other exception is a
fault of the server: the transports answer INTERNAL without detail and log it.
"""

from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensorflow_error_pb2 import Code

# Canonical code -> HTTP status, as TensorFlow Serving maps them (model_servers/http_server.cc).
HTTP_STATUS: dict[Code, int] = {
    tensorflow_error_pb2.OK: 200,
    tensorflow_error_pb2.CANCELLED: 499,
    tensorflow_error_pb2.UNKNOWN: 500,
    tensorflow_error_pb2.INVALID_ARGUMENT: 400,
    tensorflow_error_pb2.DEADLINE_EXCEEDED: 504,
    tensorflow_error_pb2.NOT_FOUND: 404,
    tensorflow_error_pb2.ALREADY_EXISTS: 409,
    tensorflow_error_pb2.PERMISSION_DENIED: 403,
    tensorflow_error_pb2.RESOURCE_EXHAUSTED: 429,
    tensorflow_error_pb2.FAILED_PRECONDITION: 400,
    tensorflow_error_pb2.ABORTED: 409,
    tensorflow_error_pb2.OUT_OF_RANGE: 400,
    tensorflow_error_pb2.UNIMPLEMENTED: 501,
    tensorflow_error_pb2.INTERNAL: 500,
    tensorflow_error_pb2.UNAVAILABLE: 503,
    tensorflow_error_pb2.DATA_LOSS: 500,
    tensorflow_error_pb2.UNAUTHENTICATED: 401,
}


# The way back, for answers of which only the HTTP status is known.
_CODES = {status: code for code, status in reversed(HTTP_STATUS.items())} | {500: tensorflow_error_pb2.INTERNAL}


def code_of_http(status: int) -> Code:
    """The canonical code that an HTTP status most likely stands for."""
    code = _CODES.get(status)
    if code is None:
        code = tensorflow_error_pb2.INTERNAL if status >= 500 else tensorflow_error_pb2.INVALID_ARGUMENT
    return code


class ServingError(Exception):
    """A request, a model or a setting that cannot be served, with the status that the client gets."""

    def __init__(self, code: Code, message: str) -> None:
        if not message.isascii():  # it may name a file whose name is no UTF-8, and every protocol carries text alone
            message = message.encode("utf-8", "replace").decode()
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{Code.Name(self.code)}: {self.message}"


def invalid_argument(message: str) -> ServingError:
    """The client sent something that can never be served."""
    return ServingError(tensorflow_error_pb2.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    """The model, version or label does not exist here."""
    return ServingError(tensorflow_error_pb2.NOT_FOUND, message)


def failed_precondition(message: str) -> ServingError:
    """The request is well formed, but the model or the server is not in a state to serve it."""
    return ServingError(tensorflow_error_pb2.FAILED_PRECONDITION, message)


def exhausted(message: str) -> ServingError:
    """The server holds as much as it may; the client may try again later."""
    return ServingError(tensorflow_error_pb2.RESOURCE_EXHAUSTED, message)


def out_of_memory() -> ServingError:
    """An allocation for the request failed."""
    return exhausted("the request needs more memory than the server may hold (--max_memory_bytes): ask for less")


def unimplemented(message: str) -> ServingError:
    """The server knows what is asked and cannot do it."""
    return ServingError(tensorflow_error_pb2.UNIMPLEMENTED, message)


def internal(message: str = "internal error") -> ServingError:
    """A fault of the server or of the model; what it was is in the log, not in the message."""
    return ServingError(tensorflow_error_pb2.INTERNAL, message)


def unavailable(message: str) -> ServingError:
    """The server cannot serve now; the client may try again."""
    return ServingError(tensorflow_error_pb2.UNAVAILABLE, message)
