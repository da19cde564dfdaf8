import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from optuna.distributions import FloatDistribution

from bookserve.clients.command_line import main
from bookserve.export import publish, run_format
from bookserve.export.errors import ExportError
from bookserve.training import run, run_writer
from bookserve.training.datasets import files
from bookserve.training.errors import TrainingError
from bookserve.training.models import linear
from bookserve.training.tuning.search_space import Search
from bookserve.training.tuning.workers import Outcome, TrainingTask


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_mnist")
def test_train_all_ends_with_a_table_and_fills_the_store(tmp_path: Path) -> None:
    folders = ["--models-dir", tmp_path / "models", "--runs-dir", tmp_path / "runs"]
    int8 = ("--precision=int8", "--max-loss=1", "--min-speed-up=0")
    result = invoke("train-all", "mnist", "--profile=smoke", "--data=sample", *int8, *folders)
    assert result.exit_code == 0, result.output
    row = next(line for line in result.output.splitlines() if line.startswith("│"))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[0:2] == ["mnist", "sample"]
    assert cells[2].startswith("accuracy 0.")
    assert cells[3] == "0.993"
    assert cells[5] == "1, 2 (int8)"
    listed = invoke("models", "list", *folders[:2]).output
    assert "\nmnist  1        float32    standard  smoke    sample  accuracy" in listed
    assert "\nmnist  2        int8       standard  smoke    sample  accuracy" in listed
    assert "all as published" in invoke("models", "show", "mnist", *folders[:2]).output


@pytest.mark.slow
def test_a_float16_graph_that_would_not_be_smaller_is_no_failure(tmp_path: Path) -> None:
    folders = ["--models-dir", tmp_path / "models", "--runs-dir", tmp_path / "runs"]
    result = invoke("train-all", "linear", "--profile=smoke", "--precision=float16", *folders)
    assert result.exit_code == 0, result.output
    assert "linear: a float16 graph would not be smaller: " in result.output
    assert "1 (float16 does not" in result.output
    assert [path.name for path in (tmp_path / "models/linear").iterdir() if path.name.isdigit()] == ["1"]


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_mnist")
def test_train_then_export_publishes_the_newest_run(tmp_path: Path) -> None:
    runs, models = ["--runs-dir", tmp_path / "runs"], ["--models-dir", tmp_path / "models"]
    trained = invoke("train", "mnist", "--profile=smoke", "--data=sample", "--seed=4", *runs)
    assert trained.exit_code == 0, trained.output
    assert "mnist: test accuracy 0." in trained.output
    exported = invoke("export", "mnist", "--formats=tflite", "--precision=float16", *runs, *models)
    assert exported.exit_code == 0, exported.output
    assert (tmp_path / "models/mnist/1/assets.extra/model.tflite").is_file()
    assert "seed 4" in invoke("models", "show", "mnist", "1", *models).output
    shown = invoke("models", "show", "mnist", "2", *models).output
    assert "float16   float16 of version 1" in shown
    assert "float16   largest differences on 60 rows: probabilities" in shown


