"""Writes a run folder, whose names and files `export/run_format.py` describes, and finds those that were killed."""

import csv
import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export.durable import fsync, fsync_tree
from bookserve.export.run_format import CHECKPOINT, CONFIG, LOCK, METRICS, UNFINISHED

SETTINGS = ("model", "contract", "configuration", "profile", "seed", "mode", "config", "data")  # decide the figures


@dataclass(frozen=True)
class Unfinished:
    """The folder of a run that is under way, which no other process takes as long as `lock` is open."""

    folder: Path
    lock: int

    def finish(self) -> Path:
        """Flush everything to disk and give the folder its final name, which is returned.

        Whenever the machine stops, the run is whole or can be gone on with, and nobody else takes or removes it.
        """
        fsync_tree(self.folder)
        final = self.folder.with_name(self.folder.name.removesuffix(UNFINISHED))
        self.folder.rename(final)
        for name in (CHECKPOINT, LOCK):
            (final / name).unlink(missing_ok=True)
        fsync(final.parent)
        return final

    def close(self) -> None:
        """Let go of the folder; what was saved in it stays."""
        os.close(self.lock)


def begin(runs_dir: Path, model: str, head: Mapping[str, Any]) -> Unfinished:
    """A new folder for a run of `model`, with `head` as its config.json."""
    lock = None
    while lock is None:  # another process that looks for dead runs may have met the folder before it was locked
        folder = create(runs_dir, model)
        lock = _lock(folder)
    write_json(folder / CONFIG, head)
    fsync(folder / CONFIG)
    fsync(folder)
    return Unfinished(folder, lock)


def find(runs_dir: Path, model: str, head: Mapping[str, Any]) -> Unfinished | None:
    """The newest run of the same settings that was killed and has a checkpoint; None where there is none."""
    for folder in sorted((runs_dir / model).glob(f"*{UNFINISHED}"), reverse=True):
        try:
            config = {"mode": "exact"} | json.loads(
                (folder / CONFIG).read_text(encoding="utf-8")
            )  # once there was no other
        except (OSError, ValueError):
            continue  # it died before its head was written
        if any(config.get(name) != _as_json(head[name]) for name in SETTINGS) or not (folder / CHECKPOINT).is_file():
            continue
        lock = _lock(folder)
        if lock is None:
            continue  # that run is alive
        if (folder / CHECKPOINT).is_file():
            return Unfinished(folder, lock)
        os.close(lock)  # it was finished or removed meanwhile
    return None


def names(runs_dir: Path) -> list[str]:
    """The models that have a folder of runs, by name."""
    return sorted(path.name for path in runs_dir.iterdir() if path.is_dir()) if runs_dir.is_dir() else []


def dead(runs_dir: Path, model: str) -> list[Path]:
    """The unfinished runs of `model` in which no process trains any more, oldest first."""
    folders = []
    for folder in sorted((runs_dir / model).glob(f"*{UNFINISHED}")):
        lock = _lock(folder)
        if lock is not None:
            os.close(lock)
            folders.append(folder)
    return folders


def complete(runs_dir: Path, model: str) -> list[Path]:
    """The complete runs of `model`, oldest first; its studies are none."""
    folders = sorted((runs_dir / model).iterdir()) if (runs_dir / model).is_dir() else []
    return [path for path in folders if not path.name.endswith(UNFINISHED) and (path / METRICS).is_file()]


def remove_complete(folder: Path) -> None:
    """Remove a complete run; its metrics first, so that nobody takes what is left for a complete one.

    Raises:
        OSError: it cannot be removed.
    """
    (folder / METRICS).unlink()
    shutil.rmtree(folder)


def remove(folder: Path) -> bool:
    """Remove an unfinished run, unless a process has begun to train in it or finished it; whether it was removed.

    Raises:
        OSError: it cannot be removed.
    """
    lock = _lock(folder)
    if lock is None:
        return False
    try:
        (folder / CHECKPOINT).unlink(missing_ok=True)  # first of all, so that nobody goes on with what is left
        shutil.rmtree(folder)
    finally:
        os.close(lock)
    return True


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
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _lock(folder: Path) -> int | None:
    """The descriptor of the folder's lock, which dies with the process; None where another process holds it, or where
    the folder has been finished or removed.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), (folder / LOCK).stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _as_json(value: Any) -> Any:
    """What reading `value` from a JSON file gives: tuples become lists."""
    return json.loads(json.dumps(value))
