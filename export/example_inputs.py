"""Inputs for a model: read from the user's example file, or drawn at random where there is none."""

import base64
import csv
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export import column_values, contracts
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.errors import ExportError
from bookserve.serving.wire import pictures
from bookserve.serving.wire.pictures import PictureRule

Rows = dict[str, npt.NDArray[Any]]
Table = int | tuple[Any, ...]  # that an input is looked up in: its size, where numbers index it, or its keys
ROWS = 8
SIZES = (8, 32, 1, 64, 224, 512, 1600)  # tried in turn for free dimensions beside the batch
BATCHES = ("n", "b", "bs", "batch", "batch_size", "batchsize", "bsz")  # names of the rows' dimension
_KNOWN = 0.75  # of what is looked up by a key
_WORDS = (b"the", b"stock", b"market", b"rose", b"", b"Zoe said", b"na\xc3\xafve", b"42")


def read(path: Path, contract: Contract) -> Rows:
    """The rows in a file as the contract's inputs: `.npz`, `.json` in the REST form, `.csv`, or a picture.

    A picture, in one of the formats that the model server takes, becomes numbers as the contract says. Where it says
    nothing, the picture fills an input (rows, height, width) or one with 1 or 3 channels before or behind these, scaled
    to that size.

    Raises:
        ExportError: the file cannot be read, or does not fit the contract; the message names the input.
    """
    try:
        match path.suffix.lower():
            case ".npz":
                with np.load(path, allow_pickle=False) as content:
                    given: Mapping[str, Any] = {name: content[name] for name in content.files}
            case ".npy":
                given = {_only(contract, path).name: np.load(path, allow_pickle=False)}
            case ".json":
                return read_json(path.read_text(encoding="utf-8"), contract, path)
            case ".csv":
                return read_csv(path.read_text(encoding="utf-8-sig"), contract, path)
            case suffix if suffix in pictures.SUFFIXES:
                given = {_only(contract, path).name: _picture(path, contract)}
            case _:
                raise ExportError(f"{path} is no example: give .npz, .npy, .json, .csv or a picture")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ExportError(f"{path} cannot be read as an example: {error}") from error
    return fit(given, contract, path)


def read_json(text: str, contract: Contract, origin: object) -> Rows:
    """The rows in JSON of the REST form, {"inputs": …} or {"instances": …}, in a bare list of instances, or in MLflow's
    form of a table, {"dataframe_split": {"columns": …, "data": …}}.

    Raises:
        ExportError: as `read`; `origin` names the text in the message.
    """
    try:
        content = json.loads(text)
        return fit(
            _rest_form({"instances": content} if isinstance(content, list) else content, contract), contract, origin
        )
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ExportError(f"{origin} cannot be read as an example: {error}") from error


def read_csv(text: str, contract: Contract, origin: object) -> Rows:
    """The rows in a table with commas, with or without a line of names. What is raised is as with `read_json`."""
    try:
        return fit(_table(text, contract), contract, origin)
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{origin} cannot be read as an example: {error}") from error


