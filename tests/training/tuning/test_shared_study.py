"""A study in PostgreSQL, on which two processes search together; needs Debian's package `postgresql`."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bookserve.clients.command_line import main
from bookserve.training.models import linear
from bookserve.training.tuning import study

POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(POSTGRES is None, reason="needs the package postgresql")]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URL of an empty database of a server of our own, which root may not run."""
    assert POSTGRES is not None
    user = "postgres" if os.getuid() == 0 else None
    root = Path("/tmp") / f"bookserve-postgres-{os.getpid()}"
    root.mkdir(mode=0o700)
    if user is not None:
        entry = pwd.getpwnam(user)
        os.chown(root, entry.pw_uid, entry.pw_gid)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bin_folder, data = POSTGRES.parent, root / "data"
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={root} -c fsync=off"
    made = [bin_folder / "initdb", "-A", "trust", "-U", "search", "-D", data]
    begun = [bin_folder / "pg_ctl", "-D", data, "-w", "-l", root / "log", "-o", options, "start"]
    stopped = [bin_folder / "pg_ctl", "-D", data, "-m", "immediate", "stop"]
    try:
        for command in (made, begun):
            subprocess.run(command, user=user, check=True, stdout=subprocess.DEVNULL, timeout=60, cwd=root)
        yield f"postgresql://search:secret@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(stopped, user=user, check=False, stdout=subprocess.DEVNULL, timeout=60, cwd=root)
        shutil.rmtree(root)


def start(url: str, runs: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bookserve.clients.command_line", "tune", "linear", "--profile", "smoke"]
    command += ["--study", "together", "--storage", url, "--runs-dir", str(runs), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_share_a_grid_and_both_can_train_its_winner(database: str, tmp_path: Path) -> None:
    grid = ("--grid", "learning_rate=0.001,0.01,0.1,0.3,0.5", "--grid", "steps=5,25", "--repeats", "2")
    machines = [start(database, tmp_path / name, *grid) for name in ("one", "two")]
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    trained = [output.count("\ntrial ") + output.startswith("trial ") for output in outputs]
    assert sum(trained) == 10, outputs
    assert min(trained) > 0, outputs
    again = start(database, tmp_path / "three", *grid)
    output = again.communicate(timeout=100)[0]
    assert "10 trials, 0 of them failed" in output, output
    found = study.winner(study.folder_of(tmp_path / "three", "linear", "together"), linear.SEARCHES)
    assert found[0] == "standard"
    assert found[1].params["learning_rate"] in ("0.3", "0.5")
    assert "secret" not in "".join(outputs)


def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    began = time.monotonic()
    for url, reason in (("postgresql://me:secret@127.0.0.1:1/x", "127.0.0.1:1/x cannot be used"), ("x", "no URL")):
        arguments = ["tune", "linear", "--profile", "smoke", "--trials", "1", "--storage", url]
        result = CliRunner().invoke(main, [*arguments, "--runs-dir", str(tmp_path)])
        assert (result.exit_code, "secret" in result.output) == (1, False)
        assert reason in result.output
        assert "Traceback" not in result.output
    assert time.monotonic() - began < 60
