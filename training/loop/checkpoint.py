"""What a training needs to go on after it was killed: one file in the unfinished run folder, replaced epoch by epoch.

Nothing that an epoch does may depend on what is not in here: rows are ordered and distorted by (seed, epoch, step), see
`batches.py`. Then a training that was killed and went on ends with the figures of one that ran through.
"""

import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.training.errors import TrainingError

Arrays = Mapping[str, npt.NDArray[Any]]
EPOCH, NOTES = "epoch", "notes"


@dataclass(frozen=True)
class Saved:
    """The state after `epoch` complete epochs; `notes` is whatever JSON holds."""

    epoch: int
    arrays: Arrays
    notes: dict[str, Any]


class Checkpoint:
    """The newest saved state of one training, in the file `path`; without one nothing is saved.

    `epoch` counts the complete epochs that were loaded or saved. With `follows` nothing is written: of many hosts only
    the first keeps the state.
    """

    def __init__(self, path: Path | None, follows: bool = False) -> None:
        self.path = path
        self.epoch = 0
        self._follows = follows

    def load(self) -> Saved | None:
        """The newest state, or None where none was saved.

        Raises:
            TrainingError: the file is damaged.
        """
        if self.path is None:
            return None
        try:
            with self.path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
                arrays = dict(content)
            epoch, notes = int(arrays.pop(EPOCH)), json.loads(str(arrays.pop(NOTES)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise TrainingError(
                f"the checkpoint {self.path} is damaged ({error}): train again with --fresh, or delete its folder"
            ) from error
        self.epoch = epoch
        return Saved(epoch, arrays, notes)

    def save(self, epoch: int, arrays: Arrays, notes: Mapping[str, Any]) -> None:
        """Replace the saved state; whenever the machine stops, either the old or the new one is whole on disk.

        Raises:
            OSError: it cannot be written.
        """
        if self.path is None or self._follows:
            self.epoch = epoch
            return
        unfinished = self.path.with_name(self.path.name + ".unfinished")
        head = {EPOCH: np.array(epoch), NOTES: np.array(json.dumps(notes))}
        try:
            with unfinished.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **head, **arrays)
                stream.flush()
                os.fsync(stream.fileno())
            unfinished.replace(self.path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        self.epoch = epoch

    def restore(self, name: str, variables: Iterable[Any], saved: Saved) -> None:
        """Give variables the values that `pack` took from them under `name`.

        Raises:
            TrainingError: they are of another network or optimizer.
        """
        try:
            for variable, value in zip(variables, unpack(name, saved.arrays), strict=True):
                variable.assign(value)
        except (KeyError, ValueError) as error:
            raise TrainingError(
                f"the checkpoint {self.path} is not of this network ({error}): train again with --fresh"
            ) from error

    def delete(self) -> None:
        """Forget the saved state."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


NO_CHECKPOINT = Checkpoint(None)
"""For a training that nobody would go on with."""


def pack(name: str, variables: Iterable[Any]) -> dict[str, npt.NDArray[Any]]:
    """The values of variables or arrays, in their order, under the names `name/0`, `name/1`, ..."""
    return {f"{name}/{number}": np.asarray(variable) for number, variable in enumerate(variables)}


def unpack(name: str, arrays: Arrays) -> list[npt.NDArray[Any]]:
    """What `pack` was given, as arrays."""
    count = sum(key.startswith(f"{name}/") for key in arrays)
    return [arrays[f"{name}/{number}"] for number in range(count)]
