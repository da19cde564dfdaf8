"""The child of `bookserve models quantize`: reads the user's rows and makes the int8 version in its folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export import contracts, data_file, figures
from bookserve.export.contracts import Contract
from bookserve.export.errors import NoGainError
from bookserve.export.figures import Figure, Rows
from bookserve.export.quantization.demands import Demands
from bookserve.export.quantization.int8_version import make

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
    rows, targets = data_file.read(Path(job["data"]), contract, job["targets"])
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


def split(count: int, calibration_rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The places of the calibration rows and of those that are held out, drawn at random; at most half calibrate."""
    order = np.random.default_rng(_SEED).permutation(count)
    part = min(calibration_rows, count // 2)
    return np.sort(order[:part]), np.sort(order[part:])


def _contract(graph: Path, model: str) -> Contract:
    import onnx

    from bookserve.export import onnx_contract

    return onnx_contract.read(onnx.load(graph, load_external_data=False), model)
