import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator

from bookserve.training.datasets import fingerprints as module
from bookserve.training.datasets import molecule_sample
from bookserve.training.datasets.files import DataError

UNREADABLE = "CC(=O)O[AlH3](O)O"  # one of the eight of Tox21
SMILES = [*molecule_sample.draw(60, 12, seed=0)[0], UNREADABLE, "C[C@H](N)C(=O)O", "[Na+].[Cl-]", "c1ccccc1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which deepchem has left the fingerprints of SMILES."""
    folder = tmp_path_factory.mktemp("cache") / "tox21"
    module.fingerprints(SMILES, folder)
    return folder


@pytest.fixture
def no_deepchem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("deepchem was called")

    monkeypatch.setattr(subprocess, "run", refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("no_deepchem")
def test_deepchem_s_fingerprints_are_rdkit_s_which_the_gateway_sends(folder: Path) -> None:
    bits, readable = module.fingerprints(SMILES, folder)
    assert bits.dtype == np.uint8
    assert bits.shape == (len(SMILES), 1024)
    assert [text for text, good in zip(SMILES, readable, strict=True) if not good] == [UNREADABLE]
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    for text, row, good in zip(SMILES, bits, readable, strict=True):
        if good:
            np.testing.assert_array_equal(row, generator.GetFingerprintAsNumPy(Chem.MolFromSmiles(text)))
    assert not bits[~readable].any()


def fake_deepchem(monkeypatch: pytest.MonkeyPatch, status: int = 0, words: bytes = b"") -> list[bytes]:
    """deepchem's process replaced by one that finds bit 0 in every molecule; returns what it was asked."""
    asked = []

    def run(arguments: Sequence[Any], input: bytes, **_: Any) -> subprocess.CompletedProcess[bytes]:
        asked.append(input)
        rows = input.count(b"\n") + 1
        if not status:
            bits = np.zeros((rows, 128), np.uint8)
            bits[:, 0] = 128
            np.savez_compressed(arguments[-1], bits=bits, readable=np.ones(rows, bool))
        return subprocess.CompletedProcess(list(arguments), status, b"", words)

    monkeypatch.setattr(subprocess, "run", run)
    return asked


def test_other_molecules_are_featurised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_deepchem(monkeypatch)
    for smiles in (["C", "CC"], ["C", "CC"], ["CC", "C"]):
        bits, readable = module.fingerprints(smiles, tmp_path / "new" / "cache")
        assert bits[:, 0].tolist() == [1, 1]
        assert not bits[:, 1:].any()
        assert readable.all()
    assert asked == [b"C\nCC", b"CC\nC"]
    assert len(list((tmp_path / "new" / "cache").iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", b"nonsense"])
def test_a_damaged_cache_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    asked = fake_deepchem(monkeypatch)
    module.fingerprints(["C"], tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert module.fingerprints(["C"], tmp_path)[0].sum() == 1
    assert "is damaged and is made anew" in caplog.text
    module.fingerprints(["C"], tmp_path)
    assert len(asked) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_deepchem(monkeypatch)
    (tmp_path / "cache").write_text("a file in the way")
    assert module.fingerprints(["C"], tmp_path / "cache" / "tox21")[0].sum() == 1
    assert "the fingerprints cannot be kept in" in caplog.text


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    fake_deepchem(monkeypatch)
    monkeypatch.setattr(module.os, "fsync", full)
    assert module.fingerprints(["C"], tmp_path / "cache")[0].sum() == 1
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failure_of_deepchem_holds_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_deepchem(monkeypatch, status=1, words=b"chatter\nTraceback\nModuleNotFoundError: No module named 'deepchem'\n")
    with pytest.raises(DataError, match=r"status 1.*No module named 'deepchem'"):
        module.fingerprints(["C"], tmp_path)
    assert list(tmp_path.iterdir()) == []
