import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from book_contracts import CONTRACTS
from bookserve.clients.inputs import molecules
from bookserve.training.datasets import molecule_features as module
from bookserve.training.datasets import molecule_sample
from bookserve.training.datasets.files import DataError

UNREADABLE = "CC(=O)O[AlH3](O)O"  # one of the eight of Tox21
CAGE = "Cl/C=C\\C[N+]12CN3CN(CN(C3)C1)C2"  # whose rings are others in another order of its atoms
METAL = "C[Hg]Cl"  # whose partial charges are no numbers
SMILES = [*molecule_sample.draw(60, 12, seed=0)[0], UNREADABLE, "C[C@H](N)C(=O)O", METAL, "c1ccccc1", CAGE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which deepchem has left the features of SMILES."""
    folder = tmp_path_factory.mktemp("cache") / "tox21"
    module.features(SMILES, folder)
    return folder


@pytest.fixture
def no_deepchem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("deepchem was called")

    monkeypatch.setattr(subprocess, "run", refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("no_deepchem")
def test_deepchem_s_features_are_rdkit_s_which_the_gateway_sends(folder: Path) -> None:
    found = module.features(SMILES, folder)
    assert [array.dtype for array in found.inputs(0).values()] == [np.uint8, np.uint8, np.float32]
    assert [text for text, good in zip(SMILES, found.readable, strict=True) if not good] == [UNREADABLE]
    for row, text in enumerate(SMILES):
        if text == UNREADABLE:
            assert not any(array.any() for array in found.inputs(row).values())
            continue
        said = molecules.features(text, CONTRACTS["tox21"].preprocessing)
        assert list(said) == list(found.inputs(row))
        for name, array in found.inputs(row).items():
            np.testing.assert_allclose(array, said[name], rtol=1e-3, atol=1e-3, err_msg=f"{name} of {text}")
        np.testing.assert_array_equal(found.counts[row, :1024] > 0, found.fingerprints[row] > 0)
    assert np.isfinite(found.descriptors).all()


def test_what_a_served_model_would_not_be_asked_is_no_training_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_deepchem(monkeypatch)
    with pytest.raises(DataError, match="deepchem counts otherwise in CCO than RDKit"):
        module.features(["CCO"], tmp_path)
    assert not list(tmp_path.iterdir())


def fake_deepchem(monkeypatch: pytest.MonkeyPatch, status: int = 0, words: bytes = b"") -> list[bytes]:
    """deepchem's process replaced by one that finds bit 0 in every molecule, once; returns what it was asked."""
    asked = []

    def run(arguments: Sequence[Any], input: bytes, **_: Any) -> subprocess.CompletedProcess[bytes]:
        asked.append(input)
        rows = input.count(b"\n") + 1
        if not status:
            bits = np.zeros((rows, 128), np.uint8)
            bits[:, 0] = 128
            counts = np.zeros((rows, 2 * 1024 + 167), np.uint8)
            values = np.zeros((rows, len(module.NAMES)), np.float32)
            readable = np.ones(rows, bool)
            np.savez_compressed(arguments[-1], bits=bits, counts=counts, descriptors=values, readable=readable)
        return subprocess.CompletedProcess(list(arguments), status, b"", words)

    monkeypatch.setattr(subprocess, "run", run)
    return asked


@pytest.fixture
def not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPARED", 0)


@pytest.mark.usefixtures("not_compared")
def test_other_molecules_are_featurised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_deepchem(monkeypatch)
    for smiles in (["C", "CC"], ["C", "CC"], ["CC", "C"]):
        found = module.features(smiles, tmp_path / "new" / "cache")
        assert found.fingerprints[:, 0].tolist() == [1, 1]
        assert not found.fingerprints[:, 1:].any()
        assert found.readable.all()
    assert asked == [b"C\nCC", b"CC\nC"]
    assert len(list((tmp_path / "new" / "cache").iterdir())) == 2


@pytest.mark.usefixtures("not_compared")
@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", b"nonsense"])
def test_a_damaged_cache_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    asked = fake_deepchem(monkeypatch)
    module.features(["C"], tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert module.features(["C"], tmp_path).fingerprints.sum() == 1
    assert "is damaged and is made anew" in caplog.text
    module.features(["C"], tmp_path)
    assert len(asked) == 2


@pytest.mark.usefixtures("not_compared")
def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_deepchem(monkeypatch)
    (tmp_path / "cache").write_text("a file in the way")
    assert module.features(["C"], tmp_path / "cache" / "tox21").fingerprints.sum() == 1
    assert "the features cannot be kept in" in caplog.text


@pytest.mark.usefixtures("not_compared")
def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    fake_deepchem(monkeypatch)
    monkeypatch.setattr(module.os, "fsync", full)
    assert module.features(["C"], tmp_path / "cache").fingerprints.sum() == 1
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failure_of_deepchem_holds_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_deepchem(monkeypatch, status=1, words=b"chatter\nTraceback\nModuleNotFoundError: No module named 'deepchem'\n")
    with pytest.raises(DataError, match=r"status 1.*No module named 'deepchem'"):
        module.features(["C"], tmp_path)
    assert list(tmp_path.iterdir()) == []
