"""What can go wrong when a client asks for a prediction: one class a canonical status code, the same for every way.

gRPC answers carry the code itself, REST and gateway answers an HTTP status; the tables below map both. A caller that
only wants to know that it failed catches `PredictError`.
"""

from typing import ClassVar

import grpc


class PredictError(Exception):
    """A request that got no prediction. The message is the server's own, or says what to do.

    `code` is the canonical status code's name, such as "NOT_FOUND".
    """

    code: ClassVar[str] = "UNKNOWN"


class BadAnswer(PredictError):
    """The server answered, but not with what the protocol promises."""


class Cancelled(PredictError):
    """The call was cancelled, by this side or by a proxy."""

    code = "CANCELLED"


class InvalidArgument(PredictError):
    """The request itself is wrong: a tensor's name, type or shape, an unknown label, a malformed body."""

    code = "INVALID_ARGUMENT"


class DeadlineExceeded(PredictError):
    """No answer came within the timeout."""

    code = "DEADLINE_EXCEEDED"


class NotFound(PredictError):
    """No such model, or no such version of it is loaded."""

    code = "NOT_FOUND"


class AlreadyExists(PredictError):
    """What should be made is there already."""

    code = "ALREADY_EXISTS"


class PermissionDenied(PredictError):
    """The caller may not do this."""

    code = "PERMISSION_DENIED"


class ResourceExhausted(PredictError):
    """Too many requests, or one that is too large."""

    code = "RESOURCE_EXHAUSTED"


class FailedPrecondition(PredictError):
    """The server is in no state to do this: an unknown signature, for one."""

    code = "FAILED_PRECONDITION"


class Aborted(PredictError):
    """Another request got in the way."""

    code = "ABORTED"


class OutOfRange(PredictError):
    """A value beyond what there is."""

    code = "OUT_OF_RANGE"


class Unimplemented(PredictError):
    """The server does not know this method, or not for this type."""

    code = "UNIMPLEMENTED"


class Internal(PredictError):
    """A fault of the server."""

    code = "INTERNAL"


class Unavailable(PredictError):
    """Nobody answers there, or the server is full or going down. Trying again later may help.

    `retry_after` is how many seconds later at least, 0 where the server did not say.
    """

    code = "UNAVAILABLE"
    retry_after: float = 0.0


class DataLoss(PredictError):
    """Data is damaged beyond repair."""

    code = "DATA_LOSS"


class Unauthenticated(PredictError):
    """The caller did not say who they are."""

    code = "UNAUTHENTICATED"


BY_CODE: dict[str, type[PredictError]] = {
    error.code: error
    for error in (
        PredictError,
        Cancelled,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    )
}

# TensorFlow Serving's table (model_servers/http_server.cc) read backwards, and what gateways and proxies add to it.
BY_HTTP_STATUS: dict[int, type[PredictError]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    405: Unimplemented,
    408: DeadlineExceeded,
    409: Aborted,
    413: ResourceExhausted,
    415: InvalidArgument,
    422: InvalidArgument,
    429: ResourceExhausted,
    499: Cancelled,
    500: Internal,
    501: Unimplemented,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}


def from_grpc(code: grpc.StatusCode, details: str, target: str) -> PredictError:
    """The error for a failed gRPC call to `target`."""
    error = BY_CODE[code.name]
    if error is Unavailable:
        if "last error: " in details:  # of many words only the last tell what happened
            details = details.rpartition(": ")[2]
        return Unavailable(f"nothing answers over gRPC at {target}: {details}")
    return error(details or f"{target} answered {code.name} and gave no reason")


def from_http(status: int, message: str, retry_after: float = 0.0) -> PredictError:
    """The error for an HTTP answer outside 200..299; `retry_after` is what the answer says, in seconds."""
    fallback = InvalidArgument if 400 <= status < 500 else PredictError
    error = BY_HTTP_STATUS.get(status, fallback)(message)
    if isinstance(error, Unavailable):
        error.retry_after = retry_after
    return error
