import contextlib
import csv
import io
import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bookserve.export import evaluation, run_format, run_reader
from bookserve.training import run, run_writer
from bookserve.training.datasets.files import NOT_OFFICIAL, DataRequest, Origin
from bookserve.training.devices import devices, exactness
from bookserve.training.errors import DivergedError, TrainingError
from bookserve.training.loop.callbacks import StopOnNan
from bookserve.training.loop.checkpoint import Checkpoint
from bookserve.training.models import MODELS, PROFILES, STANDARD, mnist

SAMPLE = DataRequest("sample")


@pytest.fixture
def console() -> Console:
    return Console(quiet=True)


@pytest.mark.usefixtures("drawn", "tiny_mnist")
def test_a_run_leaves_everything_that_export_needs(tmp_path: Path, console: Console) -> None:
    result = run.train_model("mnist", SAMPLE, tmp_path, console, profile="smoke", seed=3)
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
    assert (config["model"], config["contract"]["id"], config["profile"], config["seed"]) == (
        "mnist",
        "mnist/1",
        "smoke",
        3,
    )
    assert config["config"]["epochs"] == 2
    assert config["data"]["source"] == "sample"
    spread = config["data_card"]["distributions"]
    assert {name: sum(one["counts"]) for name, one in spread.items()} == {
        "images: brightness": config["data_card"]["rows"]["train"],
        "images: contrast": config["data_card"]["rows"]["train"],
    }
    assert len(config["data"]["sha256"]) == 64
    assert json.loads((result.folder / "metrics.json").read_text()) == result.metrics
    assert set(result.metrics) == {"train", "valid", "test", "served"}
    served = result.metrics["served"]
    assert served["accuracy"] == result.metrics["test"]["accuracy"]
    assert served["accuracy_low"] <= served["accuracy"] <= served["accuracy_high"]
    assert evaluation.figures_of(evaluation.read(result.folder / "report/evaluation.json")) == served
    rows = list(csv.DictReader((result.folder / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert math.isfinite(float(rows[1]["val_loss"]))
    assert {path.name for path in (result.folder / "report").iterdir()} == {
        "confusion.png",
        "curves.png",
        "evaluation.json",
        "reliability.png",
    }
    assert list((result.folder / "tensorboard").rglob("events.out.tfevents.*"))
    with np.load(result.folder / "examples.npz") as examples:
        assert examples["images"].shape == (60, 28, 28)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_mnist")
def test_tensorboard_has_the_graph_the_loss_of_every_step_and_histograms_on_request(
    tmp_path: Path, console: Console
) -> None:
    result = run.train_model("mnist", SAMPLE, tmp_path, console, profile="smoke", histograms=True)
    rows = list(csv.DictReader((result.folder / "history.csv").read_text().splitlines()))
    board = result.folder / "tensorboard"
    train, steps, network = (
        EventAccumulator(str(board / name), size_guidance={"tensors": 0}) for name in ("train", "steps", "network")
    )
    for events in (train, steps, network):
        events.Reload()
    assert {"Conv2D", "MatMul", "MaxPool"} <= {node.op for node in network.Graph().node}
    assert {"conv2d/kernel/histogram", "logits/bias/histogram"} <= set(train.Tags()["tensors"])
    losses = [float(tf.make_ndarray(event.tensor_proto)) for event in steps.Tensors("loss_of_step")]
    per_epoch = len(losses) // 2
    assert per_epoch == json.loads((result.folder / "config.json").read_text())["data_card"]["rows"]["train"] // 32
    for epoch, row in enumerate(rows):
        mean = np.mean(losses[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert mean == pytest.approx(float(row["loss"]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_mnist")
def test_the_seed_decides_the_figures(tmp_path: Path, console: Console) -> None:
    first, again, other = (
        run.train_model("mnist", SAMPLE, tmp_path, console, profile="smoke", seed=seed).metrics for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_mnist")
def test_two_exact_trainings_of_one_seed_have_the_same_bits(tmp_path: Path, console: Console) -> None:
    first, again = (run.train_model("mnist", SAMPLE, tmp_path, console, profile="smoke").folder for _ in range(2))
    for name in ("history.csv", "metrics.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    weights = [keras.models.load_model(folder / "model.keras").get_weights() for folder in (first, again)]
    assert [each.tobytes() for each in weights[0]] == [each.tobytes() for each in weights[1]]


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_mnist")
def test_a_fast_training_is_told_as_such_and_is_not_gone_on_with_as_exact(tmp_path: Path, console: Console) -> None:
    try:
        result = run.train_model("mnist", SAMPLE, tmp_path, console, profile="smoke", mode="fast")
        assert exactness.mode() == "fast"
    finally:
        exactness.switch("exact")
    assert json.loads((result.folder / "metrics.json").read_text())["training"] == {"fast": 1.0}
    assert run_reader.read(result.folder, "mnist").made_with["mode"] == "fast"  # and so it is in the manifest
    stopped = result.folder.rename(result.folder.with_name("20260101-000000.unfinished"))
    (stopped / run_format.CHECKPOINT).touch()
    head = json.loads((stopped / "config.json").read_text())
    assert run_writer.find(tmp_path, "mnist", head | {"mode": "exact"}) is None
    found = run_writer.find(tmp_path, "mnist", head)
    assert found is not None
    found.close()


@pytest.mark.usefixtures("tiny_mnist")
def test_a_loss_that_is_no_number_is_an_error_and_leaves_no_run(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = mnist.Config(epochs=2, batch=32, filters_1=4, filters_2=4, hidden=8, learning_rate=1e30)
    monkeypatch.setitem(mnist.CONFIGS["standard"], "smoke", wild)
    with pytest.raises(TrainingError, match=r"the loss became .* in step \d of epoch 1: .* Lower the learning rate"):
        run.train_model("mnist", SAMPLE, tmp_path, console, profile="smoke")
    assert [path.suffix for path in (tmp_path / "mnist").iterdir()] == [run_format.UNFINISHED]


@pytest.mark.usefixtures("tiny_mnist")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, console: Console) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(TrainingError, match=r"cannot write the run of mnist below .*/runs: "):
        run.train_model("mnist", SAMPLE, tmp_path / "runs", console, profile="smoke")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB, which only root can have."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False, timeout=60
    )
    if mounted.returncode != 0:
        pytest.skip("a disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True, timeout=60)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_mnist")
@pytest.mark.parametrize(("moment", "complete"), [("checkpoint", 1), ("end", 2)])
def test_after_a_full_disk_the_training_goes_on(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, moment: str, complete: int
) -> None:
    class Filler(StopOnNan):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                fill(small_disk)

    def fill_and_serve(model: keras.Model, serve: Any = mnist.serving_model) -> keras.Model:
        fill(small_disk)
        return serve(model)

    with monkeypatch.context() as patch:
        if moment == "checkpoint":
            patch.setattr(run, "StopOnNan", Filler)
        else:
            patch.setattr(mnist, "serving_model", fill_and_serve)
        with pytest.raises(TrainingError, match=r"^cannot write the run of mnist below .*: No space left on device$"):
            run.train_model("mnist", SAMPLE, small_disk, Console(quiet=True), profile="smoke")
    (small_disk / "filler").unlink()
    (folder,) = (small_disk / "mnist").iterdir()
    saved = Checkpoint(folder / run_format.CHECKPOINT).load()
    assert saved is not None
    assert saved.epoch == complete
    assert not list(folder.glob(f"{run_format.CHECKPOINT}?*"))
    text = io.StringIO()
    result = run.train_model("mnist", SAMPLE, small_disk, Console(file=text), profile="smoke")
    assert f"mnist: going on with {folder}" in text.getvalue()
    assert ("epoch 2/2" in text.getvalue()) == (complete == 1)
    assert "epoch 1/2" not in text.getvalue()
    assert (result.folder / "model.keras").is_file()


KILLED = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from bookserve.training import run, run_writer
from bookserve.training.datasets import mnist as mnist_data
from bookserve.training.loop.callbacks import StopOnNan
from bookserve.training.datasets.files import DataRequest
from bookserve.training.models import mnist
mnist_data.SAMPLE_TRAIN_ROWS, mnist_data.SAMPLE_TEST_ROWS = 300, 60
tiny = mnist.Config(epochs=3, batch=32, filters_1=4, filters_2=8, hidden=16)
mnist.CONFIGS["standard"]["smoke"] = tiny
class Killer(run.StopOnNan):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2 and (Path(self.folder) / "checkpoint.npz").exists():
            os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "die":
    begin = run.run_writer.begin
    def remember(*arguments):
        started = begin(*arguments)
        Killer.folder = started.folder
        return started
    run.run_writer.begin, run.StopOnNan = remember, Killer
result = run.train_model("mnist", DataRequest("sample"), Path(sys.argv[1]), Console(), profile="smoke")
print(result.metrics)
"""


@pytest.mark.slow
def test_a_training_killed_in_mid_epoch_ends_with_the_same_figures(tmp_path: Path) -> None:
    def train(folder: str, mode: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path / folder), mode]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)

    through = train("through", "live")
    assert through.returncode == 0, through.stderr[-2000:]
    killed = train("killed", "die")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    (unfinished,) = (tmp_path / "killed" / "mnist").iterdir()
    resumed = train("killed", "live")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert f"mnist: going on with {unfinished}" in resumed.stdout
    assert "epoch 1/3" not in resumed.stdout
    assert resumed.stdout.splitlines()[-1] == through.stdout.splitlines()[-1]
    (complete,) = (tmp_path / "killed" / "mnist").iterdir()
    assert complete.name == unfinished.name.removesuffix(run_format.UNFINISHED)
    rows = (complete / "history.csv").read_text().splitlines()
    assert rows == (next((tmp_path / "through" / "mnist").iterdir()) / "history.csv").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_mnist")
def test_a_training_that_goes_on_elsewhere_says_what_differs(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopper(StopOnNan):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "StopOnNan", Stopper)
        with pytest.raises(KeyboardInterrupt):
            run.train_model("mnist", SAMPLE, tmp_path, console, profile="smoke")
    (folder,) = (tmp_path / "mnist").iterdir()
    config = json.loads((folder / "config.json").read_text())
    config["made_with"]["keras"], config["devices"] = "3.0.0", "1 GPU"
    (folder / "config.json").write_text(json.dumps(config))
    text = io.StringIO()
    run.train_model("mnist", SAMPLE, tmp_path, Console(file=text), profile="smoke")
    now = f"devices was 1 GPU, now {devices.describe()}; keras was 3.0.0, now {keras.__version__}"
    assert f"mnist: {now}: the figures may differ from those of one training\n" in text.getvalue()


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_mnist")
def test_a_training_that_diverged_is_not_gone_on_with(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(self: StopOnNan, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            raise DivergedError("the loss became nan")

    monkeypatch.setattr(StopOnNan, "on_epoch_end", diverge)
    for _ in range(2):
        with pytest.raises(DivergedError):
            run.train_model("mnist", SAMPLE, tmp_path, console, profile="smoke")
    assert len(list((tmp_path / "mnist").iterdir())) == 2
    assert not list((tmp_path / "mnist").rglob("checkpoint.npz"))


def test_an_unknown_configuration_or_profile_lists_the_right_ones(tmp_path: Path, console: Console) -> None:
    with pytest.raises(TrainingError, match=r"linear has no configuration 'bok'; it has standard, book"):
        run.train_model("linear", SAMPLE, tmp_path, console, configuration="bok")
    with pytest.raises(TrainingError, match="there is no profile 'quick': it is one of smoke, default, full"):
        run.train_model("linear", SAMPLE, tmp_path, console, profile="quick")


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_the_skeleton(name: str) -> None:
    module = run.book_model(name)
    assert name == module.CONTRACT.model
    assert next(iter(module.CONFIGS)) == STANDARD
    assert {tuple(profiles) for profiles in module.CONFIGS.values()} == {PROFILES}
    parts: Sequence[str] = ("load_data", "build_model", "train", "evaluate", "serving_model")
    assert all(callable(getattr(module, part)) for part in parts)


def test_versions_name_the_libraries() -> None:
    assert run.versions()["keras"] == keras.__version__


def test_figures_of_a_foreign_test_file_stand_behind_those_of_official_rows() -> None:
    metrics = {"test": {"accuracy": 0.9312, "accuracy_1000": 0.944, "rows": 10_000.0}}
    metric = run.book_model("cifar10").KEY_METRIC
    result = run.Result(Path("x"), metrics, metric, Origin("real", f"cifar10, test batch 12 {NOT_OFFICIAL}", ""), 1.0)
    assert result.test_figures == ["accuracy_1000 0.9440", "accuracy 0.9312 (test file not the official one)"]
    assert replace(result, origin=Origin("real", "cifar10", "")).test_figures == ["accuracy 0.9312"]
