"""Hyper-parameter search (chapter 5): try settings of a model's numbers and note what each is worth on validation rows.

Grid search and random search as in the book, and TPE (Bergstra et al., "Algorithms for Hyper-Parameter Optimization",
2011), which draws where good settings lie. Every setting is trained several times with different seeds and counts with
the mean. Test rows play no part.
"""

import csv
import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bookserve.training import plots
from bookserve.training.datasets.files import DataRequest
from bookserve.training.errors import TrainingError
from bookserve.training.models import MODELS
from bookserve.training.run import book_model, searches
from bookserve.training.tuning import study
from bookserve.training.tuning.search_space import LogUniform, Sampler, Search
from bookserve.training.tuning.study import Settings, Study, Trial
from bookserve.training.tuning.workers import Outcome, Task, Workers

DEFAULT_TRIALS = 20
ROWS = 10  # of the table on the terminal; the CSV file has all
TABLE, PICTURE = "trials.csv", "trials.png"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to try, and how. `trials` None is the whole grid, or 20."""

    configuration: str
    profile: str
    sampler: Sampler
    trials: int | None
    repeats: int
    workers: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Report:
    """What a search has found so far."""

    folder: Path
    trials: Sequence[Trial]
    search: Search

    @property
    def ranked(self) -> list[Trial]:
        """The successful trials, the best first."""
        good = [trial for trial in self.trials if not trial.failure]
        return sorted(good, key=lambda trial: trial.mean, reverse=self.search.higher_is_better)


def tune(name: str, study_name: str, plan: Plan, request: DataRequest, runs_dir: Path, console: Console) -> Report:
    """Bring a study of the model `name` to the trials that `plan` asks for; those of earlier calls count.

    Table and picture are written when all is done and when it is stopped; a call with the same arguments goes on.

    Raises:
        DataError: the data is damaged or cannot be had.
        TrainingError: the model has no such search, or the study cannot be used.
        KeyboardInterrupt: with a note that says what is kept.
    """
    module = book_model(name)
    search = searches(module).get(plan.configuration)
    if search is None:
        raise TrainingError(_who_can(name, plan.configuration))
    if study_name in module.CONFIGS:
        raise TrainingError(f"'{study_name}' is a configuration of {name}: name the study differently with --study")
    config = module.CONFIGS[plan.configuration][plan.profile]
    folder = study.folder_of(runs_dir, name, study_name)
    origin = dataclasses.asdict(module.load_data(config, request, plan.seed).origin)
    settings = Settings(plan.configuration, plan.profile, origin, plan.seed, plan.repeats, plan.sampler)
    task = Task(trial=0, model=name, config=config, request=request, seed=plan.seed, figure=search.objective)
    with study.open_study(folder, settings, search) as opened:
        total = plan.trials or DEFAULT_TRIALS
        if plan.sampler == "grid":
            points = opened.plan_grid()
            total = min(plan.trials or points, points)
        try:
            _run(opened, task, total, plan.repeats, plan.workers, console)
        except KeyboardInterrupt as stop:
            kept = _write(Report(folder, opened.trials(), search))
            stop.add_note(
                f"{study_name}: stopped, trials kept: {len(kept.trials)}; the same command goes on from there"
            )
            raise
        return _write(Report(folder, opened.trials(), search))


def _write(report: Report) -> Report:
    """Table and picture into the study's folder; the report itself is returned.

    Raises:
        TrainingError: they cannot be written.
    """
    if report.trials:
        try:
            write_csv(report.folder / TABLE, report.trials, report.search)
            draw(report.folder / PICTURE, report.trials, report.search)
        except OSError as error:
            raise TrainingError(f"cannot write to the study {report.folder}: {error.strerror or error}") from error
    return report


def table(report: Report) -> Table:
    """The best trials, for the terminal."""
    found = Table("trial", report.search.objective, "spread", "numbers", "seconds", show_lines=True)
    for trial in report.ranked[:ROWS]:
        numbers = ", ".join(f"{name} {_text(trial.numbers[name])}" for name in report.search.space)
        found.add_row(str(trial.number), f"{trial.mean:.4f}", f"{trial.spread:.4f}", numbers, f"{trial.seconds:.0f}")
    return found


def write_csv(path: Path, trials: Sequence[Trial], search: Search) -> None:
    """All trials in their order: the mean, the spread, every repeat, the numbers, and why one failed."""
    repeats = max(len(trial.values) for trial in trials)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        columns = [f"repeat_{number}" for number in range(1, repeats + 1)]
        writer.writerow(["trial", search.objective, "spread", *columns, *search.space, "seconds", "failure"])
        for trial in trials:
            values = [f"{value:.6f}" for value in trial.values] + [""] * (repeats - len(trial.values))
            figures = ["", ""] if trial.failure else [f"{trial.mean:.6f}", f"{trial.spread:.6f}"]
            numbers = [trial.numbers[name] for name in search.space]
            writer.writerow([trial.number, *figures, *values, *numbers, f"{trial.seconds:.1f}", trial.failure])


def draw(path: Path, trials: Sequence[Trial], search: Search) -> None:
    """The objective by trial and by each number."""
    good = [trial for trial in trials if not trial.failure]
    plots.trials(
        [trial.number for trial in good],
        [trial.mean for trial in good],
        {name: [_axis_value(trial.numbers[name]) for trial in good] for name in search.space},
        {name for name, parameter in search.space.items() if isinstance(parameter, LogUniform)},
        search.objective,
        search.higher_is_better,
        path,
    )


def _run(opened: Study, base: Task, total: int, repeats: int, count: int, console: Console) -> None:
    """Train until the study has `total` trials that are over."""
    to_ask = max(0, total - len(opened.trials()))
    waiting: deque[Task] = deque()
    under_way: dict[int, tuple[Trial, list[Outcome]]] = {}
    columns = (TextColumn("networks trained"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with Workers(count) as pool, progress:
        bar = progress.add_task("", total=to_ask * repeats)
        while True:
            while pool.free and (waiting or to_ask):
                if not waiting:
                    to_ask -= 1
                    trial = opened.ask()
                    under_way[trial.number] = trial, []
                    waiting.extend(_tasks(base, trial, repeats, opened.search))
                pool.start(waiting.popleft())
            if not pool.busy:
                return
            for task, outcome in pool.wait():
                trial, outcomes = under_way[task.trial]
                outcomes.append(outcome)
                progress.advance(bar)
                if len(outcomes) == repeats:
                    finished = finish(trial, outcomes, opened.search)
                    opened.tell(finished)
                    console.print(_line(finished, opened.search), highlight=False, soft_wrap=True)


def _tasks(base: Task, trial: Trial, repeats: int, search: Search) -> list[Task]:
    config = search.shortcut(dataclasses.replace(base.config, **trial.numbers))
    seeds = range(base.seed, base.seed + repeats)
    return [dataclasses.replace(base, trial=trial.number, config=config, seed=seed) for seed in seeds]


def finish(trial: Trial, outcomes: Sequence[Outcome], search: Search) -> Trial:
    """The trial with what its repeats gave; one failed repeat is enough to fail."""
    values = tuple(search.kept(outcome.values) for outcome in outcomes)
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    if not failures and not all(map(math.isfinite, values)):
        failures = [f"{search.objective} is not finite"]
    return dataclasses.replace(
        trial,
        values=() if failures else values,
        seconds=sum(outcome.seconds for outcome in outcomes),
        failure=failures[0] if failures else "",
    )


def _line(trial: Trial, search: Search) -> str:
    numbers = "  ".join(f"{name} {_text(trial.numbers[name])}" for name in search.space)
    result = f"{search.objective} {trial.mean:.4f} ± {trial.spread:.4f}"
    if trial.failure:
        result = f"failed: {trial.failure}"
    return f"trial {trial.number}  {result}  {numbers}  {trial.seconds:.0f} s"


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _axis_value(value: object) -> float | str:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else _text(value)


def _who_can(model: str, configuration: str) -> str:
    found = {name: ", ".join(searches(book_model(name))) for name in MODELS}
    others = "; ".join(f"{name} ({configurations})" for name, configurations in found.items() if configurations)
    return f"{model} has no search that begins with the configuration '{configuration}'. There is one for: {others}"
