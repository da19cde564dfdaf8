"""The short way of reading numbers takes only what the ordinary way reads, and reads the same."""

import gc
import json
import math
from collections.abc import Iterable
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bookserve.serving.wire import json_numbers, json_tensors, tensorflow_pb2
from bookserve.serving.wire.json_tensors import read_tensors
from bookserve.serving.wire.json_text import JsonError, parse_object
from bookserve.serving.wire.tensors import Array

FLOAT, INT32 = tensorflow_pb2.DT_FLOAT, tensorflow_pb2.DT_INT32
SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=4)


def ordinary(body: bytes, number: Any = FLOAT) -> Array | str:
    try:
        return read_tensors(parse_object(body), {"x": number})["x"]
    except JsonError as error:
        return str(error)


def short(body: bytes, number: Any = FLOAT) -> Array | str | None:
    numbers = json_numbers.read(body)
    if numbers is None:
        return None
    try:
        return read_tensors(numbers, {"x": number})["x"]
    except JsonError as error:
        return str(error)


@pytest.mark.parametrize("key", ["instances", "inputs"])
@given(arrays.arrays(np.float32, SHAPES, elements={"allow_nan": False, "allow_infinity": False}))
def test_regular_lists_are_read_at_once(key: str, array: Array) -> None:
    for separators in ((",", ":"), (", ", ": ")):
        body = json.dumps({key: array.tolist()}, separators=separators).encode()
        np.testing.assert_array_equal(ordinary(body), array)
        read = short(body)
        assert isinstance(read, np.ndarray)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read, array)


@given(SHAPES, st.data())
@example((2, 2), None)
def test_whatever_is_changed_is_read_alike_or_left_to_the_ordinary_way(shape: tuple[int, ...], data: Any) -> None:
    body = json.dumps({"instances": (np.arange(np.prod(shape)).reshape(shape) / 4).tolist()}).encode()
    if data is not None:
        place = data.draw(st.integers(0, len(body)))
        cut = data.draw(st.integers(0, 3))
        new = data.draw(st.lists(st.sampled_from([b"[", b"]", b",", b" ", b"1", b"-", b".", b"e", b"[1]", b"], ["])))
        body = body[:place] + b"".join(new) + body[place + cut :]
    read = short(body)
    if read is not None:
        expected = ordinary(body)
        assert type(read) is type(expected)
        np.testing.assert_array_equal(read, expected)


@st.composite
def named_requests(draw: st.DrawFn) -> tuple[str, dict[str, list[Array]]]:
    """`inputs` with one array a name, or `instances` with one for each row."""
    key = draw(st.sampled_from(["inputs", "instances"]))
    rows = 1 if key == "inputs" else draw(st.integers(1, 3))
    names = draw(st.lists(st.sampled_from(["a", "b64", "images", "dense_1/x:0"]), min_size=1, unique=True))
    numbers = {"allow_nan": False, "allow_infinity": False}
    shapes = {name: draw(SHAPES) for name in names}
    return key, {
        name: [draw(arrays.arrays(np.float32, shape, elements=numbers)) for _ in range(rows)]
        for name, shape in shapes.items()
    }


def body_of(key: str, values: dict[str, list[Array]], separators: tuple[str, str] = (", ", ": ")) -> bytes:
    rows = [
        dict(zip(values, [array.tolist() for array in row], strict=True)) for row in zip(*values.values(), strict=True)
    ]
    return json.dumps({key: rows[0] if key == "inputs" else rows}, separators=separators).encode()


def named_ways(body: bytes, names: Iterable[str]) -> tuple[Any, Any]:
    """What the short and the ordinary way make of it: tensors by name, or the error; None where no way is short."""
    types = dict.fromkeys(names, FLOAT)
    made = []
    for read in (json_numbers.read, parse_object):
        try:
            request = read(body)
            made.append(None if request is None else read_tensors(request, types))
        except JsonError as error:
            made.append(str(error))
    return made[0], made[1]


@given(named_requests(), st.booleans())
def test_lists_with_names_are_read_at_once(request_: tuple[str, dict[str, list[Array]]], dense: bool) -> None:
    key, values = request_
    with mock.patch.object(json_numbers, "_LONG", 0):
        short_, ordinary_ = named_ways(body_of(key, values, (",", ":") if dense else (", ", ": ")), values)
    assert short_.keys() == ordinary_.keys() == values.keys()
    for name, rows in values.items():
        expected = rows[0] if key == "inputs" else np.stack(rows)
        for read in (short_[name], ordinary_[name]):
            assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(read, expected)


PIECES = (
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b" ",
    b"1",
    b"-",
    b".",
    b"e",
    b'"',
    b'"a":',
    b'"b":[1]',
    b"[1]",
    b"], [",
    b"}, {",
)


