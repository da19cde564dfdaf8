"""The short way of reading numbers takes only what the ordinary way reads, and reads the same."""

import gc
import json
import math
from typing import Any

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
