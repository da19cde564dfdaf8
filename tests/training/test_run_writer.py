import os
from pathlib import Path

import numpy as np
import pytest

from bookserve.export import durable
from bookserve.training import run_writer

HEAD = {
    "model": "mnist",
    "contract": "mnist/1",
    "configuration": "standard",
    "profile": "smoke",
    "seed": 0,
    "mode": "exact",
    "config": {"epochs": 1, "hidden": (16, 8)},
    "data": {"source": "sample"},
    "started": "2026-01-02T03:04:05+00:00",
}


def test_a_run_gets_its_name_only_when_it_is_finished(tmp_path: Path) -> None:
    run = run_writer.begin(tmp_path, "mnist", HEAD)
    (run.folder / "checkpoint.npz").write_text("state")
    assert run.folder.name.endswith(".unfinished")
    final = run.finish()
    assert not run.folder.exists()
    assert final.name == run.folder.name.removesuffix(".unfinished")
    assert {path.name for path in final.iterdir()} == {"config.json"}
    run.close()


def test_runs_of_one_second_get_different_folders(tmp_path: Path) -> None:
    runs = [run_writer.begin(tmp_path, "mnist", HEAD) for _ in range(3)]
    runs[0].finish()
    runs.append(run_writer.begin(tmp_path, "mnist", HEAD))
    assert len({run.folder.name.removesuffix(".unfinished") for run in runs}) == 4
    for run in runs:
        run.close()


def test_a_dead_run_of_the_same_settings_is_found(tmp_path: Path) -> None:
    assert run_writer.find(tmp_path, "mnist", HEAD) is None
    dead = run_writer.begin(tmp_path, "mnist", HEAD)
    (dead.folder / "checkpoint.npz").write_text("state")
    assert run_writer.find(tmp_path, "mnist", HEAD) is None, "it is alive"
    dead.close()
    others = {"seed": 1, "mode": "fast", "profile": "full", "config": {"epochs": 2}, "data": {"source": "real"}}
    for name, other in others.items():
        assert run_writer.find(tmp_path, "mnist", HEAD | {name: other}) is None, name
    found = run_writer.find(tmp_path, "mnist", HEAD | {"started": "later"})
    assert found is not None
    assert found.folder == dead.folder
    found.close()


def test_a_dead_run_from_before_there_were_modes_is_an_exact_one(tmp_path: Path) -> None:
    dead = run_writer.begin(tmp_path, "mnist", {name: value for name, value in HEAD.items() if name != "mode"})
    (dead.folder / "checkpoint.npz").write_text("state")
    dead.close()
    assert run_writer.find(tmp_path, "mnist", HEAD | {"mode": "fast"}) is None
    found = run_writer.find(tmp_path, "mnist", HEAD)
    assert found is not None
    found.close()


def test_a_dead_run_without_a_checkpoint_or_a_head_is_left_alone(tmp_path: Path) -> None:
    early = run_writer.begin(tmp_path, "mnist", HEAD)
    early.close()
    (tmp_path / "mnist" / "20260102-030405.unfinished").mkdir()
    assert run_writer.find(tmp_path, "mnist", HEAD) is None


def test_dead_runs_are_those_that_no_process_holds(tmp_path: Path) -> None:
    first, second = run_writer.begin(tmp_path, "mnist", HEAD), run_writer.begin(tmp_path, "mnist", HEAD)
    complete = run_writer.begin(tmp_path, "mnist", HEAD)
    complete.finish()
    complete.close()
    assert run_writer.dead(tmp_path, "mnist") == run_writer.dead(tmp_path, "ptb") == []
    second.close()
    assert run_writer.dead(tmp_path, "mnist") == [second.folder]
    first.close()
    assert run_writer.dead(tmp_path, "mnist") == sorted([first.folder, second.folder])


def test_a_run_that_is_being_finished_is_neither_taken_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_writer.begin(tmp_path, "mnist", HEAD)
    (run.folder / "checkpoint.npz").write_text("state")
    seen = []
    flush = durable.fsync

    def look_and_flush(path: Path) -> None:
        seen.append((run_writer.dead(tmp_path, "mnist"), run_writer.find(tmp_path, "mnist", HEAD)))
        assert (run.folder / "checkpoint.npz").exists() or path == tmp_path / "mnist"  # where it has its name
        flush(path)

    monkeypatch.setattr(durable, "fsync", look_and_flush)
    monkeypatch.setattr(run_writer, "fsync", look_and_flush)
    final = run.finish()
    assert set(map(str, seen)) == {"([], None)"}
    assert {path.name for path in final.iterdir()} == {"config.json"}
    run.close()


def test_a_folder_that_another_process_met_too_early_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, met = run_writer.create, []

    def met_at_once(runs_dir: Path, model: str) -> Path:
        folder = create(runs_dir, model)
        if not met:
            met.append(run_writer._lock(folder))
        elif len(met) == 1:
            met.append(folder)
            folder.rmdir()
        return folder

    monkeypatch.setattr(run_writer, "create", met_at_once)
    run = run_writer.begin(tmp_path, "mnist", HEAD)
    assert (run.folder / "config.json").is_file()
    assert len(list((tmp_path / "mnist").iterdir())) == 2
    assert run_writer.dead(tmp_path, "mnist") == []
    run.close()
    os.close(met[0])


def test_only_a_run_without_a_process_is_removed(tmp_path: Path) -> None:
    run = run_writer.begin(tmp_path, "mnist", HEAD)
    assert not run_writer.remove(run.folder)
    final = run.finish()
    run.close()
    assert not run_writer.remove(run.folder)
    assert (final / "config.json").is_file()
    assert list(final.iterdir()) == [final / "config.json"]
    dead = run_writer.begin(tmp_path, "mnist", HEAD)
    dead.close()
    assert run_writer.remove(dead.folder)
    assert not dead.folder.exists()


def test_json_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        run_writer.write_json(tmp_path / "metrics.json", {"loss": float("nan")})


def test_history_has_a_line_an_epoch(tmp_path: Path) -> None:
    run_writer.write_history(tmp_path / "history.csv", {"loss": [2.0, 1.5], "val_loss": [2.5, 1.75]})
    assert (tmp_path / "history.csv").read_text().split() == ["epoch,loss,val_loss", "1,2.0,2.5", "2,1.5,1.75"]


def test_examples_keep_type_and_order(tmp_path: Path) -> None:
    rows = np.arange(40, dtype=np.uint8).reshape(10, 4)
    run_writer.write_examples(tmp_path / "examples.npz", {"x": rows}, rows=3)
    with np.load(tmp_path / "examples.npz") as content:
        np.testing.assert_array_equal(content["x"], rows[:3])
        assert content["x"].dtype == np.uint8
