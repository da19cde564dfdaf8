"""What a converter is asked for and what it gives; every file of this folder has the same three names.

`FORMAT` is the name of the format, `recognises(path)` looks at a file without running it, and `convert(path, folder,
wishes)` writes the graphs of a version into `folder`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from bookserve.export import column_values, parity
from bookserve.export.contracts import Contract
from bookserve.export.example_inputs import Table

Rows = Mapping[str, npt.NDArray[Any]]  # tensor -> array
Run = Callable[[Rows], dict[str, npt.NDArray[Any]]]

ONNX = "assets.extra/model.onnx"  # inside the version folder, as the model servers read them
TFLITE = "model.tflite"
SAVED_MODEL = "saved_model.pb"
TENSORFLOW_1 = "saved_model.pb in TensorFlow 1's loader"


@dataclass(frozen=True)
class Wishes:
    """What the user said of the model: its name, whether code in the file may run, and an example file if any."""

    model: str
    trust: bool = False
    example: Path | None = None


@dataclass(frozen=True)
class Converted:
    """A model whose graphs are in the version folder.

    `reference` runs the source by its own library, `graphs` the graphs by theirs: file in the version -> run, `checks`
    the same graphs in other engines, which must answer alike: name -> run. `tables` has the inputs that are looked up
    in a table, with its size or its keys, `columns` the inputs that are tables, with values for each column
    (`column_values.of`). `example` is an input that the source brings. `notes` are lines for the user; `made_with` are
    the libraries that took part; `tolerance` is that of the parity check, `rounded` those of checks that compute in
    fewer bits: name -> tolerance.
    """

    contract: Contract
    reference: Run
    graphs: Mapping[str, Run]
    checks: Mapping[str, Run] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    columns: Mapping[str, column_values.Columns] = field(default_factory=dict)
    example: Rows | None = None
    notes: tuple[str, ...] = ()
    made_with: tuple[str, ...] = ()
    tolerance: float = parity.TOLERANCE
    rounded: Mapping[str, float] = field(default_factory=dict)
    missing: bool = False


class Converter(Protocol):
    """A module of this folder."""

    FORMAT: str
    EXTRA: str  # of bookserve, that brings its library

    def recognises(self, path: Path) -> bool:
        """Whether the file or folder is of this format, by its name and first bytes."""

    def convert(self, path: Path, folder: Path, wishes: Wishes) -> Converted:
        """Write the graphs of the model at `path` into the version folder `folder`.

        Raises:
            ExportError: the model cannot be converted; the message says why.
        """