@pytest.mark.slow
def test_a_run_that_is_worse_than_the_served_version_is_refused(tmp_path: Path) -> None:
    runs, models = ["--runs-dir", tmp_path / "runs"], ["--models-dir", tmp_path / "models"]
    assert invoke("train", "logistic", "--profile=smoke", *runs).exit_code == 0
    exported = invoke("export", "logistic", "--require-better", *runs, *models)
    assert exported.exit_code == 0, exported.output
    assert "no version is served yet" in exported.output
    untrained = ("--set=learning_rate=1e-9", "--set=steps=1", "--set=epochs=1")
    assert invoke("train", "logistic", "--profile=smoke", "--seed=1", *untrained, *runs).exit_code == 0
    refused = invoke("export", "logistic", "--require-better", *runs, *models)
    assert refused.exit_code == 1
    assert re.search(
        r"logistic: accuracy 0\.\d+, version 1, which is served, has 1, on the same 100 rows: difference -0\.\d+, "
        r"95 % interval -0\.\d+ to -0\.\d+\. It is worse by more than chance and not published",
        refused.output,
    ), refused.output
    assert "version 1 was trained with other data or another seed" in refused.output
    assert [path.name for path in (tmp_path / "models/logistic").iterdir() if path.name.isdigit()] == ["1"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C reaches Python, also where the tests were started in the background, whose shell turns it off."""
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)


@pytest.mark.usefixtures("tiny_mnist", "interruptible")
@pytest.mark.parametrize(
    ("command", "number", "epoch", "line"),
    [
        ("train", signal.SIGINT, 0, "mnist: stopped before an epoch was complete; the same command starts anew"),
        ("train", signal.SIGTERM, 1, "mnist: stopped after epoch 1; the same command goes on from there"),
        ("train-all", signal.SIGINT, 1, "mnist: stopped after epoch 1; the same command goes on from there"),
    ],
)
def test_a_stopped_training_says_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, number: signal.Signals, epoch: int, line: str
) -> None:
    class Stopper(run.StopOnNan):
        def on_epoch_begin(self, now: int, logs: Any = None) -> None:
            if now == epoch:
                signal.raise_signal(number)

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(run, "StopOnNan", Stopper)
    folders = ["--runs-dir", tmp_path / "runs"]
    result = invoke(command, "mnist", "--profile=smoke", "--data=sample", *folders)
    assert result.exit_code == 128 + number
    assert result.output.splitlines()[-1] == line
    assert "Traceback" not in result.output
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    (unfinished,) = (tmp_path / "runs" / "mnist").iterdir()
    assert (unfinished / run_format.CHECKPOINT).exists() == (epoch > 0)


@pytest.mark.usefixtures("interruptible")
def test_a_stopped_train_all_names_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_model(name: str, *arguments: Any, **options: Any) -> None:
        if name == "tox21":
            signal.raise_signal(signal.SIGINT)
        raise TrainingError("not here")

    monkeypatch.setattr(run, "train_model", train_model)
    result = invoke("train-all", "logistic", "tox21", "mnist", "--runs-dir", tmp_path, "--models-dir", tmp_path)
    assert result.exit_code == 128 + signal.SIGINT
    expected = "'bookserve train-all tox21 mnist', with the same options, leaves out what is done"
    assert result.output.splitlines()[-1] == expected


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_mnist", "interruptible")
def test_a_train_all_that_is_stopped_between_training_and_publishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "publish", lambda *arguments: signal.raise_signal(signal.SIGINT))
    result = invoke("train-all", "mnist", "--profile=smoke", "--data=sample", "--runs-dir", tmp_path)
    assert result.exit_code == 128 + signal.SIGINT
    expected = "mnist: trained, but not published; 'bookserve export mnist' publishes it"
    assert result.output.splitlines()[-1] == expected


LOUD = """
import logging
import sys
logging.getLogger("tensorflow").setLevel = lambda level: None  # so that TensorFlow's warnings are told
from bookserve.clients.command_line import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trainings_and_exports_print_no_line_of_tensorflows(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    models = ["linear", "logistic", "tox21", "mnist"]
    options = ["--profile=smoke", "--data=sample", f"--runs-dir={tmp_path / 'runs'}", f"--models-dir={tmp_path / 'm'}"]
    done = subprocess.run(
        [sys.executable, "-c", LOUD, "train-all", *models, *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout
    for model in models:
        assert f"{model}: published as" in done.stdout
    theirs = re.compile(r"^[IWEF]\d{4} |absl|cuda|oneDNN|cpu_feature|retrac|WARNING:tensorflow", re.IGNORECASE | re.M)
    assert theirs.findall(done.stdout) == []


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_mnist")
def test_unfinished_runs_are_counted_and_removed(tmp_path: Path) -> None:
    for model in ("mnist", "mnist", "ptb"):
        run_writer.begin(tmp_path, model, {}).close()
    alive = run_writer.begin(tmp_path, "mnist", {})
    trained = invoke("train", "mnist", "--profile=smoke", "--data=sample", "--runs-dir", tmp_path)
    assert f"mnist: unfinished runs in {tmp_path}/mnist: 2, which 'bookserve clean-runs' removes" in trained.output
    removed = invoke("clean-runs", "mnist", "--runs-dir", tmp_path)
    assert removed.exit_code == 0, removed.output
    assert removed.output.count(f"removed {tmp_path}/mnist/") == 2
    assert alive.folder.exists()
    assert len(list((tmp_path / "mnist").iterdir())) == 2
    alive.close()
    assert invoke("clean-runs", "--runs-dir", tmp_path).output.count("removed ") == 2
    assert invoke("clean-runs", "--runs-dir", tmp_path).output == f"no unfinished run lies in {tmp_path}\n"


def test_complete_runs_are_removed_but_the_newest_of_each_model(tmp_path: Path) -> None:
    for model, time in (("m", "20260101-1"), ("m", "20260102-1"), ("m", "20260103-1"), ("other", "20260101-1")):
        (tmp_path / model / time).mkdir(parents=True)
        for name in (run_format.CONFIG, run_format.METRICS, "model.keras"):
            (tmp_path / model / time / name).write_text("{}")
    (tmp_path / "m/tuned/study").mkdir(parents=True)
    assert invoke("clean-runs", "--runs-dir", tmp_path).output == f"no unfinished run lies in {tmp_path}\n"
    removed = invoke("clean-runs", "--keep=2", "--runs-dir", tmp_path)
    assert removed.output == f"removed {tmp_path}/m/20260101-1\n"
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["20260102-1", "20260103-1", "tuned"]
    assert invoke("clean-runs", "m", "--keep=1", "--runs-dir", tmp_path).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["20260103-1", "tuned"]
    again = invoke("clean-runs", "--keep=1", "--runs-dir", tmp_path)
    assert again.output == f"no unfinished run lies in {tmp_path}, nor more than 1 complete ones\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}}', "'train-all' is for one"),
        ("{", "TF_CONFIG is not JSON"),
    ],
)
def test_train_all_is_for_one_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    result = invoke("train-all", "linear", "--runs-dir", tmp_path)
    assert result.exit_code == 1
    assert message in result.output


def test_a_failing_model_gives_a_message_and_a_status(tmp_path: Path) -> None:
    result = invoke("train-all", "mnist", "--data=real", "--data-dir", tmp_path / "nowhere", "--runs-dir", tmp_path)
    assert result.exit_code == 1
    assert f"1 of 1 models failed:\n  mnist: DATA_DIR {tmp_path}/nowhere is not a folder" in result.output


@pytest.mark.usefixtures("tiny_mnist")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(ExportError("the graphs differ"), "mnist: the graphs differ", id="expected"),
        pytest.param(KeyError("lost"), "mnist: KeyError: 'lost'", id="a defect", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_cannot_be_published_is_a_failure_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(publish, "publish", refuse)
    result = invoke("train-all", "mnist", "--profile=smoke", "--data=sample", "--runs-dir", tmp_path)
    assert result.exit_code == 1
    assert f"1 of 1 models failed:\n  {message}" in result.output
    assert "│ failed" in result.output


@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        (["train", "mnits"], "'mnist'"),
        (["train-all", "mnits"], "'mnist'"),
        (["train", "mnist", "--profile=quick"], "'smoke', 'default', 'full'"),
        (["train", "mnist", "--data=fake"], "'auto', 'real', 'sample'"),
    ],
)
def test_a_wrong_word_lists_the_right_ones(arguments: list[str], listed: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert listed in result.output


def test_data_dir_is_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "elsewhere"))
    result = invoke("train", "mnist", "--data=real", "--runs-dir", tmp_path)
    assert result.exit_code == 1
    assert "elsewhere is not a folder" in result.output


