"""Tensors of the REST API <-> JSON, by TensorFlow Serving's rules (util/json_tensor.cc).

Reading is strict, as there: a string is no number, a boolean is no number, 1.0 is no integer. Both request forms are
read: rows (`instances`) and columns (`inputs`).
"""

import base64
import binascii
import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson

from bookserve.serving.wire.tensors import Array

# TensorFlow Serving cuts the JSON that it quotes in its messages there (kMaxJsonDebugStringBytes).
_MAX_QUOTED = 256


class JsonError(ValueError):
    """A body that is no JSON, or JSON that is no tensor of the expected type and shape."""


def parse(body: bytes) -> Any:
    """The JSON value of a body; NaN, Infinity and -Infinity are read as TensorFlow Serving reads them.

    Raises JsonError for an empty body, malformed JSON, or nesting that no tensor has.
    """
    if not body:
        raise JsonError("JSON Parse error: The document is empty")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in body and b"Inf" not in body:
            raise JsonError(f"JSON Parse error: {error}") from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise JsonError(f"JSON Parse error: {error}") from None


def read_instances(instances: Any, dtypes: Mapping[str, np.dtype[Any]], booleans: bool = True) -> dict[str, Array]:
    """The tensors of a row-format request: one element a row, a plain value or an object of named inputs.

    `dtypes` gives the signature's inputs. Every row must have the same shape; the number of rows becomes dimension 0.
    `booleans` false says that the body holds neither `true` nor `false`, which saves looking for them.
    Raises JsonError that names the row.
    """
    if not isinstance(instances, list):
        raise JsonError(f"{_quoted(instances)} Expecting 'instances' to be an list/array")
    if not instances:
        raise JsonError("No values in 'instances' array")
    named = _is_named(instances[0])
    if not named and len(dtypes) > 1:
        raise JsonError(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per"
            " tensorinfo_map"
        )
    for number, instance in enumerate(instances):
        if _is_named(instance) != named:
            if named:
                raise JsonError(f"Expecting object but got list at item {number} of input list")
            raise JsonError(f"Expecting value/list but got object at item {number} of input list")
    if not named:
        (name,) = dtypes
        return {name: _rows(instances, dtypes[name], name, booleans)}
    columns: dict[str, list[Any]] = {name: [] for name in dtypes}
    for number, instance in enumerate(instances):
        for key in instance:
            if key not in dtypes:
                raise JsonError(
                    f"Failed to process element: {number} key: {key} of 'instances' list."
                    f" Error: INVALID_ARGUMENT: JSON object: does not have named input: {key}"
                )
        if len(instance) != len(dtypes):
            raise JsonError(
                f"Failed to process element: {number} of 'instances' list."
                f" {_quoted(instance)} keys must be equal to: {','.join(dtypes)}"
            )
        for name, values in columns.items():
            values.append(instance[name])
    return {name: _rows(values, dtypes[name], name, booleans) for name, values in columns.items()}


def read_inputs(inputs: Any, dtypes: Mapping[str, np.dtype[Any]], booleans: bool = True) -> dict[str, Array]:
    """The tensors of a column-format request: an object of whole tensors, or one tensor where there is one input.

    `dtypes` and `booleans` as in read_instances.
    Raises JsonError that names the input.
    """
    if not _is_named(inputs):
        if len(dtypes) > 1:
            raise JsonError(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per"
                " tensorinfo_map"
            )
        (name,) = dtypes
        return {name: to_array(inputs, dtypes[name], f"'{name}'", booleans)}
    for name in dtypes:
        if name not in inputs:
            raise JsonError(f"Missing named input: {name} in 'inputs' object.")
    return {name: to_array(inputs[name], dtype, f"'{name}'", booleans) for name, dtype in dtypes.items()}


def to_array(value: Any, dtype: np.dtype[Any], what: str, booleans: bool = True) -> Array:
    """The array of a JSON value: nested lists, all of one size at each level, of values of that type.

    Strings are str or `{"b64": "…"}` and become bytes in an object array. `what` names the value in messages.
    Raises JsonError.
    """
    if dtype.kind == "O":
        return _string_array(value, what)
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        array = _converted(value, dtype, what)
    if array.size and not _may_hold(dtype, array.dtype):
        array = _converted(value, dtype, what)
    if booleans and dtype.kind != "b" and _has_boolean(value):
        raise JsonError(f"{what}: {_fault(value, dtype)}")
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise JsonError(f"{what}: {_outside(array.ravel().tolist(), dtype)}")
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype)
    except FloatingPointError:
        raise JsonError(f"{what}: a number is too large for {dtype.name}") from None


def _converted(value: Any, dtype: np.dtype[Any], what: str) -> Array:
    """The array of values to which numpy, left to itself, gives another type: integers beyond int64, or a fault."""
    fault = _fault(value, dtype)
    if fault is not None:
        raise JsonError(f"{what}: {fault}")
    try:
        return np.array(value, dtype=dtype)
    except OverflowError:
        raise JsonError(f"{what}: {_outside(list(_leaves(value)), dtype)}") from None
    except ValueError:
        raise JsonError(f"{what}: the nested lists are not all of one size") from None


def _outside(numbers: list[Any], dtype: np.dtype[Any]) -> str:
    if dtype.kind == "f":
        return f"a number is too large for {dtype.name}"
    limits = np.iinfo(dtype)
    number = next(number for number in numbers if not limits.min <= number <= limits.max)
    return f"{number} is outside the range of {dtype.name}, {limits.min} to {limits.max}"


def _has_boolean(value: Any) -> bool:
    # numpy takes a boolean among numbers for a number, in silence.
    if isinstance(value, list):
        return any(map(_has_boolean, value))
    return isinstance(value, bool)


