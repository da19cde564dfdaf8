"""Tensors of the REST API <-> JSON, by TensorFlow Serving's rules and with its messages (util/json_tensor.cc).

Reading is strict, as there: a string is no number, a boolean is no number, 1.0 is no integer. Both request forms are
read: rows (`instances`) and columns (`inputs`). What is regular is read at once; the rest is read value by value, which
either succeeds or finds what to complain about.
"""

import base64
import math
import struct
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any

import numpy as np

from bookserve.serving.wire import json_decimals, json_numbers, tensorflow_error_pb2, tensorflow_pb2
from bookserve.serving.wire.json_numbers import Numbers
from bookserve.serving.wire.json_text import JsonError, is_base64, kind_of, quoted, shown, to_bytes, to_json
from bookserve.serving.wire.tensorflow_error_pb2 import Code
from bookserve.serving.wire.tensorflow_pb2 import DataType
from bookserve.serving.wire.tensors import ELEMENT_TYPES, MAX_RANK, Array, data_type, numpy_type, type_word

# Types that JSON carries as another, of which every value of theirs is one. TensorFlow Serving lacks them.
_CARRIED_AS: dict[DataType, DataType] = {
    tensorflow_pb2.DT_HALF: tensorflow_pb2.DT_FLOAT,
    tensorflow_pb2.DT_BFLOAT16: tensorflow_pb2.DT_FLOAT,
}
_WIDER = {numpy_type(narrow): numpy_type(wide) for narrow, wide in _CARRIED_AS.items()}
# The types that JSON can carry, as struct packs them; strings are not packed. TensorFlow Serving lacks uint16.
_FORMATS: dict[DataType, str] = {
    element.number: element.packed
    for element in ELEMENT_TYPES
    if element.number not in _CARRIED_AS and element.dtype.kind != "c"
}
# The smallest and the largest number of a type.
_LIMITS: dict[DataType, tuple[float, float]] = {}
for _number in _FORMATS:
    _dtype = numpy_type(_number)
    if _dtype.kind in "iu":
        _LIMITS[_number] = int(np.iinfo(_dtype).min), int(np.iinfo(_dtype).max)
    elif _dtype.kind == "f":
        _LIMITS[_number] = float(np.finfo(_dtype).min), float(np.finfo(_dtype).max)


class UnsupportedTypeError(JsonError):
    """JSON for a tensor of a type that JSON cannot carry, such as complex64."""

    code = tensorflow_error_pb2.UNIMPLEMENTED


def read_tensors(
    body: Mapping[str, Any],
    types: Mapping[str, DataType],
    booleans: bool = True,
    optional: Collection[str] = (),
) -> dict[str, Array]:
    """The tensors of a predict request: `instances`, one element a row, or `inputs`, whole tensors.

    `types` gives the signature's inputs, and `optional` those of them that a request may leave out. Every row must have
    the same shape; the number of rows becomes dimension 0. `booleans` false says that the body holds neither `true` nor
    `false`, which saves looking for them. Values of `body` may be Numbers.
    Raises JsonError that names the row; UnsupportedTypeError for types that JSON cannot carry.
    """
    types = _sent(body, types, optional) if optional else types
    tensors = _from_numbers(body, types)
    if tensors is not None:
        return tensors
    body = {key: json_numbers.built(value) for key, value in body.items()}
    if "instances" in body:
        if "inputs" in body:
            raise JsonError(
                f"{quoted(body)} Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
            )
        instances = body["instances"]
        if not isinstance(instances, list):
            raise JsonError(f"{quoted(body)} Expecting 'instances' to be an list/array")
        if not instances:
            raise JsonError(f"{quoted(body)} No values in 'instances' array")
        return _read_rows(instances, types, booleans)
    if "inputs" in body:
        return _read_columns(body["inputs"], types, booleans)
    raise JsonError("Missing 'inputs' or 'instances' key")


def _from_numbers(body: Mapping[str, Any], types: Mapping[str, DataType]) -> dict[str, Array] | None:
    """The tensors of a request that `json_numbers` has read; None where the ordinary way is to be taken."""
    key = "instances" if "instances" in body else "inputs"
    value: Any = body.get(key)
    if isinstance(value, Numbers):
        columns = dict.fromkeys(types, value) if len(types) == 1 else {}
    elif not json_numbers.named(value):
        return None
    elif isinstance(value, dict):
        columns = {name: value[name] for name in types if name in value}
    else:
        return _from_rows(value, types)
    tensors = {name: _from_one(numbers, types[name]) for name, numbers in columns.items()}
    found = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return found if found.keys() == types.keys() else None


