"""One run: from a model's name and profile to a complete run folder.

Sets the seed, finds the devices, loads the data, trains, evaluates, draws and writes. Everything that differs between
the models is in `training/models/`; everything that does not is here.
"""

import dataclasses
import importlib
import json
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from rich.console import Console

from bookserve.export import drift, evaluation, run_format
from bookserve.export.contracts import Contract, to_json
from bookserve.export.figures import Measurement
from bookserve.training import plots, run_writer
from bookserve.training.datasets import own_data
from bookserve.training.datasets.data_card import DataCard
from bookserve.training.datasets.files import DataError, DataRequest, Origin
from bookserve.training.devices import devices, exactness, hosts
from bookserve.training.errors import DivergedError, TrainingError
from bookserve.training.loop.callbacks import ProgressBar, StopOnNan
from bookserve.training.loop.checkpoint import NO_CHECKPOINT, Checkpoint
from bookserve.training.loop.network_graph import NetworkGraph
from bookserve.training.loop.step_losses import StepLosses
from bookserve.training.loop.traced import Traced
from bookserve.training.models import MODELS, PROFILES, STANDARD, KeyMetric
from bookserve.training.models.purpose import OWN_DATA, PURPOSE

EXAMPLE_ROWS = 512
EVALUATION_ROWS = 256  # at a time
TRAINING = "training"  # beside the splits: what is to be known of a training that is not exact
SERVED = "served"  # beside the splits: the served graph on the test rows


class Data(Protocol):
    """What every model's `load_data` returns, whatever else it holds."""

    @property
    def origin(self) -> Origin:
        """Where the rows came from."""

    @property
    def examples(self) -> Mapping[str, npt.NDArray[Any]]:
        """Test rows as the contract's inputs."""

    def card(self, labels: Sequence[str]) -> DataCard:
        """The data card; `labels` are the contract's."""


class UsersData(Data, Protocol):
    """A user's own data, as its readers return it."""

    @property
    def left_out(self) -> Sequence[str]:
        """What of it could not be used, and why."""


class DataWithAssets(Data, Protocol):
    """The data of a model whose contract names assets."""

    @property
    def assets(self) -> Mapping[str, str]:
        """File name -> its text."""


class BookModel(Protocol):
    """The skeleton of a module in `training/models/`."""

    CONTRACT: Contract
    KEY_METRIC: KeyMetric
    CONFIGS: Mapping[str, Mapping[str, Any]]

    def load_data(self, config: Any, request: DataRequest, seed: int) -> Data:
        """The splits of the data set, real or sample."""

    def build_model(self, config: Any) -> keras.Model:
        """The untrained network."""

    def train(
        self,
        model: keras.Model,
        data: Any,
        config: Any,
        seed: int,
        callbacks: Sequence[keras.callbacks.Callback],
        checkpoint: Checkpoint,
    ) -> dict[str, list[float]]:
        """Train in place, from the last checkpoint on if there is one; figure -> value of each epoch."""

    def evaluate(self, model: keras.Model, data: Any, report: Path) -> dict[str, dict[str, float]]:
        """Split -> figure -> value; images into `report`."""

    def measurement(self, data: Any) -> Measurement:
        """Training rows as the contract's inputs, and the figure of the served graph's outputs for test rows."""

    def serving_model(self, model: keras.Model) -> keras.Model:
        """The network behind its contract."""


class AdaptableModel(BookModel, Protocol):
    """A module in `training/models/` that can be trained on a user's own data."""

    def on_own_data(self, config: Any, data: Any, name: str) -> tuple[Any, Contract]:
        """The numbers for that data, and the contract of a model of it that is called `name`."""


@runtime_checkable
class ConfiguredModel(Protocol):
    """A module in `training/models/` whose outputs depend on the numbers."""

    def contract_of(self, config: Any, contract: Contract) -> Contract:
        """The contract that a network of these numbers keeps."""


