"""A study on disk: the trials of one hyper-parameter search, `runs/<model>/tuned/<study>/study.db`.

Optuna keeps them in SQLite. Only this module knows Optuna; everything else sees `Trial`.
"""

import fcntl
import itertools
import json
import math
import random
import re
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from bookserve.training.errors import TrainingError
from bookserve.training.tuning.search_space import Choice, LogUniform, Parameter, Sampler, Search

FOLDER = "tuned"
DATABASE = "study.db"
LOCK = "lock"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Trial:
    """One setting: `numbers` for fields of `Config`, and the objective of each repeat or why it failed."""

    number: int
    numbers: dict[str, Any]
    values: tuple[float, ...] = ()
    seconds: float = 0.0
    failure: str = ""

    @property
    def mean(self) -> float:
        """The mean of the repeats, NaN where there are none."""
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """The standard deviation of the repeats, 0 where there is only one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Settings:
    """What all trials of a study have in common; `data` is the origin of the rows."""

    configuration: str
    profile: str
    data: dict[str, Any]
    seed: int
    repeats: int
    sampler: Sampler


class Study:
    """An open study, which no other process writes meanwhile; made by `open_study`."""

    def __init__(self, study: optuna.Study, folder: Path, settings: Settings, search: Search) -> None:
        self.folder = folder
        self.search = search
        self._study = study
        self._settings = settings
        self._asked: dict[int, optuna.trial.Trial] = {}

    def plan_grid(self) -> int:
        """Put every point of the grid that was not tried into the queue, in an order drawn by the seed; their number.

        The order is drawn so that a part of the grid is no corner of it.
        """
        space = self.search.space
        points = list(itertools.product(*(parameter.grid() for parameter in space.values())))
        random.Random(self._settings.seed).shuffle(points)
        for point in points:
            stored = {name: _stored(space[name], value) for name, value in zip(space, point, strict=True)}
            self._study.enqueue_trial(stored, skip_if_exists=True)
        return len(points)

    def ask(self) -> Trial:
        """The next setting to try."""
        space = self.search.space
        with _named_failure(self.folder):
            self._study.sampler = _sampler(self._settings, len(self._study.get_trials(deepcopy=False)))
            asked = self._study.ask({name: _distribution(parameter) for name, parameter in space.items()})
        self._asked[asked.number] = asked
        return Trial(asked.number, _numbers(asked.params, space))

    def tell(self, trial: Trial) -> None:
        """Store what became of a trial that was asked for."""
        asked = self._asked.pop(trial.number)
        with _named_failure(self.folder):
            asked.set_user_attr("values", list(trial.values))
            asked.set_user_attr("seconds", trial.seconds)
            asked.set_user_attr("failure", trial.failure)
            if trial.failure:
                self._study.tell(asked, state=TrialState.FAIL)
            else:
                self._study.tell(asked, trial.mean)

    def trials(self) -> list[Trial]:
        """The trials that are over, in their order; those that were interrupted are not among them."""
        return _finished(self._study, self.search)


@contextmanager
def open_study(folder: Path, settings: Settings, search: Search) -> Iterator[Study]:
    """Begin the study in `folder`, or go on with it.

    Raises:
        TrainingError: it was begun with other settings, another process works on it, or it cannot be read or written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _locked(folder), _database(folder) as storage:
        with _named_failure(folder):
            study = optuna.create_study(
                storage=storage,
                study_name=folder.name,
                direction="maximize" if search.higher_is_better else "minimize",
                load_if_exists=True,
            )
            _compare(study, folder, _as_json(_description(settings, search)))
            for trial in study.get_trials(states=(TrialState.RUNNING,)):  # their process ended: they come first again
                study.tell(trial.number, state=TrialState.FAIL)
                study.enqueue_trial(trial.params)
        yield Study(study, folder, settings, search)


def names(runs_dir: Path, model: str) -> list[str]:
    """The studies of a model."""
    return sorted(path.parent.name for path in (runs_dir / model / FOLDER).glob(f"*/{DATABASE}"))


def folder_of(runs_dir: Path, model: str, name: str) -> Path:
    """Where a study lies.

    Raises:
        TrainingError: `name` is no name for a folder.
    """
    if not NAME.fullmatch(name):
        raise TrainingError(f"'{name}' is no name for a study: take letters, digits, '-', '_' and '.'")
    return runs_dir / model / FOLDER / name


