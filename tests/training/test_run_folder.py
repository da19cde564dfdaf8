from pathlib import Path

import numpy as np
import pytest

from bookserve.training import run_folder


def test_a_run_gets_its_name_only_when_it_is_finished(tmp_path: Path) -> None:
    folder = run_folder.create(tmp_path, "mnist")
    (folder / "metrics.json").write_text("{}")
    assert folder.name.endswith(".unfinished")
    final = run_folder.finish(folder)
    assert not folder.exists()
    assert final.name == folder.name.removesuffix(".unfinished")
    assert (final / "metrics.json").exists()


def test_runs_of_one_second_get_different_folders(tmp_path: Path) -> None:
    folders = [run_folder.create(tmp_path, "mnist") for _ in range(3)]
    folders[0] = run_folder.finish(folders[0])
    folders.append(run_folder.create(tmp_path, "mnist"))
    assert len({folder.name.removesuffix(".unfinished") for folder in folders}) == 4


def test_json_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        run_folder.write_json(tmp_path / "metrics.json", {"loss": float("nan")})


def test_history_has_a_line_an_epoch(tmp_path: Path) -> None:
    run_folder.write_history(tmp_path / "history.csv", {"loss": [2.0, 1.5], "val_loss": [2.5, 1.75]})
    assert (tmp_path / "history.csv").read_text().split() == ["epoch,loss,val_loss", "1,2.0,2.5", "2,1.5,1.75"]


def test_examples_keep_type_and_order(tmp_path: Path) -> None:
    rows = np.arange(40, dtype=np.uint8).reshape(10, 4)
    run_folder.write_examples(tmp_path / "examples.npz", {"x": rows}, rows=3)
    with np.load(tmp_path / "examples.npz") as content:
        np.testing.assert_array_equal(content["x"], rows[:3])
        assert content["x"].dtype == np.uint8
