"""`bookserve train --track mlflow`: a training as a run of MLflow, beside its run folder.

Tells the server or store that MLflow itself finds (`MLFLOW_TRACKING_URI`) parameters, the metrics of every epoch, the
final metrics, and the paths of what was made; nothing is copied there. A training that was stopped goes on in the same
run of MLflow. Where the store stops answering, the training goes on without.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from rich.console import Console

from bookserve.export import run_format
from bookserve.training.errors import TrainingError

RUN_FILE = "mlflow.json"  # in the run folder: which run of MLflow it is
EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"  # MLflow's own variable; by default the experiment is called as the model
LONGEST = 6_000  # letters of a parameter, as MLflow limits them
AT_ONCE = 100  # parameters in one call, as MLflow limits them
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # MLflow's own: minutes
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"


class Tracking:
    """One training, told to MLflow.

    Raises:
        TrainingError: MLflow's store cannot be used.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._run_id: str | None = None
        for variable, value in PATIENCE.items():
            os.environ.setdefault(variable, value)
        with _reported():
            self._client = MlflowClient()
            self._client.search_experiments(max_results=1)  # is it there at all?

    def begin(self, head: Mapping[str, Any], folder: Path) -> keras.callbacks.Callback:
        """Begin a run, or go on with the one that the folder names; `head` is the folder's config.json.

        Returns the callback that tells the metrics of every epoch.

        Raises:
            TrainingError: MLflow's store cannot be used.
        """
        uri = self._client.tracking_uri
        note = folder / RUN_FILE
        with _reported():
            before = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
            if before.get("uri") == uri:
                run_id: str = before["run"]
                self._client.update_run(run_id, status="RUNNING")
            else:
                name = os.environ.get(EXPERIMENT, head["model"])
                found = self._client.get_experiment_by_name(name)
                experiment = self._client.create_experiment(name) if found is None else found.experiment_id
                started = folder.name.partition(".")[0]
                run_id = self._client.create_run(experiment, run_name=f"{head['model']}/{started}").info.run_id
                given = list(parameters(head).items())
                for first in range(0, len(given), AT_ONCE):
                    part = [Param(key, value) for key, value in given[first : first + AT_ONCE]]
                    self._client.log_batch(run_id, params=part)
        note.write_text(json.dumps({"uri": uri, "run": run_id}) + "\n", encoding="utf-8")
        self._run_id = run_id
        self._console.print(f"{head['model']}: run {run_id} of MLflow at {uri}", highlight=False, soft_wrap=True)
        return _Epochs(self)

    def epoch(self, number: int, figures: Mapping[str, float]) -> None:
        """The metrics of an epoch, counted from 1."""
        self._tell(figures, number)

    def finish(self, folder: Path, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """The final metrics, as `test.accuracy`, and where everything of the run lies."""
        flat = {f"{split}.{name}": value for split, values in metrics.items() for name, value in values.items()}
        self._tell(flat, 0)
        report = folder / run_format.REPORT
        made = [path for path in folder.iterdir() if path != report]
        paths = {"run_folder": folder} | {
            f"artifact.{path.relative_to(folder).as_posix()}": path for path in sorted([*made, *report.iterdir()])
        }
        with self._going_on_without():
            if self._run_id is not None:
                self._client.log_batch(
                    self._run_id, tags=[RunTag(_name(key), str(path.absolute())) for key, path in paths.items()]
                )
        self._end(FINISHED)

    def fail(self, stopped: bool) -> None:
        """Say that the training failed, or was stopped."""
        self._end(KILLED if stopped else FAILED)

    def _end(self, status: str) -> None:
        with self._going_on_without():
            if self._run_id is not None:
                self._client.set_terminated(self._run_id, status)

    def _tell(self, figures: Mapping[str, float], step: int) -> None:
        with self._going_on_without():
            if self._run_id is not None:
                told = [Metric(_name(key), float(value), _now(), step) for key, value in figures.items()]
                for first in range(0, len(told), AT_ONCE):
                    self._client.log_batch(self._run_id, metrics=told[first : first + AT_ONCE])

    @contextmanager
    def _going_on_without(self) -> Iterator[None]:
        """Around what is told while training: a store that is gone costs the rest of the record, not the training."""
        try:
            yield
        except (MlflowException, OSError) as error:
            self._run_id = None
            self._console.print(
                f"MLflow at {self._client.tracking_uri} is told nothing more, as it fails: {_first_line(error)}",
                highlight=False,
                soft_wrap=True,
            )


class _Epochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells the metrics of every epoch."""

    def __init__(self, tracking: Tracking) -> None:
        super().__init__()
        self._tracking = tracking

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Tell them."""
        self._tracking.epoch(epoch + 1, {name: float(value) for name, value in (logs or {}).items()})


def parameters(head: Mapping[str, Any]) -> dict[str, str]:
    """What a run's config.json says of its settings, as MLflow takes it: name -> text."""
    told = {name: head[name] for name in ("model", "network", "configuration", "profile", "seed", "mode", "devices")}
    told |= {f"data.{name}": head["data"][name] for name in ("source", "name", "sha256")}
    told |= {f"config.{name}": value for name, value in head["config"].items()}
    told |= {f"made_with.{name}": value for name, value in head["made_with"].items()}
    return {
        _name(key): (value if isinstance(value, str) else json.dumps(value))[:LONGEST] for key, value in told.items()
    }


@contextmanager
def _reported() -> Iterator[None]:
    """Around the first calls: what is wrong with the store, as one line."""
    try:
        yield
    except (MlflowException, OSError, ImportError, ValueError) as error:
        raise TrainingError(
            f"--track mlflow: MLflow's store cannot be used: {_first_line(error)} (MLFLOW_TRACKING_URI is "
            f"{os.environ.get('MLFLOW_TRACKING_URI', 'not set')})"
        ) from error


def _name(text: str) -> str:
    """A name as MLflow takes it."""
    return NOT_IN_NAMES.sub("_", text)


def _now() -> int:
    return int(time.time() * 1000)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
