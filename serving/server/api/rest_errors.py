"""How the REST APIs answer with an error."""

import json

from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import HTTP_STATUS, ServingError
from bookserve.serving.wire import tensorflow_error_pb2


def error_body(message: str) -> bytes:
    """The body of every error: TensorFlow Serving's JSON object with the one key `error`."""
    return b'{\n    "error": ' + json.dumps(message).encode() + b"\n}"


def fail(exchange: HttpExchange, error: ServingError) -> None:
    """Answers a request with an error."""
    if exchange.record is not None:
        exchange.record.error = error
    headers = (("retry-after", "1"),) if error.code == tensorflow_error_pb2.RESOURCE_EXHAUSTED else ()
    exchange.respond(HTTP_STATUS[error.code], error_body(error.message), headers=headers)
