"""The leader's side of `--workers`: the processes that answer requests beside it, and what they are told.

The process that the user starts is the leader. It decides which versions are served, alone listens, and hands each
connection to the process that has the fewest; a follower (`worker_main.py`) loads what the leader loads and answers the
connections that it is handed. A version is available when all processes have loaded it, and every follower knows that
a version has been succeeded before it is told to unload it. A follower that dies is replaced by another, and one that
does not answer for too long is killed first.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bookserve.serving.server.models.catalog import State
from bookserve.serving.server.models.loader import InProcessLoader
from bookserve.serving.server.models.servable import Servable
from bookserve.serving.server.observability import metrics
from bookserve.serving.server.observability.metrics import Snapshot
from bookserve.serving.server.settings import flags as flag_parser
from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.transport.connections import Activity, Api
from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.server.workers.channel import Channel
from bookserve.serving.wire import tensorflow_error_pb2

log = logging.getLogger(__name__)

_PROGRAM = "bookserve.serving.server.worker_main"
# Before a follower that has died is replaced; doubled each time that one dies within the longest of these.
_FIRST_DELAY_SECONDS = 0.1
_MAX_DELAY_SECONDS = 60.0
_PULSE_SECONDS = 1.0  # between two questions whether a follower is alive
_METRICS_SECONDS = 2.0  # for a follower to tell its metrics; then those that it told last are shown
_STEP_SECONDS = 1.0  # for a follower to tell what it is doing
_END_SECONDS = 10.0  # for a follower to end


def processes(flags: Flags) -> int:
    """How many processes answer requests. Raises ServingError (INVALID_ARGUMENT) where they cannot be."""
    if flags.workers < 0:
        raise invalid_argument(f"--workers={flags.workers}: give the number of processes, or 0 for one per core")
    count = flags.workers or os.cpu_count() or 1
    if count > 1 and flags.lazy_loading:
        raise invalid_argument(
            f"--workers={flags.workers} and --lazy_loading exclude each other: all processes load the same versions,"
            " and requests cannot choose them for all. Leave one of the two out"
        )
    if count > 1 and not hasattr(socket, "send_fds"):
        raise invalid_argument(
            f"--workers={flags.workers}: on {sys.platform} processes cannot share a port here. Use --workers=1"
        )
    return count


@dataclass(eq=False)
class _Follower:
    number: int
    process: "subprocess.Popen[bytes]"
    channel: Channel
    passing: socket.socket  # carries connections
    catching_up: list[asyncio.Future[None]] = field(default_factory=list)  # loads
    serves: bool = False  # has every version, and is handed connections
    late: bool = False  # owes a sign of life, and is handed none meanwhile
    handed: dict[Api, int] = field(default_factory=lambda: dict.fromkeys(Api, 0))
    # As it told last: how many connections it has received and how many it has.
    received: dict[Api, int] = field(default_factory=lambda: dict.fromkeys(Api, 0))
    open: dict[Api, int] = field(default_factory=lambda: dict.fromkeys(Api, 0))
    metrics: Snapshot = field(default_factory=dict)  # those that it told last

    def count(self, api: Api) -> int:
        """Its connections, with those on their way to it."""
        return self.open[api] + self.handed[api] - self.received[api]

    def tell_counts(self, counts: Mapping[Api, tuple[int, int]]) -> None:
        for api, (received, open_) in counts.items():
            self.received[api], self.open[api] = received, open_


class Followers:
    """All followers."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._loop = asyncio.get_running_loop()
        self._answers: Mapping[str, Callable[..., Any]] = {}
        self._state: Callable[[], State]
        self._state_due = False
        self._followers: list[_Follower] = []
        self._versions: dict[int, tuple[str, int, Path]] = {}  # that are loaded or loading, by key
        self._keys = itertools.count()
        self._keeping: list[asyncio.Task[None]] = []
        self._serving = asyncio.Event()  # set when followers may serve
        self._tried: list[asyncio.Event] = []  # set once one of them does or has failed to
        self._past: Snapshot = {}  # counts of followers that are gone
        self._stopping = False

    async def start(self, state: Callable[[], State], answers: Mapping[str, Callable[..., Any]]) -> None:
        """Starts the processes, which then load what is loaded here.

        `state` tells what requests find, and `answers` are the calls that a follower may make.
        """
        self._state, self._answers = state, answers
        for number in range(1, processes(self._flags)):
            try:
                follower = await self._spawn(number)
            except OSError as error:
                raise ServingError(tensorflow_error_pb2.UNKNOWN, f"worker {number} does not start: {error}") from error
            self._tried.append(asyncio.Event())
            self._keeping.append(self._loop.create_task(self._keep(number, follower, self._tried[-1])))

    async def serve(self) -> None:
        """Lets the followers serve, now that the models are loaded; returns when each does or has failed to."""
        self._serving.set()
        for tried in self._tried:
            await tried.wait()

    # One follower

    async def _spawn(self, number: int) -> _Follower:
        ours, theirs = socket.socketpair()
        passing, taking = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        passing.setblocking(False)
        with theirs, taking:
            numbers = [str(number), str(theirs.fileno()), str(taking.fileno())]
            process = subprocess.Popen(
                [sys.executable, "-m", _PROGRAM, *numbers, *flag_parser.arguments(self._flags)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), taking.fileno()),
                start_new_session=True,  # so that a terminal's Ctrl-C reaches the leader alone
            )
        channel = Channel({**self._answers, "connections": lambda counts: follower.tell_counts(counts)})
        follower = _Follower(number, process, channel, passing)
        await self._loop.create_unix_connection(lambda: channel, sock=ours)
        self._followers.append(follower)  # from here on it is told what all are told
        channel.tell("state", self._state())
        follower.catching_up = [channel.ask("load", key, *version) for key, version in self._versions.items()]
        return follower

    async def _keep(self, number: int, follower: _Follower | None, tried: asyncio.Event) -> None:
        """Follows the life of a follower, and of those that replace it."""
        delay = _FIRST_DELAY_SECONDS
        while True:
            began = self._loop.time()
            try:
                follower = follower or await self._spawn(number)
                await self._live(follower, tried)
            except ServingError as error:
                log.error("worker %d cannot load what is served: %s", number, error)
            except OSError as error:
                log.error("worker %d does not start: %s", number, error or "it ended")
            if follower is not None:
                await self._bury(follower)
                follower = None
            tried.set()
            lasted = self._loop.time() - began
            delay = _FIRST_DELAY_SECONDS if lasted > _MAX_DELAY_SECONDS else min(2 * delay, _MAX_DELAY_SECONDS)
            await asyncio.sleep(delay)

    async def _live(self, follower: _Follower, tried: asyncio.Event) -> None:
        """Returns when it is gone. Raises as `_bring_up`."""
        watching = self._loop.create_task(self._watch(follower))
        try:
            await self._bring_up(follower)
            tried.set()
            await follower.channel.lost.wait()
        finally:
            watching.cancel()

    async def _watch(self, follower: _Follower) -> None:
        """Kills it when it does not answer for too long. Until its first answer, that is while it starts, it may."""
        seconds = self._flags.worker_timeout_seconds
        with contextlib.suppress(ConnectionError):
            await follower.channel.ask("answer")
            while seconds > 0:
                await asyncio.sleep(_PULSE_SECONDS)
                answer = follower.channel.ask("answer")
                silent = 0.0  # second by second: when this process was stopped meanwhile, that counts as one
                while not answer.done():
                    if silent >= seconds:
                        text = "worker %d (process %d) has not answered for %g seconds: it is killed"
                        log.error(text, follower.number, follower.process.pid, silent)
                        follower.process.kill()
                        return
                    pause = min(_PULSE_SECONDS, seconds - silent)
                    await asyncio.wait({answer}, timeout=pause)
                    silent += pause
                    follower.late = not answer.done()
                await answer

    async def _bring_up(self, follower: _Follower) -> None:
        """Waits until it has loaded what is loaded here, then lets it serve."""
        for load in follower.catching_up:
            await load
        await self._serving.wait()
        self.share()
        await follower.channel.ask("serve")
        follower.serves = not self._stopping
        log.info("worker %d serves (process %d)", follower.number, follower.process.pid)

    async def _bury(self, follower: _Follower) -> None:
        """Ends what is left of a follower. Its connections are gone; what it has counted stays counted."""
        follower.serves = False
        self._followers.remove(follower)
        follower.passing.close()
        follower.process.kill()
        status = await self._loop.run_in_executor(None, follower.process.wait)
        log.error("worker %d (process %d) ended with %d: it is replaced", follower.number, follower.process.pid, status)
        self._past = metrics.merged([self._past, metrics.lasting(follower.metrics)])

    # Connections

    def hand_over(self, api: Api, endpoint: socket.socket, own_count: Callable[[Api], int]) -> bool:
        """Hands a connection to the follower with the fewest; false where this process has no more, and keeps it."""
        serving = [follower for follower in self._followers if follower.serves and not follower.late]
        if not serving:
            return False
        follower = min(serving, key=lambda follower: _load(api, follower.count))
        if _load(api, follower.count) > _load(api, own_count):
            return False
        try:
            socket.send_fds(follower.passing, [api.value], [endpoint.fileno()])
        except OSError:  # gone, or so busy that its connections pile up
            return False
        follower.handed[api] += 1
        endpoint.close()
        return True

    # Versions

    def load(self, name: str, version: int, path: Path) -> tuple[int, Awaitable[None]]:
        """Begins to load a version in all followers; answers its key, and what raises the error of one that fails."""
        key = next(self._keys)
        self._versions[key] = (name, version, path)
        return key, self._in_all("load", key, name, version, path)

    def unload(self, key: int) -> Awaitable[None]:
        """Begins to unload a version in all followers, which no longer find it."""
        self.share()
        del self._versions[key]
        return self._in_all("unload", key)

    def _in_all(self, name: str, *arguments: Any) -> Awaitable[None]:
        return _all_of([follower.channel.ask(name, *arguments) for follower in self._followers])

    def changed(self) -> None:
        """Lets the followers know the state of the models, once all that changes now has changed."""
        if not self._state_due:
            self._state_due = True
            self._loop.call_soon(self.share)

    def share(self) -> None:
        """Lets them know at once, where it has changed."""
        if self._state_due:
            self._state_due = False
            if self._followers:
                state = self._state()
                for follower in self._followers:
                    follower.channel.tell("state", state)

    async def until_in_step(self) -> None:
        """Waits until every follower that serves knows what is known here."""
        self.share()
        await _all_of([follower.channel.ask("answer") for follower in self._followers if follower.serves])

    # Metrics

    async def snapshots(self) -> list[Snapshot]:
        """The metrics of every follower, and what those that are gone have counted."""
        await asyncio.gather(*(self._ask_metrics(follower) for follower in self._followers))
        return [self._past, *(follower.metrics for follower in self._followers)]

    async def _ask_metrics(self, follower: _Follower) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            follower.metrics = await asyncio.wait_for(follower.channel.ask("metrics"), _METRICS_SECONDS)

    # The end

    def stop_being_ready(self) -> None:
        """Turns readiness off in all followers, and replaces none from now on."""
        self._stopping = True
        for task in self._keeping:
            task.cancel()
        for follower in self._followers:
            follower.channel.tell("stop_being_ready")

    async def drain(self) -> Activity:
        """What Connections.drain does and answers, in all followers."""
        activity = Activity(0, idle=True)
        for answer in [follower.channel.ask("drain") for follower in self._followers]:
            try:
                activity += await asyncio.wait_for(answer, _STEP_SECONDS)
            except ConnectionError:
                pass
            except TimeoutError:
                activity += Activity(0, idle=False)
        return activity

    async def finish(self, seconds: float) -> None:
        """What Connections.finish does, in all followers."""
        try:
            await asyncio.wait_for(self._in_all("finish", seconds), seconds + _END_SECONDS)
        except TimeoutError:
            log.warning("a worker does not finish: it is ended")

    async def close(self) -> None:
        """Has the followers end, which then have no connections any more; kills those that do not."""
        for follower in self._followers:
            follower.channel.tell("exit")
        await self._loop.run_in_executor(None, self._wait)
        await self._close_channels()

    def _wait(self) -> None:
        for follower in self._followers:
            try:
                status = follower.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("worker %d does not end: it is killed", follower.number)
                follower.process.kill()
                status = follower.process.wait()
            if status:
                log.warning("worker %d ended with %d", follower.number, status)

    async def kill(self) -> None:
        """Ends the followers at once, where the server does not start."""
        for task in self._keeping:
            task.cancel()
        for follower in self._followers:
            follower.process.kill()
            follower.process.wait()
        await self._close_channels()

    async def _close_channels(self) -> None:
        for follower in self._followers:
            follower.passing.close()
            await follower.channel.close()


