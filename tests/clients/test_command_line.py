"""Ctrl-C ends every command in one manner: one line that says what was stopped and what comes next, and status 130."""

import click
import pytest
from click.testing import CliRunner

from bookserve.clients import command_line, predict
from bookserve.clients.command_line import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_says_what_was_stopped_and_ends_with_130(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    command = click.Command(name, callback=interrupted)
    monkeypatch.setattr(command_line._LazyGroup, "get_command", lambda *_: command)
    done = CliRunner().invoke(main, [name])
    assert done.exit_code == 130
    assert done.stderr.startswith(f"{name}: stopped; ")
    assert len(done.stderr.splitlines()) == 1


def test_a_command_may_say_itself_what_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        stop = KeyboardInterrupt()
        stop.add_note("the question was not answered")
        raise stop

    monkeypatch.setattr(predict, "_to_gateway", interrupted)
    done = CliRunner().invoke(main, ["predict", "linear", "1.5"])
    assert (done.exit_code, done.stderr) == (130, "the question was not answered\n")


def test_ctrl_c_while_a_command_is_imported_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line.importlib, "import_module", interrupted)
    result = CliRunner().invoke(command_line.main, ["train", "mnist"])
    assert (result.exit_code, result.output) == (130, "train: stopped; the same command starts anew\n")