class Tracker(Protocol):
    """What is told of a training elsewhere, such as to MLflow (`tracking.py`)."""

    def begin(self, head: Mapping[str, Any], folder: Path) -> keras.callbacks.Callback:
        """The training of the unfinished run in `folder` begins or goes on; `head` is its config.json."""

    def finish(self, folder: Path, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """The run in `folder` is complete."""

    def fail(self, stopped: bool) -> None:
        """The training failed, or was stopped by the user."""


@dataclass(frozen=True)
class Training:
    """What one training is of, whichever host runs it."""

    name: str
    module: BookModel
    contract: Contract
    config: Any
    data: Data
    seed: int
    strategy: tf.distribute.Strategy
    console: Console
    histograms: bool
    tracker: Tracker | None


@dataclass(frozen=True)
class Result:
    """A complete run: its folder, its figures and how long it took."""

    folder: Path
    metrics: dict[str, dict[str, float]]
    key_metric: KeyMetric
    origin: Origin
    seconds: float

    @property
    def test_figures(self) -> list[str]:
        """The key metric of the test rows; those of the official rows first, where the test file is another one."""
        test, name, exact = self.metrics["test"], self.key_metric.name, self.key_metric.exact
        if self.origin.official or exact not in test:
            return [f"{name} {test[name]:.4f}"]
        return [f"{exact} {test[exact]:.4f}", f"{name} {test[name]:.4f} (test file not the official one)"]


def book_model(name: str) -> BookModel:
    """The module of a model of `MODELS`."""
    return cast(BookModel, importlib.import_module(MODELS[name]))


def train_model(
    name: str,
    request: DataRequest,
    runs_dir: Path,
    console: Console,
    configuration: str = STANDARD,
    profile: str = "default",
    seed: int = 0,
    fresh: bool = False,
    config: Any = None,
    run_name: str = "",
    settings: Mapping[str, Any] | None = None,
    histograms: bool = False,
    mode: str = exactness.EXACT,
    tracker: Tracker | None = None,
) -> Result:
    """Train the model `name` of `MODELS` and return its run, complete on disk.

    Where `request` has a user's own data, its network is trained on that. `run_name` is what the run and the model in
    the store are called: by default `name`. `settings` are fields of the `Config` that have other values. With
    `histograms` TensorBoard shows how the weights of each epoch are spread. A `tracker` is told of the training.

    `config` is what a study found, whose name is then the `configuration`; without it the model's own is trained.

    The seed decides the split, the first weights, the order of the rows, dropout and distortion. In the `mode` "exact"
    only repeatable kernels run: the same seed gives the same figures on the same machine. "fast" is without that, see
    `exactness`. A run of the same settings that was killed goes on from its last complete epoch, unless `fresh`. Where
    TF_CONFIG names many hosts, every one of them calls this with the same arguments, and the first one keeps the run.

    Raises:
        DataError: the data is damaged, cannot be read, or cannot be had.
        TrainingError: there is no such configuration, the loss is not finite any more, the run folder cannot be
            written, or another host is gone or was started otherwise.
        KeyboardInterrupt: Ctrl-C; a note says where the training stopped.
    """
    model_module = book_model(name)
    if config is None:
        config = named_config(model_module, configuration, profile)
    settings = settings or {}
    config = replace(config, **settings)
    clock = time.monotonic()
    cluster = hosts.cluster()
    if cluster is not None:
        place, count = cluster.place + 1, len(cluster.addresses)
        console.print(f"{name}: host {place} of {count}, with {cluster.others}", highlight=False, soft_wrap=True)
    strategy = devices.strategy()
    make_repeatable(seed, mode)
    network, name = name, run_name or name
    data, config, contract = adapted(model_module, config, settings, request, seed, name)
    words = PURPOSE[network]
    if request.own is not None:
        words = (
            f"The network of `{network}`, trained on the data `{data.origin.name}`; its task: {contract.task}.",
            "It knows what its data shows, and gives an answer to anything else too: see Data for what that is."
            + OWN_DATA.get(network, ""),
        )
    data_card = data.card(contract.labels)
    batch, rows = getattr(config, "batch", 1), data_card.rows.get("train", 1)
    if batch > rows:
        raise TrainingError(f"a step of {batch} rows needs as many, and {name} has {rows} training rows: --set batch=N")
    head = {
        "model": name,
        "network": network,
        "contract": to_json(contract),
        "purpose": words[0],
        "limits": words[1],
        "configuration": configuration,
        "profile": profile,
        "seed": seed,
        "mode": mode,
        "config": dataclasses.asdict(config),
        "settings": dict(settings),
        "data": dataclasses.asdict(data.origin),
        "data_card": dataclasses.asdict(data_card)
        | {"distributions": drift.distributions(contract, model_module.measurement(data).calibration)},
        "own_data": None if request.own is None else own_data.to_json(request.own),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "devices": devices.describe(),
        "made_with": versions(),
    }
    training = Training(name, model_module, contract, config, data, seed, strategy, console, histograms, tracker)
    try:
        if cluster is None or cluster.place == 0:
            folder, metrics = _lead(training, head, runs_dir, fresh)
        else:
            folder, metrics = _follow(training, head, cluster)
    except OSError as error:
        raise TrainingError(f"cannot write the run of {name} below {runs_dir}: {error.strerror or error}") from error
    except tf.errors.ResourceExhaustedError as error:
        raise TrainingError(
            f"{name} needs more memory or disk than there is: {error.message.splitlines()[0]}"
        ) from error
    except hosts.LOST as error:
        if cluster is None:
            raise
        raise TrainingError(
            f"{name} lost one of {cluster.others}: see what it said, and start the same command again on every host; "
            "it goes on from the last complete epoch"
        ) from error
    return Result(folder, metrics, model_module.KEY_METRIC, data.origin, time.monotonic() - clock)


def named_config(model_module: BookModel, configuration: str, profile: str) -> Any:
    """The `Config` of a configuration of the model and a profile.

    Raises:
        TrainingError: the model has no such configuration, or there is no such profile.
    """
    if profile not in PROFILES:
        raise TrainingError(f"there is no profile '{profile}': it is one of {', '.join(PROFILES)}")
    if configuration not in model_module.CONFIGS:
        known = ", ".join(model_module.CONFIGS)
        raise TrainingError(f"{model_module.CONTRACT.model} has no configuration '{configuration}'; it has {known}")
    return model_module.CONFIGS[configuration][profile]


def objective(name: str, config: Any, request: DataRequest, seed: int, figure: str) -> list[float]:
    """Train without a run folder, for a search: `figure` of every epoch of the model `name` with the numbers `config`.

    Raises:
        DataError: the data is damaged, cannot be read, or cannot be had.
        TrainingError: the loss is not finite any more.
    """
    model_module = book_model(name)
    make_repeatable(seed)
    data = _load(model_module, config, request, seed)
    with devices.strategy().scope():
        model = model_module.build_model(config)
        return model_module.train(model, data, config, seed, [StopOnNan()], NO_CHECKPOINT)[figure]


def make_repeatable(seed: int, mode: str = exactness.EXACT) -> None:
    """Seed Python, numpy and TensorFlow, forget earlier models, and have only repeatable kernels unless it is fast."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    exactness.switch(mode)


def versions() -> dict[str, str]:
    """The libraries that made a run, with their versions."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "bookserve": installed_version("bookserve"),
    }


