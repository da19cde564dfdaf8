"""The short way of reading numbers takes only what the ordinary way reads, and reads the same."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bookserve.serving.wire import json_numbers, tensorflow_pb2
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
def test_regular_lists_are_read_at_once_after_the_first(key: str, array: Array) -> None:
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
    ordinary(body)
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
    json_numbers.remember((2, 2))
    assert json_numbers.read(b'{"instances": [[1, 2], [3, 4]]}') is not None
    assert json_numbers.read(b'{"instances": %b}' % numbers.encode()) is None


@pytest.mark.parametrize("numbers", ["[[1]2,[3]]", "[[1],2[3]]", "[1[2],[3]]", "[[1],[3]2]"])
def test_numbers_outside_of_their_brackets_are_left_to_the_ordinary_way(numbers: str) -> None:
    json_numbers.remember((2, 1))
    assert json_numbers.read(b'{"instances": [[12],[3]]}') is not None
    assert json_numbers.read(b'{"instances": %b}' % numbers.encode()) is None


def test_other_keys_and_forms_are_left_to_the_ordinary_way() -> None:
    json_numbers.remember((2,))
    for body in (
        b'{"instances": [1, 2], "signature_name": "x"}',
        b'{"signature_name": "x", "instances": [1, 2]}',
        b'{"instances": [1, 2], "instances": [1, 2]}',
        b'[{"instances": [1, 2]}]',
        b'{"instances": 1}',
        b"",
    ):
        assert json_numbers.read(body) is None


def test_numbers_of_another_type_are_complained_about_as_ever() -> None:
    body = b'{"instances": [[1, 2], [3, 4.5]]}'
    ordinary(b'{"instances": [[1, 2], [3, 4]]}', INT32)
    assert short(b'{"instances": [[1, 2], [3, 4]]}', INT32).tolist() == [[1, 2], [3, 4]]  # type: ignore[union-attr]
    assert "Type: Number is not of expected type: int32" in str(short(body, INT32))
    assert short(body, INT32) == ordinary(body, INT32)
    large = b'{"instances": [[1, 2], [3, 1e39]]}'
    assert short(large) == ordinary(large)
    assert "too large" in str(short(large))


def test_only_so_much_is_remembered() -> None:
    for size in range(1, 3 * json_numbers._MAX_KNOWN):
        json_numbers.remember((size, 3))
    json_numbers.remember((1 << 10, 1 << 10))
    assert len(json_numbers._KNOWN) <= json_numbers._MAX_KNOWN
    assert max(map(len, json_numbers._KNOWN)) <= json_numbers._MAX_LENGTH
