"""The REST API's JSON: what Python's own json writes is read back, and what we write is read by Python's json."""

import base64
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bookserve.serving.wire import json_numbers, tensorflow_pb2
from bookserve.serving.wire.json_tensors import (
    UnsupportedTypeError,
    _read_at_once,
    _read_one_by_one,
    read_tensors,
    to_array,
    write_columns,
    write_rows,
)
from bookserve.serving.wire.json_text import JsonError, parse
from bookserve.serving.wire.tensorflow_pb2 import DataType
from bookserve.serving.wire.tensors import data_type, numpy_type, type_word

NUMBERS = ["float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"]
arrays = st.sampled_from(NUMBERS).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
)


@given(arrays)
def test_rows_and_columns_are_read_back(array: np.ndarray) -> None:
    body = parse(json.dumps({"instances": array.tolist(), "inputs": {"x": array.tolist()}}).encode())
    for key in ("instances", "inputs"):
        read = read_tensors({key: body[key]}, {"x": data_type(array.dtype)})
        assert read["x"].dtype == array.dtype
        np.testing.assert_array_equal(read["x"], array)


@given(arrays)
def test_what_is_written_is_the_array(array: np.ndarray) -> None:
    columns = json.loads(write_columns({"y": array}))["outputs"]
    rows = json.loads(write_rows({"y": array, "z": array}))["predictions"]
    for written in (columns, [row["y"] for row in rows], [row["z"] for row in rows]):
        np.testing.assert_array_equal(np.array(written, dtype=array.dtype), array)


def test_answers_are_laid_out_as_rapidjson_does_it() -> None:
    values = np.float32([[0.1, 2], [1e6, math.nan]])
    assert write_rows({"y": values[:, 0]}) == b'{\n    "predictions": [0.1, 1e+06\n    ]\n}'
    assert write_rows({"y": values}) == b'{\n    "predictions": [[0.1, 2.0], [1e+06, NaN]\n    ]\n}'
    raw = np.array([b"a", b"b"], dtype=object)
    assert write_rows({"raw_bytes": raw[:1]}) == (
        b'{\n    "predictions": [{\n            "b64": "YQ=="\n        }\n    ]\n}'
    )
    assert write_rows({"y": values, "n": np.int8([1, -2]), "ok": np.array([[True], [False]]), "text": raw}) == (
        b'{\n    "predictions": [\n'
        b'        {\n            "y": [0.1, 2.0],\n            "n": 1,\n            "ok": [true],\n'
        b'            "text": "a"\n        },\n'
        b'        {\n            "y": [1e+06, NaN],\n            "n": -2,\n            "ok": [false],\n'
        b'            "text": "b"\n        }\n    ]\n}'
    )
    assert write_columns({"y": values[0], "n": np.int64(7)}) == (
        b'{\n    "outputs": {\n        "y": [\n            0.1,\n            2.0\n        ],\n        "n": 7\n    }\n}'
    )
    assert write_columns({"y": values[:1].astype(np.int16)}) == (
        b'{\n    "outputs": [\n        [\n            0,\n            2\n        ]\n    ]\n}'
    )
    assert write_columns({"raw_bytes": raw[:1]}) == (
        b'{\n    "outputs": [\n        {\n            "b64": "YQ=="\n        }\n    ]\n}'
    )
    assert write_columns({"raw_bytes": np.array(b"a", object)}) == (
        b'{\n    "outputs": {\n        "b64": "YQ=="\n    }\n}'
    )
    assert write_columns({"y": values[:0], "z": values[:, :0]}) == (
        b'{\n    "outputs": {\n        "y": [],\n        "z": [\n            [],\n            []\n        ]\n    }\n}'
    )


def test_numbers_have_the_originals_form_and_what_is_none_its_name() -> None:
    values = np.float32([0.1, math.nan, math.inf, -math.inf])
    assert write_columns({"y": values[:1]}) == b'{\n    "outputs": [\n        0.1\n    ]\n}'
    lines = write_columns({"y": values}).decode().split()
    assert lines == ["{", '"outputs":', "[", "0.1,", "NaN,", "Infinity,", "-Infinity", "]", "}"]
    assert write_columns({"y": values[0]}) == b'{\n    "outputs": 0.1\n}'
    assert b'"y": NaN,\n            "n": 1\n' in write_rows({"y": values[1:2], "n": np.int8([1])})