class ReplicatingLoader:
    """The `Loader` whose versions answer in this process and in all followers."""

    def __init__(self, local: InProcessLoader, followers: Followers) -> None:
        self._local = local
        self._followers = followers
        self._keys: dict[Servable, int] = {}

    def key_of(self, servable: Servable) -> int:
        """By which the followers know a loaded version."""
        return self._keys[servable]

    async def load(self, name: str, version: int, path: Path) -> Servable:
        """See Loader.load."""
        key, elsewhere = self._followers.load(name, version, path)
        here = self._local.load(name, version, path)
        servable, fault = await asyncio.gather(here, elsewhere, return_exceptions=True)
        if isinstance(servable, BaseException):
            await self._followers.unload(key)
            raise servable
        if fault is not None:
            await asyncio.gather(self._local.unload(servable), self._followers.unload(key))
            raise fault
        self._keys[servable] = key
        return servable

    async def unload(self, servable: Servable) -> None:
        """See Loader.unload."""
        elsewhere = self._followers.unload(self._keys.pop(servable))
        await asyncio.gather(self._local.unload(servable), elsewhere)

    async def close(self) -> None:
        """See Loader.close."""
        await asyncio.gather(self._local.close(), self._followers.close())


def _load(api: Api, count: Callable[[Api], int]) -> tuple[int, int]:
    """By which the process that gets a connection is chosen: those like it, then all."""
    return count(api), sum(count(any_api) for any_api in Api)


async def _all_of(answers: "list[asyncio.Future[Any]]") -> None:
    """Waits for all; raises the error of one. Those that are gone have nothing to say."""
    faults = await asyncio.gather(*answers, return_exceptions=True)
    for fault in faults:
        if isinstance(fault, BaseException) and not isinstance(fault, ConnectionError):
            raise fault