def _from_rows(rows: list[dict[str, Numbers]], types: Mapping[str, DataType]) -> dict[str, Array] | None:
    if rows[0].keys() != types.keys() or any(len(numbers.shape) == MAX_RANK for numbers in rows[0].values()):
        return None
    columns = {}
    for name, number in types.items():
        tensors = [_from_one(row[name], number) for row in rows]
        if any(tensor is None for tensor in tensors):
            return None
        columns[name] = np.stack(tensors)  # type: ignore[arg-type]
    return columns


def _from_one(numbers: Numbers, number: DataType) -> Array | None:
    return numbers.array(numpy_type(number)) if number in _LIMITS else None  # where a boolean is not


def _sent(body: Mapping[str, Any], types: Mapping[str, DataType], optional: Collection[str]) -> Mapping[str, DataType]:
    """The inputs to read: those that must come, and of the optional ones those that the request names."""
    instances = body.get("instances")
    first = instances[0] if isinstance(instances, list) and instances else body.get("inputs")
    named = first if isinstance(first, dict) and not is_base64(first) else {}
    return {name: number for name, number in types.items() if name not in optional or name in named}


def _read_rows(instances: list[Any], types: Mapping[str, DataType], booleans: bool) -> dict[str, Array]:
    named = _is_named(instances[0])
    if named:
        columns: dict[str, Any] = {}
        if all(_is_named(row) and row.keys() == types.keys() for row in instances):
            columns = {name: [row[name] for row in instances] for name in types}
    elif len(types) > 1:
        raise JsonError(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per"
            " tensorinfo_map"
        )
    else:
        columns = dict.fromkeys(types, instances)
    try:
        if columns:
            return {name: _read(values, types[name], booleans) for name, values in columns.items()}
    except JsonError:
        pass  # found again below, in the order of the rows
    return _read_row_by_row(instances, types, named)


def _read_row_by_row(instances: list[Any], types: Mapping[str, DataType], named: bool) -> dict[str, Array]:
    columns: dict[str, list[Array]] = {name: [] for name in types}
    for number, row in enumerate(instances):
        if _is_named(row) != named:
            if named:
                raise JsonError(f"Expecting object but got list at item {number} of input list")
            raise JsonError(f"Expecting value/list but got object at item {number} of input list")
        for name, value in row.items() if named else zip(types, [row], strict=True):
            try:
                if name not in types:
                    raise JsonError(f"JSON object: does not have named input: {name}")
                tensor = _read_one_by_one(value, types[name], MAX_RANK - 1)
                first = columns[name][0] if columns[name] else tensor
                if tensor.size != first.size:
                    raise JsonError(f"Expecting tensor size: {first.size} but got: {tensor.size}")
                if tensor.shape != first.shape:
                    raise JsonError(f"Expecting shape {_shape(first)} but got: {_shape(tensor)}")
            except JsonError as error:
                key = f" key: {name}" if named else ""
                raise JsonError(
                    f"Failed to process element: {number}{key} of 'instances' list."
                    f" Error: {Code.Name(error.code)}: {error}"
                ) from None
            columns[name].append(tensor)
        if named and row.keys() != types.keys():
            raise JsonError(
                f"Failed to process element: {number} of 'instances' list. JSON object: {shown(row)}"
                f" keys must be equal to: {','.join(sorted(types))}"
            )
    return {name: np.stack(tensors) for name, tensors in columns.items()}


def _read_columns(inputs: Any, types: Mapping[str, DataType], booleans: bool) -> dict[str, Array]:
    if not _is_named(inputs):
        if len(types) > 1:
            raise JsonError(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per"
                " tensorinfo_map"
            )
        inputs = dict.fromkeys(types, inputs)
    tensors = {}
    for name, number in types.items():
        if name not in inputs:
            raise JsonError(f"Missing named input: {name} in 'inputs' object.")
        try:
            tensors[name] = _read(inputs[name], number, booleans)
        except JsonError as error:
            if len(types) > 1:
                raise type(error)(f"{error} in input '{name}'") from None
            raise
    return tensors


def to_array(value: Any, dtype: np.dtype[Any], what: str, booleans: bool = True) -> Array:
    """The array of a JSON value: nested lists, all of one size at each level, of values of that type.

    Strings are str or `{"b64": "…"}` and become bytes in an object array. `what` names the value in messages.
    Raises JsonError.
    """
    try:
        return _read(value, data_type(dtype), booleans)
    except JsonError as error:
        raise type(error)(f"{what}: {error}") from None


