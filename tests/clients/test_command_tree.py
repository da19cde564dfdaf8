"""What holds for every command: facts come as JSON, too, every option says what it is for, one name has one meaning."""

import json
import re
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from book_contracts import write_manifests
from bookserve.clients.command_line import main
from bookserve.export import drift, evaluation, run_format, table
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.figures import Figure
from command_tree import COMMANDS

# Commands that do something: what they print says that it was done, and where a program has to know, the status.
ACT = {
    *("batch", "train", "export", "train-all", "tune", "clean-runs", "model-server", "gateway", "serve", "completion"),
    *("models add", "models config", "models gc", "models label", "models pack", "models promote", "models pull"),
    *("models push", "models quantize", "models rollback", "models sign", "models unlabel", "models unpack"),
}
TESTS = Path(__file__).parent


def options(command: click.Command) -> list[click.Option]:
    return [option for option in command.params if isinstance(option, click.Option)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_tells_facts_has_json(name: str) -> None:
    has = any("--json" in option.opts for option in options(COMMANDS[name]))
    assert has != (name in ACT), f"'{name}' tells facts, and needs --json" if not has else f"'{name}' is not in ACT"


def test_the_list_of_commands_that_act_names_commands() -> None:
    assert COMMANDS.keys() >= ACT


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    assert [option.opts[0] for option in options(COMMANDS[name]) if not option.help] == []


def test_an_option_has_one_spelling_and_type_in_all_commands() -> None:
    """An option such as --grpc-port is a port wherever it is there."""
    kinds: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for option in options(command):
            (name, *_) = (spelled for spelled in option.opts if spelled.startswith("--"))
            assert name == name.lower()
            assert "_" not in name, f"{name}: with hyphens, as all others"
            kinds.setdefault(name, set()).add("flag" if option.is_flag else option.type.name)
    several = {name for name, found in kinds.items() if len(found) > 1}
    # `serve` leaves --profile and --data to the training, and takes a bucket as --models-dir; --to is a label or a
    # version.
    assert several <= {"--models-dir", "--data", "--profile", "--labels", "--to"}


def test_an_option_is_called_the_same_wherever_it_is_there() -> None:
    """The addresses and ports of servers, of the commands that start them and of the one that looks after them."""
    has = {name: {spelled for option in options(COMMANDS[name]) for spelled in option.opts} for name in COMMANDS}
    assert has["serve"] >= {"--bind", "--allowed-hosts", "--api-keys", "--grpc-port", "--rest-port", "--gateway-port"}
    assert has["gateway"] >= {"--bind", "--allowed-hosts", "--api-keys", "--gateway-port", "--models-dir"}
    assert has["doctor"] >= {"--grpc-port", "--rest-port", "--gateway-port", "--models-dir"}
    everything = set().union(*has.values())
    assert not everything & {"--host", "--address", "--listen", "--bind-address", "--models", "--store", "--quiet"}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "model-server"])