def winner(folder: Path, searches: Mapping[str, Search]) -> tuple[str, Trial]:
    """The configuration from which a study began, and its best trial.

    Raises:
        TrainingError: the study is damaged, has no successful trial, or is of a search that the model has no more.
    """
    with _database(folder) as storage, _named_failure(folder):
        study = optuna.load_study(study_name=folder.name, storage=storage)
        configuration = study.user_attrs["configuration"]
        search = searches.get(configuration)
        if search is None or study.user_attrs["space"] != _space(search):
            raise TrainingError(f"the study {folder} is of a search that the model does not have any more: tune again")
        trials = [trial for trial in _finished(study, search) if not trial.failure]
    if not trials:
        raise TrainingError(f"the study {folder} has no successful trial yet: tune on")
    return configuration, (max if search.higher_is_better else min)(trials, key=lambda trial: trial.mean)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise TrainingError(f"cannot write the study {folder}: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(f"another process works on the study {folder}: wait, or name another") from error
        yield


@contextmanager
def _database(folder: Path) -> Iterator[optuna.storages.RDBStorage]:
    with _named_failure(folder):
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / DATABASE}")
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def _named_failure(folder: Path) -> Iterator[None]:
    """Whatever SQLite and Optuna say of a file that is damaged, foreign or cannot be written, in one line."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.OptunaError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise TrainingError(
            f"the study {folder} cannot be read or written ({reason}): delete it, or name another with --study"
        ) from error


def _compare(study: optuna.Study, folder: Path, wanted: dict[str, Any]) -> None:
    """Write down what a new study is about; refuse to mix an old one with something else."""
    begun = study.user_attrs
    for name, value in wanted.items():
        if not begun:
            study.set_user_attr(name, value)
        elif begun.get(name) != value:
            difference = f"{name} {begun.get(name)}" if isinstance(value, str | int) else f"another {name}"
            raise TrainingError(f"the study {folder} was begun with {difference}: name another one, or delete it")


def _description(settings: Settings, search: Search) -> dict[str, Any]:
    return {
        "configuration": settings.configuration,
        "profile": settings.profile,
        "seed": settings.seed,
        "repeats": settings.repeats,
        "sampler": settings.sampler,
        "objective": search.objective,
        "data": settings.data,
        "space": _space(search),
    }


def _space(search: Search) -> dict[str, str]:
    return {name: repr(parameter) for name, parameter in search.space.items()}


def _sampler(settings: Settings, trials: int) -> optuna.samplers.BaseSampler:
    """Its draws depend on the seed and the number of the trial, so that a study that was stopped goes on alike."""
    seed = (settings.seed * 1_000_003 + trials) % 2**32
    if settings.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


def _distribution(parameter: Parameter) -> BaseDistribution:
    if isinstance(parameter, Choice):
        return CategoricalDistribution([json.dumps(value) for value in parameter.values])
    return FloatDistribution(parameter.low, parameter.high, log=isinstance(parameter, LogUniform))


def _stored(parameter: Parameter, value: Any) -> Any:
    """A value as Optuna stores it, which knows no tuples."""
    return json.dumps(value) if isinstance(parameter, Choice) else value


def _numbers(stored: Mapping[str, Any], space: Mapping[str, Parameter]) -> dict[str, Any]:
    """The reverse of `_stored` for all parameters."""
    numbers = {}
    for name, parameter in space.items():
        if isinstance(parameter, Choice):
            numbers[name] = next(value for value in parameter.values if json.dumps(value) == stored[name])
        else:
            numbers[name] = stored[name]
    return numbers


def _finished(study: optuna.Study, search: Search) -> list[Trial]:
    found = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [_trial(trial, search) for trial in found if "failure" in trial.user_attrs]


def _trial(frozen: FrozenTrial, search: Search) -> Trial:
    notes = frozen.user_attrs
    return Trial(
        number=frozen.number,
        numbers=_numbers(frozen.params, search.space),
        values=tuple(notes["values"]),
        seconds=notes["seconds"],
        failure=notes["failure"],
    )


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
