"""Hyperparameter search (chapter 5): try settings of a model's numbers and note what each is worth on validation rows.

Grid search and random search as in the book, and TPE (Bergstra et al., "Algorithms for Hyper-Parameter Optimization",
2011), which draws where good settings lie. Every setting is trained several times with different seeds and counts with
the mean. Test rows play no part.
"""

import csv
import dataclasses
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bookserve.training import plots
from bookserve.training.datasets.files import DataRequest
from bookserve.training.errors import TrainingError
from bookserve.training.models import MODELS
from bookserve.training.run import BookModel, book_model, named_config
from bookserve.training.tuning import study
from bookserve.training.tuning.search_space import Search, hyperparameters
from bookserve.training.tuning.study import Study, open_study, ranked
from bookserve.training.tuning.workers import Outcome, TrainingTask, WorkerPool

DEFAULT_TRIALS = 20
ROWS = 10  # of the table on the terminal; the CSV file has all
TABLE, PLOT = "trials.csv", "trials.png"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to try, and how. `trials` None is the whole grid, or 20; `grid` has values of fields instead of the model's
    own space.
    """

    configuration: str
    profile: str
    sampler: str
    trials: int | None
    repeats: int
    workers: int
    seed: int
    grid: Mapping[str, Sequence[Any]] | None = None
    storage: str | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What a search has found so far."""

    folder: Path
    trials: Sequence[FrozenTrial]
    search: Search

    @property
    def ranked(self) -> list[FrozenTrial]:
        """The successful trials, the best first."""
        return ranked(self.trials, self.search)


def searches(module: BookModel) -> Mapping[str, Search]:
    """Configuration -> the search that may begin with it; empty for a model that declares none."""
    return cast(Mapping[str, Search], getattr(module, "SEARCHES", {}))


def config_of(name: str, configuration: str, profile: str, runs_dir: Path) -> Any:
    """The `Config` of a configuration of the model `name`, or the best one of a study of it below `runs_dir`.

    Raises:
        TrainingError: the model has no such configuration and no such study, the study is damaged, or there is no such
            profile.
    """
    module = book_model(name)
    if configuration in module.CONFIGS:
        return named_config(module, configuration, profile)
    studies = study.names(runs_dir, name)
    if configuration not in studies:
        raise TrainingError(
            f"{name} has neither a configuration nor a study '{configuration}'; it has the configurations "
            f"{', '.join(module.CONFIGS)}"
            + (f" and the studies {', '.join(studies)}" if studies else f" and no study in {runs_dir / name}")
        )
    begun_from, best = study.winner(study.folder_of(runs_dir, name, configuration), searches(module))
    return dataclasses.replace(named_config(module, begun_from, profile), **hyperparameters(best.params))


def tune(name: str, study_name: str, plan: Plan, request: DataRequest, runs_dir: Path, console: Console) -> Report:
    """Bring a study of the model `name` to the trials that `plan` asks for; those of earlier calls count.

    Table and plot are written when all is done and when it is stopped; a call with the same arguments goes on.

    Raises:
        DataError: the data is damaged or cannot be had.
        TrainingError: the model has no such search, or the study cannot be used.
        KeyboardInterrupt: with a note that says what is kept.
    """
    module = book_model(name)
    search = searches(module).get(plan.configuration)
    if search is None:
        raise TrainingError(_who_can(name, plan.configuration))
    search = search.over(plan.grid)
    if study_name in module.CONFIGS:
        raise TrainingError(f"'{study_name}' is a configuration of {name}: name the study differently with --study")
    config = module.CONFIGS[plan.configuration][plan.profile]
    folder = study.folder_of(runs_dir, name, study_name)
    settings = {
        "configuration": plan.configuration,
        "profile": plan.profile,
        "seed": plan.seed,
        "repeats": plan.repeats,
        "sampler": plan.sampler,
        "objective": search.objective,
        "data": dataclasses.asdict(module.load_data(config, request, plan.seed).origin),
    }
    if plan.grid is not None:
        settings[study.GRID] = {name: list(values) for name, values in plan.grid.items()}
    task = TrainingTask(trial=0, model=name, config=config, request=request, seed=plan.seed, figure=search.objective)
    with open_study(folder, settings, search, plan.storage) as opened:
        total = plan.trials or DEFAULT_TRIALS
        if plan.sampler == "grid":
            points = opened.grid_points
            total = min(plan.trials or points, points)
        try:
            _run(opened, search, task, total, plan, console)
        except KeyboardInterrupt as stop:
            opened.copy()
            kept = _write(Report(folder, opened.trials(), search))
            stop.add_note(
                f"{study_name}: stopped, trials kept: {len(kept.trials)}; the same command goes on from there"
            )
            raise
        opened.copy()
        return _write(Report(folder, opened.trials(), search))


def _write(report: Report) -> Report:
    """Table and plot into the study's folder; the report itself is returned.

    Raises:
        TrainingError: they cannot be written.
    """
    if report.trials:
        try:
            write_csv(report.folder / TABLE, report.trials, report.search)
            draw(report.folder / PLOT, report.trials, report.search)
        except OSError as error:
            raise TrainingError(f"cannot write to the study {report.folder}: {error.strerror or error}") from error
    return report


