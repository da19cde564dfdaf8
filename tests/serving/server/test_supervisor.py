"""A server that crashes is started again; for everybody else the command is the one process that it was before."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_servers import Server, answers, runs, server_starter, wait_until, write_scale_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a supervisor")

NUMBERS = b'{"instances": [[1.5, -2.0, 3.25]]}'
# A program under the supervisor, in place of the server: it appends its number to a file and goes on by `then`.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from bookserve.serving.server import supervisor
from bookserve.serving.server.settings import server_log

def die(number):
    os.kill(os.getpid(), number)
    time.sleep(60)

server_log.configure("text", "info")
supervisor._MAX_PAUSE_SECONDS = 0.1
serves = supervisor.supervise()
with open(sys.argv[1], "a") as file:
    print(os.getpid(), file=file)
starts = len(Path(sys.argv[1]).read_text().split())
"""


class Supervised:
    def __init__(self, folder: Path, then: str, *before: str) -> None:
        self._starts = folder / "starts"
        self._starts.touch()
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", PROGRAM + then, str(self._starts)], stderr=subprocess.PIPE, text=True
        )

    @property
    def starts(self) -> list[int]:
        """The processes of the program so far."""
        return [int(line) for line in self._starts.read_text().splitlines()]

    def end(self) -> tuple[int, list[str]]:
        """The exit status and the lines of the log."""
        _, log = self.process.communicate(timeout=60)
        return self.process.returncode, log.splitlines()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    write_scale_model(root / "scale", 1, 2.0)
    with server_starter(tmp_path_factory.mktemp("supervised")) as start:
        server = start(f"--model_root={root}")
        server.may_crash = True
        yield server
        assert server.stop() == 0


def predict(server: Server, model: str, body: bytes) -> bytes:
    request = urllib.request.Request(f"{server.url}/v1/models/{model}:predict", body)
    with urllib.request.urlopen(request, timeout=30) as response:
        return bytes(response.read())


def test_a_server_that_crashes_answers_again_and_the_log_says_why(server: Server) -> None:
    before = server.pid
    answer = predict(server, "scale", NUMBERS)
    os.kill(before, signal.SIGFPE)  # as an engine dies of a division; no request is known to do it
    wait_until(lambda: bool(server.crashes), "the log tells")
    line = f"E bookserve.serving.server.supervisor: the server (process {before}) died of SIGFPE: it is started again"
    assert line in server.crashes[0]
    wait_until(lambda: answers(f"{server.url}/readyz"), "it is ready again", 60)
    assert server.pid != before
    assert predict(server, "scale", NUMBERS) == answer


def test_the_supervisor_has_imported_nothing_large(server: Server) -> None:
    libraries = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" not in libraries
    assert "numpy" not in libraries
    assert "onnxruntime" in Path(f"/proc/{server.pid}/maps").read_text()


def test_a_server_whose_supervisor_is_killed_ends(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "serves()\ntime.sleep(60)")
    wait_until(lambda: len(supervised.starts) == 1, "it has started")
    supervised.process.kill()
    wait_until(lambda: not runs(supervised.starts[0]), "the server is gone")
    supervised.end()


def test_a_server_that_was_killed_is_started_again(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "serves()\nif starts == 1: die(signal.SIGKILL)\ntime.sleep(60)")
    wait_until(lambda: len(supervised.starts) == 2, "it has started again")
    supervised.process.terminate()
    status, log = supervised.end()
    assert status == -signal.SIGTERM
    assert "died of SIGKILL, maybe for lack of memory: it is started again in 0.1 seconds" in log[0]


@pytest.mark.parametrize("status", [0, 3, 255])
def test_a_server_that_ends_by_itself_is_not_started_again(tmp_path: Path, status: int) -> None:
    supervised = Supervised(tmp_path, f"sys.exit({status})")
    assert supervised.end() == (status, [])
    assert len(supervised.starts) == 1


def test_a_server_that_does_not_come_to_serve_is_given_up(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "die(signal.SIGBUS)")
    status, log = supervised.end()
    assert status == -signal.SIGBUS
    assert len(supervised.starts) == len(log) == 5
    last = f"the server (process {supervised.starts[-1]}) died of SIGBUS, like 4 before it that did not come to serve"
    assert f"{last}: it is not started again" in log[-1]


def test_starts_that_came_to_serve_do_not_count(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "serves() if starts % 3 == 0 else None\nif starts < 9: die(signal.SIGABRT)")
    status, log = supervised.end()
    assert status == 0
    assert len(supervised.starts) == 9
    assert all("died of SIGABRT: it is started again in 0.1 seconds" in line for line in log)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_server_which_decides(tmp_path: Path, number: signal.Signals) -> None:
    then = f"signal.signal({int(number)}, lambda *_: sys.exit(7))\nserves()\nprint(0, file=sys.stderr, flush=True)\n"
    supervised = Supervised(tmp_path, f"{then}time.sleep(60)")
    assert supervised.process.stderr
    supervised.process.stderr.readline()
    supervised.process.send_signal(number)
    assert supervised.end() == (7, [])


def test_a_signal_that_the_server_does_not_handle_ends_both(tmp_path: Path) -> None:
    """As one that arrives while the server is starting."""
    supervised = Supervised(tmp_path, "serves()\ntime.sleep(60)")
    wait_until(lambda: len(supervised.starts) == 1, "it has started")
    supervised.process.terminate()
    assert supervised.end() == (-signal.SIGTERM, [])


def test_a_server_that_crashes_while_it_stops_is_not_started_again(tmp_path: Path) -> None:
    then = "signal.signal(signal.SIGTERM, lambda *_: die(signal.SIGSEGV))\nserves()\nprint(0, file=sys.stderr)\n"
    supervised = Supervised(tmp_path, f"{then}time.sleep(60)")
    assert supervised.process.stderr
    supervised.process.stderr.readline()
    supervised.process.terminate()
    assert supervised.end() == (-signal.SIGSEGV, [])


NAMESPACE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child")


def may_unshare() -> bool:
    return bool(shutil.which("unshare")) and not subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode


@pytest.mark.skipif(not may_unshare(), reason="may not make a namespace of processes")
def test_as_process_1_of_a_container_it_stops_and_tells_its_end(tmp_path: Path) -> None:
    """Where the kernel keeps signals from it that it does not handle, and processes without parents come to it."""
    then = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "if starts == 1: os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', '0.2'); die(signal.SIGSEGV)\n"
        "serves()\n"
        "print(Path('/proc/1/task/1/children').read_text(), file=sys.stderr)\n"
        "os.kill(1, signal.SIGTERM) if starts == 2 else None\n"
        "time.sleep(60)"
    )
    supervised = Supervised(tmp_path, then, *NAMESPACE)
    status, log = supervised.end()
    assert status == 0
    assert "died of SIGSEGV: it is started again" in log[0]
    given_up = Supervised(tmp_path, "die(signal.SIGSEGV)", *NAMESPACE)
    assert given_up.end()[0] == 128 + signal.SIGSEGV
