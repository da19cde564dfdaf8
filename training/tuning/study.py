"""A study: the trials of one hyperparameter search, in `runs/<model>/tuned/<study>/study.db` or a shared database.

Optuna keeps them, in SQLite or in the database of a URL, where many machines search together. Of a shared study the
folder gets a copy, by which `train --config` finds the winner. A trial's value is the mean of its repeats; its user
attributes hold `values`, one for each repeat, `seconds`, and `failure`, which says why it has no value.
"""

import fcntl
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from bookserve.training.errors import TrainingError
from bookserve.training.tuning.search_space import Distribution, Search, grid

FOLDER = "tuned"
DATABASE = "study.db"
GRID = "grid"  # of the settings of a study: the values of a grid that the command line gave
LOCK = "lock"
_PLACE = "place"  # of a trial: its point's place in the order of the grid
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Study:
    """An open study, made by `open_study`; no other process writes meanwhile, unless it lies in a shared database."""

    def __init__(
        self, study: optuna.Study, folder: Path, search: Search, sampler: str, seed: int, shared: bool
    ) -> None:
        self._study = study
        self._folder = folder
        self._search = search
        self._sampler = sampler
        self._seed = seed
        self._shared = shared

    @property
    def grid_points(self) -> int:
        """How many settings the grid has."""
        return math.prod(len(grid(values, self._search.points)) for values in self._search.space.values())

    def started(self) -> int:
        """How many trials are over or under way, on any machine."""
        with _named_failure(self._folder):
            return len(self.trials()) + len(self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def ask(self) -> optuna.Trial | None:
        """The next setting to try; None where all points of a grid were.

        It is drawn by the seed and the number of the trial, so that a study that was stopped goes on alike, and two
        machines draw different ones; of a grid it is the next point.
        """
        with _named_failure(self._folder):
            while True:
                trials = self._study.get_trials(deepcopy=False)
                waits = any(trial.state == TrialState.WAITING for trial in trials)
                if self._sampler == "grid" and not waits and not self._queue_next_point(trials):
                    return None
                trial = self._study.ask()
                seed = (self._seed * 1_000_003 + trial.number) % 2**32
                if self._sampler == "tpe":
                    self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
                else:
                    self._study.sampler = optuna.samplers.RandomSampler(seed=seed)
                for name, values in self._search.space.items():
                    _suggest(trial, name, values)
                if self._sampler != "grid" or not self._is_taken(trial):
                    return trial
                self._study.tell(trial, state=TrialState.FAIL)

    def _is_taken(self, trial: optuna.Trial) -> bool:
        """Whether another machine asked for the same point of a grid, and first."""
        return self._shared and any(
            other.params == trial.params and other.number < trial.number
            for other in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE))
        )

    def _queue_next_point(self, trials: Sequence[FrozenTrial]) -> bool:
        """Have the next point of the grid that was not tried asked for; whether there is one.

        The order is drawn by the seed, so that a part of the grid is not a corner of it. Points are numbers until they
        are asked for: a large grid costs a database no more than a small one.
        """
        names = list(self._search.space)
        values = [grid(each, self._search.points) for each in self._search.space.values()]
        order = list(range(math.prod(map(len, values))))
        random.Random(self._seed).shuffle(order)
        tried = [trial.params for trial in trials]
        first = 1 + max((trial.user_attrs[_PLACE] for trial in trials if _PLACE in trial.user_attrs), default=-1)
        for place in range(first, len(order)):
            rest, chosen = order[place], []
            for choices in reversed(values):
                rest, number = divmod(rest, len(choices))
                chosen.append(choices[number])
            point = dict(zip(names, reversed(chosen), strict=True))
            if point not in tried:
                self._study.enqueue_trial(point, user_attrs={_PLACE: place})
                return True
        return False

    def tell(self, trial: optuna.Trial, values: Sequence[float], seconds: float, failure: str = "") -> FrozenTrial:
        """Store what became of a trial that was asked for: the objective of each repeat, or why it failed."""
        with _named_failure(self._folder):
            trial.set_user_attr("values", list(values))
            trial.set_user_attr("seconds", seconds)
            trial.set_user_attr("failure", failure)
            if failure:
                return self._study.tell(trial, state=TrialState.FAIL)
            return self._study.tell(trial, math.fsum(values) / len(values))

    def trials(self) -> list[FrozenTrial]:
        """The trials that are over, in their order; those that were interrupted are not among them."""
        return _finished(self._study)

    def copy(self) -> None:
        """Copy a shared study into its folder, in place of the copy there.

        Raises:
            TrainingError: the folder cannot be written.
        """
        if not self._shared:
            return
        with _locked(self._folder, waits=True), _named_failure(self._folder):
            (self._folder / DATABASE).unlink(missing_ok=True)
            with _database(self._folder) as local:
                optuna.copy_study(
                    from_study_name=self._study.study_name,
                    from_storage=self._study._storage,  # noqa: SLF001 - the one that is open
                    to_storage=local,
                    to_study_name=self._folder.name,
                )


