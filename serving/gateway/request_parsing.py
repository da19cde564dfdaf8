"""What every model's routes read from a request: the version or label asked for, a JSON body, uploaded files.

Anything that is not as it should be is a `Problem` that names it.
"""

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from flask import Request
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import MultiPartParser

from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.problems import Problem, bad_value, shown

JSON = "application/json"
FORM = "multipart/form-data"
MAX_LABEL = 64  # characters
MAX_VERSION = 2**63 - 1
MAX_BOUNDARY = 100  # characters; RFC 2046 says 70, and there are clients that write a few more

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
# Opening brackets become 1, closing ones -1 (as a signed byte), everything else is deleted.
_BRACKETS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[{]}")


@dataclass(frozen=True)
class Choice:
    """Which version of a model a request wants: a number, a label, or neither for the newest."""

    version: int | None = None
    label: str | None = None


def choice(request: Request) -> Choice:
    """Reads `?version=3` or `?label=canary`."""
    for name in request.args:
        if name not in ("version", "label"):
            raise bad_value(f"?{name[:40]}", "version or label as the only parameters", shown(name), "?version=3")
    version, label = request.args.get("version"), request.args.get("label")
    if version is not None and label is not None:
        raise bad_value("?version", "a version or a label", "both", "?version=3")
    if version is not None:
        if not (version.isascii() and version.isdigit() and len(version) <= 19 and 0 < int(version) <= MAX_VERSION):
            raise bad_value("?version", "a whole number from 1", shown(version), "?version=3")
        return Choice(version=int(version))
    if label is not None and not (0 < len(label) <= MAX_LABEL and label.isprintable()):
        raise bad_value("?label", f"1 to {MAX_LABEL} printable characters", shown(label), "?label=stable")
    return Choice(label=label)


def truth(request: Request, name: str) -> bool:
    """Reads `?NAME=true` or `?NAME=false`, the only parameter there may be; false where there is none."""
    for other in request.args:
        if other != name:
            raise bad_value(f"?{other[:40]}", f"{name} as the only parameter", shown(other), f"?{name}=true")
    text = request.args.get(name, "false")
    if text not in ("true", "false"):
        raise bad_value(f"?{name}", "true or false", shown(text), f"?{name}=true")
    return text == "true"


def read_json_only(request: Request, limits: Limits, example: object) -> dict[str, Any]:
    """As `read_json`, for a route that takes nothing else: another media type is a 415."""
    given = media_type(request)
    if given != JSON:
        raise unsupported(given, (JSON,), example)
    return read_json(request, limits, example)


def read_json(request: Request, limits: Limits, example: object) -> dict[str, Any]:
    """The JSON object of a body; NaN, duplicate text after it, and deep nesting are refused."""
    body = request.get_data(cache=False)
    if not body:
        raise bad_value("body", "a JSON object", "nothing", example)
    if len(body) > limits.json_bytes:
        detail = f"a JSON body may have {limits.json_bytes} bytes, this one has {len(body)}"
        raise Problem(413, detail, expected=f"at most {limits.json_bytes} bytes")
    if _depth(body) > limits.json_depth:
        raise bad_value("body", f"JSON nested at most {limits.json_depth} deep", "deeper JSON", example)
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        given = f"text that is no JSON at line {error.lineno} column {error.colno}"
        raise bad_value("body", "a JSON object", given, example) from error
    if not isinstance(content, dict):
        raise bad_value("body", "a JSON object", shown(content), example)
    return content


def only_field(body: dict[str, Any], name: str, example: object) -> Any:
    """The value of the one field that a body has."""
    known_fields(body, (name,), example)
    return field(body, name, example)


def known_fields(body: dict[str, Any], names: tuple[str, ...], example: object) -> None:
    """Refuses a body that has other fields than `names`."""
    for other in body:
        if other not in names:
            wanted = f"{names[0]!r} as the only field" if len(names) == 1 else f"{', '.join(names)} as the only fields"
            raise bad_value(other[:40], wanted, shown(other), example)


def field(body: dict[str, Any], name: str, example: object) -> Any:
    """The value of a field that a body must have."""
    if name not in body:
        raise bad_value(name, "this field", "nothing", example)
    return body[name]


