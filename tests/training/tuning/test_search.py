import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna import create_study
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, create_trial
from rich.console import Console

from bookserve.training import run, settings
from bookserve.training.datasets.files import DataRequest
from bookserve.training.errors import TrainingError
from bookserve.training.models import MODELS, linear
from bookserve.training.tuning import search
from bookserve.training.tuning.search import Plan, Report, tune
from bookserve.training.tuning.search_space import Search, choice, hyperparameters
from bookserve.training.tuning.workers import Outcome, TrainingTask

Pretend = Callable[[Callable[[TrainingTask], Outcome]], None]
SEARCH = Search(
    "val_loss", False, {"steps": choice(5, 10), "learning_rate": FloatDistribution(1e-4, 1e-1, log=True)}, points=4
)
PLAN = Plan("standard", "smoke", "random", trials=6, repeats=2, workers=3, seed=0)


@pytest.fixture(autouse=True)
def searchable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "SEARCHES", {"standard": SEARCH}, raising=False)


def distance(task: TrainingTask) -> Outcome:
    """The loss is the distance of the rate from 0.01, in orders of magnitude; seeds differ a little."""
    loss = abs(math.log10(task.config.learning_rate) + 2) + 0.01 * task.seed
    return Outcome((9.0, loss, loss + 1), seconds=2.0)


def tune_linear(tmp_path: Path, plan: Plan = PLAN, name: str = "study") -> Report:
    return tune("linear", name, plan, DataRequest("sample"), tmp_path, Console(quiet=True))


def rows_of(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader((report.folder / search.TABLE).read_text().splitlines()))


@pytest.mark.usefixtures("drawn")
def test_every_setting_counts_with_the_mean_of_its_repeats(tmp_path: Path, pretend_training: Pretend) -> None:
    tasks = []

    def note(task: TrainingTask) -> Outcome:
        tasks.append(task)
        return distance(task)

    pretend_training(note)
    report = tune_linear(tmp_path)
    assert report.folder == tmp_path / "linear" / "tuned" / "study"
    assert [(task.trial, task.seed) for task in tasks] == [(trial, seed) for trial in range(6) for seed in (0, 1)]
    assert {task.config.epochs for task in tasks} == {linear.CONFIGS["standard"]["smoke"].epochs}
    for trial in report.trials:
        low, high = trial.user_attrs["values"]
        assert high - low == pytest.approx(0.01)
        assert trial.value == pytest.approx((low + high) / 2)
        assert trial.user_attrs["seconds"] == 4.0
    means = [trial.value for trial in report.ranked]
    assert means == sorted(means)
    rows = rows_of(report)
    assert list(rows[0]) == [
        *("trial", "val_loss", "spread", "repeat_1", "repeat_2", "steps", "learning_rate", "seconds", "failure")
    ]
    assert [float(row["val_loss"]) for row in rows] == pytest.approx([trial.value for trial in report.trials], abs=1e-6)
    assert (report.folder / search.PLOT).read_bytes().startswith(b"\x89PNG")
    assert search.table(report).row_count == 6


def test_the_table_can_be_read_on_a_narrow_terminal() -> None:
    space = {f"number_{place}": FloatDistribution(0, 1) for place in range(20)}
    notes = {"values": [0.5, 0.7], "seconds": 1.0, "failure": ""}
    trial = create_trial(params=dict.fromkeys(space, 0.125), distributions=space, value=0.6, user_attrs=notes)
    trial.number = 3
    printed = io.StringIO()
    report = Report(Path("study"), [trial], Search("val_auc", True, space))
    Console(file=printed, width=80).print(search.table(report))
    words = printed.getvalue().replace(",", " ").split()
    assert {"3", "0.6000", *space, "0.125"} <= set(words)
    assert "…" not in printed.getvalue()


