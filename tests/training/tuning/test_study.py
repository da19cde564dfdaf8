from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from click.testing import CliRunner
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial

from bookserve.clients.command_line import main
from bookserve.training.errors import TrainingError
from bookserve.training.tuning import study
from bookserve.training.tuning.search_space import Search, choice, hyperparameters
from bookserve.training.tuning.study import Study, open_study, winner

SETTINGS = {
    "configuration": "standard",
    "profile": "default",
    "seed": 0,
    "repeats": 2,
    "sampler": "random",
    "objective": "val_auc",
    "data": {"source": "sample"},
}
SEARCH = Search(
    "val_auc",
    True,
    {
        "hidden": choice((8,), (8, 4)),
        "rate": FloatDistribution(1e-4, 1e-1, log=True),
        "dropout": FloatDistribution(0.0, 0.5),
    },
)


def told(opened: Study, *values: float, failure: str = "") -> FrozenTrial:
    return opened.tell(opened.ask(), values, 1.5, failure)


def params(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    return [trial.params for trial in trials]


def draw(folder: Path, count: int, settings: dict[str, Any] = SETTINGS) -> list[FrozenTrial]:
    with open_study(folder, settings, SEARCH) as opened:
        for _ in range(count):
            trial = opened.ask()
            opened.tell(trial, [trial.params["rate"]] * 2, 1.5)
        return opened.trials()


def test_draws_lie_in_the_space_and_come_back_as_they_went_in(tmp_path: Path) -> None:
    trials = draw(tmp_path / "a", 12)
    assert [trial.number for trial in trials] == list(range(12))
    assert {hyperparameters(trial.params)["hidden"] for trial in trials} == {(8,), (8, 4)}
    rates = sorted(trial.params["rate"] for trial in trials)
    assert 1e-4 <= rates[0] < 1e-3 < 1e-2 < rates[-1] <= 1e-1  # each order of magnitude has its share
    assert all(0 <= trial.params["dropout"] <= 0.5 for trial in trials)
    assert trials[3].value == trials[3].params["rate"]
    assert trials[3].user_attrs == {"values": [trials[3].params["rate"]] * 2, "seconds": 1.5, "failure": ""}
    assert draw(tmp_path / "a", 0) == trials


@pytest.mark.parametrize("sampler", [pytest.param("random", marks=pytest.mark.slow), "tpe"])
def test_a_study_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, sampler: str) -> None:
    settings = SETTINGS | {"sampler": sampler}
    through = draw(tmp_path / "through", 14, settings)
    for count in (5, 9):
        stopped = draw(tmp_path / "stopped", count, settings)
    assert params(stopped) == params(through)
    assert params(draw(tmp_path / "other", 14, settings | {"seed": 1})) != params(through)


def test_tpe_goes_where_good_settings_lie(tmp_path: Path) -> None:
    trials = draw(tmp_path / "a", 30, SETTINGS | {"sampler": "tpe"})
    late = [trial.params["rate"] for trial in trials[-10:]]
    assert sum(rate > 1e-2 for rate in late) >= 8


def test_an_interrupted_trial_comes_first_again(tmp_path: Path) -> None:
    with open_study(tmp_path / "a", SETTINGS, SEARCH) as opened:
        told(opened, 0.5, 0.6)
        lost = opened.ask()
    with open_study(tmp_path / "a", SETTINGS, SEARCH) as opened:
        assert [trial.number for trial in opened.trials()] == [0]
        again = opened.ask()
        assert again.params == lost.params
        opened.tell(again, [0.7, 0.8], 1.5)
        assert [trial.value for trial in opened.trials()] == [0.55, 0.75]
        assert opened.ask().params != lost.params


def test_the_grid_has_every_point_once(tmp_path: Path) -> None:
    settings = SETTINGS | {"sampler": "grid"}
    search = Search("val_auc", True, {"hidden": choice((8,), (8, 4)), "rate": FloatDistribution(1e-3, 1e-1, log=True)})
    seen = []
    for count in (2, 4):  # the second call goes on with the points that are left
        with open_study(tmp_path / "a", settings, search) as opened:
            assert opened.grid_points == 6
            for _ in range(count):
                trial = opened.ask()
                seen.append((hyperparameters(trial.params)["hidden"], round(trial.params["rate"], 6)))
                opened.tell(trial, [1.0, 1.0], 1.5)
    assert sorted(seen) == [(hidden, rate) for hidden in ((8,), (8, 4)) for rate in (0.001, 0.01, 0.1)]


def test_a_large_grid_is_not_queued_first(tmp_path: Path) -> None:
    search = Search("val_auc", True, {f"number_{place}": choice(*range(10)) for place in range(5)})
    with open_study(tmp_path / "a", SETTINGS | {"sampler": "grid"}, search) as opened:
        assert opened.grid_points == 100_000
        points = []
        for _ in range(3):
            trial = opened.ask()
            points.append(tuple(trial.params.values()))
            opened.tell(trial, [1.0, 1.0], 1.5)
        assert len(set(points)) == 3
        assert [trial.number for trial in opened.trials()] == [0, 1, 2]
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'a' / study.DATABASE}")
    assert len(optuna.load_study(study_name="a", storage=storage).get_trials()) == 3
    storage.engine.dispose()


