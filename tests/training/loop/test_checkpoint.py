from pathlib import Path

import numpy as np
import pytest

from bookserve.training.errors import TrainingError
from bookserve.training.loop.checkpoint import NO_CHECKPOINT, Checkpoint, pack, unpack


def test_what_was_saved_last_comes_back(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz")
    assert checkpoint.load() is None
    weights = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7, np.int64), np.array([True, False])]
    for epoch in (1, 2):
        checkpoint.save(epoch, pack("weights", weights), {"history": {"loss": [0.5] * epoch}})
    saved = checkpoint.load()
    assert saved is not None
    assert saved.epoch == 2
    assert saved.notes == {"history": {"loss": [0.5, 0.5]}}
    for value, original in zip(unpack("weights", saved.arrays), weights, strict=True):
        np.testing.assert_array_equal(value, original)
        assert value.dtype == original.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]


def test_more_than_ten_arrays_keep_their_order() -> None:
    numbers = [np.array(number) for number in range(12)]
    assert unpack("n", pack("n", numbers)) == numbers


def test_a_save_that_fails_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz")
    checkpoint.save(1, {"a": np.ones(3)}, {})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(2, {"a": np.zeros(3)}, {})
    saved = checkpoint.load()
    assert saved is not None
    assert saved.epoch == checkpoint.epoch == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]


def test_a_host_that_follows_keeps_nothing(tmp_path: Path) -> None:
    follower = Checkpoint(tmp_path / "checkpoint.npz", follows=True)
    follower.save(3, {"a": np.ones(3)}, {})
    assert follower.epoch == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a checkpoint"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"checkpoint\.npz is damaged .*--fresh"):
        Checkpoint(path).load()


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz")
    checkpoint.save(1, {"a": np.ones(1000)}, {})
    whole = (tmp_path / "checkpoint.npz").read_bytes()
    (tmp_path / "checkpoint.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match="is damaged"):
        checkpoint.load()


def test_without_a_file_nothing_is_saved() -> None:
    NO_CHECKPOINT.save(1, {}, {})
    assert NO_CHECKPOINT.load() is None
    NO_CHECKPOINT.delete()
