import logging
from collections.abc import Sequence
from pathlib import Path

import made_up_molecules
import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator

from bookserve.training.datasets import molecule_sample, molecule_table
from bookserve.training.datasets.files import DataError
from bookserve.training.datasets.molecule_features import Features
from bookserve.training.datasets.own_data import MoleculeTable
from bookserve.training.datasets.tox21 import Molecules


@pytest.fixture(autouse=True)
def quick_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """RDKit's fingerprints instead of deepchem's features, which take ten seconds to start."""

    def features(smiles: Sequence[str], folder: Path) -> Features:
        generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
        rows = [generator.GetFingerprintAsNumPy(Chem.MolFromSmiles(text)) for text in smiles]
        return made_up_molecules.features(np.array(rows))

    monkeypatch.setattr(molecule_table, "features", features)


def write(path: Path, rows: Sequence[Sequence[str]]) -> MoleculeTable:
    lines = ["name,structure,liver,skin", *(",".join(["x", *row]) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return MoleculeTable(path, "structure", ("liver", "skin"))


def made_up(count: int) -> list[list[str]]:
    smiles, _ = molecule_sample.draw(count, 1, seed=3)
    return [[text, "01"[number % 2], ("1", "0", "")[number % 3]] for number, text in enumerate(smiles)]


def read(own: MoleculeTable, seed: int = 0, train_rows: int | None = None) -> Molecules:
    return molecule_table.read(own, seed, "random", train_rows)


def test_missing_labels_stay_missing_and_are_counted(tmp_path: Path) -> None:
    data = read(write(tmp_path / "assays.csv", made_up(60)))
    card = data.card(data.labels)
    assert card.rows == {"train": 48, "valid": 6, "test": 6}
    assert sum(missing["skin"] for missing in card.missing.values()) == 20
    assert sum(active["skin"] for active in card.classes.values()) == 20
    assert {missing["liver"] for missing in card.missing.values()} == {0}
    assert data.train.fingerprints.shape == (48, 1024)
    assert data.left_out == ()


def test_what_is_no_molecule_or_stands_there_twice_is_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        *made_up(40),
        ["c1ccccc1O", "1", ""],  # line 42: phenol
        ["Oc1ccccc1", "1", "0"],  # again, with the label that was missing
        ["C1=CC=CC=C1O", "0", ""],  # again, differing in the other
        ["C1CC", "1", "0"],
        ["no molecule", "1", "0"],
        ["", "1", "0"],
        ["C" * 1_001, "1", "0"],
        ["C" * 501, "1", "0"],
        ["C" * 500, "1", "0"],
        ["[C", "1", "0"],
        ["CÖ", "1", "0"],
    ]
    with caplog.at_level(logging.WARNING):
        data = read(write(tmp_path / "assays.csv", rows))
    assert data.left_out == (
        "line 43: 'Oc1ccccc1' is the molecule of line 42",
        "line 44: 'C1=CC=CC=C1O' is the molecule of line 42, and differs from it in liver",
        "line 45: 'C1CC' is no molecule that RDKit can read",
        "line 46: 'no molecule' is no SMILES: it has blanks, control characters or letters beyond ASCII",
        "line 47: '' is no molecule",
        f"line 48: '{'C' * 40}…' has 1001 characters, more than 1000",
        f"line 49: '{'C' * 40}…' has 501 atoms, more than 500",
        "line 51: '[C' is no molecule that RDKit can read",
        "line 52: 'CÖ' is no SMILES: it has blanks, control characters or letters beyond ASCII",
    )
    assert "9 rows are left out" in caplog.text
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    phenol = generator.GetFingerprintAsNumPy(Chem.MolFromSmiles("c1ccccc1O"))
    everything = [(part.fingerprints, part.results) for part in (data.train, data.valid, data.test)]
    (found,) = [results[(bits == phenol).all(axis=1)] for bits, results in everything if (bits == phenol).all(1).any()]
    assert np.array_equal(found, [[np.nan, 0.0]], equal_nan=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["CCO", "2", "0"]], "line 2: 'liver' is '2': 1, 0 or nothing, for not measured, may stand there"),
        ([["CCO", "1", "active"]], "line 2: 'skin' is 'active'"),
        (made_up(29), "has 29 different molecules in its column 'structure'; 30 at least are needed"),
        ([["C", "1", "0"]] * 60, "has 1 different molecules in its column 'structure'; 30 at least are needed"),
        (
            [[text, "1", "0"] for text, *_ in made_up(40)],
            "the label 'liver' is 1 for 40 molecules, 0 for 0 and missing for 0",
        ),
        (
            [[text, "", ""] for text, *_ in made_up(40)],
            "the label 'liver' is 1 for 0 molecules, 0 for 0 and missing for 40",
        ),
    ],
)
def test_a_table_that_cannot_be_learnt_says_why(tmp_path: Path, rows: list[list[str]], message: str) -> None:
    with pytest.raises(DataError) as error:
        read(write(tmp_path / "assays.csv", rows))
    assert message in str(error.value)


def test_thirty_molecules_are_enough(tmp_path: Path) -> None:
    assert read(write(tmp_path / "assays.csv", made_up(30)), train_rows=10).card(("liver", "skin")).rows["train"] == 10


def test_a_label_that_is_always_the_same_in_training_asks_for_another_draw(tmp_path: Path) -> None:
    rows = [[text, "01"[number % 2], "1" if number < 3 else "0"] for number, (text, *_) in enumerate(made_up(40))]
    own = write(tmp_path / "assays.csv", rows)
    assert (read(own, 0, train_rows=12).train.results[:, 1] == 1).any()
    with pytest.raises(DataError, match="drawn by seed 8 are all alike in 'skin': draw others with --seed"):
        read(own, 8, train_rows=12)


def test_one_rare_label_is_in_every_split(tmp_path: Path) -> None:
    rows = [[text, "1" if number < 3 else "0", ""] for number, (text, *_) in enumerate(made_up(60))]
    own = MoleculeTable(write(tmp_path / "assays.csv", rows).file, "structure", ("liver",))
    counts = read(own).card(own.labels).classes
    assert {split: active["liver"] for split, active in counts.items()} == {"train": 1, "valid": 1, "test": 1}


def test_a_column_that_is_structure_and_label(tmp_path: Path) -> None:
    own = write(tmp_path / "assays.csv", made_up(40))
    with pytest.raises(DataError, match="'structure' is both the column of SMILES and a label"):
        read(MoleculeTable(own.file, "structure", ("liver", "structure")))
    with pytest.raises(
        DataError, match=r"has no column 'eye'; its first line names 'name', 'structure', 'liver', 'skin'"
    ):
        read(MoleculeTable(own.file, "structure", ("liver", "eye")))
