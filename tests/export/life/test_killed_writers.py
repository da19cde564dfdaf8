"""A store is as before or as after a change, whenever its writer is killed or the disk is full.

The writers, and how they are killed: tests/support/killed_writers.py.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import killed_writers
from bookserve.export.errors import StoreError
from bookserve.export.life import archive
from bookserve.export.store import ModelStore


def run(*arguments: object) -> dict[str, Any]:
    words = [sys.executable, killed_writers.__file__, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("how", ["kill", "full"])
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 11])
def test_at_every_step_the_store_is_before_or_after(tmp_path: Path, how: str, every: int) -> None:
    told = run(how, tmp_path, every)
    assert told["wrong"] == []
    assert set(told["steps"]) == set(killed_writers.actions(tmp_path))
    if how == "kill" and every == 1:
        assert min(told["steps"].values()) > 10


def test_writers_at_once_and_killed_leave_whole_versions_and_one_truth(tmp_path: Path) -> None:
    told = run("at-once", tmp_path, 1)
    assert told["wrong"] == []
    assert told["left"] == []
    assert told["told"]
    assert len(told["versions"]) > 2


def test_a_file_that_the_disk_has_no_room_for_changes_nothing(
    store: ModelStore, tmp_path: Path, publish: Callable[..., object]
) -> None:
    """The system's own limit, so that the write itself fails, and not the call that opens the file."""
    other = ModelStore(tmp_path / "other")
    archive.pack(store, "score", 2, tmp_path / "score.tar.gz")
    whole = (tmp_path / "score.tar.gz").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(StoreError, match="File too large"):
            archive.unpack(other, tmp_path / "score.tar.gz")
        with pytest.raises(StoreError, match="File too large"):
            archive.pack(store, "score", 1, tmp_path / "score.tar.gz")
        with pytest.raises(StoreError, match="File too large"):
            store.label("score", "stable", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert other.models() == []
    assert not (other.root / "score").exists()
    assert (tmp_path / "score.tar.gz").read_bytes() == whole
    assert not list(tmp_path.glob(".score*"))
    assert store.release("score").labels == {}
    assert not list(store.root.glob(".models.config-*"))
