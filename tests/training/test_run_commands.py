import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bookserve.clients.command_line import main
from bookserve.training import run_writer


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of linear, which differ in one number and the seed, and one that is called otherwise."""
    folder = tmp_path_factory.mktemp("runs")
    for arguments in (["--seed=1"], ["--seed=2", "--set=epochs=3"], ["--name=second", "--set=epochs=3"]):
        done = invoke("train", "linear", "--profile=smoke", *arguments, "--runs-dir", folder)
        assert done.exit_code == 0, done.output
    return folder


def times(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "linear").iterdir())


def test_runs_are_listed_with_their_settings_and_figures(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(trained, folder)
    run_writer.begin(folder, "linear", {}).close()
    (folder / "linear" / "tuned").mkdir()
    first, second = times(trained)
    listed = invoke("runs", "list", "--runs-dir", folder)
    assert listed.exit_code == 0, listed.output
    lines = [re.split(r"\s{2,}", line) for line in listed.output.splitlines()]
    assert lines[0] == ["RUN", "CONFIG", "PROFILE", "SEED", "DATA", "TEST"]
    assert [line[:5] for line in lines[1:3]] == [
        [f"linear/{first}", "standard", "smoke", "1", "real"],
        [f"linear/{second}", "standard", "smoke", "2", "real"],
    ]
    assert lines[1][5].startswith("r2 0.9")
    assert lines[3][0].endswith(".unfinished")
    assert lines[3][1] == "unfinished"
    assert lines[4][0].startswith("second/")
    assert invoke("runs", "list", "second", "--runs-dir", folder).output.count("\n") == 2


def test_a_run_is_shown_whole(trained: Path) -> None:
    shown = invoke("runs", "show", "second", "--runs-dir", trained)
    assert shown.exit_code == 0, shown.output
    assert "in        x: float32 [batch, 1]" in shown.output
    assert "rows      train 100, valid 100, test 100; in two splits: " in shown.output
    assert "trained   the network of linear, configuration standard, profile smoke, seed 0" in shown.output
    assert "--set     epochs=3\n" in shown.output
    assert "learning_rate=0.5" in shown.output
    assert f"tensorboard --logdir {trained}/second/" in shown.output
    first, _ = times(trained)
    assert "seed 2" in invoke("runs", "show", "linear", "--runs-dir", trained).output
    assert "seed 1" in invoke("runs", "show", f"linear/{first}", "--runs-dir", trained).output
    assert "--set" not in invoke("runs", "show", f"linear/{first}", "--runs-dir", trained).output


def test_compare_has_what_differs_and_all_metrics(trained: Path) -> None:
    first, second = times(trained)
    compared = invoke("runs", "compare", f"linear/{first}", f"linear/{second}", "--runs-dir", trained)
    assert compared.exit_code == 0, compared.output
    rows = {line[0]: line[1:] for line in (re.split(r"\s{2,}", line) for line in compared.output.splitlines()[1:])}
    assert rows["seed"] == ["1", "2"]
    assert rows["epochs"] == ["10", "3"]
    assert {"profile", "learning_rate", "keras", "configuration"}.isdisjoint(rows)
    metrics = [json.loads((trained / "linear" / time / "metrics.json").read_text()) for time in (first, second)]
    assert rows["test r2"] == [f"{each['test']['r2']:.6g}" for each in metrics]
    same = invoke("runs", "compare", "second", "second", "--runs-dir", trained)
    assert same.output.startswith("the settings are the same\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "mnist"], "has no runs of mnist; it has runs of linear, second"),
        (["show", "mnist"], "has no runs of mnist; it has runs of linear, second"),
        (["show", "linear/2001"], "linear has no run '2001'; it has 2"),
        (["show", "linear/../second"], "linear has no run '../second'"),
        (["compare", "linear"], "two runs at least are compared"),
    ],
)
def test_a_run_that_is_not_there_says_what_is(trained: Path, arguments: list[str], message: str) -> None:
    result = invoke("runs", *arguments, "--runs-dir", trained)
    assert result.exit_code == 1
    assert message in result.output


def test_an_empty_folder_and_a_damaged_run(trained: Path, tmp_path: Path) -> None:
    result = invoke("runs", "list", "--runs-dir", tmp_path / "none")
    assert result.exit_code == 1
    assert "has no runs: 'bookserve train' makes them" in result.output
    shutil.copytree(trained / "second", tmp_path / "second")
    (config,) = tmp_path.glob("second/*/config.json")
    config.write_text("{")
    listed = invoke("runs", "list", "--runs-dir", tmp_path)
    assert listed.exit_code == 0
    assert "is damaged" in listed.output
    shown = invoke("runs", "show", "second", "--runs-dir", tmp_path)
    assert shown.exit_code == 1
    assert "is damaged" in shown.output