def _may_hold(wanted: np.dtype[Any], found: np.dtype[Any]) -> bool:
    if wanted.kind == "f":
        return found.kind in "iuf"
    if wanted.kind in "iu":
        return found.kind in "iu"
    return found.kind == wanted.kind


def _rows(values: list[Any], dtype: np.dtype[Any], name: str, booleans: bool) -> Array:
    """Dimension 0 is the row; a fault names its row."""
    with contextlib.suppress(JsonError):
        return to_array(values, dtype, f"'{name}'", booleans)
    first = None
    for number, value in enumerate(values):
        place = f"Failed to process element: {number} of 'instances' list. Error: INVALID_ARGUMENT"
        row = to_array(value, dtype, place)
        if first is None:
            first = row
        elif row.shape != first.shape:
            raise JsonError(f"{place}: Expecting shape {list(first.shape)} but got: {list(row.shape)}")
    raise JsonError(f"input '{name}' is malformed")


def _string_array(value: Any, what: str) -> Array:
    shape = []
    level = value
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    flat: list[bytes] = []
    _collect_strings(value, shape, 0, what, flat)
    array = np.empty(len(flat), dtype=np.object_)
    array[:] = flat
    return array.reshape(shape)


def _collect_strings(value: Any, shape: list[int], level: int, what: str, into: list[bytes]) -> None:
    if level < len(shape):
        if not isinstance(value, list) or len(value) != shape[level]:
            raise JsonError(f"{what}: the nested lists are not all of one size")
        for item in value:
            _collect_strings(item, shape, level + 1, what, into)
    elif isinstance(value, str):
        into.append(value.encode("utf-8", "surrogatepass"))
    elif _is_base64(value):
        try:
            into.append(base64.b64decode(value["b64"], validate=True))
        except (binascii.Error, ValueError):
            raise JsonError(f"{what}: Unable to base64 decode") from None
    else:
        raise JsonError(f"{what}: {_mismatch(value, 'string')}")


def _leaves(value: Any) -> Iterator[Any]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(reversed(item))
        else:
            yield item


def _fault(value: Any, dtype: np.dtype[Any]) -> str | None:
    """The first value that is of another type than the tensor; None where all are right."""
    word = {"float32": "float", "float64": "double", "float16": "half"}.get(dtype.name, dtype.name)
    for item in _leaves(value):
        number = isinstance(item, int | float) and not isinstance(item, bool)
        right = isinstance(item, bool) if dtype.kind == "b" else number and (dtype.kind == "f" or isinstance(item, int))
        if not right:
            return _mismatch(item, word)
    return None


def _mismatch(value: Any, expected: str) -> str:
    names = {bool: "Boolean", int: "Number", float: "Number", str: "String", list: "Array", dict: "Object"}
    kind = names.get(type(value), "Null")
    return f"{_quoted(value)} Type: {kind} is not of expected type: {expected}"


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_named(value: Any) -> bool:
    """Whether the value is an object of named inputs; `{"b64": …}` is a value."""
    return isinstance(value, dict) and not _is_base64(value)


def _quoted(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        text = "…"
    return f"JSON Value: {text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + '...'}"


def write_rows(outputs: Mapping[str, Array]) -> bytes:
    """`{"predictions": […]}`: one value a row, or one object a row where there are several outputs.

    Raises JsonError when an output has no dimension 0 or another one than the rest.
    """
    if not outputs:
        raise JsonError("Cannot convert empty tensor map to JSON")
    rows = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise JsonError(f"Tensor name: {name} has no shape information ")
        if rows is None:
            rows = array.shape[0]
        elif rows != array.shape[0]:
            raise JsonError(f"Tensor name: {name} has inconsistent batch size: {array.shape[0]} expecting: {rows}")
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        return b'{\n    "predictions": ' + _dumps(_jsonable(name, array), outputs) + b"\n}"
    named = {name: _row_values(name, array) for name, array in outputs.items()}
    predictions = [{name: column[row] for name, column in named.items()} for row in range(rows or 0)]
    return b'{\n    "predictions": ' + _dumps(predictions, outputs) + b"\n}"


def write_columns(outputs: Mapping[str, Array]) -> bytes:
    """`{"outputs": …}`: the whole tensor, or an object of them where there are several. Raises JsonError for none."""
    if not outputs:
        raise JsonError("Cannot convert empty tensor map to JSON")
    named = {name: _jsonable(name, array) for name, array in outputs.items()}
    value: Any = next(iter(named.values())) if len(named) == 1 else named
    return b'{\n    "outputs": ' + _dumps(value, outputs) + b"\n}"


def _jsonable(name: str, array: Array) -> Any:
    """The array itself, which orjson can write, or nested lists of strings."""
    if array.dtype.kind == "O":
        return _strings(name, array.tolist())
    if array.dtype.kind == "c":
        raise JsonError(f"Failed to write JSON value for tensor type: {array.dtype.name}")
    return np.ascontiguousarray(array) if array.ndim else array.item()


def _row_values(name: str, array: Array) -> Any:
    """Something that gives row `i` at `[i]`, each as orjson can write it."""
    if array.ndim == 1 and array.dtype.kind in "iub":
        return array.tolist()  # orjson does not know every one of numpy's integer scalars
    return _jsonable(name, array)


def _strings(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_strings(name, item) for item in value]
    if name.endswith("_bytes"):
        return {"b64": base64.b64encode(value).decode()}
    return value.decode("utf-8", "replace")


def _dumps(value: Any, outputs: Mapping[str, Array]) -> bytes:
    if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in outputs.values()):
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    # orjson writes null for what is no number; TensorFlow Serving writes NaN, Infinity and -Infinity.
    return json.dumps(value, default=lambda numpy_value: numpy_value.tolist()).encode()
