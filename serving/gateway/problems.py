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
_TYPE = "urn:bookserve:problem:"
# By which a program tells problems apart: the end of the document's `type` -> what it means.
KINDS = {
    "bad-value": "A value of the request is wrong; field, expected and given say which.",
    "bad-request": "The request cannot be read.",
    "unauthorized": "An API key is missing, or not known.",
    "host-not-expected": "The Host of the request is none that this gateway is asked by.",
    "not-found": "No such address, model, version or label.",
    "method-not-allowed": "The address has no such method.",
    "body-late": "The body took too long to arrive.",
    "too-large": "More than a limit allows.",
    "media-type": "A media type that is not taken.",
    "too-many-requests": "More requests of one caller than the gateway's limit of a minute.",
    "fault": "A fault of the gateway.",
    "model-failed": "The model server failed, or its model keeps another contract.",
    "unavailable": "The gateway cannot answer now: full, stopping, or without what it needs.",
    "model-server-away": "The model server does not answer.",
    "model-server-full": "The model server has too many requests.",
    "model-late": "The model server gave no answer in time.",
}
_BY_STATUS = {
    400: "bad-request",
    401: "unauthorized",
    403: "host-not-expected",
    404: "not-found",
    405: "method-not-allowed",
    408: "body-late",
    413: "too-large",
    415: "media-type",
    429: "too-many-requests",
    502: "model-failed",
    503: "unavailable",
    504: "model-late",
}
# Titles that RFC 9110 changed, and Python 3.11 has in the old form.
_TITLES = {413: "Content Too Large", 414: "URI Too Long", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}
TYPES = [_TYPE + kind for kind in KINDS]


class Problem(Exception):
    """An answer other than the one asked for.

    `status` is the HTTP status, `detail` a sentence for a person. For a faulty value of a body, `field` names it with
    its index ("pixels[3][27]"), `expected` and `given` say what should be there and what is, and `example` is a body
    that works. `position` is the character of a text at which the fault is, from 0. `kind` is one of KINDS, by default
    that of the status.
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
        position: int | None = None,
        headers: Mapping[str, str] | None = None,
        kind: str = "",
    ) -> None:
        super().__init__(detail)
        self.kind = kind or _BY_STATUS.get(status, "bad-request" if status < 500 else "fault")
        self.status = status
        self.detail = detail
        self.field = field
        self.expected = expected
        self.given = given
        self.example = example
        self.position = position
        self.headers = dict(headers or {})

    def document(self, request_id: str) -> dict[str, Any]:
        """The problem document; members that say nothing are left out."""
        members = {
            "type": _TYPE + self.kind,
            "title": _TITLES.get(self.status) or http.HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "field": self.field,
            "expected": self.expected,
            "given": self.given,
            "position": self.position,
            "example": self.example,
            "request_id": request_id,
        }
        return {name: value for name, value in members.items() if value is not None}

    def response(self, request_id: str) -> Response:
        """The HTTP answer."""
        body = orjson.dumps(self.document(request_id))
        return Response(body, status=self.status, headers=self.headers, content_type=MEDIA_TYPE)


def bad_value(field: str, expected: str, given: str, example: object, position: int | None = None) -> Problem:
    """A 400 for one value of a body."""
    detail = f"{field}: expected {expected}, got {given}"
    return Problem(
        400, detail, field=field, expected=expected, given=given, example=example, position=position, kind="bad-value"
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
        return Problem(status, detail, headers={"Retry-After": "1"}, kind="model-server-away")
    if isinstance(error, errors.ResourceExhausted):
        full = f"the model server is full: {error}"
        return Problem(status, full, headers={"Retry-After": "1"}, kind="model-server-full")
    if isinstance(error, errors.DeadlineExceeded):
        return Problem(status, f"the model server at {model_server} gave no answer in time: try again")
    if status == 502:
        return Problem(status, f"the model server failed ({error.code}): its log says why")
    return Problem(status, f"the model server refused: {error}")
