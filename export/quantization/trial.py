"""The child of `bookserve models quantize`: reads the user's rows and makes the int8 version in its folder."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export import contracts, example_inputs, figures
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError, NoGainError
from bookserve.export.figures import Figure, Rows
from bookserve.export.quantization.demands import Demands
from bookserve.export.quantization.int8_version import fixed_batch, make

TARGETS = ("targets", "labels")  # the arrays of the data file that are taken for targets, where nobody names one
_LEAST = 20  # rows of a data file, of which half are held out
_SEED = 0


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Make the files of the version of `job` in its folder; returns what the manifest needs, and "notes", lines to say.

    Where no int8 graph keeps the demands it returns the notes and "no_gain", a sentence, alone.

    `job` has "folder", "graph", "contract" (None: read from the graph), "model", "version", "data", "targets",
    "calibration_rows" and "demands".

    Raises:
        ExportError: the data does not fit the model, the graph cannot be quantised, or a library is missing.
    """
    graph = Path(job["graph"])
    contract = _contract(graph, job["model"]) if job["contract"] is None else contracts.from_json(job["contract"])
    rows, targets = read(Path(job["data"]), contract, job["targets"])
    calibration, held_out = split(len(next(iter(rows.values()))), job["calibration_rows"])
    held_out_rows = {name: array[held_out] for name, array in rows.items()}

    def figure(float32: Rows) -> Figure:
        if targets is None:
            return figures.agreement(contract, held_out_rows, float32)
        return figures.from_targets(contract, held_out_rows, targets[held_out])

    notes: list[str] = []
    try:
        made = make(
            Path(job["folder"]),
            graph,
            contract,
            job["version"],
            {name: array[calibration] for name, array in rows.items()},
            held_out_rows,
            figure,
            Demands(**job["demands"]),
            notes.append,
        )
    except NoGainError as error:
        return {"notes": notes, "no_gain": str(error)}
    return {
        "contract": contracts.to_json(made.contract),
        "quantization": asdict(made.quantization),
        "parity": made.parity,
        "made_with": made.made_with,
        "notes": notes,
    }


def read(path: Path, contract: Contract, name: str | None) -> tuple[dict[str, Any], npt.NDArray[Any] | None]:
    """The rows of a data file as the contract's inputs, and the targets if it has some.

    `name` is that of the array with the targets; by default "targets" or "labels", where that is no input.

    Raises:
        ExportError: the file cannot be read, does not fit the contract, or has too few rows.
    """
    try:
        content = np.load(path, allow_pickle=False)
        given = {key: content[key] for key in content.files} if isinstance(content, np.lib.npyio.NpzFile) else content
    except (OSError, ValueError, EOFError) as error:
        # numpy takes what is no archive for a pickle, and would advise to load it unsafely
        reason = f" ({error})" if isinstance(error, OSError) and error.strerror else ""
        raise ExportError(
            f"{path} cannot be read as arrays of numpy: give .npz with an array an input, or .npy{reason}"
        ) from error
    inputs = {tensor.name for tensor in contract.inputs}
    if not isinstance(given, dict):
        given = {next(iter(inputs)): given}
    if name is not None and name not in given:
        raise ExportError(f"{path} has no array '{name}' but {', '.join(given)}")
    names = (name,) if name is not None else [key for key in TARGETS if key in given and key not in inputs]
    targets = given.pop(names[0]) if names else None
    free = replace(contract, inputs=tuple(replace(one, shape=(None, *one.shape[1:])) for one in contract.inputs))
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
    return rows, targets


def split(count: int, calibration_rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The places of the calibration rows and of those that are held out, drawn at random; at most half calibrate."""
    order = np.random.default_rng(_SEED).permutation(count)
    part = min(calibration_rows, count // 2)
    return np.sort(order[:part]), np.sort(order[part:])


def _contract(graph: Path, model: str) -> Contract:
    import onnx

    from bookserve.export import onnx_contract

    return onnx_contract.read(onnx.load(graph, load_external_data=False), model)
