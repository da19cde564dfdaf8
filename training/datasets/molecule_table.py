"""A user's own molecules, from a CSV file with SMILES and labels to splits of features.

A label is 1, 0 or nothing, which means not measured. Rows whose SMILES are no molecule are left out and said with their
lines; rows of one molecule, by its InChIKey, become one.
"""

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rdkit import Chem, rdBase

from bookserve.training.datasets import table
from bookserve.training.datasets.files import DataError, Origin, cache_folder, sha256_of
from bookserve.training.datasets.molecule_features import features
from bookserve.training.datasets.own_data import MoleculeTable
from bookserve.training.datasets.splits import divide
from bookserve.training.datasets.tox21 import Molecules, Split, SplitKind, scaffold_split

logger = logging.getLogger(__name__)

LEAST_MOLECULES = 30
LEAST_OF_VALUE = 3  # rows of a label that are 1, and rows that are 0
MAX_CHARACTERS = 1_000  # of a SMILES, as when it is served
MAX_ATOMS = 500  # of a molecule, as when it is served
MAX_LABELS = 1_000
TOLD = 10  # rows that a message names
_VALUES = {"": np.nan, "0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "nan": np.nan, "na": np.nan}
_VALUES |= {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}


@dataclass(frozen=True)
class _Rows:
    """Molecules, each once: SMILES, and float32 [n, labels] of 1, 0 and NaN; and what is left out."""

    smiles: list[str]
    results: npt.NDArray[np.float32]
    left_out: tuple[str, ...]


def read(own: MoleculeTable, seed: int, kind: SplitKind, train_rows: int | None) -> Molecules:
    """The splits, 80, 10 and 10 percent, drawn by the seed or by scaffold; `train_rows` of the training rows are kept.

    Raises:
        DataError: as `table.read`; a label is neither 1 nor 0 nor empty, there are less than 30 molecules, or a label
            has less than three ones or less than three zeros.
    """
    rows = _read(own)
    _tell(own, rows.left_out)
    _check(own, rows)
    found = features(rows.smiles, cache_folder("own"))
    if not found.readable.all():
        raise DataError(f"deepchem cannot read {rows.smiles[int(np.argmin(found.readable))]!r}, which RDKit can")
    if kind == "scaffold":
        parts = [np.array(part, np.int64) for part in scaffold_split(rows.smiles, 0.1, 0.1)]
        parts[0] = np.random.default_rng(seed).permutation(parts[0])
        division = "80, 10 and 10 percent by scaffold"
    else:
        # one label is divided by its values; of many, `_check_training` says when chance left none of a value
        values = np.nan_to_num(rows.results[:, 0]).astype(np.int64) if len(own.labels) == 1 else None
        parts = list(divide(len(rows.smiles), seed, values))
        division = f"80, 10 and 10 percent, drawn by seed {seed}"
    parts[0] = parts[0][:train_rows]
    _check_training(own, rows.results[parts[0]], seed)
    train, valid, test = (Split(found.inputs(part), rows.results[part]) for part in parts)
    origin = Origin("own", own.file.name, sha256_of(own.file))
    division += "; each molecule once, by its InChIKey"
    return Molecules(
        train, valid, test, origin, labels=own.labels, columns=(), left_out=rows.left_out, division=division
    )


def _read(own: MoleculeTable) -> _Rows:
    """Every molecule once.

    Raises:
        DataError: as `read`.
    """
    if len(own.labels) > MAX_LABELS:
        raise DataError(f"{len(own.labels):,} labels are too many: at most {MAX_LABELS:,} are learnt together")
    if own.smiles_column in own.labels:
        raise DataError(f"'{own.smiles_column}' is both the column of SMILES and a label: leave it out of the labels")
    content = table.read(own.file, (own.smiles_column, *own.labels))
    results = _results(own, content)
    first: dict[str, int] = {}  # InChIKey -> its place in `smiles`
    lines: list[int] = []
    smiles: list[str] = []
    kept: list[npt.NDArray[np.float32]] = []
    left_out = []
    with rdBase.BlockLogs():
        for cells, line, values in zip(content.rows, content.lines, results, strict=True):
            key, reason = _key(cells[0])
            if reason:
                left_out.append(f"line {line}: {table.shown(cells[0])} {reason}")
            elif key in first:
                place = first[key]
                kept[place], differ = _joined(kept[place], values)
                told = f", and differs from it in {', '.join(np.array(own.labels)[differ])}" if differ.any() else ""
                left_out.append(f"line {line}: {table.shown(cells[0])} is the molecule of line {lines[place]}{told}")
            else:
                first[key] = len(smiles)
                smiles.append(cells[0])
                lines.append(line)
                kept.append(values)
    return _Rows(smiles, np.array(kept, np.float32).reshape(len(smiles), len(own.labels)), tuple(left_out))


def _results(own: MoleculeTable, content: table.Table) -> npt.NDArray[np.float32]:
    """The labels' cells as 1, 0 and NaN, float32 [n, labels].

    Raises:
        DataError: a cell is something else; the message names the first ones.
    """
    results = np.empty((len(content.rows), len(own.labels)), np.float32)
    faults = []
    for place, (cells, line) in enumerate(zip(content.rows, content.lines, strict=True)):
        for label, cell in enumerate(cells[1:]):
            value = _VALUES.get(cell.lower())
            if value is None:
                faults.append(f"line {line}: '{own.labels[label]}' is {table.shown(cell)}")
            else:
                results[place, label] = value
    if faults:
        more = f"; and {len(faults) - TOLD} more" if len(faults) > TOLD else ""
        raise DataError(
            f"{own.file}, {'; '.join(faults[:TOLD])}{more}: 1, 0 or nothing, for not measured, may stand there"
        )
    return results


def _key(smiles: str) -> tuple[str, str]:
    """The InChIKey of a molecule, or why it has none."""
    if not smiles:
        return "", "is no molecule"
    if len(smiles) > MAX_CHARACTERS:
        return "", f"has {len(smiles)} characters, more than {MAX_CHARACTERS}"
    if not smiles.isascii() or not smiles.isprintable() or " " in smiles:
        return "", "is no SMILES: it has blanks, control characters or letters beyond ASCII"
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        return "", "is no molecule that RDKit can read"
    if molecule.GetNumAtoms() > MAX_ATOMS:
        return "", f"has {molecule.GetNumAtoms()} atoms, more than {MAX_ATOMS}"
    key: str = Chem.MolToInchiKey(molecule)  # type: ignore[no-untyped-call]
    return key or Chem.MolToSmiles(molecule), ""


def _joined(
    before: npt.NDArray[np.float32], more: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The labels of two rows of one molecule, float32 [labels], NaN where they differ; and bool [labels], where."""
    joined = np.where(np.isnan(before), more, before)
    differ = ~np.isnan(before) & ~np.isnan(more) & (before != more)
    return np.where(differ, np.float32(np.nan), joined).astype(np.float32), differ


def _tell(own: MoleculeTable, left_out: tuple[str, ...]) -> None:
    if left_out:
        more = f"\n  and {len(left_out) - TOLD} more" if len(left_out) > TOLD else ""
        listed = "".join(f"\n  {line}" for line in left_out[:TOLD])
        logger.warning("%s: %d rows are left out:%s%s", own.file, len(left_out), listed, more)


def _check(own: MoleculeTable, rows: _Rows) -> None:
    if len(rows.smiles) < LEAST_MOLECULES:
        because = f"; {len(rows.left_out)} rows are left out, such as {rows.left_out[0]}" if rows.left_out else ""
        raise DataError(
            f"{own.file} has {len(rows.smiles)} different molecules in its column '{own.smiles_column}'; "
            f"{LEAST_MOLECULES} at least are needed to train, validate and test{because}"
        )
    for label, values in zip(own.labels, rows.results.T, strict=True):
        ones, zeros = int((values == 1).sum()), int((values == 0).sum())
        if min(ones, zeros) < LEAST_OF_VALUE:
            raise DataError(
                f"{own.file}: the label '{label}' is 1 for {ones} molecules, 0 for {zeros} and missing for "
                f"{len(values) - ones - zeros}; of 1 and of 0 {LEAST_OF_VALUE} at least are needed"
            )


def _check_training(own: MoleculeTable, results: npt.NDArray[np.float32], seed: int) -> None:
    for label, values in zip(own.labels, results.T, strict=True):
        if not (values == 1).any() or not (values == 0).any():
            raise DataError(
                f"{own.file}: the {len(values)} training molecules drawn by seed {seed} are all alike in '{label}': "
                "draw others with --seed, or give more molecules"
            )
