"""TensorProto <-> numpy array, the one place where a tensor is checked before anything is allocated for it.

Also the one table of element types, with their names in every protocol and engine, and the one description of a
tensor, TensorSpec. The sizes that a message declares are never believed: the number of elements is compared with the
bytes that the message really carries, so that 20 bytes cannot ask for 16 GiB.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import ml_dtypes
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


class ElementType(NamedTuple):
    """One type of a tensor's elements. "" where a protocol or an engine does not have it."""

    number: DataType
    dtype: np.dtype[Any]  # object, of bytes, for strings
    field: str  # of TensorProto, which may carry the values instead of tensor_content
    onnx: str  # ONNX Runtime's name
    open_inference: str  # the Open Inference Protocol's name
    contents: str  # the field of its InferTensorContents
    packed: str  # as `struct` packs it


def _element_types() -> tuple[ElementType, ...]:
    p = tensorflow_pb2
    rows = (
        (p.DT_FLOAT, np.float32, "float_val", "float", "FP32", "fp32_contents", "f"),
        (p.DT_DOUBLE, np.float64, "double_val", "double", "FP64", "fp64_contents", "d"),
        (p.DT_HALF, np.float16, "half_val", "float16", "FP16", "", "e"),
        (p.DT_BFLOAT16, ml_dtypes.bfloat16, "half_val", "bfloat16", "BF16", "", ""),
        (p.DT_INT8, np.int8, "int_val", "int8", "INT8", "int_contents", "b"),
        (p.DT_INT16, np.int16, "int_val", "int16", "INT16", "int_contents", "h"),
        (p.DT_INT32, np.int32, "int_val", "int32", "INT32", "int_contents", "i"),
        (p.DT_INT64, np.int64, "int64_val", "int64", "INT64", "int64_contents", "q"),
        (p.DT_UINT8, np.uint8, "int_val", "uint8", "UINT8", "uint_contents", "B"),
        (p.DT_UINT16, np.uint16, "int_val", "uint16", "UINT16", "uint_contents", "H"),
        (p.DT_UINT32, np.uint32, "uint32_val", "uint32", "UINT32", "uint_contents", "I"),
        (p.DT_UINT64, np.uint64, "uint64_val", "uint64", "UINT64", "uint64_contents", "Q"),
        (p.DT_BOOL, np.bool_, "bool_val", "bool", "BOOL", "bool_contents", "?"),
        (p.DT_STRING, np.object_, "string_val", "string", "BYTES", "bytes_contents", ""),
        (p.DT_COMPLEX64, np.complex64, "scomplex_val", "", "", "", ""),
        (p.DT_COMPLEX128, np.complex128, "dcomplex_val", "", "", "", ""),
    )
    return tuple(ElementType(number, np.dtype(kind), *names) for number, kind, *names in rows)


ELEMENT_TYPES = _element_types()
_BY_NUMBER = {element.number: element for element in ELEMENT_TYPES}
_BY_DTYPE = {element.dtype: element for element in ELEMENT_TYPES}


class TensorError(ValueError):
    """A TensorProto that is malformed, or an array that no TensorProto can carry."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature. `shape` has None for a free dimension, and is None for an unknown rank."""

    name: str  # the alias that requests use
    data_type: DataType
    shape: tuple[int | None, ...] | None
    tensor: str = ""  # its name in the graph, such as "x:0"

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of the values; object (of bytes) for strings. Raises TensorError where there is none."""
        return numpy_type(self.data_type)

    @property
    def dtype_name(self) -> str:
        """numpy's name of the type, such as "float32"; TensorFlow's where numpy has none."""
        element = _BY_NUMBER.get(self.data_type)
        return element.dtype.name if element is not None else type_name(self.data_type)


def read_spec(name: str, info: tensorflow_pb2.TensorInfo) -> TensorSpec:
    """The description of a tensor in a SignatureDef."""
    shape = tuple(dim.size if dim.size >= 0 else None for dim in info.tensor_shape.dim)
    return TensorSpec(name, info.dtype, None if info.tensor_shape.unknown_rank else shape, info.name)


def write_spec(spec: TensorSpec) -> tensorflow_pb2.TensorInfo:
    """The same as in a SignatureDef; a scalar has a shape without dimensions."""
    info = tensorflow_pb2.TensorInfo(name=spec.tensor, dtype=spec.data_type)
    info.tensor_shape.SetInParent()
    if spec.shape is None:
        info.tensor_shape.unknown_rank = True
    for size in spec.shape or ():
        info.tensor_shape.dim.add().size = -1 if size is None else size
    return info


def data_type(dtype: np.dtype[Any]) -> DataType:
    """TensorFlow's number for a numpy type; str, bytes and object arrays are DT_STRING.

    Raises TensorError when TensorFlow has no such type.
    """
    if dtype.kind in "SU":
        return tensorflow_pb2.DT_STRING
    return element_of(dtype).number


def element_of(dtype: np.dtype[Any]) -> ElementType:
    """The row of the table for a numpy type, in either byte order. Raises TensorError when there is none."""
    element = _BY_DTYPE.get(dtype) or _BY_DTYPE.get(dtype.newbyteorder("="))
    if element is None:
        raise TensorError(f"no TensorFlow type for numpy's {dtype}")
    return element


def element_type(number: DataType) -> ElementType:
    """The row of the table for a DataType. Raises TensorError for a type that no array can hold."""
    element = _BY_NUMBER.get(number)
    if element is None:
        raise TensorError(f"tensors of type {type_name(number)} are not supported")
    return element


def numpy_type(number: DataType) -> np.dtype[Any]:
    """The numpy type of a DataType; object (of bytes) for DT_STRING. Raises TensorError as element_type."""
    return element_type(number).dtype


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
    field = element_type(number).field
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
    _, dtype, field, *_ = element_type(proto.dtype)
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
