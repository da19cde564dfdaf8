"""The tensor codec against TensorFlow's own make_tensor_proto and make_ndarray."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import tensor_pb2

from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensorflow_pb2 import TensorProto
from bookserve.serving.wire.tensors import MAX_FILLED_BYTES, TensorError, to_array, to_proto

NUMBERS = [
    *("float16", "float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128"),
]
number_arrays = st.sampled_from(NUMBERS).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
string_arrays = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3).flatmap(
    lambda shape: hnp.arrays(np.object_, shape, elements=st.binary(max_size=5))
)


def theirs(proto: TensorProto) -> np.ndarray:
    return tf.make_ndarray(tensor_pb2.TensorProto.FromString(proto.SerializeToString()))


@settings(deadline=None)
@given(number_arrays | string_arrays, st.booleans())
def test_tensorflow_reads_what_we_write(array: np.ndarray, as_content: bool) -> None:
    read = theirs(to_proto(array, as_content=as_content))
    assert read.shape == array.shape
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@settings(deadline=None)
@given(number_arrays | string_arrays)
def test_we_read_what_tensorflow_writes(array: np.ndarray) -> None:
    read = to_array(TensorProto.FromString(tf.make_tensor_proto(array).SerializeToString()))
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@settings(deadline=None)
@given(number_arrays | string_arrays)
def test_typed_fields_come_back(array: np.ndarray) -> None:
    np.testing.assert_array_equal(to_array(to_proto(array, as_content=False)), array)


def test_one_value_fills_a_small_tensor_as_in_tensorflow() -> None:
    proto = TensorProto.FromString(tf.make_tensor_proto(2.5, shape=[3, 4]).SerializeToString())
    np.testing.assert_array_equal(to_array(proto), np.full((3, 4), 2.5, np.float32))


@pytest.mark.parametrize("number", [tensorflow_pb2.DT_FLOAT, tensorflow_pb2.DT_BOOL, tensorflow_pb2.DT_STRING])
def test_no_values_are_zeros_as_in_tensorflow(number: tensorflow_pb2.DataType) -> None:
    proto = _proto([2, 3], number)
    expected = tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(number)).numpy()
    found = to_array(proto)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("as_content", [False, True])
def test_bfloat16_is_read_and_written_as_by_tensorflow(as_content: bool) -> None:
    values = tf.constant([[1.5, -2.0], [float("inf"), 3e-39]], tf.bfloat16)
    ours = to_proto(values.numpy(), as_content=as_content)
    theirs = tf.io.parse_tensor(ours.SerializeToString(), tf.bfloat16)
    assert theirs.dtype == tf.bfloat16
    np.testing.assert_array_equal(theirs.numpy(), values.numpy())
    read = to_array(TensorProto.FromString(tf.make_tensor_proto(values).SerializeToString()))
    assert read.dtype == values.numpy().dtype
    np.testing.assert_array_equal(read, values.numpy())


def _proto(shape: list[int], number: int = tensorflow_pb2.DT_FLOAT, **fields: object) -> TensorProto:
    proto = TensorProto(dtype=number, **fields)
    for size in shape:
        proto.tensor_shape.dim.add().size = size
    return proto


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (_proto([65536, 1024], float_val=[1.0]), "the rest is filled up only in tensors of up to"),
        (_proto([65536, 1024]), "needs 67108864 values, it has 0; the rest is filled up only"),
        (_proto([65536, 65536], float_val=[1.0]), "needs 4294967296 values, it has 1"),
        (_proto([2**40, 2**40], float_val=[1.0]), "the rest is filled up only"),
        (_proto([-1, 2], float_val=[1.0, 2.0]), "negative size"),
        (_proto([0, 2**62, 2**62]), "too large for a tensor without values"),
        (_proto([3], tensor_content=b"1234"), "needs 12 bytes, its tensor_content has 4"),
        (_proto([1], tensor_content=b"12345678"), "needs 4 bytes, its tensor_content has 8"),
        (_proto([1], float_val=[1.0, 2.0]), "needs 1 values, it has 2"),
        (_proto([1] * 10_000, float_val=[1.0]), "10000 dimensions"),
        (_proto([1], number=999), "DataType 999 are not supported"),
        (_proto([1], number=tensorflow_pb2.DT_VARIANT), "DT_VARIANT are not supported"),
        (_proto([1], number=tensorflow_pb2.DT_RESOURCE), "DT_RESOURCE are not supported"),
        (_proto([1], number=tensorflow_pb2.DT_INVALID), "DT_INVALID are not supported"),
        (_proto([3], number=tensorflow_pb2.DT_STRING, string_val=[b"a", b"b", b"c", b"d"]), "needs 3 values"),
        (_proto([1], number=tensorflow_pb2.DT_STRING, tensor_content=b"a"), "string_val, not in tensor_content"),
        (_proto([1], number=tensorflow_pb2.DT_UINT8, int_val=[256]), "outside the range of DT_UINT8"),
        (_proto([1], number=tensorflow_pb2.DT_COMPLEX64, scomplex_val=[1.0]), "odd number of values"),
        (
            TensorProto(dtype=tensorflow_pb2.DT_FLOAT, tensor_shape={"unknown_rank": True}, float_val=[1.0]),
            "unknown rank",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_tensors_are_refused(proto: TensorProto, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        to_array(proto)


def test_filling_stops_at_its_limit() -> None:
    largest = MAX_FILLED_BYTES // 4
    assert to_array(_proto([largest], float_val=[1.0])).shape == (largest,)
    with pytest.raises(TensorError):
        to_array(_proto([largest + 1], float_val=[1.0]))


def test_arrays_without_a_tensorflow_type_are_refused() -> None:
    with pytest.raises(TensorError, match="datetime64"):
        to_proto(np.array(["2026-01-01"], dtype="datetime64[D]"))
    with pytest.raises(TensorError, match="not int"):
        to_proto(np.array([1], dtype=np.object_))