def test_strings_and_bytes() -> None:
    encoded = base64.b64encode(b"\x00\xff").decode()
    read = read_tensors({"instances": ["a", {"b64": encoded}]}, {"x": tensorflow_pb2.DT_STRING})
    assert read["x"].tolist() == [b"a", b"\x00\xff"]
    array = np.array([b"a", b"b"], dtype=object)
    assert json.loads(write_rows({"text": array})) == {"predictions": ["a", "b"]}
    awkward = np.array('"\\\b\f\n\r\t/\x01\x1f\x7f\u2028é𝄞'.encode(), object)
    assert (
        write_columns({"text": awkward}).decode().splitlines()[1]
        == (r"""    "outputs": "\"\\\b\f\n\r\t/\u0001\u001F""") + "\x7f"
    )
    assert json.loads(write_columns({"text": awkward}))["outputs"].encode() == awkward.item()
    assert json.loads(write_rows({"raw_bytes": array})) == {"predictions": [{"b64": "YQ=="}, {"b64": "Yg=="}]}


FLOAT, INT, STRING = tensorflow_pb2.DT_FLOAT, tensorflow_pb2.DT_INT32, tensorflow_pb2.DT_STRING
ROW = "Failed to process element: %s of 'instances' list. Error: INVALID_ARGUMENT: "


@pytest.mark.parametrize(
    ("instances", "types", "message"),
    [
        ([1, "a"], {"x": FLOAT}, ROW % 1 + 'JSON Value: "a" Type: String is not of expected type: float'),
        (["1"], {"x": FLOAT}, ROW % 0 + 'JSON Value: "1" Type: String is not of expected type: float'),
        ([1, True], {"x": FLOAT}, ROW % 1 + "JSON Value: true Type: True is not of expected type: float"),
        ([None], {"x": FLOAT}, ROW % 0 + "JSON Value: null Type: Null is not of expected type: float"),
        (
            [{"b64": "YQ=="}],
            {"x": FLOAT},
            ROW % 0 + 'JSON Value: {"b64":"YQ=="} Type: Object is not of expected type: float',
        ),
        ([1.0], {"x": INT}, ROW % 0 + "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        ([1e39], {"x": FLOAT}, ROW % 0 + "JSON Value: 1e+39 is too large a number for type: float"),
        (
            [2**40],
            {"x": INT},
            ROW % 0 + "JSON Value: 1099511627776 Type: Number is not of expected type: int32,"
            " which ranges from -2147483648 to 2147483647",
        ),
        (
            [-1],
            {"x": tensorflow_pb2.DT_UINT8},
            ROW % 0 + "JSON Value: -1 Type: Number is not of expected type: uint8, which ranges from 0 to 255",
        ),
        ([1], {"x": tensorflow_pb2.DT_BOOL}, ROW % 0 + "JSON Value: 1 Type: Number is not of expected type: bool"),
        ([[1, [2]]], {"x": FLOAT}, ROW % 0 + "Encountered list at unexpected level: 1 expected < 1"),
        (
            [[[1], 2]],
            {"x": FLOAT},
            ROW % 0 + "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        (
            [[[1], [2, 3]]],
            {"x": FLOAT},
            ROW % 0 + "Encountered list at unexpected size: 2 at level: 1 expected size: 1",
        ),
        ([[1, 2], [3]], {"x": FLOAT}, ROW % 1 + "Expecting tensor size: 2 but got: 1"),
        ([[1, 2], [[3], [4]]], {"x": FLOAT}, ROW % 1 + "Expecting shape [2] but got: [2,1]"),
        ([{"a": 1}], {"x": FLOAT}, ROW % "0 key: a" + "JSON object: does not have named input: a"),
        (
            [{"x": 1, "y": 1}, {"x": 1, "y": "a"}],
            {"x": FLOAT, "y": FLOAT},
            ROW % "1 key: y" + 'JSON Value: "a" Type: String is not of expected type: float',
        ),
        (
            [{"x": 1}],
            {"y": FLOAT, "x": FLOAT},
            "Failed to process element: 0 of 'instances' list. JSON object: {\"x\":1} keys must be equal to: x,y",
        ),
        (
            [1],
            {"x": FLOAT, "y": FLOAT},
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per"
            " tensorinfo_map",
        ),
        ([1, {"x": 1}], {"x": FLOAT}, "Expecting value/list but got object at item 1 of input list"),
        ([{"x": 1}, 1], {"x": FLOAT}, "Expecting object but got list at item 1 of input list"),
        ([{"b64": "?"}], {"x": STRING}, ROW % 0 + "Unable to base64 decode"),
        (
            [[{"b64": 1}]],
            {"x": STRING},
            ROW % 0 + 'JSON Value: {"b64":1} not formatted correctly for base64 data',
        ),
        ([1], {"x": STRING}, ROW % 0 + "JSON Value: 1 Type: Number is not of expected type: string"),
        ([["a"], ["b", "c"]], {"x": STRING}, ROW % 1 + "Expecting tensor size: 1 but got: 2"),
        (
            [1],
            {"x": tensorflow_pb2.DT_COMPLEX64},
            "Failed to process element: 0 of 'instances' list."
            " Error: UNIMPLEMENTED: Conversion of JSON Value: 1 to type: complex64",
        ),
        ({}, {"x": FLOAT}, "JSON Value: {\"instances\":{}} Expecting 'instances' to be an list/array"),
        ([], {"x": FLOAT}, "JSON Value: {\"instances\":[]} No values in 'instances' array"),
    ],
)
def test_rows_that_are_no_tensor(instances: object, types: dict[str, DataType], message: str) -> None:
    with pytest.raises(JsonError) as caught:
        read_tensors({"instances": instances}, types)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("inputs", "types", "message"),
    [
        ({"x": [1]}, {"x": FLOAT, "y": FLOAT}, "Missing named input: y in 'inputs' object."),
        (
            [1],
            {"x": FLOAT, "y": FLOAT},
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per"
            " tensorinfo_map",
        ),
        (
            {"x": [[1], [2, 3]]},
            {"x": FLOAT},
            "Encountered list at unexpected size: 2 at level: 1 expected size: 1",
        ),
        ("a", {"x": FLOAT}, 'JSON Value: "a" Type: String is not of expected type: float'),
        (
            {"x": 1, "y": "a"},
            {"x": FLOAT, "y": FLOAT},
            "JSON Value: \"a\" Type: String is not of expected type: float in input 'y'",
        ),
    ],
)
def test_columns_that_are_no_tensor(inputs: object, types: dict[str, DataType], message: str) -> None:
    with pytest.raises(JsonError) as caught:
        read_tensors({"inputs": inputs}, types)
    assert str(caught.value) == message