def adapted(
    model_module: BookModel, config: Any, settings: Mapping[str, Any], request: DataRequest, seed: int, name: str
) -> tuple[Data, Any, Contract]:
    """The splits, and the numbers and the contract that fit them, of a model that is called `name`.

    A user's own data changes both; `settings` are fields of the `Config` that it leaves alone.

    Raises:
        DataError: the data is damaged, cannot be read, or cannot be had.
    """
    data, contract = _load(model_module, config, request, seed), replace(model_module.CONTRACT, model=name)
    if request.own is not None:
        config, contract = cast(AdaptableModel, model_module).on_own_data(config, data, name)
        config = replace(config, **settings)
    if isinstance(model_module, ConfiguredModel):
        contract = model_module.contract_of(config, contract)
    return data, config, contract


def _load(model_module: BookModel, config: Any, request: DataRequest, seed: int) -> Data:
    """The splits of the model's data.

    Raises:
        DataError: it is damaged, cannot be read, or cannot be had.
    """
    try:
        return model_module.load_data(config, request, seed)
    except OSError as error:
        raise DataError(f"the data of {model_module.CONTRACT.model} cannot be read: {error}") from error


def _lead(
    training: Training, head: dict[str, Any], runs_dir: Path, fresh: bool
) -> tuple[Path, dict[str, dict[str, float]]]:
    """The training on the only or the first host: keeps the run and returns its folder and metrics."""
    name, console = training.name, training.console
    run = None if fresh else run_writer.find(runs_dir, name, head)
    if run is not None:
        console.print(f"{name}: going on with {run.folder}", highlight=False, soft_wrap=True)
        for line in _changed_since(run.folder, head):
            console.print(f"{name}: {line}", highlight=False, soft_wrap=True)
    else:
        dead = len(run_writer.dead(runs_dir, name))
        if dead:
            console.print(
                f"{name}: unfinished runs in {runs_dir / name}: {dead}, which 'bookserve clean-runs' removes",
                highlight=False,
                soft_wrap=True,
            )
        run = run_writer.begin(runs_dir, name, head)
    try:
        state = run.folder / run_format.CHECKPOINT
        checkpoint = Checkpoint(state)
        hosts.from_first(json.dumps(head).encode())
        hosts.from_first(state.read_bytes() if state.is_file() else b"")
        bar = ProgressBar(console, name)
        watchers = _boards(run.folder / run_format.TENSORBOARD, training.histograms)
        with _noting_a_stop(name, checkpoint), _told_of_a_failure(training.tracker):
            if training.tracker is not None:
                watchers.append(training.tracker.begin(head, run.folder))
            try:
                model, history = _fit(training, [StopOnNan(), bar, *watchers], checkpoint)
            finally:
                bar.close()
            metrics = _write(training, model, history, run.folder)
            final = run.finish()
        if training.tracker is not None:
            training.tracker.finish(final, metrics)
        hosts.from_first(json.dumps({"folder": str(final), "metrics": metrics}).encode())
    finally:
        run.close()
    return final, metrics


