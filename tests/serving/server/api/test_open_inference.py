"""Tensors of the Open Inference Protocol as raw bytes, against tritonclient's own codec."""

import asyncio
import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from bookserve.serving.server.api import open_inference
from bookserve.serving.server.models.picture_input import PictureDecoder, PictureInput
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.server.types.signatures import from_proto
from bookserve.serving.wire import tensorflow_error_pb2, tensorflow_pb2
from bookserve.serving.wire.pictures import PictureRule

DTYPES = [
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
]
number_arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
string_arrays = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3).flatmap(
    lambda shape: hnp.arrays(np.object_, shape, elements=st.binary(max_size=5))
)


@settings(deadline=None)
@given(number_arrays | string_arrays, st.integers(0, 8))
def test_raw_bytes_come_back_wherever_they_begin(array: np.ndarray, offset: int) -> None:
    data = memoryview(b"x" * offset + open_inference.to_raw(array))[offset:]
    read = open_inference.from_raw("x", array.dtype, array.shape, data)
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    assert read.flags.aligned
    np.testing.assert_array_equal(read, array)


@settings(deadline=None)
@given(string_arrays)
def test_bytes_are_tritons(array: np.ndarray) -> None:
    packed = serialize_byte_tensor(array)
    theirs = packed.item() if packed.size else b""
    assert open_inference.to_raw(array) == theirs
    np.testing.assert_array_equal(deserialize_bytes_tensor(open_inference.to_raw(array)), array.ravel())


def test_any_byte_but_0_is_true() -> None:
    assert open_inference.from_raw("x", np.dtype(bool), [3], b"\x00\x01\x02").view(np.uint8).tolist() == [0, 1, 1]


FLOAT, STRING = np.dtype(np.float32), np.dtype(object)


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "message"),
    [
        (FLOAT, [3], b"1234", r"input 'x' of shape \[3\] and datatype FP32 needs 12 bytes, the request has 4"),
        (FLOAT, [1], b"12345678", "needs 4 bytes, the request has 8"),
        (FLOAT, [2**40, 2**40], b"1234", "the request has 4"),
        (FLOAT, [-1, -1], b"1234", r"shape \[-1, -1\] has a negative size"),
        (FLOAT, [1] * 65, b"1234", "65 dimensions, at most 64"),
        (FLOAT, [0, 2**62, 2**62], b"", "too large for a tensor without values"),
        (STRING, [2**40], b"\x00\x00\x00\x00", "1099511627776 elements of datatype BYTES.* 4 bytes are too few"),
        (STRING, [1], struct.pack("<I", 5) + b"1234", "element 0 goes beyond the 8 bytes"),
        (STRING, [1], struct.pack("<I", 2**32 - 1), "element 0 goes beyond the 4 bytes"),
        (STRING, [2], struct.pack("<I", 3) + b"12345", "element 1 goes beyond the 9 bytes"),
        (STRING, [1], struct.pack("<I", 1) + b"12", "its 1 elements are 5 bytes long, the request has 6"),
        (STRING, [0], b"1", "its 0 elements are 0 bytes long, the request has 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_raw_bytes_that_do_not_fit_their_shape(dtype: np.dtype, shape: list[int], data: bytes, message: str) -> None:
    with pytest.raises(ServingError, match=message) as caught:
        open_inference.from_raw("x", dtype, shape, data)
    assert caught.value.code == tensorflow_error_pb2.INVALID_ARGUMENT


@settings(deadline=None)
@given(st.lists(st.integers(-2, 2**63 - 1), max_size=5), st.sampled_from([*DTYPES, "object"]), st.binary(max_size=40))
def test_any_shape_and_bytes_are_read_or_refused(shape: list[int], dtype: str, data: bytes) -> None:
    with contextlib.suppress(ServingError):
        assert open_inference.from_raw("x", np.dtype(dtype), shape, data).shape == tuple(shape)


SIGNATURE = from_proto("s", tensorflow_pb2.SignatureDef(inputs={"x": {"dtype": tensorflow_pb2.DT_FLOAT}}))


@pytest.mark.parametrize(
    ("name", "datatype", "message"),
    [
        ("z", "FP32", "the model has no input 'z': its inputs are x"),
        ("x", "INT32", "input 'x' expects datatype FP32, the request has INT32"),
        ("x", "BF16", "input 'x' expects datatype FP32, the request has BF16"),
        ("x", "float", "input 'x': datatype 'float' does not exist; the model expects FP32"),
        ("x", "", "input 'x': datatype '' does not exist"),
    ],
)
def test_inputs_that_the_model_does_not_have(name: str, datatype: str, message: str) -> None:
    assert open_inference.input_type(SIGNATURE, "x", "FP32") == np.float32
    with pytest.raises(ServingError, match=message):
        open_inference.input_type(SIGNATURE, name, datatype)


async def _takes(name: str) -> None:
    decoder = PictureDecoder(1, asyncio.get_running_loop())
    pictures = PictureInput(PictureRule(name, (8, 8), "grey", "crop"), decoder)
    assert open_inference.input_type(SIGNATURE, name, "BYTES", pictures).kind == "O"
    assert open_inference.input_type(SIGNATURE, name, "FP32", pictures) == np.float32
    with pytest.raises(ServingError, match="expects datatype FP32, the request has INT32"):
        open_inference.input_type(SIGNATURE, name, "INT32", pictures)
    other = PictureInput(PictureRule("other", (8, 8), "grey", "crop"), decoder)
    with pytest.raises(ServingError, match="expects datatype FP32, the request has BYTES"):
        open_inference.input_type(SIGNATURE, name, "BYTES", other)
    decoder.close()


def test_the_input_that_takes_pictures_alone_is_given_bytes_in_place_of_numbers() -> None:
    asyncio.run(_takes("x"))


@pytest.mark.parametrize("version", ["x", "-1", "1.0", " 1", "¹", "9" * 19, "9" * 5000])
def test_versions_that_are_none(version: str) -> None:
    assert open_inference.version_number("007") == 7
    with pytest.raises(ServingError, match="is no version: it must be a whole number"):
        open_inference.version_number(version)


def test_an_output_without_a_datatype_is_refused() -> None:
    with pytest.raises(ServingError, match="output 'y' is of type complex64, for which the Open Inference Protocol"):
        open_inference.datatype_of("y", np.zeros(1, np.complex64))
