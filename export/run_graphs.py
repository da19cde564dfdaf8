"""The graphs of a run and the proof that they compute the same, in a process of its own (`confined.py`).

A fresh process makes the same bytes of the same run each time: libraries number what they have made before.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from bookserve.export import (
    contracts,
    engines,
    golden,
    onnx_graph,
    parity,
    run_format,
    run_reader,
    savedmodel,
    tflite_graph,
    warmup,
)
from bookserve.export.errors import ExportError
from bookserve.export.tflite_graph import TfliteError

PARITY_ROWS = 256


def make(job: dict[str, Any]) -> dict[str, Any]:
    """Write the SavedModel, the ONNX graph and the warm-up requests of the run `job["run"]` into `job["folder"]`.

    `job` has "contract" and "assets" (paths) of the run besides, and "formats": "tflite" where a LiteRT file is wanted,
    too. Returns "contract", with its example, "parity", output -> the largest difference, and "notes", lines to tell.

    Raises:
        ExportError: the network is damaged or breaks the contract, two engines disagree, a wanted format cannot be had,
            or the folder cannot be written.
    """
    folder, contract = Path(job["folder"]), contracts.from_json(job["contract"])
    rows = run_reader.examples(Path(job["run"]), contract)
    try:
        servable = savedmodel.load(
            Path(job["run"]) / run_format.NETWORK, contract, [Path(path) for path in job["assets"]]
        )
        try:
            savedmodel.save(servable, folder)
        except tf.errors.OpError as error:
            raise ExportError(f"cannot write the SavedModel: {error.message.splitlines()[0]}") from error
        onnx_graph.convert(servable, contract, folder / onnx_graph.LOCATION)
        checked = {name: array[:PARITY_ROWS] for name, array in rows.items()}
        differences = parity.check(folder, contract, checked)
        notes = []
        try:
            differences = _largest(differences, _tflite(folder, contract, checked))
        except TfliteError as error:
            if "tflite" in job["formats"]:
                raise ExportError(f"no LiteRT file can be made: {error}") from error
            notes.append(f"not tried in LiteRT: {error}")
        if "tflite" not in job["formats"]:
            (folder / tflite_graph.LOCATION).unlink(missing_ok=True)
        one = golden.first_row(contract, rows)
        answer = engines.onnx_graph(folder / onnx_graph.LOCATION)(one)
        warmup.write(folder / warmup.LOCATION, contract, rows)
    except OSError as error:
        raise ExportError(f"cannot write to {folder}: {error.strerror or error}") from error
    described = replace(contract, example=golden.example(contract, one, answer))
    return {"contract": contracts.to_json(described), "parity": differences, "notes": notes}


def _tflite(folder: Path, contract: contracts.Contract, rows: parity.Rows) -> dict[str, float]:
    run = tflite_graph.convert(folder, contract.signature, folder / tflite_graph.LOCATION)

    def asked(batch: parity.Rows) -> parity.Rows:
        try:
            return run(batch)
        except (RuntimeError, ValueError) as error:
            sizes = {name: array.shape for name, array in batch.items()}
            raise TfliteError(f"LiteRT refuses inputs of the shapes {sizes}: {error}") from error

    return parity.check(folder, contract, rows, {"the LiteRT file": asked})


def _largest(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {name: max(value, second[name]) for name, value in first.items()}
