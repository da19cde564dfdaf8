"""The model servers of two checkouts of this project: this one, and another to be compared with."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from processes import HOST, Server, free_port

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Checkout:
    """A folder of the project, and the Python that it is installed for."""

    folder: Path
    python: Path

    def revision(self) -> str:
        """The commit, with a mark where files have changed since."""
        command = ["git", "-C", str(self.folder), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "no commit"

    @contextmanager
    def start(self, *flags: str) -> Iterator[Server]:
        """Starts its model server, which need not be ready when the block begins."""
        grpc_port, rest_port = free_port(), free_port()
        ports = [f"--port={grpc_port}", f"--rest_api_port={rest_port}", f"--bind_address={HOST}"]
        command = [str(self.python), "-m", "bookserve.clients.command_line", "model-server", *ports, *flags]
        with tempfile.NamedTemporaryFile() as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            server = Server(process, grpc_port, rest_port, Path(log.name))
            try:
                yield server
            finally:
                server.stop()

    @contextmanager
    def serve(self, *flags: str) -> Iterator[Server]:
        """Runs its model server."""
        with self.start(*flags) as server:
            server.wait_until_it_listens()
            yield server


def own() -> Checkout:
    """This checkout."""
    return Checkout(_ROOT, Path(sys.executable))


@contextmanager
def other(where: str, scratch: Path) -> Iterator[Checkout]:
    """A folder that `make install` has run in, or a commit, which is checked out and installed below `scratch`."""
    if Path(where).is_dir():
        yield _installed(Path(where).resolve())
        return
    folder = scratch / "checkout"
    git = ["git", "-C", str(_ROOT), "worktree"]
    added = subprocess.run([*git, "add", "--quiet", "--detach", str(folder), where], capture_output=True, text=True)
    if added.returncode:
        raise click.ClickException(f"neither a folder nor a commit: {where}: {added.stderr.strip()}")
    try:
        click.echo(f"installing {where}")
        environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "VIRTUAL_ENV")}
        make = ["make", "--silent", "-C", str(folder), "install", f"PYTHON={sys.executable}"]
        subprocess.run(make, check=True, env=environment, stdout=subprocess.DEVNULL)
        yield _installed(folder)
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=False)


def _installed(folder: Path) -> Checkout:
    python = folder / ".venv" / "bin" / "python"
    if not python.exists():
        raise click.ClickException(f"{folder} has no .venv: run make install there")
    return Checkout(folder, python)
