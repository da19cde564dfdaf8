"""What holds for every command: facts come as JSON, too, every option says what it is for, one name has one meaning."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from book_contracts import write_manifests
from bookserve.clients.command_line import main
from bookserve.export import table
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


def test_a_table_in_a_file_is_not_cut(store: Path) -> None:
    done = CliRunner().invoke(main, ["models", "list"])
    assert "2026-01-02T03:04:05+00:00" in done.stdout


def test_the_widest_columns_are_cut_first() -> None:
    rows = [("NAME", "TEXT"), ("a" * 10, "b" * 40)]
    assert list(table.lines(rows, 30)) == ["NAME        TEXT", f"{'a' * 10}  {'b' * 17}…"]
    assert list(table.lines(rows)) == ["NAME        TEXT", f"{'a' * 10}  {'b' * 40}"]


def test_the_doctor_tells_json() -> None:
    from bookserve.clients import doctor

    done = CliRunner().invoke(doctor.main, ["--json", "--grpc-port", "1"])
    findings = json.loads(done.stdout)["findings"]
    assert {"status", "about", "text", "advice"} == findings[0].keys()
    assert done.exit_code == (1 if any(finding["status"] == "bad" for finding in findings) else 0)
