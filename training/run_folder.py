"""A run folder: what one training leaves behind, and all that export reads of it.

    runs/<model>/<time>/
        config.json     what was asked for: model, profile, seed, numbers, data, devices, versions of the libraries
        metrics.json    {"train": {}, "valid": {}, "test": {}}
        history.csv     one line an epoch
        model.keras     the trained network behind its contract
        examples.npz    test rows as the contract's inputs, for the parity check and the warm-up
        assets/         the files that the contract names, such as a vocabulary
        report/         pictures
        tensorboard/    for `tensorboard --logdir`

A run is written in `<time>.unfinished` and gets its name when it is complete, so a run that died is never taken for a
whole one.
"""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

UNFINISHED = ".unfinished"


def create(runs_dir: Path, model: str) -> Path:
    """A new `<time>.unfinished` folder for `model`; two runs of one second get different ones."""
    parent = runs_dir / model
    parent.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    number = 1
    while True:
        name = stamp if number == 1 else f"{stamp}-{number}"
        folder = parent / f"{name}{UNFINISHED}"
        if not (parent / name).exists():
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                pass
        number += 1


def finish(folder: Path) -> Path:
    """Flush everything to disk and give the folder its final name, which is returned."""
    for path in folder.rglob("*"):
        _fsync(path)
    _fsync(folder)
    final = folder.with_name(folder.name.removesuffix(UNFINISHED))
    folder.rename(final)
    _fsync(final.parent)
    return final


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented JSON with sorted keys; refuses NaN and infinity, which JSON has not."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def write_history(path: Path, history: Mapping[str, Sequence[float]]) -> None:
    """One line an epoch, one column a figure."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["epoch", *history])
        writer.writerows([epoch, *row] for epoch, row in enumerate(zip(*history.values(), strict=True), start=1))


def write_examples(path: Path, inputs: Mapping[str, npt.NDArray[Any]], rows: int) -> None:
    """The first `rows` rows of every input, named as in the contract."""
    with path.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **{name: array[:rows] for name, array in inputs.items()})


def write_assets(folder: Path, texts: Mapping[str, str]) -> None:
    """The files that a version carries along: name -> text, written as UTF-8."""
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
