import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from rich.console import Console

from bookserve.training import run, run_folder
from bookserve.training.datasets.files import DataRequest
from bookserve.training.errors import TrainingError
from bookserve.training.models import MODELS, PROFILES, mnist

SAMPLE = DataRequest("sample")


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


@pytest.mark.usefixtures("tiny_mnist")
def test_a_run_leaves_everything_that_export_needs(tmp_path: Path, console: Console) -> None:
    result = run.train_model("mnist", "smoke", SAMPLE, tmp_path, 3, console)
    assert result.folder.parent == tmp_path / "mnist"
    assert {path.name for path in result.folder.iterdir()} == {
        "config.json",
        "examples.npz",
        "history.csv",
        "metrics.json",
        "model.keras",
        "report",
        "tensorboard",
    }
    config = json.loads((result.folder / "config.json").read_text())
    assert (config["model"], config["contract"], config["profile"], config["seed"]) == ("mnist", "mnist/1", "smoke", 3)
    assert config["config"]["epochs"] == 2
    assert config["data"]["source"] == "sample"
    assert len(config["data"]["sha256"]) == 64
    assert json.loads((result.folder / "metrics.json").read_text()) == result.metrics
    assert set(result.metrics) == {"train", "valid", "test"}
    rows = list(csv.DictReader((result.folder / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert math.isfinite(float(rows[1]["val_loss"]))
    assert {path.name for path in (result.folder / "report").iterdir()} == {"confusion.png", "curves.png"}
    assert list((result.folder / "tensorboard").rglob("events.out.tfevents.*"))
    with np.load(result.folder / "examples.npz") as examples:
        assert examples["images"].shape == (60, 28, 28)


@pytest.mark.usefixtures("tiny_mnist")
def test_the_seed_decides_the_figures(tmp_path: Path, console: Console) -> None:
    first, again, other = (
        run.train_model("mnist", "smoke", SAMPLE, tmp_path, seed, console).metrics for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.usefixtures("tiny_mnist")
def test_a_loss_that_is_no_number_is_an_error_and_leaves_no_run(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = mnist.Config(epochs=2, batch=32, filters_1=4, filters_2=4, hidden=8, learning_rate=1e30)
    monkeypatch.setitem(mnist.PROFILES, "smoke", wild)
    with pytest.raises(TrainingError, match=r"the loss became .* in epoch 1: .* Lower the learning rate"):
        run.train_model("mnist", "smoke", SAMPLE, tmp_path, 0, console)
    assert [path.suffix for path in (tmp_path / "mnist").iterdir()] == [run_folder.UNFINISHED]


@pytest.mark.usefixtures("tiny_mnist")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, console: Console) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(TrainingError, match=r"cannot write the run of mnist below .*/runs: "):
        run.train_model("mnist", "smoke", SAMPLE, tmp_path / "runs", 0, console)


@pytest.mark.usefixtures("tiny_mnist")
def test_a_full_disk_is_named(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "write_examples", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        run.train_model("mnist", "smoke", SAMPLE, tmp_path, 0, console)
    assert [path.suffix for path in (tmp_path / "mnist").iterdir()] == [run_folder.UNFINISHED]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_the_skeleton(name: str) -> None:
    module = run.book_model(name)
    assert name == module.CONTRACT.model
    assert tuple(module.PROFILES) == PROFILES
    parts: Sequence[str] = ("load_data", "build_model", "train", "evaluate", "serving_model")
    assert all(callable(getattr(module, part)) for part in parts)


def test_versions_name_the_libraries() -> None:
    assert run.versions()["keras"] == keras.__version__
