"""TensorProto <-> numpy array, the one place where a tensor is checked before anything is allocated for it.

The sizes that a message declares are never believed: the number of elements is compared with the bytes that the
message really carries, so that 20 bytes cannot ask for 16 GiB.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensorflow_pb2 import DataType, TensorProto

Array = npt.NDArray[Any]

# numpy's limit; TensorFlow's own is 254, but no kernel takes more than 8.
MAX_RANK = 64
# The product of the other sizes of a tensor with a size of 0: no data vouches for them.
_MAX_EMPTY_ROW = 1 << 28
# One value may stand for a whole tensor (`make_tensor_proto(0.0, shape=...)` writes that), up to this many bytes.
MAX_FILLED_BYTES = 1 << 20

# DataType -> (numpy type, the typed field that may carry the values instead of tensor_content)
_TYPES: dict[DataType, tuple[np.dtype[Any], str]] = {
    tensorflow_pb2.DT_FLOAT: (np.dtype(np.float32), "float_val"),
    tensorflow_pb2.DT_DOUBLE: (np.dtype(np.float64), "double_val"),
    tensorflow_pb2.DT_INT32: (np.dtype(np.int32), "int_val"),
    tensorflow_pb2.DT_UINT8: (np.dtype(np.uint8), "int_val"),
    tensorflow_pb2.DT_INT16: (np.dtype(np.int16), "int_val"),
    tensorflow_pb2.DT_INT8: (np.dtype(np.int8), "int_val"),
    tensorflow_pb2.DT_UINT16: (np.dtype(np.uint16), "int_val"),
    tensorflow_pb2.DT_INT64: (np.dtype(np.int64), "int64_val"),
    tensorflow_pb2.DT_BOOL: (np.dtype(np.bool_), "bool_val"),
    tensorflow_pb2.DT_UINT32: (np.dtype(np.uint32), "uint32_val"),
    tensorflow_pb2.DT_UINT64: (np.dtype(np.uint64), "uint64_val"),
    tensorflow_pb2.DT_HALF: (np.dtype(np.float16), "half_val"),
    tensorflow_pb2.DT_COMPLEX64: (np.dtype(np.complex64), "scomplex_val"),
    tensorflow_pb2.DT_COMPLEX128: (np.dtype(np.complex128), "dcomplex_val"),
    tensorflow_pb2.DT_STRING: (np.dtype(np.object_), "string_val"),
}
_NUMBERS: dict[np.dtype[Any], DataType] = {dtype: number for number, (dtype, _) in _TYPES.items()}


class TensorError(ValueError):
    """A TensorProto that is malformed, or an array that no TensorProto can carry."""


def data_type(dtype: np.dtype[Any]) -> DataType:
    """TensorFlow's number for a numpy type; str, bytes and object arrays are DT_STRING.

    Raises TensorError when TensorFlow has no such type.
    """
    if dtype.kind in "SU":
        return tensorflow_pb2.DT_STRING
    if dtype.kind == "V" and dtype == _bfloat16():
        return tensorflow_pb2.DT_BFLOAT16
    number = _NUMBERS.get(dtype.newbyteorder("="))
    if number is None:
        raise TensorError(f"no TensorFlow type for numpy's {dtype}")
    return number


def numpy_type(number: DataType) -> np.dtype[Any]:
    """The numpy type of a DataType number; object (of bytes) for DT_STRING, `ml_dtypes.bfloat16` for DT_BFLOAT16.

    Raises TensorError for a type that has no numpy equivalent, or for bfloat16 where the package ml_dtypes is missing.
    """
    return _numpy_type_and_field(number)[0]


def type_name(number: DataType) -> str:
    """The name of a DataType number, such as "DT_FLOAT"; the number itself where it has none."""
    try:
        return DataType.Name(number)
    except ValueError:
        return f"DataType {number}"


def type_word(number: DataType) -> str:
    """TensorFlow's word for a type in its messages, such as "float"."""
    return type_name(number).removeprefix("DT_").lower()


def to_proto(array: Array, *, as_content: bool = True) -> TensorProto:
    """Writes an array of any shape as a TensorProto.

    The values go into `tensor_content` as little-endian bytes, or into the typed field (`float_val` …), which is what
    TensorFlow Serving answers, when `as_content` is false. Strings always go into `string_val`, str as UTF-8.

    Raises TensorError when TensorFlow has no such type.
    """
    number = data_type(array.dtype)
    field = _numpy_type_and_field(number)[1]
    proto = TensorProto(dtype=number)
    dim = proto.tensor_shape.dim
    for size in array.shape:
        dim.add().size = size
    if number == tensorflow_pb2.DT_STRING:
        proto.string_val.extend(_as_bytes(value) for value in array.ravel().tolist())
    elif as_content:
        proto.tensor_content = _little_endian(array).tobytes()
    elif array.dtype.kind == "c":
        getattr(proto, field).extend(_little_endian(array).view(f"<f{array.itemsize // 2}").ravel().tolist())
    elif field == "half_val":
        proto.half_val.extend(_little_endian(array).view("<u2").ravel().tolist())
    else:
        getattr(proto, field).extend(array.ravel().tolist())
    return proto


