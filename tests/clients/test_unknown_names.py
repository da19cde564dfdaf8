"""Every command that takes the name of a model says which ones there are where it has none of that name."""

import shlex
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from book_contracts import write_manifests
from bookserve.clients.command_line import main
from bookserve.export import run_format
from command_tree import COMMANDS
from gateway_servers import Servers

IN_STORE, IN_RUNS, SERVED, BOOK = "mnist, ptb", "linear", "scale, wide", "cifar10"
# Command -> the arguments with the name of a model that is not there, and what of the answer names those that are.
UNKNOWN = {
    "train": ("nobody", BOOK),
    "train-all": ("nobody", BOOK),
    "tune": ("nobody", BOOK),
    "export": ("nobody", IN_RUNS),
    "runs list": ("nobody", IN_RUNS),
    "runs show": ("nobody", IN_RUNS),
    "runs compare": ("nobody linear", IN_RUNS),
    "clean-runs": ("nobody --keep 1", IN_RUNS),
    "evaluate": ("nobody --data rows.npz", IN_STORE),
    "batch": ("nobody rows.csv out.csv", IN_STORE),
    "models diff": ("nobody 1 2", IN_STORE),
    "models gc": ("nobody --keep 1", IN_STORE),
    "models label": ("nobody stable 1", IN_STORE),
    "models unlabel": ("nobody stable", IN_STORE),
    "models pack": ("nobody out.tar.gz", IN_STORE),
    "models promote": ("nobody canary", IN_STORE),
    "models push": ("nobody/1 s3://bucket", IN_STORE),
    "models quantize": ("nobody --data rows.npz", IN_STORE),
    "models rollback": ("nobody", IN_STORE),
    "models show": ("nobody", IN_STORE),
    "models sign": ("nobody 1 --key rows.npz", IN_STORE),
    "models verify": ("nobody", IN_STORE),
    "predict": ("nobody 1.5 --gateway {gateway}", SERVED),
    "load": ("nobody --grpc {grpc}", SERVED),
}
# A second way of the commands that ask servers, too.
OF_SERVERS = [
    ("predict nobody 1.5 --grpc {grpc}", SERVED),
    ("predict nobody 1.5 --rest {rest}", SERVED),
    ("predict scale [[1]] --version 9 --gateway {gateway}", "its versions: 2, 1"),
    ("predict scale [[1]] --version 9 --grpc {grpc}", "its versions: 2 AVAILABLE, 1 AVAILABLE"),
    ("predict scale [[1]] --version 9 --rest {rest}", "its versions: 2 AVAILABLE, 1 AVAILABLE"),
    ("predict scale [[1]] --label none --grpc {grpc}", "'bookserve models label scale none VERSION'"),
    ("load nobody --rest {rest}", SERVED),
    ("load scale --version 9 --grpc {grpc}", "its versions: 2 AVAILABLE, 1 AVAILABLE"),
    ("load mnist --grpc {grpc}", "models has it: is that the store which the server serves?"),
    ("batch nobody rows.csv out.csv --server {grpc}", SERVED),
    ("batch nobody rows.csv out.csv --server {rest}", SERVED),
]
# Their names are those of something new.
MAKE = {"models add", "models pull", "models unpack"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store, runs and rows, where the commands are run."""
    write_manifests(tmp_path / "models", ["mnist", "ptb"])
    run = tmp_path / "runs" / "linear" / "20261128-101500"
    run.mkdir(parents=True)
    (run / run_format.CONFIG).write_text("{}")
    np.savez(tmp_path / "rows.npz", x=np.ones((3, 1), np.float32), targets=np.ones(3, np.float32))
    (tmp_path / "rows.csv").write_text("x\n1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(command: str, servers: Servers) -> str:
    """What the command says, which has to be an error without a traceback."""
    target, url = servers.model_server.target, servers.model_server.url
    words = shlex.split(command.format(grpc=target, rest=url, gateway=servers.gateway_url))
    done = CliRunner().invoke(main, words)
    assert done.exit_code in (1, 2), done.output
    assert isinstance(done.exception, SystemExit), done.exception
    return " ".join(done.stderr.split())


@pytest.mark.parametrize("command", UNKNOWN)
def test_a_command_names_the_models_that_there_are(command: str, folder: Path, servers: Servers) -> None:
    arguments, there = UNKNOWN[command]
    assert there in ask(f"{command} {arguments}", servers)


@pytest.mark.parametrize(("command", "there"), OF_SERVERS)
def test_a_server_is_asked_what_it_has(command: str, there: str, folder: Path, servers: Servers) -> None:
    assert there in ask(command, servers)


def test_every_command_with_a_name_is_tried() -> None:
    named = {
        name
        for name, command in COMMANDS.items()
        if any(
            isinstance(argument, click.Argument) and argument.name in ("name", "names", "model", "run", "version")
            for argument in command.params
        )
    }
    assert named == UNKNOWN.keys() | MAKE
