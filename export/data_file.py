"""A user's rows with their right answers: arrays of numpy in .npz or .npy, or a table in .csv."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export import contracts, example_inputs
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError

TARGETS = ("targets", "labels")  # the arrays that are taken for right answers, where nobody names one
_COLUMNS = (*TARGETS, "target", "label")  # the same, of a table
_LEAST = 20  # rows


def read(path: Path, contract: Contract, name: str | None) -> tuple[dict[str, Any], npt.NDArray[Any] | None]:
    """The rows of a data file as the contract's inputs, and the right answers if it has some.

    `name` is that of the array or column with the right answers; by default one of `TARGETS`, where that is no input.
    Texts among them that are the contract's labels become the numbers of these.

    Raises:
        ExportError: the file cannot be read, does not fit the contract, or has too few rows.
    """
    free = replace(contract, inputs=tuple(replace(one, shape=(None, *one.shape[1:])) for one in contract.inputs))
    if path.suffix.lower() == ".csv":
        given, targets = _of_table(path, free, name)
    else:
        given, targets = _of_arrays(path, contract, name)
    fixed_batch(contract)  # raises where rows are no rows
    rows = example_inputs.fit(given, free, path)
    counts = {key: len(array) for key, array in rows.items()} | ({} if targets is None else {"targets": len(targets)})
    if len(set(counts.values())) > 1:
        text = ", ".join(f"'{key}' {count}" for key, count in counts.items())
        raise ExportError(f"{path} has different numbers of rows: {text}")
    if min(counts.values()) < _LEAST:
        raise ExportError(
            f"{path} has {min(counts.values())} rows: at least {_LEAST} are needed, 1,000 and more are good"
        )
    return rows, targets if targets is None else _numbers(path, targets, contract)


def fixed_batch(contract: Contract) -> int | None:
    """1 where the graph takes one row at a time, None where the number of rows is free.

    Raises:
        ExportError: the graph takes some other number of rows, or an input has none.
    """
    sizes = {tensor.shape[:1] for tensor in contract.inputs}
    if sizes == {(None,)}:
        return None
    if sizes == {(1,)}:
        return 1
    shapes = ", ".join(contracts.shape_text(tensor) for tensor in contract.inputs)
    raise ExportError(f"the first dimension of every input must be the rows, free or 1; they are {shapes}")


def _of_arrays(path: Path, contract: Contract, name: str | None) -> tuple[dict[str, Any], npt.NDArray[Any] | None]:
    try:
        content = np.load(path, allow_pickle=False)
        given = {key: content[key] for key in content.files} if isinstance(content, np.lib.npyio.NpzFile) else content
    except (OSError, ValueError, EOFError) as error:
        # numpy takes what is no archive for a pickle, and would advise to load it unsafely
        reason = f" ({error})" if isinstance(error, OSError) and error.strerror else ""
        raise ExportError(
            f"{path} cannot be read as arrays of numpy: give .npz with an array an input, .npy, or a table in .csv"
            f"{reason}"
        ) from error
    inputs = {tensor.name for tensor in contract.inputs}
    if not isinstance(given, dict):
        given = {next(iter(inputs)): given}
    if name is not None and name not in given:
        raise ExportError(f"{path} has no array '{name}' but {', '.join(given)}")
    names = (name,) if name is not None else [key for key in TARGETS if key in given and key not in inputs]
    return given, given.pop(names[0]) if names else None


def _of_table(path: Path, contract: Contract, name: str | None) -> tuple[dict[str, Any], npt.NDArray[Any] | None]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line] or [[]]
        example_inputs.check_even(lines)
        head, *body = lines
    except (OSError, ValueError, csv.Error) as error:
        raise ExportError(f"{path} cannot be read as a table: {error}") from error
    inputs = {*contract.columns, *(tensor.name for tensor in contract.inputs)}
    if name is not None and name not in head:
        raise ExportError(f"{path} has no column '{name}' but {', '.join(head)[:200]}")
    names = (name,) if name is not None else [one for one in _COLUMNS if one in head and one not in inputs]
    targets = None
    if names:
        place = head.index(names[0])
        targets = np.array([line[place] for line in body])
        head, body = head[:place] + head[place + 1 :], [line[:place] + line[place + 1 :] for line in body]
    try:
        return dict(example_inputs.chosen_columns(head, body, contract)), targets
    except ValueError as error:
        raise ExportError(f"{path} does not fit the model: {error}") from error


def _numbers(path: Path, targets: npt.NDArray[Any], contract: Contract) -> npt.NDArray[Any]:
    """Right answers as numbers: those of the labels, whole ones or others."""
    if targets.dtype.kind not in "US":
        return targets
    words = [str(word) for word in targets.astype(str).ravel()]
    places = {label: place for place, label in enumerate(contract.labels)}
    if set(words) <= places.keys():
        return np.array([places[word] for word in words], np.int64)
    try:
        values = np.array([float(word) for word in words])
    except ValueError as error:
        unknown = next(word for word in words if word not in places)
        known = ", ".join(contract.labels)[:200] or "the version has no labels: give class numbers"
        raise ExportError(f"{path}: the right answer '{unknown[:80]}' is none of {known}") from error
    whole = contract.task != "regression" and bool(np.all(values == np.round(values)))
    return values.astype(np.int64) if whole else values