def fit(given: Mapping[str, Any], contract: Contract, origin: object) -> Rows:
    """The arrays with the contract's names, types and shapes.

    Raises:
        ExportError: one is missing, of another shape, or holds what its type cannot.
    """
    names = [tensor.name for tensor in contract.inputs]
    if set(given) != set(names):
        if len(given) == len(names) == 1:
            given = {names[0]: next(iter(given.values()))}
        else:
            raise ExportError(f"{origin} has {', '.join(sorted(given))}; the model takes {', '.join(names)}")
    rows = {}
    for tensor in contract.inputs:
        try:
            array = as_array(given[tensor.name], tensor.dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise ExportError(f"{origin}: '{tensor.name}' is no {tensor.dtype}: {error}") from error
        given_shape = list(array.shape)
        if array.ndim == len(tensor.shape) - 1:
            array = array[None]  # one row
        fits = array.ndim == len(tensor.shape) and all(
            wanted in (None, size) for wanted, size in zip(tensor.shape, array.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in tensor.shape)
            raise ExportError(f"{origin}: '{tensor.name}' is {given_shape}; the model takes [{wanted}]")
        rows[tensor.name] = array
    return rows


def draw(
    contract: Contract,
    tables: Mapping[str, Table],
    columns: Mapping[str, column_values.Columns] | None = None,
    seed: int = 0,
) -> Iterator[Rows]:
    """Random inputs, with another size for the free dimensions each time: floats around 0 or from 0 to 1, whole numbers
    below the size of the table that they index, keys of one, with some that it has not at first, bytes from 0 to 255,
    words; first of all, where inputs have `columns`, values of these.
    """
    chance = np.random.default_rng(seed)
    if columns and all(tensor.shape[:1] == (None,) for tensor in contract.inputs):
        for limit in (100, 2):
            yield {
                tensor.name: column_values.draw(columns[tensor.name], chance)
                if tensor.name in columns
                else _of_table(chance, tensor.dtype, _tall(tensor), tables.get(tensor.name), limit)
                for tensor in contract.inputs
            }
    inner = any(size is None for tensor in contract.inputs for size in tensor.shape[1:])
    for size in SIZES if inner else SIZES[:1]:
        for limit in (100, 2):
            yield {
                tensor.name: _of_table(chance, tensor.dtype, _sizes(tensor, size), tables.get(tensor.name), limit)
                for tensor in contract.inputs
            }


def as_array(value: Any, dtype: str) -> npt.NDArray[Any]:
    """An array of a value of the REST form, or of an array; None among floats is a missing one, NaN.

    Raises:
        ValueError: it does not fit the type.
    """
    if dtype == "object":
        return np.array(_bytes(value.tolist() if isinstance(value, np.ndarray) else value), dtype=object)
    array = np.asarray(value)
    wanted = np.dtype(dtype)
    if array.dtype == object and wanted.kind == "f" and all(_is_missing_or_number(item) for item in array.flat):
        array = array.astype(np.float64)
    if array.dtype == object:
        raise ValueError("its rows are of different lengths, or some values are missing")
    if not np.can_cast(array.dtype, wanted, "same_kind") and not (
        array.dtype.kind in "iu" and wanted.kind in "iuf" and _holds(wanted, array)
    ):
        raise ValueError(f"it holds {'text' if array.dtype.kind in 'US' else array.dtype}")
    return array.astype(wanted, order="C")


def _is_missing_or_number(item: Any) -> bool:
    return item is None or (isinstance(item, int | float) and not isinstance(item, bool))


def to_rest(array: npt.NDArray[Any]) -> Any:
    """An array as a value of the REST form: lists; bytes as {"b64": …} where they are no text.

    A float16 or float32 has the fewest digits that tell it: 70.1, not 70.0999984741211.
    """
    if array.dtype in (np.float16, np.float32):
        array = array.astype(str).astype(np.float64)
    return _rest_value(array.tolist())


def _rest_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_rest_value(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}
    return value


def _holds(wanted: np.dtype[Any], array: npt.NDArray[Any]) -> bool:
    if wanted.kind == "f" or not array.size:
        return True
    limits = np.iinfo(wanted)
    return bool(limits.min <= array.min() and array.max() <= limits.max)


def _bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_bytes(item) for item in value]
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    if value is None:
        raise ValueError('null is no text: give "" for a missing one')
    return value if isinstance(value, bytes) else str(value).encode()


def _only(contract: Contract, what: object) -> Tensor:
    if len(contract.inputs) != 1:
        names = ", ".join(tensor.name for tensor in contract.inputs)
        raise ExportError(f"{what} holds one input, the model takes {names}: give .npz or .json")
    return contract.inputs[0]


def _rest_form(content: Any, contract: Contract) -> Mapping[str, Any]:
    if isinstance(content, dict) and "dataframe_split" in content:  # as MLflow writes tables
        table = content["dataframe_split"]
        known = (
            isinstance(table, dict) and isinstance(table.get("columns"), list) and isinstance(table.get("data"), list)
        )
        if not known or not all(isinstance(line, list) for line in table["data"]):
            raise ValueError('"dataframe_split" has no "columns", a list of names, and "data", a list of rows')
        check_even([table["columns"], *table["data"]])
        return chosen_columns([str(name) for name in table["columns"]], table["data"], contract)
    if isinstance(content, dict) and "inputs" in content:
        inputs = content["inputs"]
        return inputs if isinstance(inputs, dict) and "b64" not in inputs else {_only(contract, "inputs").name: inputs}
    if isinstance(content, dict) and isinstance(content.get("instances"), list):
        instances = content["instances"]
        if isinstance(instances[0], dict) and "b64" not in instances[0]:
            return {name: [row[name] for row in instances] for name in instances[0]}
        return {_only(contract, "instances").name: instances}
    raise ValueError('it is no request in the REST form: {"instances": […]} or {"inputs": …}')


def _table(text: str, contract: Contract) -> Mapping[str, Any]:
    lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    if not lines:
        raise ValueError("it is empty")
    check_even(lines)
    head = lines[0] if any(not _is_number(cell) for cell in lines[0]) else None
    return chosen_columns(head, lines[1:] if head else lines, contract)


def check_even(lines: Sequence[Sequence[Any]]) -> None:
    """Raises ValueError where a line of a table has not as many columns as the first."""
    for number, line in enumerate(lines, 1):
        if len(line) != len(lines[0]):
            raise ValueError(f"line {number} has {len(line)} columns, the first {len(lines[0])}")


def chosen_columns(head: list[str] | None, body: list[list[Any]], contract: Contract) -> Mapping[str, Any]:
    """The contract's columns of a table, one to an input or all in the only one; without names, those that are there.

    None is a missing number or an empty text, and an empty cell a missing number.

    Raises:
        ValueError: a column is missing, or holds no numbers where these are taken.
    """
    names = [tensor.name for tensor in contract.inputs]
    if len(names) > 1:  # a column an input
        missing = [name for name in names if name not in (head or ())]
        if missing:
            raise ValueError(f"it has no column '{missing[0]}'")
        return {
            tensor.name: _column([line[(head or names).index(tensor.name)] for line in body], tensor)
            for tensor in contract.inputs
        }
    if head and set(contract.columns) & set(head):
        missing = [name for name in contract.columns if name not in head]
        if missing:
            raise ValueError(f"it has no column '{missing[0]}'; its columns are {', '.join(head)[:200]}")
        body = [[line[head.index(name)] for name in contract.columns] for line in body]
    if contract.inputs[0].dtype == "object":
        return {names[0]: np.array(body)}
    return {names[0]: np.array([[_number(cell) for cell in line] for line in body], dtype=np.float64)}


def _number(cell: Any) -> float:
    return float("nan") if cell is None or cell == "" else float(cell)


def _column(cells: list[Any], tensor: Tensor) -> npt.NDArray[Any]:
    if tensor.dtype == "object":
        values = np.array(["" if cell is None else str(cell) for cell in cells], dtype=object)
    else:
        values = np.array([_number(cell) for cell in cells], dtype=np.float64).astype(tensor.dtype)
    return values.reshape(len(cells), *(1 for _ in tensor.shape[1:]))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _picture(path: Path, contract: Contract) -> npt.NDArray[Any]:
    tensor, means = _only(contract, path), contract.preprocessing
    if means is not None and means.size is not None:
        rule = PictureRule(
            *(means.input, means.size, means.colour, means.resize),
            *(means.layout, means.scale, means.mean, means.deviation),
        )
    else:
        rule = _rule_of(tensor, path)
    return pictures.tensor(pictures.levels(path, rule)[None], rule, np.dtype(tensor.dtype), len(tensor.shape))


def _rule_of(tensor: Tensor, path: Path) -> PictureRule:
    sizes: tuple[int | None, ...] = tensor.shape[1:]
    layout = "channels-first" if len(sizes) == 3 and sizes[2] not in (1, 3) else ""
    if layout:
        sizes = (*sizes[1:], sizes[0])
    height, width, channels = (*sizes, 1)[:3] if len(sizes) in (2, 3) else (None, None, None)
    if not (height and width and channels in (1, 3)):
        shape = contracts.shape_text(tensor)
        raise ExportError(
            f"{path} is a picture; '{tensor.name}' is {shape}, and not (rows, height, width), with or without 1 or 3 "
            "channels: give .npz, or the size of its pictures with --preprocessor FILE"
        )
    scale = 1 / 255 if np.dtype(tensor.dtype).kind == "f" else 1.0
    return PictureRule(tensor.name, (height, width), "rgb" if channels == 3 else "grey", "stretch", layout, scale)


def _sizes(tensor: Tensor, size: int) -> list[int]:
    """The shape with as many rows on its first axis, and wherever a free dimension is called a batch."""
    names = iter(tensor.free)
    sizes = []
    for place, wanted in enumerate(tensor.shape):
        name = next(names, "") if wanted is None else ""
        rows = place == 0 or name.lower() in BATCHES
        sizes.append(wanted if wanted is not None else ROWS if rows else size)
    return sizes


def _of_table(
    chance: np.random.Generator, dtype: str, shape: list[int], table: Table | None, limit: int
) -> npt.NDArray[Any]:
    if not isinstance(table, tuple):
        return _random(chance, dtype, shape, limit if table is None else table)
    kind = np.dtype(dtype)
    keys = as_array(list(table), dtype) if dtype == "object" else np.array(table).astype(kind)
    known = chance.choice(keys, shape)
    if limit == 2:
        return known
    drawn = np.where(chance.random(shape) < _KNOWN, known, _random(chance, dtype, shape, limit))
    drawn[:1] = known[:1]  # which people see as an example
    return drawn


def _tall(tensor: Tensor) -> list[int]:
    """The shape with as many rows as columns have values."""
    return [column_values.ROWS, *_sizes(tensor, SIZES[0])[1:]]


def _random(chance: np.random.Generator, dtype: str, shape: list[int], limit: int) -> npt.NDArray[Any]:
    if dtype == "object":
        return chance.choice(np.array(_WORDS, dtype=object), shape)
    kind = np.dtype(dtype)
    if kind == np.uint8 and limit == 100:
        return chance.integers(0, 256, shape, dtype=np.uint8)
    if kind.kind == "b":
        return chance.integers(0, 2, shape).astype(bool)
    if kind.kind in "iu":
        return chance.integers(0, max(1, min(limit, np.iinfo(kind).max)), shape).astype(kind)
    return (chance.standard_normal(shape) if limit > 2 else chance.random(shape)).astype(kind)