def _boards(folder: Path, histograms: bool) -> list[keras.callbacks.Callback]:
    """What TensorBoard shows of a run: the graph, the figures of every epoch, the loss of every step."""
    board = keras.callbacks.TensorBoard(folder, histogram_freq=1 if histograms else 0, write_graph=False)
    return [NetworkGraph(folder / "network"), StepLosses(folder / "steps"), board]


def _changed_since(folder: Path, head: Mapping[str, Any]) -> list[str]:
    """What of libraries and devices is not as it was when the run in `folder` began: its figures may differ."""
    before = json.loads((folder / run_format.CONFIG).read_text(encoding="utf-8"))
    pairs = {"devices": (before.get("devices"), head["devices"])}
    made_with = before.get("made_with", {})
    pairs |= {library: (made_with.get(library), number) for library, number in head["made_with"].items()}
    changes = [f"{what} was {then}, now {now}" for what, (then, now) in pairs.items() if then != now]
    return [f"{'; '.join(changes)}: the figures may differ from those of one training"] if changes else []


def _follow(
    training: Training, head: dict[str, Any], cluster: hosts.Cluster
) -> tuple[Path, dict[str, dict[str, float]]]:
    """The training on any other host: nothing is kept; returns the folder on the first host, and its metrics."""
    first = json.loads(hosts.from_first(b""))
    for setting in run_writer.SETTINGS:
        if first[setting] != json.loads(json.dumps(head[setting])):
            raise TrainingError(
                f"{training.name}: '{setting}' is {head[setting]} here and {first[setting]} on {cluster.addresses[0]}: "
                "all hosts train the same"
            )
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch) / run_format.CHECKPOINT
        saved = hosts.from_first(b"")
        if saved:
            state.write_bytes(saved)
        checkpoint = Checkpoint(state, follows=True)
        with _noting_a_stop(training.name, checkpoint):
            _fit(training, [StopOnNan()], checkpoint)
    result = json.loads(hosts.from_first(b""))
    return Path(result["folder"]), result["metrics"]


