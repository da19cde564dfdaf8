"""The process that starts the server again when it crashes (Linux, one answering process; several see `workers/`).

A native engine that crashes over a request takes its process with it. So the command forks before it imports anything
large: the child is the server, and this process, its parent, only passes signals on, waits, and forks another child
when that one died of a crash. It holds no model and no socket, so nothing that a client sends reaches it.
"""

import ctypes
import logging
import mmap
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

log = logging.getLogger(__name__)

# What a process dies of without having been asked to end: faults of native code, and the system out of memory.
_CRASHES = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGKILL,
    signal.SIGSEGV,
    signal.SIGSYS,
    signal.SIGTRAP,
}
_PASSED_ON = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
_STOPS = {signal.SIGINT, signal.SIGTERM}
# A crash soon after another makes the next start wait, for longer each time; not for long, as nobody else answers.
_FIRST_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 5.0
_STABLE_SECONDS = 60.0
_MAX_STARTS = 5  # in a row that end in a crash before the server serves
_PR_SET_PDEATHSIG = 1  # Linux's prctl(2); Python has no name for it


def supervise() -> Callable[[], None]:
    """Returns in a child process, and in another one whenever that has crashed: go on there.

    What it returns is to be called once the server serves. The caller itself is kept here and ends as the last child
    does, with its exit status (SystemExit) or of the same signal. Call it before there are threads.
    """
    sys.stdout.flush()  # or both would write what waits there
    parent = os.getpid()
    served = mmap.mmap(-1, 1)  # shared with the children
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON | {signal.SIGCHLD})
    pause, starts = 0.0, 0
    while True:
        served[0], began = 0, time.monotonic()
        child = os.fork()
        if not child:
            end_with(parent)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            time.sleep(pause)
            return lambda: served.__setitem__(0, 1)
        status, stopped = _outlive(child)
        if stopped or not os.WIFSIGNALED(status) or os.WTERMSIG(status) not in _CRASHES:
            _end_as(status)
        starts = 0 if served[0] else starts + 1
        pause = 0.0 if time.monotonic() - began > _STABLE_SECONDS else pause
        pause = min(_MAX_PAUSE_SECONDS, 2 * pause or _FIRST_PAUSE_SECONDS)
        name = signal.Signals(os.WTERMSIG(status)).name
        memory = ", maybe for lack of memory" if name == "SIGKILL" else ""
        told = f"the server (process {child}) died of {name}{memory}"
        if starts == _MAX_STARTS:
            log.critical("%s, like %d before it that did not come to serve: it is not started again", told, starts - 1)
            _end_as(status)
        log.error("%s: it is started again in %g seconds", told, pause)


def end_with(parent: int) -> None:
    """Has the kernel kill this process when `parent`, which has started it, dies (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was dead before
            os._exit(1)


def _outlive(child: int) -> tuple[int, bool]:
    """The child's wait status, and whether this process was asked to stop meanwhile; signals are passed on."""
    stopped = False
    while True:
        number = signal.sigwait(_PASSED_ON | {signal.SIGCHLD})
        if number != signal.SIGCHLD:
            stopped |= number in _STOPS
            os.kill(child, number)
            continue
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:  # as process 1 of a container also what others left behind
            if ended[0] == child:
                return ended[1], stopped


def _end_as(status: int) -> NoReturn:
    """Ends this process as a child did that has this wait status."""
    if not os.WIFSIGNALED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child's core tells why
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    sys.exit(128 + number)  # as process 1 of a container, which its own signals do not end