def _read(value: Any, number: DataType, booleans: bool) -> Array:
    tensor = _read_at_once(value, _CARRIED_AS.get(number, number), booleans)
    return _read_one_by_one(value, number, MAX_RANK) if tensor is None else _narrowed(tensor, number)


def _narrowed(tensor: Array, number: DataType) -> Array:
    """The tensor in its own type, which JSON carried as a wider one. Raises JsonError for a number too large for it."""
    if number not in _CARRIED_AS:
        return tensor
    with np.errstate(over="ignore"):
        narrow = tensor.astype(numpy_type(number))
    lost = np.isinf(narrow) & ~np.isinf(tensor)
    if lost.any():
        raise JsonError(f"{quoted(float(tensor[lost][0]))} is too large a number for type: {type_word(number)}")
    return narrow


def _read_at_once(value: Any, number: DataType, booleans: bool) -> Array | None:
    """The array where the lists are regular and all values are of that type; otherwise None.

    Nearly every request takes this way. `struct` packs a picture in a tenth of the time that numpy takes to read its
    lists, and takes no string for a number, no float for an integer, and nothing that is out of range.
    """
    if not _FORMATS.get(number):
        return None
    shape: list[int] = []
    flat = [value]
    while flat and type(flat[0]) is list:
        if set(map(type, flat)) != {list} or len(set(map(len, flat))) != 1 or len(shape) == MAX_RANK:
            return None
        shape.append(len(flat[0]))
        flat = list(chain.from_iterable(flat))
    if number == tensorflow_pb2.DT_BOOL:
        if flat and set(map(type, flat)) != {bool}:
            return None
    elif booleans and bool in set(map(type, flat)):
        return None
    try:
        packed = struct.pack(f"={len(flat)}{_FORMATS[number]}", *flat)  # "=": "@" lets 1e39 pass as float32's infinity
    except (struct.error, OverflowError):
        return None
    return np.frombuffer(packed, numpy_type(number)).reshape(shape)


def _read_one_by_one(value: Any, number: DataType, max_rank: int) -> Array:
    """The array of a JSON value; its shape is that of the first elements, which all others must have."""
    if number in _CARRIED_AS:
        return _narrowed(_read_one_by_one(value, _CARRIED_AS[number], max_rank), number)
    shape = []
    level = value
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    if len(shape) > max_rank:
        raise JsonError(f"lists nested {len(shape)} levels deep, at most {max_rank} are allowed")
    flat: list[Any] = []
    _collect(value, shape, 0, _LEAVES.get(number, _unsupported), number, flat)
    if number not in _FORMATS:
        _unsupported(value, number)  # an empty list
    return np.array(flat, dtype=numpy_type(number)).reshape(shape)


Leaf = Callable[[Any, DataType], Any]


