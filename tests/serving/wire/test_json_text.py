"""The JSON parser: what TensorFlow Serving's accepts, and its messages for what it does not."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bookserve.serving.wire.json_text import JsonError, parse, parse_object, quoted, to_bytes

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(json_values, st.booleans())
def test_what_python_writes_is_read(value: object, ascii_only: bool) -> None:
    assert parse(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "replace")) == value


@given(st.binary(max_size=60) | st.text(alphabet='{}[],:"\\ue1.0-NaInfty ', max_size=60).map(str.encode))
def test_any_bytes_are_json_or_a_json_error(body: bytes) -> None:
    try:
        value = parse(body)
    except JsonError:
        return
    assert quoted(value).startswith("JSON Value: ")


def test_numbers_that_are_none() -> None:
    values = parse(b'{"x": [NaN, Inf, -Inf, Infinity, -Infinity, 1.5], "s": "Inf", "Inf": 1}')
    assert math.isnan(values["x"][0])
    assert values["x"][1:] == [math.inf, -math.inf, math.inf, -math.inf, 1.5]
    assert (values["s"], values["Inf"]) == ("Inf", 1)


def test_white_space_and_a_byte_order_mark_may_stand_around_the_value() -> None:
    assert parse(b'\xef\xbb\xbf {"inputs": [1]} \r\n\t') == {"inputs": [1]}


def test_the_first_of_two_equal_keys_counts() -> None:
    assert parse(b'{"inputs": [1], "inputs": [2], "signature_name": "a", "signature_name": "b"}') == {
        "inputs": [1],
        "signature_name": "a",
    }
    assert parse(b'{"inputs": {"a": [1], "b": [":"], "a": [2]}}') == {"inputs": {"a": [1], "b": [":"]}}
    many = ", ".join(f'"{number}": {number}' for number in range(100))
    assert parse(b'{"inputs": {%b, "7": 0}}' % many.encode())["inputs"]["7"] == 7


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b'{"instances": [{"x": 1}, {"x": 2, "x": 5}]}', "x"),
        (b'{"instances": [1, {"x": 1, "\\u0078": 5}]}', "x"),
        (b'{"instances": [[1, 2], [{"b64": "YQ==", "b64": "Yg=="}]]}', "b64"),
        (b'{"inputs": {"a": {"b64": "YQ==", "b64" : "Yg=="}}}', "b64"),
        (b'{"examples": [{"a": 1}], "context": {"b": 1, "b": 2}}', "b"),
        (b'{"inputs": [{"name": "x", "data": [1], "data": [2]}]}', "data"),
    ],
)
def test_a_row_with_a_key_twice_is_refused_rather_than_half_read(body: bytes, key: str) -> None:
    with pytest.raises(JsonError, match=f'has the key "{key}" twice'):
        parse(body)


def test_a_text_may_look_like_a_key() -> None:
    rows = [{"text": 'he said: "x": 1, "text": 2', "link": "http://a/b:c"}, {"text": '\\":', "link": ""}]
    assert parse(json.dumps({"instances": rows}).encode()) == {"instances": rows}


@pytest.mark.parametrize("more", [b"", b", NaN"])
def test_whole_numbers_beyond_64_bits_are_real(more: bytes) -> None:
    edges = b"18446744073709551615, 18446744073709551616, -9223372036854775808, -9223372036854775809"
    values = parse(b"[%b%b]" % (edges, more))[:4]
    assert values == [2**64 - 1, 2.0**64, -(2**63), -(2.0**63)]
    assert [type(value) for value in values] == [int, float, int, float]
    for text in (b"1" * 400, b"-1e400"):
        with pytest.raises(JsonError, match=r"Number too big to be stored in double\."):
            parse(b"[%b%b]" % (text, more))


def test_strings_are_not_validated() -> None:
    assert to_bytes(parse(b'{"x": "\xff\xc3\xa9"}')["x"]) == b"\xff\xc3\xa9"
    with pytest.raises(JsonError, match="The surrogate pair in string is invalid"):
        to_bytes(parse(b'"\\ud800"'))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The document is empty"),
        (b" \n", "The document is empty. at offset: 2"),
        (b"x", "Expecting value at offset: 0"),
        ('{"é": x'.encode(), "Expecting value at offset: 7"),
        (b"{1: 2}", "Expecting property name enclosed in double quotes at offset: 1"),
        (b'{"a" 1}', "Expecting ':' delimiter at offset: 5"),
        (b"[1 2]", "Expecting ',' delimiter at offset: 3"),
        (b'"abc', "Unterminated string starting at offset: 0"),
        (b'"\\x"', "Invalid \\escape at offset: 1"),
        (b'"\\uzzzz"', "Invalid \\uXXXX escape at offset: 2"),
        (b'"a\nb"', "Invalid control character at offset: 2"),
        (b'{"a": [1]} x', "The document root must not be followed by other values. at offset: 11"),
        (b'{"a": [1]}{"a": [2]}', "The document root must not be followed by other values. at offset: 10"),
        (b'{"a": [NaN]} ]', "The document root must not be followed by other values. at offset: 13"),
        ('{"é": 1},'.encode(), "The document root must not be followed by other values. at offset: 9"),
        (b"[1e999]", "Number too big to be stored in double. at offset: 1"),
        (b"[" + b"9" * 5000 + b"]", "Number too big to be stored in double. at offset: 1"),
        (b"[" * 100_000, "the values are nested too deeply"),
        (b'{"a": NaN, "b": ' + b"[" * 100_000, "the values are nested too deeply"),
    ],
)
def test_malformed_json(body: bytes, message: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse(body)
    assert str(caught.value) == f"JSON Parse error: {message}"


def test_a_body_is_an_object() -> None:
    assert parse_object(b"{}") == {}
    with pytest.raises(JsonError) as caught:
        parse_object(b"[1]")
    assert str(caught.value) == "JSON Value: [1] Is not object"


def test_a_long_value_is_quoted_in_part() -> None:
    assert quoted({"x": ["é"] * 10_000}).endswith("...")
    assert len(quoted("a" * 1_000_000)) < 300
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert len(quoted(deep)) < 300


@pytest.mark.parametrize("text", ["YWI=", "YWI", "Y W\nI="])
def test_base64_may_lack_its_padding(text: str) -> None:
    assert to_bytes({"b64": text}) == b"ab"


@pytest.mark.parametrize("text", ["?", "YWI==", "a", "ä"])
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(JsonError, match="Unable to base64 decode"):
        to_bytes({"b64": text})
