"""Tox21: 7,831 molecules tested in twelve assays for toxicity, from the CSV file to splits of features.

Source: the Tox21 challenge of 2014 as MoleculeNet (Wu et al., 2018) distributes it; chapters 4 and 5 of the book. An
empty cell means "not measured" and stays NaN all the way to the loss and the figures, which leave it out. The sample
that stands in for it on a closed network is drawn by `molecule_sample`.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold

from bookserve.training.datasets import files, molecule_sample
from bookserve.training.datasets.files import (
    DataError,
    DataFile,
    DataRequest,
    Origin,
    cache_folder,
    combined_sha256,
    obtain,
    sha256_of_arrays,
)
from bookserve.training.datasets.molecule_features import features
from bookserve.training.datasets.splits import Splits

SAMPLE_ROWS = 2_400
SAMPLE_SEED = 4  # the sample is one fixed data set
VALID_FRACTION = 0.1
TEST_FRACTION = 0.1
SplitKind = Literal["random", "scaffold"]

FILES = (
    DataFile(
        name="tox21.csv.gz",
        url="https://deepchemdata.s3-us-west-1.amazonaws.com/datasets/tox21.csv.gz",
        size=0,
        sha256="",
        plain_name="tox21.csv",
        plain_sha256="b1346d5bc675c97c555b372e5845dc7de3b5d04734c290189a4accd77dbd1b43",
    ),
)

_GZIP_MAGIC = b"\x1f\x8b"
_RESULTS = {"": np.nan, "0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}


@dataclass(frozen=True)
class Split:
    """Rows of one split: `inputs` of the model, and `results` float32 [n, 12]: 1, 0 or NaN, not measured.

    Inputs are "fingerprint" uint8 [n, 1024], "counts" uint8 [n, 2215] and "descriptors" float32 [n, 201].
    """

    inputs: dict[str, npt.NDArray[Any]]
    results: npt.NDArray[np.float32]

    @property
    def fingerprints(self) -> npt.NDArray[np.uint8]:
        """The fingerprints."""
        return self.inputs["fingerprint"]

    @property
    def targets(self) -> npt.NDArray[Any]:
        """The results."""
        return self.results


Molecules = Splits[Split]


def at_hand(data_dir: Path | None) -> Path | None:
    """The folder with the files of the data set, if a training would not have to download them."""
    return files.at_hand("tox21", FILES, data_dir)


def load(
    request: DataRequest,
    assays: Sequence[str],
    split_seed: int,
    train_rows: int | None = None,
    kind: SplitKind = "random",
) -> Molecules:
    """Splits of 80, 10 and 10 percent, drawn at random by `split_seed` alone or, without any chance, by scaffold.

    Only `train_rows` of the training rows are kept. Molecules that RDKit cannot read are left out (8 of Tox21's).

    Raises:
        DataError: the file is damaged or foreign, or deepchem fails.
        DataUnavailableError: the real data was asked for and cannot be had.
    """
    paths = obtain("tox21", FILES, request)
    if paths is None:
        smiles, results = molecule_sample.draw(SAMPLE_ROWS, len(assays), SAMPLE_SEED)
        digest = sha256_of_arrays([np.array(smiles), results])
        origin = Origin("sample", "made-up molecules", digest)
    else:
        smiles, results = read_csv(paths[0], assays)
        origin = Origin("real", "tox21", combined_sha256(FILES))
    found = features(smiles, cache_folder("tox21"))
    rows = np.flatnonzero(found.readable)
    if kind == "scaffold":
        parts = [rows[part] for part in scaffold_split([smiles[row] for row in rows], VALID_FRACTION, TEST_FRACTION)]
        order = np.random.default_rng(split_seed).permutation(len(parts[0]))  # so that `train_rows` are of all families
        parts[0] = parts[0][order]
    else:
        order = np.random.default_rng(split_seed).permutation(rows)
        valid, test = int(len(order) * VALID_FRACTION), int(len(order) * TEST_FRACTION)
        parts = np.split(order, [len(order) - valid - test, len(order) - test])
    parts[0] = parts[0][:train_rows]
    train_split, valid_split, test_split = (Split(found.inputs(part), results[part]) for part in parts)
    return Molecules(train_split, valid_split, test_split, origin)


def scaffold_split(
    smiles: Sequence[str], valid_fraction: float, test_fraction: float
) -> tuple[list[int], list[int], list[int]]:
    """The rows of the training, validation and test split: the largest families train, the smallest test.

    A family has one scaffold: rings and what links them (Bemis and Murcko, 1996). A random split puts molecules of one
    series of drugs on both sides; this one does not, and so asks for more.

    Families are taken from the largest to the smallest, of equal ones first the one whose first molecule comes later;
    each goes whole into the first split that has room for it. Nothing is random. `smiles` must all be readable. This is
    deepchem's `ScaffoldSplitter`, to which MoleculeNet's figures belong, without deepchem's ten seconds of import.
    """
    families: dict[str, list[int]] = {}
    with rdBase.BlockLogs():
        for row, text in enumerate(smiles):
            scaffold: str = MurckoScaffold.MurckoScaffoldSmiles(mol=Chem.MolFromSmiles(text))  # type: ignore[no-untyped-call]
            families.setdefault(scaffold, []).append(row)
    train_room = (1 - valid_fraction - test_fraction) * len(smiles)
    valid_room = (1 - test_fraction) * len(smiles)
    train: list[int] = []
    valid: list[int] = []
    test: list[int] = []
    for family in sorted(families.values(), key=lambda rows: (len(rows), rows[0]), reverse=True):
        if len(train) + len(family) <= train_room:
            train += family
        elif len(train) + len(valid) + len(family) <= valid_room:
            valid += family
        else:
            test += family
    return train, valid, test


def read_csv(path: Path, assays: Sequence[str]) -> tuple[list[str], npt.NDArray[np.float32]]:
    """The SMILES and the results float32 [n, assays] of the CSV file, gzip-packed or not.

    Raises:
        DataError: damaged gzip stream, a missing column, or a cell that is neither empty nor 0 nor 1.
    """
    content = path.read_bytes()
    if content.startswith(_GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path} is damaged: its gzip stream cannot be read ({error})") from error
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""))
        missing = [column for column in (*assays, "smiles") if column not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path} is not Tox21: the column {', '.join(missing)} is missing")
        smiles, results = [], []
        for row in reader:
            if not row["smiles"] or row["smiles"].split() != [row["smiles"]]:
                raise DataError(f"{path}, line {reader.line_num}: {row['smiles']!r} is no SMILES")
            smiles.append(row["smiles"])
            results.append([_RESULTS[row[assay]] for assay in assays])
    except KeyError as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error} is no result; 0, 1 or nothing may stand there"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error
    return smiles, np.array(results, np.float32).reshape(len(smiles), len(assays))