def test_a_shortcut_is_taken_by_the_search_alone(
    tmp_path: Path, pretend_training: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = []

    def shorter(config: linear.Config) -> linear.Config:
        return dataclasses.replace(config, epochs=config.steps + 3)

    def note(task: TrainingTask) -> Outcome:
        epochs.append(task.config.epochs - task.config.steps)
        return distance(task)

    monkeypatch.setattr(linear, "SEARCHES", {"standard": dataclasses.replace(SEARCH, shortcut=shorter)})
    pretend_training(note)
    tune_linear(tmp_path)
    assert set(epochs) == {3}
    config = search.config_of("linear", "study", "smoke", tmp_path)
    assert config.epochs == linear.CONFIGS["standard"]["smoke"].epochs


def test_the_best_numbers_are_a_configuration(tmp_path: Path, pretend_training: Pretend) -> None:
    pretend_training(distance)
    best = hyperparameters(tune_linear(tmp_path).ranked[0].params)
    config = search.config_of("linear", "study", "full", tmp_path)
    assert (config.steps, config.learning_rate) == (best["steps"], best["learning_rate"])
    assert config.epochs == linear.CONFIGS["standard"]["full"].epochs
    with pytest.raises(TrainingError, match=r"neither a configuration nor a study 'x'.* standard.* the studies study"):
        search.config_of("linear", "x", "full", tmp_path)
    with pytest.raises(TrainingError, match=r"neither a configuration nor a study 'x'.* and no study in "):
        search.config_of("linear", "x", "full", tmp_path / "empty")


def test_failed_settings_do_not_stop_the_others(tmp_path: Path, pretend_training: Pretend) -> None:
    def fail_some(task: TrainingTask) -> Outcome:
        if task.trial == 1 and task.seed == 1:
            return Outcome((), 1.0, "the loss became nan in epoch 1")
        if task.trial == 2:
            return Outcome((1.0, math.nan), 1.0)
        return distance(task)

    pretend_training(fail_some)
    report = tune_linear(tmp_path)
    assert [trial.user_attrs["failure"] for trial in report.trials[:4]] == [
        "",
        "the loss became nan in epoch 1",
        "val_loss is not finite",
        "",
    ]
    assert len(report.trials) == 6
    assert len(report.ranked) == 4
    rows = rows_of(report)
    assert (rows[1]["val_loss"], rows[1]["failure"]) == ("", "the loss became nan in epoch 1")


def test_all_settings_may_fail(tmp_path: Path, pretend_training: Pretend) -> None:
    pretend_training(lambda _: Outcome((), 1.0, "no memory"))
    report = tune_linear(tmp_path)
    assert (len(report.trials), report.ranked) == (6, [])
    assert {row["failure"] for row in rows_of(report)} == {"no memory"}


def test_ctrl_c_keeps_what_is_finished_and_the_same_call_goes_on(tmp_path: Path, pretend_training: Pretend) -> None:
    pretend_training(distance)
    through = tune_linear(tmp_path, name="through")
    calls = 0

    def interrupt(task: TrainingTask) -> Outcome:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return distance(task)

    pretend_training(interrupt)
    with pytest.raises(KeyboardInterrupt) as stop:
        tune_linear(tmp_path)
    assert stop.value.__notes__ == ["study: stopped, trials kept: 2; the same command goes on from there"]
    folder = tmp_path / "linear" / "tuned" / "study"
    assert len((folder / search.TABLE).read_text().splitlines()) == 3
    assert (folder / search.PLOT).is_file()
    pretend_training(distance)
    resumed = tune_linear(tmp_path)
    assert len(resumed.trials) == 6
    settings = [[trial.params for trial in report.trials] for report in (through, resumed)]
    assert settings[0][:4] == settings[1][:4]  # the two that were under way come first, with the numbers they had
    again = tune_linear(tmp_path)
    assert again.trials == resumed.trials  # nothing left to do


def test_the_grid_is_tried_whole_and_once(tmp_path: Path, pretend_training: Pretend) -> None:
    pretend_training(distance)
    part = tune_linear(tmp_path, Plan("standard", "smoke", "grid", trials=3, repeats=1, workers=1, seed=0))
    assert len(part.trials) == 3
    whole = tune_linear(tmp_path, Plan("standard", "smoke", "grid", trials=None, repeats=1, workers=1, seed=0))
    assert whole.trials[:3] == part.trials
    points = {(int(trial.params["steps"]), round(trial.params["learning_rate"], 9)) for trial in whole.trials}
    assert points == {(steps, rate) for steps in (5, 10) for rate in (1e-4, 1e-3, 1e-2, 1e-1)}
    assert len(whole.trials) == 8


def test_a_configuration_without_a_search_says_which_have_one(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, configuration="scaffold")
    with pytest.raises(
        TrainingError, match=r"tox21 has no search .* 'scaffold'.*linear \(standard.*tox21 \(standard, "
    ):
        tune("tox21", "study", plan, DataRequest("sample"), tmp_path, Console(quiet=True))
    with pytest.raises(TrainingError, match="'standard' is a configuration of linear"):
        tune_linear(tmp_path, name="standard")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_space_of_numbers_that_its_training_takes(name: str) -> None:
    module = run.book_model(name)
    assert "standard" in search.searches(module)
    for configuration, space in search.searches(module).items():
        config = module.CONFIGS[configuration]["default"]
        chance = RandomSampler(seed=0)
        for field, values in space.space.items():
            for _ in range(5):
                drawn = chance.sample_independent(create_study(), FrozenTrial.__new__(FrozenTrial), field, values)
                value = hyperparameters({field: drawn})[field]
                written = ",".join(map(str, value)) if isinstance(value, tuple) else json.dumps(value)
                assert settings.changed(config, [f"{field}={written}"]) == {field: value}


def test_an_objective_is_a_figure_of_the_history() -> None:
    config = linear.Config(epochs=2, steps=3)
    assert len(run.objective("linear", config, DataRequest("sample"), 0, "val_loss")) == 2


def test_spaces_name_numbers_of_their_config() -> None:
    for name in search.MODELS:
        module = run.book_model(name)
        for configuration, found in search.searches(module).items():
            for config in module.CONFIGS[configuration].values():
                assert set(found.space) <= {field.name for field in dataclasses.fields(config)}