def test_an_interrupted_point_of_a_grid_comes_again_and_none_twice(tmp_path: Path) -> None:
    search = Search("val_auc", True, {"a": choice(1, 2), "b": choice(1, 2)})
    settings = SETTINGS | {"sampler": "grid"}
    with open_study(tmp_path / "a", settings, search) as opened:
        opened.tell(opened.ask(), [1.0, 1.0], 1.5)
        lost = opened.ask().params
    with open_study(tmp_path / "a", settings, search) as opened:
        again = [opened.ask() for _ in range(3)]
        assert again[0].params == lost
        for trial in again:
            opened.tell(trial, [1.0, 1.0], 1.5)
        assert len({tuple(trial.params.values()) for trial in opened.trials()}) == 4


def test_the_winner_has_the_best_mean_and_did_not_fail(tmp_path: Path) -> None:
    with open_study(tmp_path / "a", SETTINGS, SEARCH) as opened:
        told(opened, 0.9, 0.1)
        best = told(opened, 0.6, 0.7)
        told(opened, failure="diverged")
    assert winner(tmp_path / "a", {"standard": SEARCH}) == ("standard", best)
    lower = replace(SEARCH, higher_is_better=False)
    assert winner(tmp_path / "a", {"standard": lower})[1].user_attrs["values"] == [0.9, 0.1]


def test_a_study_without_a_success_has_no_winner(tmp_path: Path) -> None:
    with open_study(tmp_path / "a", SETTINGS, SEARCH) as opened:
        told(opened, failure="diverged")
    with pytest.raises(TrainingError, match="no successful trial yet"):
        winner(tmp_path / "a", {"standard": SEARCH})
    other = replace(SEARCH, space={"rate": FloatDistribution(1e-4, 1.0, log=True)})
    for searches in ({}, {"standard": other}):
        with pytest.raises(TrainingError, match="of a search that the model does not have any more"):
            winner(tmp_path / "a", searches)


@pytest.mark.parametrize(
    ("settings", "search", "message"),
    [
        (SETTINGS | {"repeats": 3}, SEARCH, "was begun with repeats 2: name another one"),
        (SETTINGS | {"sampler": "tpe"}, SEARCH, "was begun with sampler random"),
        (SETTINGS | {"data": {"source": "real"}}, SEARCH, "was begun with another data"),
        (
            SETTINGS,
            replace(SEARCH, space={"rate": FloatDistribution(1e-4, 1.0, log=True)}),
            "was begun with another space",
        ),
    ],
)
def test_a_study_does_not_mix_settings(tmp_path: Path, settings: dict[str, Any], search: Search, message: str) -> None:
    draw(tmp_path / "a", 1)
    with pytest.raises(TrainingError, match=message), open_study(tmp_path / "a", settings, search):
        pass


def test_two_processes_do_not_work_on_one_study(tmp_path: Path) -> None:
    with (
        open_study(tmp_path / "a", SETTINGS, SEARCH),
        pytest.raises(TrainingError, match="another process works on the study"),
        open_study(tmp_path / "a", SETTINGS, SEARCH),
    ):
        pass


@pytest.mark.parametrize("content", [b"no database at all, but text of some length", b"cut"])
def test_a_damaged_database_is_named_in_one_line(tmp_path: Path, content: bytes) -> None:
    draw(tmp_path / "a", 2)
    path = tmp_path / "a" / study.DATABASE
    whole = path.read_bytes()
    path.write_bytes(content if content != b"cut" else whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match="cannot be read or written") as caught:
        winner(tmp_path / "a", {"standard": SEARCH})
    assert str(tmp_path / "a") in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match="cannot be read or written"), open_study(tmp_path / "a", SETTINGS, SEARCH):
        pass


def test_names_and_folders(tmp_path: Path) -> None:
    assert study.names(tmp_path, "tox21") == []
    draw(study.folder_of(tmp_path, "tox21", "b"), 0)
    draw(study.folder_of(tmp_path, "tox21", "a-1"), 0)
    assert study.names(tmp_path, "tox21") == ["a-1", "b"]
    for name in ("", "../x", ".hidden", "a/b"):
        with pytest.raises(TrainingError, match="is no name for a study"):
            study.folder_of(tmp_path, "tox21", name)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write the study"):
        draw(tmp_path / "file" / "a", 0)


def test_a_storage_in_a_file_is_read_and_its_password_is_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "storage"
    secret.write_text("postgresql://search:hidden@127.0.0.1:1/none\n")
    arguments = ["tune", "linear", "--profile", "smoke", "--trials", "1", "--runs-dir", str(tmp_path / "runs")]
    done = CliRunner().invoke(main, [*arguments, f"--storage=@{secret}"])
    assert done.exit_code == 1
    assert "--storage postgresql://search:***@127.0.0.1:1/none cannot be used" in done.output
    assert "hidden" not in done.output
    done = CliRunner().invoke(main, [*arguments, f"--storage=@{tmp_path / 'nothing'}"])
    assert done.exit_code == 2
    assert "nothing cannot be read: No such file or directory" in " ".join(done.output.split())