def to_array(proto: TensorProto) -> Array:
    """Reads a TensorProto of any shape; string tensors become object arrays of bytes.

    The array may be read-only and may share memory with the message. As in TensorFlow, a typed field with fewer values
    than the tensor has elements repeats its last value, and one without values means zeros (for strings empty ones),
    here only up to MAX_FILLED_BYTES.

    Raises TensorError for an unknown type, an unknown rank or a shape that element_count refuses, or a number of values
    other than the shape's.
    """
    dtype, field = _numpy_type_and_field(proto.dtype)
    shape = tuple([dim.size for dim in proto.tensor_shape.dim])
    if proto.tensor_shape.unknown_rank:
        raise TensorError("tensor of unknown rank")
    count = element_count(shape)
    content = proto.tensor_content
    if content:
        if dtype.kind == "O":
            raise TensorError("string tensors carry their values in string_val, not in tensor_content")
        if len(content) != count * dtype.itemsize:
            raise TensorError(
                f"tensor of shape {list(shape)} and type {type_name(proto.dtype)} needs {count * dtype.itemsize} bytes,"
                f" its tensor_content has {len(content)}"
            )
        array = np.frombuffer(content, dtype=dtype.newbyteorder("<"))
        return array.reshape(shape) if dtype.isnative else array.astype(dtype).reshape(shape)
    return _filled(_typed_values(proto, dtype, field), count, dtype, shape)


def element_count(shape: Sequence[int]) -> int:
    """How many values a tensor of that shape has.

    Raises TensorError for more than MAX_RANK dimensions, a negative size, or sizes beside a 0 that no tensor has.
    """
    if len(shape) > MAX_RANK:
        raise TensorError(f"tensor of {len(shape)} dimensions, at most {MAX_RANK} are allowed")
    if shape and min(shape) < 0:
        raise TensorError(f"tensor shape {list(shape)} has a negative size")
    count = math.prod(shape)
    if not count and math.prod(filter(None, shape)) > _MAX_EMPTY_ROW:
        raise TensorError(f"tensor shape {list(shape)} is too large for a tensor without values")
    return count


def _numpy_type_and_field(number: DataType) -> tuple[np.dtype[Any], str]:
    if number == tensorflow_pb2.DT_BFLOAT16 and (bfloat16 := _bfloat16()) is not None:
        return bfloat16, "half_val"
    try:
        return _TYPES[number]
    except KeyError:
        raise TensorError(f"tensors of type {type_name(number)} are not supported") from None


@cache
def _bfloat16() -> np.dtype[Any] | None:
    """The type of the package that TensorFlow brings with it, and that alone; imported when it is first needed."""
    with suppress(ImportError):
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return None


def _typed_values(proto: TensorProto, dtype: np.dtype[Any], field: str) -> Array:
    """The values of the typed field, flat; one element a value also for complex numbers."""
    values: Any = getattr(proto, field)
    if dtype.kind == "O":
        array = np.empty(len(values), dtype=np.object_)
        array[:] = list(values)
        return array
    if dtype.kind == "c":
        if len(values) % 2:
            raise TensorError(f"{field} has an odd number of values: a complex number takes two")
        return np.array(values, dtype=f"f{dtype.itemsize // 2}").view(dtype)
    if field == "half_val":
        return _narrowed(np.array(values, dtype=np.int32), np.dtype(np.uint16), proto.dtype).view(dtype)
    if field == "int_val" and dtype.itemsize < 4:
        return _narrowed(np.array(values, dtype=np.int32), dtype, proto.dtype)
    return np.array(values, dtype=dtype)


def _narrowed(values: Array, dtype: np.dtype[Any], number: DataType) -> Array:
    limits = np.iinfo(dtype)
    if values.size and not (limits.min <= values.min() and values.max() <= limits.max):
        raise TensorError(f"a value of the tensor is outside the range of {type_name(number)}")
    return values.astype(dtype)


def _filled(values: Array, count: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    if len(values) == count:
        return values.reshape(shape)
    if len(values) > count:
        raise TensorError(f"tensor of shape {list(shape)} needs {count} values, it has {len(values)}")
    if count * dtype.itemsize > MAX_FILLED_BYTES:
        raise TensorError(
            f"tensor of shape {list(shape)} needs {count} values, it has {len(values)};"
            f" the rest is filled up only in tensors of up to {MAX_FILLED_BYTES} bytes"
        )
    nothing = b"" if dtype.kind == "O" else 0
    filled = np.full(count, values[-1] if len(values) else nothing, dtype)
    filled[: len(values)] = values
    return filled.reshape(shape)


def _little_endian(array: Array) -> Array:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _as_bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    raise TensorError(f"a string tensor holds bytes or str, not {type(value).__name__}")
