"""--workers: the processes that answer requests, as the main process sees them.

The main process decides which versions are served, makes the listening sockets and watches; it loads no model and
answers no request, so nothing that a client sends can end it. The workers (`worker_main.py`) load what they are told
to, and accept by themselves, each from sockets of its own on the same ports: what waits there when one dies is for its
successor. A version is available when all workers have loaded it, and every
worker knows that a version has been succeeded before it is told to unload it. A worker that dies is replaced by
another, and one that does not answer for too long is killed first. To have imported everything takes a new process
seconds on a busy machine, so one that has waits as a spare for the next that dies.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bookserve.serving.server.api.admin import ModelAdmin
from bookserve.serving.server.models.catalog import State
from bookserve.serving.server.models.manager import ModelManager
from bookserve.serving.server.models.servable import LoadedVersion
from bookserve.serving.server.observability import metrics
from bookserve.serving.server.observability.metrics import Snapshot
from bookserve.serving.server.settings import flags as flag_parser
from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.transport.listeners import Api, Listeners
from bookserve.serving.server.transport.ports import Activity
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.server.workers.channel import Channel
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages

log = logging.getLogger(__name__)

_PROGRAM = "bookserve.serving.server.worker_main"
# Before a worker that has died is replaced; doubled each time that one dies within the longest of these.
_FIRST_DELAY_SECONDS = 0.1
_MAX_DELAY_SECONDS = 60.0
_PULSE_SECONDS = 1.0  # between two questions whether a worker is alive
_METRICS_SECONDS = 2.0  # for a worker to tell its metrics; then those that it told last are shown
_STEP_SECONDS = 1.0  # for a worker to tell what it is doing
_END_SECONDS = 10.0  # for a worker to end


@dataclass(eq=False)
class _Worker:
    number: int
    process: "subprocess.Popen[bytes]"
    channel: Channel
    catching_up: list[asyncio.Future[None]] = field(default_factory=list)  # loads
    serves: bool = False
    metrics: Snapshot = field(default_factory=dict)  # those that it told last


@dataclass(eq=False)
class _Spare:
    process: "subprocess.Popen[bytes]"
    waiting: socket.socket  # on which it is told which worker it is; closing it ends the process


class Pool:
    """All workers; the `Loader` whose versions answer in each of them."""

    def __init__(
        self, flags: Flags, count: int, listeners: Listeners, try_version: Callable[[Path], None] = lambda path: None
    ) -> None:
        """`try_version`, which blocks, raises for a version that is not to be loaded anywhere."""
        self._try_version = try_version
        self._flags = flags
        self._count = count
        self._listeners = listeners
        self._trying = asyncio.Semaphore(max(1, flags.num_load_threads))
        self._loop = asyncio.get_running_loop()
        self._answers: Mapping[str, Callable[..., Any]] = {}
        self._state: Callable[[], State]
        self._state_due = False
        self._workers: list[_Worker] = []
        self._spare: _Spare | None = None
        self._versions: dict[int, tuple[str, int, Path]] = {}  # that are loaded or loading, by key
        self._keys = itertools.count(1)
        self._keeping: list[asyncio.Task[None]] = []
        self._serving = asyncio.Event()  # set when workers may serve
        self._tried: list[asyncio.Event] = []  # set once one of them does or has failed to
        self._past: Snapshot = {}  # counts of workers that are gone
        self._stopping = False

    async def prepare(self, manager: ModelManager[LoadedVersion], admin: ModelAdmin) -> None:
        """Starts the processes, which find what `manager` knows, and may have `admin` change it.

        Raises ServingError where one does not start.
        """
        self._state = manager.state
        self._answers = _answers(admin) | {"snapshots": self._snapshots}
        for number in range(self._count):
            try:
                worker = await self._spawn(number)
            except OSError as error:
                raise ServingError(tensorflow_error_pb2.UNKNOWN, f"worker {number} does not start: {error}") from error
            self._tried.append(asyncio.Event())
            self._keeping.append(self._loop.create_task(self._keep(number, worker, self._tried[-1])))

    async def serve(self, sockets: list[tuple[Api, socket.socket]]) -> None:
        """Lets the workers serve, now that the models are loaded; returns when each does or has failed to."""
        self._serving.set()
        for tried in self._tried:
            await tried.wait()

    # One worker

    async def _spawn(self, number: int) -> _Worker:
        spare, self._spare = self._spare, None
        if spare is not None and spare.process.poll() is not None:
            spare.waiting.close()
            spare = None
        spare = spare or self._start_process()
        endpoints = self._listeners.of_process[number]
        task = json.dumps([number, [api.value for api, _ in endpoints]]).encode()
        ours, theirs = socket.socketpair()
        with theirs, spare.waiting:
            socket.send_fds(spare.waiting, [task], [theirs.fileno(), *(endpoint.fileno() for _, endpoint in endpoints)])
        process = spare.process
        channel = Channel(self._answers)
        worker = _Worker(number, process, channel)
        await self._loop.create_unix_connection(lambda: channel, sock=ours)
        self._workers.append(worker)  # from here on it is told what all are told
        channel.tell("state", self._state())
        worker.catching_up = [channel.ask("load", key, *version) for key, version in self._versions.items()]
        return worker

    def _start_process(self) -> _Spare:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", _PROGRAM, str(theirs.fileno()), *flag_parser.arguments(self._flags)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # so that a terminal's Ctrl-C reaches the main process alone
            )
        return _Spare(process, ours)

    async def _keep(self, number: int, worker: _Worker | None, tried: asyncio.Event) -> None:
        """Follows the life of a worker, and of those that replace it."""
        delay = _FIRST_DELAY_SECONDS
        while True:
            began = self._loop.time()
            try:
                worker = worker or await self._spawn(number)
                await self._live(worker, tried)
            except ServingError as error:
                log.error("worker %d cannot load what is served: %s", number, error)
            except OSError as error:
                log.error("worker %d does not start: %s", number, error or "it ended")
            if worker is not None:
                await self._clear_away(worker)
                worker = None
            tried.set()
            lasted = self._loop.time() - began
            delay = _FIRST_DELAY_SECONDS if lasted > _MAX_DELAY_SECONDS else min(2 * delay, _MAX_DELAY_SECONDS)
            await asyncio.sleep(delay)

    async def _live(self, worker: _Worker, tried: asyncio.Event) -> None:
        """Returns when it is gone. Raises as `_bring_up`."""
        watching = self._loop.create_task(self._watch(worker))
        try:
            await self._bring_up(worker)
            tried.set()
            await worker.channel.lost.wait()
        finally:
            watching.cancel()

    async def _watch(self, worker: _Worker) -> None:
        """Kills it when it does not answer for too long. Until its first answer, that is while it starts, it may."""
        seconds = self._flags.worker_timeout_seconds
        with contextlib.suppress(ConnectionError):
            await worker.channel.ask("answer")
            while seconds > 0:
                await asyncio.sleep(_PULSE_SECONDS)
                answer = worker.channel.ask("answer")
                silent = 0.0  # second by second: when this process was stopped meanwhile, that counts as one
                while not answer.done():
                    if silent >= seconds:
                        text = "worker %d (process %d) has not answered for %g seconds: it is killed"
                        log.error(text, worker.number, worker.process.pid, silent)
                        worker.process.kill()
                        return
                    pause = min(_PULSE_SECONDS, seconds - silent)
                    await asyncio.wait({answer}, timeout=pause)
                    silent += pause
                await answer

    async def _bring_up(self, worker: _Worker) -> None:
        """Waits until it has loaded what is served, then lets it serve."""
        for load in worker.catching_up:
            await load
        await self._serving.wait()
        self.share()
        await worker.channel.ask("serve")
        worker.serves = not self._stopping
        log.info("worker %d serves (process %d)", worker.number, worker.process.pid)
        if self._spare is None and worker.serves and sum(other.serves for other in self._workers) == self._count:
            self._spare = self._start_process()

    async def _clear_away(self, worker: _Worker) -> None:
        """Ends what is left of a worker. Its connections are gone; what it has counted stays counted."""
        worker.serves = False
        self._workers.remove(worker)
        worker.process.kill()
        status = await self._loop.run_in_executor(None, worker.process.wait)
        log.error("worker %d (process %d) ended with %d: it is replaced", worker.number, worker.process.pid, status)
        self._past = metrics.merged([self._past, metrics.lasting(worker.metrics)])

    # Versions

    async def load(self, name: str, version: int, path: Path) -> LoadedVersion:
        """See Loader.load."""
        async with self._trying:
            await asyncio.to_thread(self._try_version, path)
        key = next(self._keys)
        self._versions[key] = (name, version, path)
        try:
            await self._in_all("load", key, name, version, path)
        except BaseException:
            await self._unload(key)
            raise
        return LoadedVersion(name, version, key)

    async def unload(self, servable: LoadedVersion) -> None:
        """See Loader.unload."""
        await self._unload(servable.key)

    async def close(self) -> None:
        """Has the workers end, which then have no connections any more; kills those that do not."""
        self._end_spare()
        for worker in self._workers:
            worker.channel.tell("exit")
        await self._loop.run_in_executor(None, self._wait)
        await self._close_channels()

    def _unload(self, key: int) -> Awaitable[None]:
        """Begins to unload a version in all workers, which no longer find it."""
        self.share()
        del self._versions[key]
        return self._in_all("unload", key)

    def _in_all(self, name: str, *arguments: Any) -> Awaitable[None]:
        return _all_of([worker.channel.ask(name, *arguments) for worker in self._workers])

    def changed(self) -> None:
        """Lets the workers know the state of the models, once all that changes now has changed."""
        if not self._state_due:
            self._state_due = True
            self._loop.call_soon(self.share)

    def share(self) -> None:
        """Lets them know at once, where it has changed."""
        if self._state_due:
            self._state_due = False
            if self._workers:
                state = self._state()
                for worker in self._workers:
                    worker.channel.tell("state", state)

    async def until_in_step(self) -> None:
        """Waits until every worker that serves knows what is known here."""
        self.share()
        await _all_of([worker.channel.ask("answer") for worker in self._workers if worker.serves])

    # Metrics

    async def _snapshots(self) -> list[Snapshot]:
        """The metrics of every worker, and what those that are gone have counted."""
        await asyncio.gather(*(self._ask_metrics(worker) for worker in self._workers))
        return [self._past, *(worker.metrics for worker in self._workers)]

    async def _ask_metrics(self, worker: _Worker) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            worker.metrics = await asyncio.wait_for(worker.channel.ask("metrics"), _METRICS_SECONDS)

    # The end

    def stop_being_ready(self) -> None:
        """Turns readiness off in all workers, and replaces none from now on."""
        self._stopping = True
        for task in self._keeping:
            task.cancel()
        for worker in self._workers:
            worker.channel.tell("stop_being_ready")

    async def drain(self) -> Activity:
        """What Ports.drain does and answers, in all workers."""
        activity = Activity(0, idle=True)
        for answer in [worker.channel.ask("drain") for worker in self._workers]:
            try:
                activity += await asyncio.wait_for(answer, _STEP_SECONDS)
            except ConnectionError:
                pass
            except TimeoutError:
                activity += Activity(0, idle=False)
        return activity

    async def finish(self, seconds: float) -> None:
        """What Ports.finish does, in all workers."""
        try:
            await asyncio.wait_for(self._in_all("finish", seconds), seconds + _END_SECONDS)
        except TimeoutError:
            log.warning("a worker does not finish: it is ended")

    async def write_logs(self) -> None:
        """The workers have written theirs when they end."""

    def _wait(self) -> None:
        for worker in self._workers:
            try:
                status = worker.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("worker %d does not end: it is killed", worker.number)
                worker.process.kill()
                status = worker.process.wait()
            if status:
                log.warning("worker %d ended with %d", worker.number, status)

    async def kill(self) -> None:
        """Ends the workers at once, where the server does not start."""
        for task in self._keeping:
            task.cancel()
        self._end_spare()
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()
        await self._close_channels()

    def _end_spare(self) -> None:
        if self._spare is not None:
            self._spare.waiting.close()
            self._spare.process.kill()
            self._spare.process.wait()
            self._spare = None

    async def _close_channels(self) -> None:
        for worker in self._workers:
            await worker.channel.close()


def _answers(admin: ModelAdmin) -> dict[str, Callable[..., Any]]:
    """What workers may ask."""

    async def config() -> bytes:
        return (await admin.config()).SerializeToString()

    return {
        "config": config,
        "reload": lambda data: admin.reload(messages.ModelServerConfig.FromString(data)),
        "add_or_replace": lambda data: admin.add_or_replace(messages.ModelConfig.FromString(data)),
        "remove": admin.remove,
        "load_model": admin.load,
    }


async def _all_of(answers: "list[asyncio.Future[Any]]") -> None:
    """Waits for all; raises the error of one. Those that are gone have nothing to say."""
    faults = await asyncio.gather(*answers, return_exceptions=True)
    for fault in faults:
        if isinstance(fault, BaseException) and not isinstance(fault, ConnectionError):
            raise fault
