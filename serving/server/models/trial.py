"""Every version is tried in a child process before the server loads it, as native engines run inside the server.

A model file can make its engine crash, run for ever, or take all memory. What dies, hangs or takes too much over a
version is then a child (`trial_process.py`); the version is refused with the reason, and the old one stays. A
SavedModel lives in a process of its own anyway, which is its trial (`engines/tensorflow_engine.py`).
"""

import dataclasses
import hashlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from bookserve.serving.server.engines import choose, frames
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.models import trial_process
from bookserve.serving.server.models.integrity import Seen
from bookserve.serving.server.types.errors import ServingError, failed_precondition, unavailable
from bookserve.serving.wire.tensorflow_serving_pb2 import StatusProto

log = logging.getLogger(__name__)

_BYTES_A_SECOND = 32 << 20  # that a child loads at the least, beyond --trial_seconds


class _Gone(Exception):
    """The child ended, or was ended for taking too long, after the step that it names."""

    def __init__(self, step: str, waited: float | None) -> None:
        super().__init__(step)
        self.step = step
        self.waited = waited  # seconds, where it hung


class _Child:
    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.used = False
        self._channel = channel

    def check(self, wish: bytes, load_seconds: float, run_seconds: float) -> None:
        """Tries a version. Raises ServingError where it does not load or takes too much memory; _Gone."""
        step, seconds = "began", load_seconds
        try:
            frames.send(self._channel, frames.ANSWER, wish)
        except OSError:
            raise _Gone(step, None) from None
        while True:
            self._channel.settimeout(seconds)
            began = time.monotonic()
            frame = frames.receive(self._channel)
            if frame is None:
                hung = time.monotonic() - began >= seconds
                raise _Gone(step, seconds if hung else None)
            kind, data = frame
            if kind == frames.ERROR:
                status = StatusProto.FromString(data)
                raise ServingError(status.error_code, status.error_message)
            if data == trial_process.DONE:
                self.used = True
                return
            step, seconds = data.decode(), load_seconds if step == "began" else run_seconds

    def close(self) -> None:
        """Ends it, also while it hangs."""
        self._channel.close()


class Trials:
    """The children of one server, and the template that forks them."""

    def __init__(self) -> None:
        """Forks the template: call it before anything listens, locks or has threads of its own."""
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._passed: set[bytes] = set()
        self._closed = False
        self._control, theirs = socket.socketpair()
        if os.fork() == 0:
            self._control.close()
            trial_process.serve_template(theirs)
        theirs.close()

    def check(self, path: Path, seen: Seen, options: EngineOptions, *, warm_up: bool) -> None:
        """Tries the version in `path`, whose files are those `seen`, unless it has passed already. Blocks meanwhile.

        Raises ServingError: FAILED_PRECONDITION where a child dies over it or hangs, RESOURCE_EXHAUSTED where it takes
        too much memory, and as the load itself.
        """
        if not options.trial_seconds or not choose.runs_in_the_server(path, options):
            return
        key = hashlib.sha256(repr(sorted(seen.items())).encode()).digest()
        if key in self._passed:
            return
        size = sum(status[2] for status in seen.values())
        wish = json.dumps({"path": str(path), "options": dataclasses.asdict(options), "warm_up": warm_up}).encode()
        seconds = options.trial_seconds
        while True:
            try:
                child = self._take()
            except (OSError, ValueError) as error:
                if self._closed:
                    raise unavailable(f"{path} is not loaded: the server is stopping") from None
                log.error("%s is loaded without a trial, as none can be made: %s", path, error or "the template ended")
                return
            used = child.used
            try:
                child.check(wish, seconds + size / _BYTES_A_SECOND, seconds)
            except _Gone as gone:
                end = self._end(child, kill=gone.waited is not None)
                if used and gone.waited is None:
                    continue  # maybe another version's fault, or it was about to end: a new child knows
                raise failed_precondition(f"{path} is refused: {_told(gone, end)}") from None
            except ServingError as error:
                self._end(child, kill=True)
                raise ServingError(error.code, _with_path(error, path)) from None
            break
        self._passed.add(key)
        with self._lock:
            self._idle.append(child)

    def close(self) -> None:
        """Ends the template and the children that wait."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
            self._control.close()

    def _take(self) -> _Child:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    socket.send_fds(self._control, [trial_process.FORK], [theirs.fileno()])
                    return _Child(int(self._control.recv(64)), ours)
            except BaseException:
                ours.close()
                raise

    def _end(self, child: _Child, *, kill: bool) -> int:
        """Ends a child that is gone or shall be; answers its wait status."""
        child.close()
        if kill:
            os.kill(child.pid, signal.SIGKILL)
        with self._lock:
            try:
                self._control.sendall(trial_process.STATUS + b"%d" % child.pid)
                return int(self._control.recv(64))
            except (OSError, ValueError):
                return 0


def start() -> Trials | None:
    """The trials of this process; None where processes cannot be forked safely."""
    return Trials() if sys.platform == "linux" else None


def _told(gone: _Gone, status: int) -> str:
    child = "the child process that tried it first"
    if gone.waited is not None:
        return f"{child} hung while it {gone.step}: --trial_seconds allows {gone.waited:.0f} seconds"
    if not os.WIFSIGNALED(status):
        return f"{child} ended with {os.waitstatus_to_exitcode(status)} while it {gone.step}"
    number = os.WTERMSIG(status)
    memory = ", maybe as it took too much memory," if number == signal.SIGKILL else ""
    return f"{child} died of {signal.Signals(number).name}{memory} while it {gone.step}"


def _with_path(error: ServingError, path: Path) -> str:
    return error.message if str(path) in error.message else f"{path} is refused: {error.message}"