def test_help_fits_80_columns_and_names_defaults_in_one_way(name: str) -> None:
    done = CliRunner().invoke(main, [*name.split(), "--help"], terminal_width=80)
    assert done.exit_code == 0
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    for option in options(COMMANDS[name]):
        told = re.findall(r"\[([^\]]*)\]$", option.help or "")
        assert [text for text in told if not text.startswith(("default: ", "without a value: ", "env: "))] == [], (
            option.opts
        )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_manifests(tmp_path / "models", ["mnist", "ptb"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_store_is_told_as_json(store: Path) -> None:
    done = CliRunner().invoke(main, ["models", "list", "--json"])
    assert done.exit_code == 0, done.output
    versions = json.loads(done.stdout)["versions"]
    assert [(row["model"], row["version"], row["task"]) for row in versions] == [
        ("mnist", 3, "image-classification"),
        ("ptb", 3, "text"),
    ]
    done = CliRunner().invoke(main, ["models", "show", "mnist", "--json"])
    shown = json.loads(done.stdout)
    assert (shown["version"], shown["manifest"]["profile"], shown["changed_files"]) == (3, "smoke", [])
    assert shown["contract"]["inputs"][0]["shape"] == [None, 28, 28]


def test_tables_fit_80_columns_of_a_terminal(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "terminal_width", lambda: 80)
    done = CliRunner().invoke(main, ["models", "list"])
    lines = done.stdout.splitlines()
    assert lines[0].startswith("MODEL  VERSION")
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80


def test_the_tables_of_runs_fit_80_columns(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a-name-of-a-model-that-is-as-long-as-people-like-them"
    for time in ("20261128-101500", "20261128-111500"):
        run = store / "runs" / name / time
        run.mkdir(parents=True)
        (run / run_format.CONFIG).write_text("{}")
    monkeypatch.setattr(table, "terminal_width", lambda: 80)
    lines = CliRunner().invoke(main, ["runs", "list"]).stdout.splitlines()
    assert lines[0].startswith("RUN")
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80


def test_the_tables_of_an_evaluation_fit_80_columns() -> None:
    labels = tuple(f"{name} of the other kind" for name in ("cat", "dog", "ship", "truck"))
    contract = Contract(
        "pets",
        1,
        (Tensor("x", "float32", (None, 2)),),
        (Tensor("probabilities", "float32", (None, 4), unit="probability"),),
        labels=labels,
        task="tabular",
    )
    truth = np.arange(400) % 4
    probabilities = np.full((400, 4), 0.1, np.float32)
    probabilities[np.arange(400), np.where(truth == 3, 0, truth)] = 0.7
    figure = Figure("accuracy", {"x": np.zeros((400, 2), np.float32)}, lambda outputs, places: 0.75, truth=truth)
    found = evaluation.evaluate(figure, {"probabilities": probabilities}, contract)
    lines = evaluation.text(found, 80)
    assert any("precision" in line for line in lines)
    assert [line for line in lines[2:] if len(line) > 80] == []
    assert any(line.startswith("| class") for line in evaluation.text(found))  # Markdown in a file
    rows = [
        drift.Drift(f"brightness of channel {place}", 0.3, 0.01, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), True)
        for place in (1, 2)
    ]
    assert max(map(len, drift.text(rows, 80)[2:])) <= 80


def test_a_table_in_a_file_is_not_cut(store: Path) -> None:
    done = CliRunner().invoke(main, ["models", "list"])
    assert "2026-01-02T03:04:05+00:00" in done.stdout


def test_the_widest_columns_are_cut_first() -> None:
    rows = [("NAME", "TEXT"), ("a" * 10, "b" * 40)]
    assert list(table.lines(rows, 30)) == ["NAME        TEXT", f"{'a' * 10}  {'b' * 17}…"]
    assert list(table.lines(rows)) == ["NAME        TEXT", f"{'a' * 10}  {'b' * 40}"]


def test_what_is_told_of_a_name_stands_below_it_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "labels    one-two, three  four"
    assert table.folded(line) == line  # for a program
    monkeypatch.setattr(table, "terminal_width", lambda: 20)
    assert table.folded(line).split("\n") == ["labels    one-two,", "          three", "          four"]
    assert table.folded("x" * 30) == "x" * 30  # such as a path, to be copied
    assert table.folded("numbers   a=1  labels=one,two,three,four  b=2").split("\n") == [
        "numbers   a=1",
        "          labels=one,",
        "          two,three,",
        "          four  b=2",
    ]


def test_the_doctor_tells_json() -> None:
    from bookserve.clients import doctor

    done = CliRunner().invoke(doctor.main, ["--json", "--grpc-port", "1"])
    findings = json.loads(done.stdout)["findings"]
    assert {"status", "about", "text", "advice"} == findings[0].keys()
    assert done.exit_code == (1 if any(finding["status"] == "bad" for finding in findings) else 0)
