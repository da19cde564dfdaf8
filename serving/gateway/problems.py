"""The gateway's errors: RFC 9457 problem documents, each saying what was wrong and what would work.

Everything that a request can do wrong is raised as a `Problem`; what the model server does wrong is a `PredictError`
and is mapped here. Any other exception becomes a 500 without detail, and the detail goes to the log.
"""

import http
from collections.abc import Mapping
from typing import Any

import orjson
from flask import Response

from bookserve.clients import errors

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer other than the one asked for.

    `status` is the HTTP status, `detail` a sentence for a person. For a faulty value of a body, `field` names it with
    its index ("pixels[3][27]"), `expected` and `given` say what should be there and what is, and `example` is a body
    that works.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | None = None,
        expected: str | None = None,
        given: str | None = None,
        example: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.field = field
        self.expected = expected
        self.given = given
        self.example = example
        self.headers = dict(headers or {})

    def document(self, request_id: str) -> dict[str, Any]:
        """The problem document; members that say nothing are left out."""
        members = {
            "type": "about:blank",
            "title": http.HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "field": self.field,
            "expected": self.expected,
            "given": self.given,
            "example": self.example,
            "request_id": request_id,
        }
        return {name: value for name, value in members.items() if value is not None}

    def response(self, request_id: str) -> Response:
        """The HTTP answer."""
        body = orjson.dumps(self.document(request_id))
        return Response(body, status=self.status, headers=self.headers, content_type=MEDIA_TYPE)


def bad_value(field: str, expected: str, given: str, example: object) -> Problem:
    """A 400 for one value of a body."""
    return Problem(
        400, f"{field}: expected {expected}, got {given}", field=field, expected=expected, given=given, example=example
    )


def too_large(limit: int) -> Problem:
    """A 413 for a body of more than `limit` bytes."""
    detail = f"a body may have {limit} bytes (--max-body-bytes): send less at a time"
    return Problem(413, detail, expected=f"at most {limit / 2**20:.3g} MiB")


def shown(value: object) -> str:
    """A short text for a value of a body, safe in messages and logs: its kind, and itself where it is small."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value!r:.40}"
        case str():
            return f"the string {orjson.dumps(value[:40]).decode()}" + ("…" if len(value) > 40 else "")
        case list():
            return f"a list of {len(value)}"
        case _:
            return f"an object of {len(value)}" if isinstance(value, dict) else type(value).__name__


# What the model server answered -> the gateway's status. Codes that are not here are a fault behind the gateway: 502.
_STATUSES: dict[type[errors.PredictError], int] = {
    errors.NotFound: 404,
    errors.InvalidArgument: 400,
    errors.ResourceExhausted: 503,
    errors.Unavailable: 503,
    errors.DeadlineExceeded: 504,
}


def from_model_server(error: errors.PredictError, model_server: str) -> Problem:
    """The problem for a failed call to the model server."""
    status = _STATUSES.get(type(error), 502)
    if isinstance(error, errors.Unavailable):
        detail = (
            f"the model server at {model_server} does not answer:"
            " start it with 'make serve', or name another with --model-server"
        )
        return Problem(status, detail, headers={"Retry-After": "1"})
    if isinstance(error, errors.ResourceExhausted):
        return Problem(status, f"the model server is full: {error}", headers={"Retry-After": "1"})
    if isinstance(error, errors.DeadlineExceeded):
        return Problem(status, f"the model server at {model_server} gave no answer in time: try again")
    if status == 502:
        return Problem(status, f"the model server failed ({error.code}): its log says why")
    return Problem(status, f"the model server refused: {error}")