@pytest.mark.parametrize("number", [tensorflow_pb2.DT_QINT8, tensorflow_pb2.DT_COMPLEX64])
@pytest.mark.parametrize("value", [1, [1.5], []])
def test_types_that_json_cannot_carry(value: object, number: DataType) -> None:
    with pytest.raises(UnsupportedTypeError, match="Conversion of JSON Value: "):
        read_tensors({"inputs": value}, {"x": number})


def test_both_forms_and_none() -> None:
    with pytest.raises(JsonError, match="Missing 'inputs' or 'instances' key"):
        read_tensors({}, {"x": FLOAT})
    with pytest.raises(JsonError, match=r"expecting only one of 'inputs' or 'instances' keys to exist $"):
        read_tensors({"inputs": [], "instances": []}, {"x": FLOAT})


def test_scalars_empty_lists_and_extra_inputs() -> None:
    assert read_tensors({"inputs": 1}, {"x": FLOAT})["x"].shape == ()
    assert read_tensors({"inputs": [[], []]}, {"x": INT})["x"].shape == (2, 0)
    assert read_tensors({"instances": [[], []]}, {"x": STRING})["x"].shape == (2, 0)
    assert list(read_tensors({"inputs": {"x": 1, "z": "a"}}, {"x": FLOAT})) == ["x"]
    assert read_tensors({"inputs": [1, 2**63]}, {"x": tensorflow_pb2.DT_UINT64})["x"].tolist() == [1, 2**63]


@pytest.mark.parametrize("levels", [63, 64, 65, 900])
@pytest.mark.parametrize("number", [FLOAT, STRING])
def test_deep_lists_are_a_json_error_at_most(levels: int, number: DataType) -> None:
    body = json.loads("[" * levels + ('"a"' if number == STRING else "1") + "]" * levels)
    for key in ("inputs", "instances"):
        if levels <= 64:
            assert read_tensors({key: body}, {"x": number})["x"].ndim == levels
        else:
            with pytest.raises(JsonError, match="levels deep"):
                read_tensors({key: body}, {"x": number})


def test_outputs_that_are_no_rows() -> None:
    with pytest.raises(JsonError, match="y has no shape information"):
        write_rows({"y": np.float32(1)})
    with pytest.raises(JsonError, match="z has inconsistent batch size: 1 expecting: 2"):
        write_rows({"y": np.zeros(2), "z": np.zeros(1)})
    with pytest.raises(JsonError, match="Cannot convert empty tensor map to JSON"):
        write_rows({})


