import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import made_up_molecules
import numpy as np
import pytest

from book_contracts import CONTRACTS
from bookserve.training.datasets import tox21
from bookserve.training.datasets.files import DataError, DataRequest
from bookserve.training.datasets.molecule_features import Features

HEAD = ",".join((*CONTRACTS["tox21"].labels, "mol_id", "smiles"))
BENZENES = ["c1ccccc1C", "c1ccccc1CC", "Oc1ccccc1", "Nc1ccccc1", "Clc1ccccc1"]
PYRIDINES = ["c1ccncc1C", "c1ccncc1O"]
SINGLES = ["C1CCCCC1C", "C1CCNCC1C", "c1ccoc1C"]


def table(*lines: str) -> bytes:
    return "\n".join((HEAD, *lines, "")).encode()


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_empty_cells_are_not_measured(tmp_path: Path, pack: type) -> None:
    path = tmp_path / "tox21.csv.gz"
    path.write_bytes(pack(table("0,0,1,,,0,0,1,0,0,0,0,TOX3021,CCO", ",,,,,,,,,,,1.0,TOX1,C=C")))
    smiles, results = tox21.read_csv(path, CONTRACTS["tox21"].labels)
    assert smiles == ["CCO", "C=C"]
    assert results.dtype == np.float32
    np.testing.assert_array_equal(results[0], [0, 0, 1, np.nan, np.nan, 0, 0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(results[1], [np.nan] * 11 + [1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(table(), mtime=0)[:-9], "damaged: its gzip stream"),
        (b"<html>", "the column NR-AR, .*, smiles is missing"),
        (b"", "is missing"),
        (table("0,0,1,,,0,0,1,0,0,0,2,T,CCO"), "line 2: '2' is no result"),
        (table("0,0,1"), "line 2: None is no SMILES"),
        (table("0,0,1,,,0,0,1,0,0,0,0,T,"), "line 2: '' is no SMILES"),
        (table('0,0,1,,,0,0,1,0,0,0,0,T,"C\nC"'), r"line 3: 'C\\nC' is no SMILES"),
        (table("0,\xff").replace(b"\xc3\xbf", b"\xff"), "cannot be read as CSV"),
    ],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tox21.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        tox21.read_csv(path, CONTRACTS["tox21"].labels)
    assert str(path) in str(caught.value)


def numbered(smiles: list[str], folder: Path) -> Features:
    """Fingerprints that spell the row's number; every tenth molecule is unreadable."""
    numbers = np.arange(len(smiles))
    bits = np.zeros((len(smiles), 1024), np.uint8)
    bits[:, :16] = (numbers[:, None] >> np.arange(16)) & 1
    return made_up_molecules.features(bits, numbers % 10 != 9)


def numbers_of(split: tox21.Split) -> list[int]:
    return [int(number) for number in split.fingerprints[:, :16] @ (1 << np.arange(16))]


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two hundred molecules under the official name, whose first result is that of an odd row number."""
    content = table(*(f"{row % 2},,,,,,,,,,,,T,C{'C' * row}" for row in range(200)))
    (tmp_path / "tox21.csv").write_bytes(content)
    file = replace(tox21.FILES[0], plain_sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(tox21, "FILES", (file,))
    monkeypatch.setattr(tox21, "features", numbered)
    return tmp_path


def test_the_split_is_random_whole_and_of_readable_molecules(data_dir: Path) -> None:
    data = tox21.load(DataRequest("real", data_dir), CONTRACTS["tox21"].labels, split_seed=0)
    parts = [numbers_of(split) for split in (data.train, data.valid, data.test)]
    assert [len(part) for part in parts] == [144, 18, 18]
    assert sorted(number for part in parts for number in part) == [number for number in range(200) if number % 10 != 9]
    assert parts[0] != sorted(parts[0])
    assert max(parts[2]) - min(parts[2]) > 90
    for split, part in zip((data.train, data.valid, data.test), parts, strict=True):
        np.testing.assert_array_equal(split.results[:, 0], np.array(part) % 2)
        assert np.isnan(split.results[:, 1:]).all()
    assert data.origin.source == "real"


def test_the_split_seed_alone_decides_the_split(data_dir: Path) -> None:
    request = DataRequest("real", data_dir)
    first, few, other = (
        tox21.load(request, CONTRACTS["tox21"].labels, seed, rows) for seed, rows in ((0, None), (0, 50), (1, None))
    )
    assert numbers_of(first.train)[:50] == numbers_of(few.train)
    assert numbers_of(first.test) == numbers_of(few.test)
    assert numbers_of(first.test) != numbers_of(other.test)


def test_the_sample_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tox21, "SAMPLE_ROWS", 100)
    monkeypatch.setattr(tox21, "features", numbered)
    data = tox21.load(DataRequest("sample"), CONTRACTS["tox21"].labels, split_seed=0)
    assert (data.origin.source, data.origin.name) == ("sample", "made-up molecules")
    assert data.examples["fingerprint"].shape == (9, 1024)


def test_families_stay_together_and_the_largest_train() -> None:
    smiles = [SINGLES[0], *PYRIDINES, *BENZENES, *SINGLES[1:]]
    train, valid, test = tox21.scaffold_split(smiles, 0.2, 0.1)
    assert train == [3, 4, 5, 6, 7, 1, 2]
    assert valid == [9, 8]  # of families of one size the later ones first, as deepchem has it
    assert test == [0]


def test_a_family_without_room_goes_on_whole() -> None:
    train, valid, test = tox21.scaffold_split([*BENZENES, *PYRIDINES], 0.1, 0.3)
    assert train == [5, 6]
    assert valid == []
    assert test == [0, 1, 2, 3, 4]


def test_molecules_without_a_ring_are_one_family() -> None:
    assert tox21.scaffold_split(["CC", "CCO", "CCN", "c1ccccc1"], 0.25, 0.0)[0] == [0, 1, 2]