def table(report: Report) -> Table:
    """The best trials, for the terminal."""
    found = Table("trial", report.search.objective, "spread", "numbers", "seconds", show_lines=True)
    for trial in report.ranked[:ROWS]:
        numbers = ", ".join(_named_values(trial.params, report.search))
        seconds = f"{trial.user_attrs['seconds']:.0f}"
        found.add_row(str(trial.number), f"{trial.value:.4f}", f"{_spread(trial):.4f}", numbers, seconds)
    return found


def write_csv(path: Path, trials: Sequence[FrozenTrial], search: Search) -> None:
    """All trials in their order: the mean, the spread, every repeat, the numbers, and why one failed."""
    repeats = max(len(trial.user_attrs["values"]) for trial in trials)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        columns = [f"repeat_{number}" for number in range(1, repeats + 1)]
        writer.writerow(["trial", search.objective, "spread", *columns, *search.space, "seconds", "failure"])
        for trial in trials:
            seen = trial.user_attrs
            values = [f"{value:.6f}" for value in seen["values"]] + [""] * (repeats - len(seen["values"]))
            figures = ["", ""] if seen["failure"] else [f"{trial.value:.6f}", f"{_spread(trial):.6f}"]
            found = hyperparameters(trial.params)
            numbers = [found[name] for name in search.space]
            writer.writerow([trial.number, *figures, *values, *numbers, f"{seen['seconds']:.1f}", seen["failure"]])


def draw(path: Path, trials: Sequence[FrozenTrial], search: Search) -> None:
    """The objective by trial and by each number."""
    good = [trial for trial in trials if trial.value is not None]
    found = [hyperparameters(trial.params) for trial in good]
    plots.trials(
        [trial.number for trial in good],
        [trial.value for trial in good if trial.value is not None],
        {name: [_axis_value(values[name]) for values in found] for name in search.space},
        {name for name, values in search.space.items() if isinstance(values, FloatDistribution) and values.log},
        search.objective,
        search.higher_is_better,
        path,
    )


def _run(opened: Study, search: Search, base: TrainingTask, total: int, plan: Plan, console: Console) -> None:
    """Train until the study has `total` trials that are over."""
    more = True
    waiting: deque[TrainingTask] = deque()
    under_way: dict[int, tuple[optuna.Trial, list[Outcome]]] = {}
    columns = (TextColumn("networks trained"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with WorkerPool(plan.workers) as pool, progress:
        bar = progress.add_task("", total=max(0, total - len(opened.trials())) * plan.repeats)
        while True:
            while pool.free and (waiting or more):
                if not waiting:
                    trial = opened.ask() if opened.started() < total else None
                    if trial is None:
                        more = False
                        break
                    under_way[trial.number] = trial, []
                    waiting.extend(_tasks(base, trial, plan.repeats, search))
                pool.start(waiting.popleft())
            if not pool.busy:
                return
            for task, outcome in pool.wait():
                trial, outcomes = under_way[task.trial]
                outcomes.append(outcome)
                progress.advance(bar)
                if len(outcomes) == plan.repeats:
                    finished = _finish(opened, trial, outcomes, search)
                    console.print(_line(finished, search), highlight=False, soft_wrap=True)


def _tasks(base: TrainingTask, trial: optuna.Trial, repeats: int, search: Search) -> list[TrainingTask]:
    config = search.shortcut(dataclasses.replace(base.config, **hyperparameters(trial.params)))
    seeds = range(base.seed, base.seed + repeats)
    return [dataclasses.replace(base, trial=trial.number, config=config, seed=seed) for seed in seeds]


def _finish(opened: Study, trial: optuna.Trial, outcomes: Sequence[Outcome], search: Search) -> FrozenTrial:
    """Store what the repeats of a trial gave; one failed repeat is enough to fail."""
    values = [search.kept(outcome.values) for outcome in outcomes]
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    if not failures and not all(map(math.isfinite, values)):
        failures = [f"{search.objective} is not finite"]
    seconds = sum(outcome.seconds for outcome in outcomes)
    return opened.tell(trial, [], seconds, failures[0]) if failures else opened.tell(trial, values, seconds)


def _spread(trial: FrozenTrial) -> float:
    """The standard deviation of the repeats, 0 where there is only one."""
    values = trial.user_attrs["values"]
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _line(trial: FrozenTrial, search: Search) -> str:
    seen = trial.user_attrs
    result = f"failed: {seen['failure']}"
    if not seen["failure"]:
        result = f"{search.objective} {trial.value:.4f} ± {_spread(trial):.4f}"
    return f"trial {trial.number}  {result}  {'  '.join(_named_values(trial.params, search))}  {seen['seconds']:.0f} s"


def _named_values(parameters: Mapping[str, Any], search: Search) -> list[str]:
    found = hyperparameters(parameters)
    return [f"{name} {_text(found[name])}" for name in search.space]


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _axis_value(value: object) -> float | str:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else _text(value)


def _who_can(model: str, configuration: str) -> str:
    found = {name: ", ".join(searches(book_model(name))) for name in MODELS}
    others = "; ".join(f"{name} ({configurations})" for name, configurations in found.items() if configurations)
    return f"{model} has no search that begins with the configuration '{configuration}'. There is one for: {others}"