@contextmanager
def open_study(
    folder: Path, settings: Mapping[str, Any], search: Search, storage_url: str | None = None
) -> Iterator[Study]:
    """Begin the study in `folder`, or go on with it; with `storage_url` it lies in that database, for many machines.

    `settings` is what all its trials have in common, as JSON has it; `sampler` and `seed` are among it.

    Raises:
        TrainingError: it was begun with other settings, another process works on it, or it cannot be read or written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shared = storage_url is not None
    with nullcontext() if shared else _locked(folder), _database(folder, storage_url) as storage:
        with _named_failure(folder):
            study = optuna.create_study(
                storage=storage,
                study_name=f"{folder.parent.parent.name}/{folder.name}" if shared else folder.name,
                direction="maximize" if search.higher_is_better else "minimize",
                load_if_exists=True,
            )
            _compare(study, folder, json.loads(json.dumps(settings)), search)
            for trial in () if shared else study.get_trials(states=(TrialState.RUNNING,)):  # ended: they come first
                study.tell(trial.number, state=TrialState.FAIL)
                study.enqueue_trial(trial.params)
        yield Study(study, folder, search, settings["sampler"], settings["seed"], shared)


def names(runs_dir: Path, model: str) -> list[str]:
    """The studies of a model."""
    return sorted(path.parent.name for path in (runs_dir / model / FOLDER).glob(f"*/{DATABASE}"))


def folder_of(runs_dir: Path, model: str, name: str) -> Path:
    """Where a study lies.

    Raises:
        TrainingError: `name` cannot name a folder.
    """
    if not NAME.fullmatch(name):
        raise TrainingError(f"'{name}' is no name for a study: take letters, digits, '-', '_' and '.'")
    return runs_dir / model / FOLDER / name


def winner(folder: Path, searches: Mapping[str, Search]) -> tuple[str, FrozenTrial]:
    """The configuration from which a study began, and its best trial.

    Raises:
        TrainingError: the study is damaged, has no successful trial, or is of a search that the model has no more.
    """
    with _database(folder) as storage, _named_failure(folder):
        study = optuna.load_study(study_name=folder.name, storage=storage)
        configuration = study.user_attrs["configuration"]
        search = searches.get(configuration)
        if search is not None:
            search = search.over(study.user_attrs.get(GRID))
        if search is None or not _has_space_of(study, search):
            raise TrainingError(f"the study {folder} is of a search that the model does not have any more: tune again")
        best = ranked(_finished(study), search)[:1]
    if not best:
        raise TrainingError(f"the study {folder} has no successful trial yet: tune on")
    return configuration, best[0]


def ranked(trials: Sequence[FrozenTrial], search: Search) -> list[FrozenTrial]:
    """The successful trials, the best first."""
    good = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(good, key=lambda trial: trial.value or 0.0, reverse=search.higher_is_better)


@contextmanager
def _locked(folder: Path, waits: bool = False) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise TrainingError(f"cannot write the study {folder}: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise TrainingError(f"another process works on the study {folder}: wait, or name another") from error
        yield


@contextmanager
def _database(folder: Path, url: str | None = None) -> Iterator[optuna.storages.RDBStorage]:
    with _named_failure(folder) if url is None else _named_database(url):
        address = f"sqlite:///{folder / DATABASE}" if url is None else _with_driver(url)
        alive = {"pool_pre_ping": True}  # a server closes connections that wait for long
        try:
            storage = optuna.storages.RDBStorage(address, engine_kwargs=alive)
        except (ProgrammingError, IntegrityError):  # another machine has just made the tables
            storage = optuna.storages.RDBStorage(address, engine_kwargs=alive)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _with_driver(url: str) -> str:
    """A URL of PostgreSQL with the driver of the extra `postgresql`, where it names none."""
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+pg8000")
    return parsed.render_as_string(hide_password=False)


@contextmanager
def _named_database(url: str) -> Iterator[None]:
    """Whatever is wrong with a shared database, in one line without its password."""
    try:
        yield
    except ImportError as error:
        raise TrainingError(
            f"--storage needs the package '{error.name}', which is not installed: for PostgreSQL pip install "
            "'bookserve[postgresql]'"
        ) from error
    except (SQLAlchemyError, optuna.exceptions.OptunaError, OSError, ValueError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        try:
            shown = make_url(url).render_as_string()
        except SQLAlchemyError:
            shown = "which is no URL"
        raise TrainingError(
            f"--storage {shown} cannot be used ({reason}): give a database such as "
            "postgresql://user:password@host/name that exists and answers"
        ) from error


def _suggest(trial: optuna.Trial, name: str, values: Distribution) -> None:
    if isinstance(values, CategoricalDistribution):
        trial.suggest_categorical(name, values.choices)
    else:
        trial.suggest_float(name, values.low, values.high, log=values.log, step=values.step)


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


def _compare(study: optuna.Study, folder: Path, wanted: Mapping[str, Any], search: Search) -> None:
    """Write down what a new study is about; refuse to mix an old one with something else."""
    begun = study.user_attrs
    differences = [name for name, value in wanted.items() if begun and begun.get(name) != value]
    if not _has_space_of(study, search):
        differences.append("space")
    for name in differences:
        plain = isinstance(wanted.get(name), str | int)
        difference = f"{name} {begun.get(name)}" if plain else f"another {name}"
        raise TrainingError(f"the study {folder} was begun with {difference}: name another one, or delete it")
    if not begun:
        for name, value in wanted.items():
            study.set_user_attr(name, value)


def _has_space_of(study: optuna.Study, search: Search) -> bool:
    """Whether all trials were drawn from the space of `search`; those under way have not all of it."""
    return all(trial.distributions == search.space for trial in _finished(study))


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    found = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [trial for trial in found if "failure" in trial.user_attrs]