@contextmanager
def _noting_a_stop(name: str, checkpoint: Checkpoint) -> Iterator[None]:
    """Ctrl-C leaves with a note that says where the training stopped."""
    try:
        yield
    except KeyboardInterrupt as stop:
        done = f"after epoch {checkpoint.epoch}" if checkpoint.epoch else "before an epoch was complete"
        goes_on = "goes on from there" if checkpoint.epoch else "starts anew"
        stop.add_note(f"{name}: stopped {done}; the same command {goes_on}")
        raise


@contextmanager
def _told_of_a_failure(tracker: Tracker | None) -> Iterator[None]:
    """A training that does not end well is told to the tracker."""
    try:
        yield
    except BaseException as error:
        if tracker is not None:
            tracker.fail(stopped=isinstance(error, KeyboardInterrupt))
        raise


def _fit(
    training: Training, callbacks: Sequence[keras.callbacks.Callback], checkpoint: Checkpoint
) -> tuple[keras.Model, dict[str, list[float]]]:
    """The trained network, which is on this device alone, and figure -> value of each epoch."""
    module, config = training.module, training.config
    try:
        with training.strategy.scope():
            model = module.build_model(config)
            history = module.train(model, training.data, config, training.seed, callbacks, checkpoint)
    except DivergedError:
        checkpoint.delete()  # going on from it would end in the same place
        raise
    if training.strategy.num_replicas_in_sync == 1:
        return model, history
    alone = module.build_model(config)
    alone.set_weights(model.get_weights())
    return alone, history


def _write(
    training: Training, model: keras.Model, history: dict[str, list[float]], folder: Path
) -> dict[str, dict[str, float]]:
    """Evaluate the trained network and write all but the head of the run folder; returns the metrics."""
    module, data = training.module, training.data
    report = folder / run_format.REPORT
    report.mkdir(exist_ok=True)
    served = module.serving_model(model)
    metrics = module.evaluate(model, data, report) | {SERVED: _evaluate_served(training, served, report)}
    if exactness.mode() == exactness.FAST:
        metrics[TRAINING] = {exactness.FAST: 1.0}
    run_writer.write_history(folder / run_format.HISTORY, history)
    plots.curves(history, report / "curves.png")
    served.save(folder / run_format.NETWORK)
    run_writer.write_examples(folder / run_format.EXAMPLES, data.examples, EXAMPLE_ROWS)
    left_out = cast(UsersData, data).left_out if data.origin.source == "own" else ()
    if left_out:
        (report / run_format.LEFT_OUT).write_text("".join(f"{line}\n" for line in left_out), encoding="utf-8")
    if training.contract.assets:
        run_writer.write_assets(folder / run_format.ASSETS, cast(DataWithAssets, data).assets)
    run_writer.write_json(folder / run_format.METRICS, metrics)
    return metrics


def _evaluate_served(training: Training, served: keras.Model, report: Path) -> dict[str, float]:
    """The figures of the served graph on the test rows; the whole evaluation and its picture go into `report`."""
    measured = training.module.measurement(training.data)
    figure = measured.figure
    inputs = {tensor.name: figure.rows[tensor.name] for tensor in served.inputs}
    asked = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    outputs = Traced(served).answers(asked, EVALUATION_ROWS)
    found = evaluation.beside(evaluation.evaluate(figure, outputs, training.contract), measured, outputs)
    run_writer.write_json(report / run_format.EVALUATION, found.to_json())
    if found.calibration is not None:
        bins = [(one.count, one.probability, one.true) for one in found.calibration.bins]
        plots.reliability(bins, found.calibration.ece, report / "reliability.png")
    return evaluation.figures_of(found)