def test_a_tilde_in_data_dir_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    result = invoke("train", "mnist", "--data=real", "--data-dir=~/data", "--runs-dir", tmp_path)
    assert f"DATA_DIR {tmp_path}/home/data is not a folder" in result.output


def test_a_data_file_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "ptb.train.txt").touch()
    monkeypatch.setattr(files, "sha256_of", refuse)
    result = invoke("train", "ptb", "--data-dir", tmp_path, "--runs-dir", tmp_path / "runs")
    assert result.exit_code == 1
    assert result.output == (
        f"Error: the data of ptb cannot be read: [Errno 13] Permission denied: '{tmp_path}/ptb.train.txt'\n"
    )


def test_help_does_not_import_tensorflow() -> None:
    code = (
        "import sys; from bookserve.training.commands import train; import bookserve.export.commands;"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.slow
def test_what_tune_finds_is_trained_by_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretend_training: Callable[[Callable[[TrainingTask], Outcome]], None],
) -> None:
    space = {"learning_rate": FloatDistribution(1e-3, 1e-1, log=True)}
    monkeypatch.setattr(linear, "SEARCHES", {"standard": Search("val_loss", False, space)}, raising=False)
    pretend_training(lambda task: Outcome((abs(task.config.learning_rate - 0.01),), 1.0))
    options = ["--study=rates", "--profile=smoke", "--sampler=grid", "--runs-dir", tmp_path]
    tuned = invoke("tune", "linear", *options)
    assert tuned.exit_code == 0, tuned.output
    assert f"3 trials, 0 of them failed; all of them in {tmp_path}/linear/tuned/rates/trials.csv" in tuned.output
    assert tuned.output.endswith("bookserve train linear --config rates --profile smoke\n")
    trained = invoke("train", "linear", "--config=rates", "--profile=smoke", "--runs-dir", tmp_path)
    assert trained.exit_code == 0, trained.output
    (config,) = tmp_path.glob("linear/2*/config.json")
    content = json.loads(config.read_text())
    assert (content["configuration"], round(content["config"]["learning_rate"], 9)) == ("rates", 0.01)
    pretend_training(lambda _: Outcome((), 1.0, "no memory"))
    failed = invoke("tune", "linear", *options[1:])
    assert failed.exit_code == 1
    assert failed.output.endswith("Error: no trial succeeded; the table says why\n")


