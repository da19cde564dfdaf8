import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from bookserve.training import commands
from bookserve.training.errors import TrainingError

if TYPE_CHECKING:  # MLflow takes seconds to import, and each worker of pytest-xdist imports every file of tests
    from mlflow.tracking import MlflowClient

Train = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "MlflowClient":
    """A store of files, as MLflow's own client reads it."""
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return MlflowClient(tracking_uri=uri)


@pytest.fixture
def train(tmp_path: Path) -> Train:
    def call(*options: str) -> Result:
        fixed = ["linear", "--profile", "smoke", "--runs-dir", str(tmp_path / "runs"), "--track", "mlflow"]
        return CliRunner().invoke(commands.train, [*fixed, *options], env={"COLUMNS": "200"})

    return call


def only_run(store: "MlflowClient", experiment: str = "linear") -> Any:
    found = store.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = store.search_runs([found.experiment_id])
    return run


def test_mlflow_has_parameters_every_epoch_final_metrics_and_paths(
    store: "MlflowClient", train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bookserve.training.tracking import parameters

    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    done = train("--set", "learning_rate=0.25", "--seed", "3")
    assert done.exit_code == 0, done.output
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    (folder,) = (tmp_path / "runs/linear").iterdir()
    run = only_run(store)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"linear/{folder.name}"
    head = json.loads((folder / "config.json").read_text())
    assert run.data.params == parameters(head)
    told = {"config.learning_rate": "0.25", "seed": "3", "mode": "exact", "data.sha256": head["data"]["sha256"]}
    assert run.data.params.items() >= told.items()
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    for name in ("loss", "val_loss"):
        history = sorted(store.get_metric_history(run.info.run_id, name), key=lambda metric: metric.step)
        assert [(metric.step, metric.value) for metric in history] == [
            (int(row["epoch"]), float(row[name])) for row in rows
        ]
    for split, values in json.loads((folder / "metrics.json").read_text()).items():
        for name, value in values.items():
            assert run.data.metrics[f"{split}.{name}"] == value
    assert run.data.tags["run_folder"] == str(folder)
    paths = {name: Path(path) for name, path in run.data.tags.items() if name.startswith("artifact.")}
    assert {"artifact.model.keras", "artifact.metrics.json", "artifact.report/line.png"} <= paths.keys()
    assert all(path.exists() for path in paths.values())


def test_a_training_that_diverges_is_a_failed_run_of_mlflow(store: "MlflowClient", train: Train) -> None:
    done = train("--set", "learning_rate=1e30")
    assert done.exit_code == 1
    assert "the training diverged" in done.output
    assert only_run(store).info.status == "FAILED"


def test_a_training_that_goes_on_is_the_same_run_of_mlflow(
    store: "MlflowClient", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bookserve.training.tracking import Tracking

    head = dict.fromkeys(("model", "network", "configuration", "profile", "mode", "devices"), "x") | {
        "seed": 0,
        "data": {"source": "own", "name": "a", "sha256": "b"},
        "config": {"hidden": [4, 2]},
        "made_with": {},
    }
    for stopped in (True, False):
        tracking = Tracking(Console(quiet=True))
        tracking.begin(head, tmp_path).on_epoch_end(int(not stopped), {"loss": 0.5})
        if stopped:
            tracking.fail(stopped=True)
            assert only_run(store, "x").info.status == "KILLED"
    run = only_run(store, "x")
    assert run.info.status == "RUNNING"
    assert [metric.step for metric in store.get_metric_history(run.info.run_id, "loss")] == [1, 2]
    assert run.data.params["config.hidden"] == "[4, 2]"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "other").as_uri())
    Tracking(Console(quiet=True)).begin(head, tmp_path)
    assert only_run(type(store)(tracking_uri=(tmp_path / "other").as_uri()), "x").info.run_id != run.info.run_id


def test_a_store_that_fails_meanwhile_costs_the_record_and_not_the_training(
    store: "MlflowClient", train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    client, calls = type(store), []
    tell = client.log_batch

    def failing(self: "MlflowClient", run_id: str, **what: Any) -> Any:
        calls.append(what)
        if len(calls) > 3:
            raise MlflowException("the disk is full\nand more")
        return tell(self, run_id, **what)

    monkeypatch.setattr(client, "log_batch", failing)
    done = train()
    assert done.exit_code == 0, done.output
    assert done.output.count("is told nothing more, as it fails: the disk is full") == 1
    assert len(calls) == 4
    assert "linear: test" in done.output


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://127.0.0.1:9", "MLflow's store cannot be used"),
        ("nonsense://x", "MLflow's store cannot be used: .*nonsense"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_before_any_training(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, expected: str
) -> None:
    from bookserve.training.tracking import Tracking

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrainingError, match=expected):
        Tracking(Console(quiet=True))
    done = train()
    assert done.exit_code == 1
    assert done.output.startswith("Error: --track mlflow: ")
    assert len(done.output.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_without_the_package_one_line_says_what_to_install(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "bookserve.training.tracking")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    done = train()
    assert done.exit_code == 1
    assert done.output == "Error: --track mlflow needs the package 'mlflow': pip install 'bookserve[mlflow]'\n"


def test_nothing_but_the_tracking_knows_mlflow() -> None:
    folder = Path(commands.__file__).parent
    found = [
        path.name
        for path in folder.rglob("*.py")
        if "import mlflow" in (text := path.read_text()) or "from mlflow" in text
    ]
    assert found == ["tracking.py"]
