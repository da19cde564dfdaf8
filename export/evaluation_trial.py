"""One graph of a version asked many rows by its own engine; `run` is called in a child process (`confined.py`)."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export import contracts
from bookserve.export.engines import Rows
from bookserve.export.errors import ExportError
from bookserve.export.life.engine_trial import load
from bookserve.serving.wire import missing_package

_OTHER = "surrogateescape"  # for strings that are no UTF-8
ROWS = 64  # at a time, where the graph leaves it free


def run(job: dict[str, Any]) -> None:
    """Write the outputs for the rows of the file `job["rows"]` into `job["outputs"]`, both .npz.

    `job` has "folder" and "file", the graph in it, and "contract" besides.

    Raises:
        ExportError: the engine is not installed, the graph does not load, or does not take the rows.
    """
    contract = contracts.from_json(job["contract"])
    try:
        answer = load(Path(job["folder"]), job["file"], contract.signature)
    except ModuleNotFoundError as error:
        raise ExportError(f"{job['file']} needs {missing_package.told(error, 'clients')}") from error
    with np.load(job["rows"], allow_pickle=False) as content:
        rows = {name: _as_bytes(content[name]) for name in content.files}
    step = contract.inputs[0].shape[0] or ROWS
    parts = [answer(part) for part in batches(rows, step)]
    write(Path(job["outputs"]), {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def write(path: Path, arrays: Rows) -> None:
    """Arrays into an .npz file without pickles: arrays of objects, which hold strings, as arrays of text."""
    plain: dict[str, Any] = {
        name: _as_text(array) if array.dtype.kind == "O" else array for name, array in arrays.items()
    }
    np.savez(path, **plain)


def _as_text(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    words = [word.decode("utf-8", _OTHER) if isinstance(word, bytes) else str(word) for word in array.ravel().tolist()]
    return np.array(words, dtype=str).reshape(array.shape)


def _as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Text as engines take strings; other arrays as they are."""
    if array.dtype.kind != "U":
        return array
    return np.array([word.encode("utf-8", _OTHER) for word in array.ravel().tolist()], object).reshape(array.shape)


def batches(rows: Rows, step: int) -> list[Rows]:
    """The rows in parts of `step`; a last part that is shorter stays so."""
    count = len(next(iter(rows.values())))
    return [
        {name: array[start : start + step] for name, array in rows.items()} for start in range(0, count, max(1, step))
    ]