def _collect(value: Any, shape: list[int], level: int, leaf: Leaf, number: DataType, into: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise JsonError(
                f"{quoted(value)} found at incorrect level: {level + 1} in the JSON DOM."
                f" Expected at level: {len(shape)}"
            )
        into.append(leaf(value, number))
        return
    if level >= len(shape):
        raise JsonError(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise JsonError(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for item in value:
        _collect(item, shape, level + 1, leaf, number, into)


def _float_leaf(value: Any, number: DataType) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _mismatch(value, number)
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if abs(result) > _LIMITS[number][1] and not (isinstance(value, float) and math.isinf(value)):
        raise JsonError(f"{quoted(value)} is too large a number for type: {type_word(number)}")
    return result


def _int_leaf(value: Any, number: DataType) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _mismatch(value, number)
    smallest, largest = _LIMITS[number]
    if not smallest <= value <= largest:
        raise JsonError(f"{_mismatch(value, number)}, which ranges from {smallest} to {largest}")
    return value


def _bool_leaf(value: Any, number: DataType) -> bool:
    if not isinstance(value, bool):
        raise _mismatch(value, number)
    return value


def _string_leaf(value: Any, number: DataType) -> bytes:
    if isinstance(value, str | dict):
        return to_bytes(value)
    raise _mismatch(value, number)


def _unsupported(value: Any, number: DataType) -> Any:
    if isinstance(value, dict):
        raise _mismatch(value, number)
    raise UnsupportedTypeError(f"Conversion of {quoted(value)} to type: {type_word(number)}")


_LEAVES: dict[DataType, Leaf] = {
    number: {"f": _float_leaf, "i": _int_leaf, "u": _int_leaf, "b": _bool_leaf, "O": _string_leaf}[
        numpy_type(number).kind
    ]
    for number in _FORMATS
}


def _mismatch(value: Any, number: DataType) -> JsonError:
    return JsonError(f"{quoted(value)} Type: {kind_of(value)} is not of expected type: {type_word(number)}")


def _is_named(value: Any) -> bool:
    """Whether the value is an object of named inputs; `{"b64": …}` is a value."""
    return isinstance(value, dict) and not is_base64(value)


def _shape(tensor: Array) -> str:
    return "[" + ",".join(map(str, tensor.shape)) + "]"


def write_rows(outputs: Mapping[str, Array]) -> bytes:
    """`{"predictions": […]}`: one value a row, or one object a row where there are several outputs.

    Raises JsonError when an output has no dimension 0 or another one than the rest.
    """
    if not outputs:
        raise JsonError("Cannot convert empty tensor map to JSON")
    outputs = widened(outputs)
    rows = None
    for name, tensor in outputs.items():
        if tensor.ndim == 0:
            raise JsonError(f"Tensor name: {name} has no shape information ")
        if rows is None:
            rows = tensor.shape[0]
        elif rows != tensor.shape[0]:
            raise JsonError(f"Tensor name: {name} has inconsistent batch size: {tensor.shape[0]} expecting: {rows}")
    if len(outputs) == 1:
        ((name, tensor),) = outputs.items()
        floats = tensor.dtype in (np.float32, np.float64)
        text = json_decimals.joined(tensor) if floats else ", ".join(_row_texts(name, tensor, 3))
    else:
        columns = {name: _row_texts(name, tensor, 4) for name, tensor in outputs.items()}
        keys = [to_json(name) for name in columns]
        objects = [
            ",\n            ".join([f"{key}: {value}" for key, value in zip(keys, row, strict=True)])
            for row in zip(*columns.values(), strict=True)
        ]
        text = ",".join([f"\n        {{\n            {members}\n        }}" for members in objects])
    return f'{{\n    "predictions": [{text}{end_of_list(rows)}\n}}'.encode()


def write_columns(outputs: Mapping[str, Array]) -> bytes:
    """`{"outputs": …}`: the whole tensor, or an object of them where there are several. Raises JsonError for none.

    Each value has a line of its own, as in TensorFlow Serving.
    """
    if not outputs:
        raise JsonError("Cannot convert empty tensor map to JSON")
    outputs = widened(outputs)
    depth = 1 if len(outputs) == 1 else 2
    texts = {
        name: json_decimals.stacked(_tokens(name, tensor, depth + tensor.ndim), tensor.shape, depth)
        for name, tensor in outputs.items()
    }
    if len(texts) == 1:
        value = next(iter(texts.values()))
    else:
        members = ",\n        ".join([f"{to_json(name)}: {text}" for name, text in texts.items()])
        value = f"{{\n        {members}\n    }}"
    return f'{{\n    "outputs": {value}\n}}'.encode()


def widened(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
    """The tensors, those that JSON carries as another type in that type."""
    for tensor in tensors.values():
        if tensor.dtype in _WIDER:
            return {name: tensor.astype(_WIDER.get(tensor.dtype, tensor.dtype)) for name, tensor in tensors.items()}
    return tensors


def end_of_list(rows: int | None) -> str:
    """The end of an answer's list whose values stand on one line, as RapidJSON's PrettyWriter writes it there."""
    return "\n    ]" if rows else "]"


def _row_texts(name: str, tensor: Array, depth: int) -> list[str]:
    """The JSON of each row of a tensor of rank 1 or more; `depth` is how deep the rows are in the answer."""
    if tensor.dtype in (np.float32, np.float64):
        return json_decimals.rows(tensor)
    return json_decimals.nested(_tokens(name, tensor, depth + tensor.ndim - 2), tensor.shape)


def _tokens(name: str, tensor: Array, depth: int) -> list[str]:
    """The JSON of each value of a tensor; `depth` is how deep the values are in the answer."""
    if tensor.dtype.kind == "O":
        return _string_texts(name, tensor, depth)
    values = tensor.ravel()
    if tensor.dtype in (np.float32, np.float64):
        return json_decimals.tokens(values)
    if tensor.dtype.kind not in "iub":
        raise JsonError(f"Failed to write JSON value for tensor type: {tensor.dtype.name}")
    if tensor.dtype.kind == "b":
        return ["true" if value else "false" for value in values.tolist()]
    return list(map(str, values.tolist()))


def _string_texts(name: str, tensor: Array, depth: int) -> list[str]:
    if not name.endswith("_bytes"):
        return [to_json(value.decode("utf-8", "replace")) for value in tensor.ravel().tolist()]
    indent = "    " * depth
    return [
        f'{{\n{indent}    "b64": "{base64.b64encode(value).decode()}"\n{indent}}}' for value in tensor.ravel().tolist()
    ]