def one_or_many(value: Any, name: str, many: bool, limit: int, example: object) -> list[tuple[str, Any]]:
    """The items of a field with the name of each: the value itself, or when it is `many`, each item of the list."""
    if not many:
        return [(name, value)]
    if not value:
        raise bad_value(name, "at least one item", "a list of 0", example)
    if len(value) > limit:
        detail = f"{name}: at most {limit} items a request are taken, got {len(value)}"
        raise Problem(413, detail, field=name, expected=f"at most {limit} at a time")
    return [(f"{name}[{index}]", item) for index, item in enumerate(value)]


def whole_number(body: dict[str, Any], name: str, default: int, most: int, example: object) -> int:
    """An optional field that is a whole number from 1 to `most`."""
    value = body.get(name, default)
    if type(value) is not int or not 1 <= value <= most:
        raise bad_value(name, f"a whole number from 1 to {most}", shown(value), example)
    return value


def read_files(request: Request, name: str, limits: Limits, example: object) -> list[bytes]:
    """The uploaded files of a multipart form (RFC 7578) whose field is `name`, in order."""
    fields, files = _form(request, limits, example)
    for other in [*fields, *files]:
        if other != name:
            raise bad_value(str(other)[:40], f"{name!r} as the only form field", shown(other), example)
    if fields:
        raise bad_value(name, "a file", "a text field", example)
    uploads = [upload.read() for upload in files.getlist(name)]
    if not uploads:
        raise bad_value(name, "at least one file", "none", example)
    if len(uploads) > limits.items:
        detail = f"at most {limits.items} files a request are taken, got {len(uploads)}"
        raise Problem(413, detail, field=name, expected=f"at most {limits.items} at a time")
    return uploads


def _form(request: Request, limits: Limits, example: object) -> tuple[MultiDict[str, str], MultiDict[str, Any]]:
    """The text fields and the files of a form.

    The parser holds one limit against the text of a field and against what it has not parsed yet: a part's headers, or
    a piece of a file behind bytes that may begin a boundary. So the pieces are half of that limit, and a file of any
    size and content passes.
    """
    boundary = request.mimetype_params.get("boundary", "").encode("latin-1", "replace")
    if not 0 < len(boundary) <= MAX_BOUNDARY:
        given = f"one of {len(boundary)}" if boundary else "none"
        raise bad_value("Content-Type", f"a boundary of 1 to {MAX_BOUNDARY} characters", given, example)
    parser = MultiPartParser(
        _in_memory,
        max_form_memory_size=limits.form_field_bytes,
        buffer_size=limits.form_field_bytes // 2,
        max_form_parts=limits.form_parts,
    )
    body = request.get_data(cache=False)
    try:
        if b"--" + boundary not in body:
            raise ValueError("no part begins")
        return parser.parse(io.BytesIO(body), boundary, len(body))
    except RequestEntityTooLarge:
        raise Problem(
            413,
            f"a form may have {limits.form_parts} parts (--max-form-parts), and {limits.form_field_bytes} bytes of"
            " headers or text a part that is no file (--max-form-field-bytes)",
            expected=f"at most {limits.form_parts} parts",
        ) from None
    except ValueError as error:
        given = f"{len(body)} bytes that are none, or only its beginning"
        raise bad_value("body", "a multipart form with the boundary of its Content-Type", given, example) from error


def _in_memory(
    total_content_length: int | None,
    content_type: str | None,
    filename: str | None,
    content_length: int | None = None,
) -> io.BytesIO:
    """Where a file of a form goes; its body is in memory already."""
    return io.BytesIO()


def media_type(request: Request) -> str:
    """The body's media type, in lower case and without parameters. A compressed body is a 415."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Problem(415, "compressed bodies are not taken: send it without Content-Encoding")
    return request.mimetype


def unsupported(given: str, taken: tuple[str, ...], example: object) -> Problem:
    """A 415 that names the media types that are taken."""
    return Problem(
        415,
        f"Content-Type: expected one of {', '.join(taken)}, got {given[:80] or 'none'}",
        field="Content-Type",
        expected=" or ".join(taken),
        given=given[:80] or "none",
        example=example,
    )


def _depth(body: bytes) -> int:
    """How deep lists and objects nest, told before anything is parsed; brackets in strings do not count."""
    brackets = np.frombuffer(_STRING.sub(b"", body).translate(_BRACKETS, _NOT_BRACKETS), dtype=np.int8)
    return int(np.cumsum(brackets, dtype=np.int64).max(initial=0))