@given(st.data(), st.sampled_from(["inputs", "instances"]), st.integers(1, 3), st.integers(1, 3))
def test_whatever_is_changed_in_lists_with_names_is_read_alike(data: Any, key: str, rows: int, columns: int) -> None:
    names = ["a", "b", "c"][:columns]
    body = body_of(key, {name: [np.arange(4.0).reshape(2, 2) + number] * rows for number, name in enumerate(names)})
    for _ in range(data.draw(st.integers(1, 3))):
        place, cut = data.draw(st.integers(0, len(body))), data.draw(st.integers(0, 6))
        body = body[:place] + b"".join(data.draw(st.lists(st.sampled_from(PIECES), max_size=3))) + body[place + cut :]
    with mock.patch.object(json_numbers, "_LONG", 0):
        for asked in (names, names[:1]):
            short_, ordinary_ = named_ways(body, asked)
            if isinstance(short_, dict):
                assert short_.keys() == ordinary_.keys()
                for name in short_:
                    np.testing.assert_array_equal(short_[name], ordinary_[name])
            elif short_ is not None:
                assert short_ == ordinary_


@pytest.mark.parametrize(
    "body",
    [
        '{"instances": [{"a": [1, 2], "a": [3, 4]}]}',
        '{"inputs": {"a": [1, 2], "a": [3, 4]}}',
        '{"instances": [{"a": [1, 2]}, {"a": [3, 4, 5]}]}',
        '{"instances": [{"a": [1, 2]}, {"b": [3, 4]}]}',
        '{"instances": [{"a": [1, 2]}, {"a": [3, 4]}, {}]}',
        '{"instances": [{"a": [1, 2]}, [3, 4]]}',
        '{"instances": [1, {"a": [1, 2]}]}',
        '{"inputs": {"a": [1, 2], "b": 3}}',
        '{"inputs": {"a": [1, 2], "b": "c"}}',
        '{"inputs": {"a": {"b": [1, 2]}}}',
        '{"inputs": {"a": [1, 2], "b": [3, NaN]}}',
        '{"inputs": {"\\u0061": [1, 2]}}',
        '{"inputs": {"a": [1, 2]}, "instances": [{"a": [1, 2]}]}',
        '{"inputs": [{"a": [1, 2]}]}',
        '{"instances": {"a": [1, 2]}}',
        '{"inputs": {}}',
        '{"instances": [{}]}',
    ],
)
def test_other_objects_are_left_to_the_ordinary_way(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_numbers, "_LONG", 0)
    assert json_numbers.read(b'{"instances": [{"a": [1, 2], "b": [3]}, {"a": [3, 4], "b": [5]}]}') is not None
    assert json_numbers.read(b'{"inputs": {"a": [1, 2], "b": [[3]]}}') is not None
    assert json_numbers.read(body.encode()) is None


def test_texts_and_many_short_lists_are_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    split = mock.Mock(side_effect=json_numbers._NAME.split)
    monkeypatch.setattr(json_numbers, "_NAME", mock.Mock(split=split))
    assert json_numbers.read(json.dumps({"instances": [{"a": [0.5]}] * 10_000}).encode()) is None
    assert not split.called
    assert json_numbers.read(b'{"instances":[{"image":{"b64":"%b"}}]}' % (b"A" * 100_000)) is None
    (call,) = split.call_args_list
    assert len(json_numbers._NAME.split(*call.args)) < 10


def test_many_short_lists_are_left_to_the_ordinary_way() -> None:
    rows = [{"a": [number, 0.5]} for number in range(1_000)]
    assert json_numbers.read(json.dumps({"instances": rows}).encode()) is None
    assert json_numbers.read(json.dumps({"instances": [{"a": [0.5] * 1_000}] * 20}).encode()) is not None


@pytest.mark.parametrize(
    "numbers",
    [
        "[[1, 2], [3, 4] 5]",
        "[[1, 2] 5, [3, 4]]",
        "[[1] 2,[3,4]]",
        "[1 [, 2], [3, 4]]",
        "[[1, 2 2], [3, 4]]",
        "[[1, ], [3, 4]]",
        "[[1, 2], [, 4]]",
        "[[1, 2], [3, 4]]]",
        "[[1, 2], [3, NaN]]",
        "[[1, 2], [3, true]]",
        '[[1, 2], [3, "4"]]',
        "[[01, 2], [3, 4]]",
        "[[1., 2], [3, 4]]",
        "[[1e999, 2], [3, 4]]",
        "[[1-2, 2], [3, 4]]",
        "[[1, 2], [3, 4, 5]]",
        "[[1, 2], [3]]",
    ],
)
def test_what_is_no_regular_list_of_numbers_is_left_to_the_ordinary_way(numbers: str) -> None:
    assert json_numbers.read(b'{"instances": [[1, 2], [3, 4]]}') is not None
    assert json_numbers.read(b'{"instances": %b}' % numbers.encode()) is None