def test_outputs_that_json_cannot_carry() -> None:
    for write in (write_rows, write_columns):
        with pytest.raises(JsonError, match="Failed to write JSON value for tensor type: complex64"):
            write({"y": np.zeros(1, np.complex64)})


@pytest.mark.parametrize("number", [tensorflow_pb2.DT_HALF, tensorflow_pb2.DT_BFLOAT16])
def test_narrow_floats_come_and_go_as_numbers(number: DataType) -> None:
    for body in ({"inputs": [[0.1, -3], [1e9 if number == tensorflow_pb2.DT_BFLOAT16 else 6e4, 0]]},):
        array = read_tensors(body, {"x": number})["x"]
        assert array.dtype == numpy_type(number)
        expected = np.array(body["inputs"], np.float32).astype(array.dtype)
        np.testing.assert_array_equal(array, expected)
        rows = read_tensors({"instances": [{"x": row} for row in body["inputs"]]}, {"x": number})["x"]
        np.testing.assert_array_equal(rows, expected)
        numbers = json_numbers.read(json.dumps(body).encode())
        assert numbers is not None
        np.testing.assert_array_equal(read_tensors(numbers, {"x": number})["x"], expected)
        for write, key in ((write_rows, "predictions"), (write_columns, "outputs")):
            np.testing.assert_array_equal(np.float32(json.loads(write({"y": array}))[key]), expected.astype("f4"))
            assert json.loads(write({"y": array, "z": array[:, 0]}))[key]
    with pytest.raises(JsonError, match=f"too large a number for type: {type_word(number)}"):
        read_tensors({"inputs": [1, 3.4e38 if number == tensorflow_pb2.DT_BFLOAT16 else 65520]}, {"x": number})


def test_inputs_that_may_be_left_out() -> None:
    types, optional = {"k": INT, "x": FLOAT}, {"k"}
    for body, expected in (
        ({"inputs": [1, 2]}, {"x": [1, 2]}),
        ({"inputs": {"x": [1, 2]}}, {"x": [1, 2]}),
        ({"inputs": {"x": [1, 2], "k": 3}}, {"x": [1, 2], "k": 3}),
        ({"instances": [1, 2]}, {"x": [1, 2]}),
        ({"instances": [{"x": 1}, {"x": 2}]}, {"x": [1, 2]}),
        ({"instances": [{"x": 1, "k": 3}, {"x": 2, "k": 4}]}, {"x": [1, 2], "k": [3, 4]}),
        (json_numbers.read(b'{"instances": [1, 2]}'), {"x": [1, 2]}),
    ):
        assert body is not None
        tensors = read_tensors(body, types, optional=optional)
        assert {name: array.tolist() for name, array in tensors.items()} == expected
    with pytest.raises(JsonError, match="keys must be equal to: k,x"):
        read_tensors({"instances": [{"x": 1, "k": 3}, {"x": 2}]}, types, optional=optional)
    with pytest.raises(JsonError, match="Missing named input: x"):
        read_tensors({"inputs": {"k": 3}}, types, optional=optional)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y", "b64"]), inner, max_size=2),
    max_leaves=12,
)


@settings(max_examples=400)
@given(json_values, st.sampled_from([*NUMBERS, "object"]), st.booleans())
def test_any_json_is_a_tensor_or_a_json_error(value: object, dtype: str, two: bool) -> None:
    types = {"x": data_type(np.dtype(dtype))} | ({"y": data_type(np.dtype(dtype))} if two else {})
    for key in ("instances", "inputs"):
        try:
            tensors = read_tensors({key: value}, types)
        except JsonError:
            continue
        assert {name: data_type(array.dtype) for name, array in tensors.items()} == types


@given(json_values, st.sampled_from([*NUMBERS, "object"]))
def test_what_numpy_reads_at_once_is_what_is_read_value_by_value(value: object, dtype: str) -> None:
    number = data_type(np.dtype(dtype))
    at_once = _read_at_once(value, number, booleans=True)
    if at_once is not None:
        one_by_one = _read_one_by_one(value, number, 64)
        assert (
            (at_once.dtype, at_once.shape)
            == (one_by_one.dtype, one_by_one.shape)
            == (numpy_type(number), at_once.shape)
        )
        np.testing.assert_array_equal(at_once, one_by_one)


def test_to_array_names_the_value() -> None:
    assert to_array([[1, 2]], np.dtype("int32"), "input 'x'").tolist() == [[1, 2]]
    with pytest.raises(JsonError, match=r"^input 'x': JSON Value: 1\.5 Type: Number is not of expected"):
        to_array([1.5], np.dtype("int32"), "input 'x'")
