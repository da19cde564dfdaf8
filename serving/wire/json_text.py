"""The JSON of the REST API as text: parsing as TensorFlow Serving parses, and values in messages.

orjson does the normal case. What it refuses and TensorFlow Serving's RapidJSON accepts is read by Python's own parser.
"""

import base64
import binascii
import json
import math
import re
from typing import Any

import orjson

from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensorflow_error_pb2 import Code

# TensorFlow Serving cuts the JSON that it quotes in its messages there (kMaxJsonDebugStringBytes).
_MAX_QUOTED = 256
_KEY_END = re.compile(rb'"\s*:')
_HOLDERS = (dict, list)


_SPACE = " \t\r\n"


class JsonError(ValueError):
    """A body that is no JSON, or JSON that is no tensor of the expected type and shape."""

    code: Code = tensorflow_error_pb2.INVALID_ARGUMENT


def parse(body: bytes) -> Any:
    """The JSON value of a body.

    NaN, Inf, Infinity and their negatives are numbers, bytes that are not UTF-8 are kept in strings as surrogates.
    Of a key that a request, or its named `inputs`, has twice the first counts, as in TensorFlow Serving.
    Raises JsonError for an empty body, malformed JSON, text after the value, nesting that no tensor has, or another
    object with a key that comes twice, such as a row: TensorFlow Serving makes a tensor with too many values of it.
    """
    if not body:
        raise JsonError("JSON Parse error: The document is empty")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("number is infinity"):
            raise JsonError(
                f"JSON Parse error: Number too big to be stored in double. at offset: {error.pos}"
            ) from None
        return _parse_leniently(body)
    if isinstance(value, dict) and _may_repeat_a_key(value, body):
        return _parse_leniently(body)
    return value


def _may_repeat_a_key(request: dict[str, Any], body: bytes) -> bool:
    """Whether an object of the body may have a key twice, of which the value would show one."""
    colons = body.count(b":")
    keys = _keys(request, colons)
    return colons > keys and len(_KEY_END.findall(body)) > keys  # texts may hold colons, too


def _keys(value: dict[str, Any], most: int) -> int:
    """How many keys a value has in all its objects, but those in lists that begin with a plain value.

    It stops looking at `most`, which is how rows are seldom looked into: every key has a colon.
    """
    count = 0
    holders: list[dict[str, Any] | list[Any]] = [value]
    for one in holders:  # which grows meanwhile: nesting may be deep
        if isinstance(one, dict):
            count += len(one)
            if count >= most:
                break
            holders += [inner for inner in one.values() if type(inner) in _HOLDERS]
        elif one and type(one[0]) in _HOLDERS:
            holders += [inner for inner in one if type(inner) in _HOLDERS]
    return count


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises JsonError as parse, and for another value."""
    value = parse(body)
    if not isinstance(value, dict):
        raise JsonError(f"{quoted(value)} Is not object")
    return value


def _parse_leniently(body: bytes) -> Any:
    """Parses what orjson refuses and TensorFlow Serving's parser does not."""
    text = body.decode("utf-8-sig", "surrogateescape")
    if re.search(rb"Inf(?!inity)", body):
        text = _STRING_OR_INF.sub(lambda match: match[1] or "Infinity", text)
    start = len(text) - len(text.lstrip(_SPACE))
    if start == len(text):
        raise JsonError(f"JSON Parse error: The document is empty. at offset: {start}")
    try:
        repeating: list[_Repeating] = []
        value, end = _lenient(repeating).raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise _parse_error(error.msg.removesuffix(" at"), text, error.pos) from None
    except RecursionError:
        raise JsonError("JSON Parse error: the values are nested too deeply") from None
    except ValueError as error:  # a number that _integer or _real refuses
        raise JsonError(f"JSON Parse error: {error}") from None
    if rest := text[end:].lstrip(_SPACE):
        raise _parse_error("The document root must not be followed by other values.", text, len(text) - len(rest))
    inputs = value.get("inputs") if isinstance(value, dict) else None
    for one in repeating:
        if one is not value and one is not inputs:
            raise JsonError(f"{quoted(one)} has the key {shown(one.key)} twice")
    return value


def _parse_error(message: str, text: str, position: int) -> JsonError:
    """In TensorFlow Serving's frame: the offset counts bytes of the body."""
    offset = len(text[:position].encode("utf-8", "surrogateescape"))
    return JsonError(f"JSON Parse error: {message} at offset: {offset}")


class _Repeating(dict[str, Any]):
    """An object with a key that came more than once; it has the first value of each."""

    key: str


def _lenient(repeating: list[_Repeating]) -> json.JSONDecoder:
    """Python's parser with RapidJSON's numbers; it adds the objects that have a key twice to `repeating`."""

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) == len(pairs):
            return values
        first = _Repeating()
        for key, value in pairs:
            if key in first:
                first.key = key
            else:
                first[key] = value
        repeating.append(first)
        return first

    return json.JSONDecoder(object_pairs_hook=made, parse_float=_real, parse_int=_integer)


def _real(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("Number too big to be stored in double.")
    return number


def _integer(text: str) -> int | float:
    """A whole number that no 64 bits hold is a real one, to orjson and to RapidJSON."""
    number = _real(text)
    if abs(number) > 2**64:
        return number
    whole = int(text)
    return whole if -(2**63) <= whole < 2**64 else number


_STRING_OR_INF = re.compile(r'("(?:[^"\\]|\\.)*")|\bInf\b', re.DOTALL)


def kind_of(value: Any) -> str:
    """RapidJSON's word for the type of a JSON value."""
    if isinstance(value, bool):
        return str(value)
    names = {int: "Number", float: "Number", str: "String", list: "Array", dict: "Object"}
    return names.get(type(value), "Null")


def is_base64(value: Any) -> bool:
    """Whether the value is `{"b64": "…"}` and nothing else."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def to_bytes(value: str | dict[str, Any]) -> bytes:
    """The bytes of a string or of `{"b64": "…"}`, whose padding may be missing. Raises JsonError."""
    if isinstance(value, str):
        try:
            return value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise JsonError("JSON Parse error: The surrogate pair in string is invalid.") from None
    if not is_base64(value):
        raise JsonError(f"{quoted(value)} not formatted correctly for base64 data")
    text = "".join(value["b64"].split())
    if "=" not in text:
        text += "=" * (-len(text) % 4)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise JsonError("Unable to base64 decode") from None


def quoted(value: Any) -> str:
    """How TensorFlow Serving's messages name a value."""
    return f"JSON Value: {shown(value)}"


def shown(value: Any) -> str:
    """The JSON of a value as messages print it: on one line, cut where it is long."""
    text = ""
    for piece in _ONE_LINE.iterencode(value):
        text += piece
        if len(text) > _MAX_QUOTED:
            text = text[:_MAX_QUOTED] + "..."
            break
    return text.encode("utf-8", "replace").decode()


_ONE_LINE = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


# As RapidJSON writes strings: only what JSON demands is escaped.
_ESCAPES = {code: f"\\u{code:04X}" for code in range(32)}
_ESCAPES |= {ord(char): f"\\{short}" for char, short in zip('"\\\b\f\n\r\t', '"\\bfnrt', strict=True)}


def to_json(text: str) -> str:
    """A string as TensorFlow Serving writes it."""
    return f'"{text.translate(_ESCAPES)}"'
