"""Where a user's own data lies, and which parts of it are meant: what `train` is told instead of a book data set.

Each kind has a reader of its own in this folder: `picture_folder`, `point_table`, `molecule_table`, `corpus`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PictureFolder:
    """A folder with one folder a class, each with pictures."""

    folder: Path

    @property
    def name(self) -> str:
        """What a model of it is called, unless it is named."""
        return self.folder.resolve().name


@dataclass(frozen=True)
class PointTable:
    """A CSV file of numbers: the columns `x` tell the column `y`."""

    file: Path
    x: tuple[str, ...]
    y: str

    @property
    def name(self) -> str:
        """What a model of it is called, unless it is named."""
        return self.file.stem


@dataclass(frozen=True)
class MoleculeTable:
    """A CSV file of molecules: a column of SMILES, and for each label a column of 1, 0 or nothing."""

    file: Path
    smiles_column: str
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        """What a model of it is called, unless it is named."""
        return self.file.stem


@dataclass(frozen=True)
class Corpus:
    """A text, or three: `valid` and `test` are cut from the end of `train` where they are None."""

    train: Path
    valid: Path | None
    test: Path | None
    vocabulary: int  # words

    @property
    def name(self) -> str:
        """What a model of it is called, unless it is named."""
        return self.train.stem


OwnData = PictureFolder | PointTable | MoleculeTable | Corpus
_KINDS: tuple[type[Any], ...] = (PictureFolder, PointTable, MoleculeTable, Corpus)


def to_json(own: OwnData) -> dict[str, Any]:
    """What a run keeps, so that its data can be read again; paths are absolute."""
    fields = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
    content = {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in fields.items()}
    return {"kind": type(own).__name__, **content}


def from_json(content: Mapping[str, Any]) -> OwnData:
    """The opposite of `to_json`.

    Raises:
        KeyError, TypeError: it was not written by `to_json`.
    """
    kind = {known.__name__: known for known in _KINDS}[content["kind"]]
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = content[field.name]
        if isinstance(value, list):
            value = tuple(value)
        elif field.type in (Path, Path | None) and value is not None:
            value = Path(value)
        values[field.name] = value
    made: OwnData = kind(**values)
    return made