def test_a_grid_of_the_command_line_is_tried_and_its_best_trained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretend_training: Callable[[Callable[[TrainingTask], Outcome]], None],
) -> None:
    space = {"learning_rate": FloatDistribution(1e-3, 1e-1, log=True)}
    monkeypatch.setattr(linear, "SEARCHES", {"standard": Search("val_loss", False, space)}, raising=False)
    pretend_training(lambda task: Outcome((task.config.learning_rate + task.config.steps,), 1.0))
    grids = ["--grid", "learning_rate=0.5,0.25", "--grid", "steps=2,1,3", "--repeats=2"]
    options = ["--study=mine", "--profile=smoke", "--runs-dir", tmp_path]
    tuned = invoke("tune", "linear", *grids, *options)
    assert tuned.exit_code == 0, tuned.output
    assert "6 trials, 0 of them failed" in tuned.output
    trained = invoke("train", "linear", "--config=mine", "--profile=smoke", "--runs-dir", tmp_path)
    assert trained.exit_code == 0, trained.output
    (config,) = tmp_path.glob("linear/2*/config.json")
    content = json.loads(config.read_text())["config"]
    assert (content["learning_rate"], content["steps"]) == (0.25, 1)
    other = invoke("tune", "linear", *grids[:2], "--repeats=2", *options)
    assert "was begun with another grid" in other.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "tox21", "--config=scaffold"], "tox21 has no search that begins with the configuration 'scaffold'"),
        (["tune", "tox21", "--study=book"], "'book' is a configuration of tox21: name the study differently"),
        (["tune", "tox21", "--study=../x"], "'../x' is no name for a study"),
        (["train", "tox21", "--config=x"], "tox21 has neither a configuration nor a study 'x'"),
    ],
)
def test_a_study_that_cannot_be_gives_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = invoke(*arguments, "--data=sample", "--runs-dir", tmp_path)
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
