"""The REST API's JSON: what Python's own json writes is read back, and what we write is read by Python's json."""

import base64
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bookserve.serving.wire.json_tensors import JsonError, parse, read_inputs, read_instances, write_columns, write_rows

NUMBERS = ["float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"]
arrays = st.sampled_from(NUMBERS).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
)


@given(arrays)
def test_rows_and_columns_are_read_back(array: np.ndarray) -> None:
    body = parse(json.dumps({"instances": array.tolist(), "inputs": {"x": array.tolist()}}).encode())
    for read in (
        read_instances(body["instances"], {"x": array.dtype}),
        read_inputs(body["inputs"], {"x": array.dtype}),
    ):
        assert read["x"].dtype == array.dtype
        np.testing.assert_array_equal(read["x"], array)


@given(arrays)
def test_what_is_written_is_the_array(array: np.ndarray) -> None:
    columns = json.loads(write_columns({"y": array}))["outputs"]
    rows = json.loads(write_rows({"y": array, "z": array}))["predictions"]
    for written in (columns, [row["y"] for row in rows], [row["z"] for row in rows]):
        np.testing.assert_array_equal(np.array(written, dtype=array.dtype), array)


def test_numbers_keep_their_shortest_form_and_what_is_none_its_name() -> None:
    values = np.float32([0.1, math.nan, math.inf, -math.inf])
    assert write_columns({"y": values[:1]}) == b'{\n    "outputs": [0.1]\n}'
    assert b"[0.10000000149011612, NaN, Infinity, -Infinity]" in write_columns({"y": values})
    assert math.isnan(parse(b"[NaN, Infinity]")[0])


def test_strings_and_bytes() -> None:
    encoded = base64.b64encode(b"\x00\xff").decode()
    read = read_instances(["a", {"b64": encoded}], {"x": np.dtype(object)})
    assert read["x"].tolist() == [b"a", b"\x00\xff"]
    array = np.array([b"a", b"b"], dtype=object)
    assert json.loads(write_rows({"text": array})) == {"predictions": ["a", "b"]}
    assert json.loads(write_rows({"raw_bytes": array})) == {"predictions": [{"b64": "YQ=="}, {"b64": "Yg=="}]}


FLOAT, INT, STRING = np.dtype(np.float32), np.dtype(np.int32), np.dtype(object)


@pytest.mark.parametrize(
    ("instances", "dtypes", "message"),
    [
        ([1, "a"], {"x": FLOAT}, 'element: 1 .* JSON Value: "a" Type: String is not of expected type: float'),
        (["1"], {"x": FLOAT}, 'JSON Value: "1" Type: String'),
        ([1, True], {"x": FLOAT}, "JSON Value: true Type: Boolean"),
        ([1.0], {"x": INT}, "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        ([1e39], {"x": FLOAT}, "a number is too large for float32"),
        ([10**400], {"x": FLOAT}, "a number is too large for float32"),
        ([2**40], {"x": INT}, "1099511627776 is outside the range of int32"),
        ([2**70], {"x": INT}, "1180591620717411303424 is outside the range of int32"),
        ([-1], {"x": np.dtype(np.uint8)}, "-1 is outside the range of uint8, 0 to 255"),
        ([1], {"x": np.dtype(np.bool_)}, "JSON Value: 1 Type: Number is not of expected type: bool"),
        ([[1, [2]]], {"x": FLOAT}, "not all of one size"),
        ([[1, 2], [3]], {"x": FLOAT}, r"element: 1 .* Expecting shape \[2\] but got: \[1\]"),
        ([{"a": 1}], {"x": FLOAT}, "element: 0 key: a .* does not have named input: a"),
        ([{"x": 1}], {"x": FLOAT, "y": FLOAT}, "keys must be equal to: x,y"),
        ([1], {"x": FLOAT, "y": FLOAT}, "instances is a plain list, but expecting list of objects"),
        ([1, {"x": 1}], {"x": FLOAT}, "Expecting value/list but got object at item 1"),
        ([{"x": 1}, 1], {"x": FLOAT}, "Expecting object but got list at item 1"),
        ([{"b64": "?"}], {"x": STRING}, "Unable to base64 decode"),
        ([1], {"x": STRING}, "JSON Value: 1 Type: Number is not of expected type: string"),
        ([["a"], ["b", "c"]], {"x": STRING}, r"Expecting shape \[1\] but got: \[2\]"),
        ({}, {"x": FLOAT}, "Expecting 'instances' to be an list/array"),
        ([], {"x": FLOAT}, "No values in 'instances' array"),
    ],
)
def test_rows_that_are_no_tensor(instances: object, dtypes: dict[str, np.dtype], message: str) -> None:
    with pytest.raises(JsonError, match=message):
        read_instances(instances, dtypes)


def test_columns_that_are_no_tensor() -> None:
    with pytest.raises(JsonError, match="Missing named input: y"):
        read_inputs({"x": [1]}, {"x": FLOAT, "y": FLOAT})
    with pytest.raises(JsonError, match="inputs is a plain value/list"):
        read_inputs([1], {"x": FLOAT, "y": FLOAT})
    with pytest.raises(JsonError, match="not all of one size"):
        read_inputs({"x": [[1], [2, 3]]}, {"x": FLOAT})


def test_outputs_that_are_no_rows() -> None:
    with pytest.raises(JsonError, match="y has no shape information"):
        write_rows({"y": np.float32(1)})
    with pytest.raises(JsonError, match="z has inconsistent batch size: 1 expecting: 2"):
        write_rows({"y": np.zeros(2), "z": np.zeros(1)})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y", "b64"]), inner, max_size=2),
    max_leaves=12,
)


@settings(max_examples=400)
@given(json_values, st.sampled_from([*NUMBERS, "object"]), st.booleans())
def test_any_json_is_a_tensor_or_a_json_error(value: object, dtype: str, two: bool) -> None:
    dtypes = {"x": np.dtype(dtype)} | ({"y": np.dtype(dtype)} if two else {})
    for read in (read_instances, read_inputs):
        try:
            tensors = read(value, dtypes)
        except JsonError:
            continue
        assert {name: array.dtype for name, array in tensors.items()} == dtypes