@pytest.mark.parametrize("numbers", ["[[1]2,[3]]", "[[1],2[3]]", "[1[2],[3]]", "[[1],[3]2]"])
def test_numbers_outside_of_their_brackets_are_left_to_the_ordinary_way(numbers: str) -> None:
    assert json_numbers.read(b'{"instances": [[12],[3]]}') is not None
    assert json_numbers.read(b'{"instances": %b}' % numbers.encode()) is None


def test_other_keys_and_forms_are_left_to_the_ordinary_way() -> None:
    for body in (
        b'{"instances": [1, 2], "signature_name": "x"}',
        b'{"signature_name": 7, "instances": [1, 2]}',
        b'{"signature_name": "\\u0041", "instances": [1, 2]}',
        b'{"context": "x", "instances": [1, 2]}',
        b'{"instances": [1, 2], "instances": [1, 2]}',
        b'[{"instances": [1, 2]}]',
        b'{"instances": 1}',
        b"",
    ):
        assert json_numbers.read(body) is None


def test_a_signature_may_be_named_first() -> None:
    read = json_numbers.read(b'{ "signature_name" : "serving_default", "inputs" : [1, 2]}')
    assert read is not None
    assert list(read) == ["signature_name", "inputs"]
    assert read["signature_name"] == "serving_default"
    assert read_tensors(read, {"x": FLOAT})["x"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "number",
    [number for number in json_tensors._FORMATS if number != tensorflow_pb2.DT_STRING] + [tensorflow_pb2.DT_HALF],
)
def test_every_type_has_the_same_range_on_both_ways(number: Any) -> None:
    for value in (
        *("0", "-0", "-1", "127", "128", "-128", "-129", "255", "256", "32768", "65535", "65536", "2147483648"),
        *("4294967295", "4294967296", "9007199254740993", "-9223372036854775808", "9223372036854775807"),
        *("9223372036854775808", "18446744073709551615", "18446744073709551616", "1.0", "1.5", "1e3", "0.1"),
        *("3.4028235e38", "3.40282357e38", "1e39", "-1e39", "1.7976931348623157e308", "1e-46", "5e-324"),
    ):
        body = b'{"instances": [[%b, 1], [2, 3]]}' % value.encode()
        read, expected = short(body, number), ordinary(body, number)
        if read is not None:
            assert type(read) is type(expected)
            np.testing.assert_array_equal(read, expected)


def test_what_was_parsed_outlives_its_parser() -> None:
    bodies = [json.dumps({"instances": [[number + row, 0.5] for row in range(100)]}).encode() for number in range(20)]
    read = [json_numbers.read(body) for body in bodies]
    gc.collect()
    for number, request in enumerate(read):
        assert request is not None
        np.testing.assert_array_equal(read_tensors(request, {"x": FLOAT})["x"][:, 0], np.arange(number, number + 100))
        assert request["instances"].nested()[3] == [number + 3, 0.5]


def test_lists_that_hold_nothing_somewhere_are_no_regular_lists() -> None:
    for numbers in ("[[1],[]]", "[[],[1]]", "[[[1]],[[]]]", "[[]]", "[]"):
        body = b'{"instances": %b}' % numbers.encode()
        read = short(body)
        if read is not None:
            np.testing.assert_array_equal(read, ordinary(body))


def test_numbers_of_another_type_are_complained_about_as_ever() -> None:
    body = b'{"instances": [[1, 2], [3, 4.5]]}'
    assert short(b'{"instances": [[1, 2], [3, 4]]}', INT32).tolist() == [[1, 2], [3, 4]]  # type: ignore[union-attr]
    assert "Type: Number is not of expected type: int32" in str(short(body, INT32))
    assert short(body, INT32) == ordinary(body, INT32)
    large = b'{"instances": [[1, 2], [3, 1e39]]}'
    assert short(large) == ordinary(large)
    assert "too large" in str(short(large))


@pytest.mark.parametrize("longest", [0, 1 << 16])
def test_lists_too_long_to_be_remembered_have_the_same_shape(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_numbers, "_MAX_REMEMBERED", longest)
    for shape in ((3,), (2, 3, 4), (100, 100, 3), (200, 200, 1)):
        array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
        read = short(json.dumps({"inputs": array.tolist()}).encode())
        np.testing.assert_array_equal(read, array)
