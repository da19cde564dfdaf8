"""Server processes as Linux sees them: their ports, their threads' time, their memory, their end. It reads /proc."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from measurements import MeasurementError

HOST = "127.0.0.1"
RETRY_SECONDS = 0.002
START_SECONDS = 120.0
_STOP_SECONDS = 30.0
_ENDED = (FileNotFoundError, ProcessLookupError)  # a process or a thread that was listed is no more
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

ThreadSeconds = Mapping[tuple[int, int], float]  # (process, thread) -> seconds of CPU since the thread began


@dataclass(frozen=True)
class Server:
    """A server on loopback, and the processes that it is made of."""

    process: subprocess.Popen[bytes]
    grpc_port: int
    rest_port: int
    log: Path

    def wait_until_it_listens(self) -> None:
        """Returns when the REST port takes connections."""
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((HOST, self.rest_port), 1).close()
                return
            except OSError:
                self.check_start(end)
                time.sleep(RETRY_SECONDS)

    def check_start(self, end: float) -> None:
        """Raises MeasurementError where the process has ended, or the clock is past `end`."""
        if self.process.poll() is not None or time.monotonic() > end:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise MeasurementError(f"the server did not start: {tail}")

    def thread_seconds(self) -> ThreadSeconds:
        """The CPU time of each thread of each process."""
        return {thread: value for pid in family(self.process.pid) for thread, value in thread_seconds(pid).items()}

    def resident_mib(self) -> float:
        """The memory of all processes; what several share is divided between them (PSS)."""
        return sum(_resident_kib(pid) for pid in family(self.process.pid)) / 1024

    def stop(self) -> None:
        """Asks the process to end, and kills it and its children where that takes long."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kills the process and its children."""
        for pid in family(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def family(pid: int) -> list[int]:
    """The process, its children and theirs."""
    try:
        lists = [task.joinpath("children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except _ENDED:
        lists = []
    return [pid, *(member for children in lists for child in children.split() for member in family(int(child)))]


def thread_seconds(pid: int) -> ThreadSeconds:
    """The CPU time of each thread of a process, user and system."""
    seconds = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()  # a name may hold blanks
        except _ENDED:
            continue
        user, system = int(fields[11]), int(fields[12])
        seconds[pid, int(task.name)] = (user + system) / _TICKS_A_SECOND
    return seconds


def by_main_thread(before: ThreadSeconds, after: ThreadSeconds) -> tuple[float, float]:
    """The seconds between two looks: of the processes' main threads, which run Python in a server, and of all others.

    A thread that has ended meanwhile is left out.
    """
    spent = {thread: seconds - before.get(thread, 0.0) for thread, seconds in after.items()}
    main = sum(seconds for (pid, tid), seconds in spent.items() if pid == tid)
    return main, sum(spent.values()) - main


def _resident_kib(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except _ENDED:
        return 0
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(match[1]) if match else 0
