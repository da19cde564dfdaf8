"""A version asked rows whose right answers the user knows: the figure they ask for, and what the version answers."""

import tempfile
from pathlib import Path

import numpy as np

from bookserve.export import confined, contracts, figures
from bookserve.export.confined import Limits
from bookserve.export.contracts import Contract
from bookserve.export.errors import ConfinedError, ExportError
from bookserve.export.evaluation_trial import write
from bookserve.export.figures import Figure, Rows
from bookserve.export.life.engine_trial import ENGINES

_TRIAL = "bookserve.export.evaluation_trial:run"
# Graph of a version -> the files that it may be in.
GRAPHS = {
    "onnx": ("assets.extra/model.onnx", "model.onnx"),
    "saved-model": ("saved_model.pb",),
    "tflite": ("model.tflite", "assets.extra/model.tflite"),
}


def figure(contract: Contract, data: Path, targets: str | None) -> Figure:
    """The figure that the rows and the right answers of a data file ask for.

    `targets` names the array or column of the right answers; None stands for "targets" or "labels".

    Raises:
        ExportError: the file cannot be read, does not fit the contract, or has no right answers.
    """
    from bookserve.export import data_file  # which loads ONNX Runtime

    if not data.is_file():
        raise ExportError(f"there is no file {data}")
    rows, right = data_file.read(data, contract, targets)
    if right is None:
        names = " or ".join(f"'{one}'" for one in data_file.TARGETS)
        raise ExportError(f"{data} has no right answers: add an array or column {names}, or name one with --targets")
    return figures.from_targets(contract, rows, right)


def answers(folder: Path, graph: str | None, contract: Contract, rows: Rows, limits: Limits) -> Rows:
    """The outputs of a version for the rows, by the engine of a graph of GRAPHS, in a process of its own.

    None stands for the graph that bookserve's model server takes.

    Raises:
        ExportError: the version has no such graph, or its engine does not take the rows.
    """
    names = GRAPHS[graph] if graph is not None else tuple(ENGINES)
    file = next((name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise ExportError(f"{folder} has none of {', '.join(names)}")
    with tempfile.TemporaryDirectory(prefix="bookserve-") as scratch:
        asked, told = Path(scratch, "rows.npz"), Path(scratch, "outputs.npz")
        write(asked, rows)
        job = {
            "folder": str(folder),
            "file": file,
            "contract": contracts.to_json(contract),
            "rows": str(asked),
            "outputs": str(told),
        }
        try:
            confined.call(_TRIAL, job, limits)
        except ConfinedError as error:
            raise ExportError(f"{folder / file}: {error}") from error
        with np.load(told, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
