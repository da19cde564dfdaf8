"""Processes that train networks side by side, for a search that needs one figure of each and nothing else.

A process is used for many trainings, since importing TensorFlow takes seconds, and replaced when it dies, so that a
setting that takes too much memory costs that setting and not the search.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from bookserve.export.silence_tensorflow import silence_tensorflow
from bookserve.training.datasets.files import DataRequest


@dataclass(frozen=True)
class TrainingTask:
    """One training: `figure` is what is wanted of the history that it returns."""

    trial: int
    model: str
    config: Any
    request: DataRequest
    seed: int
    figure: str


@dataclass(frozen=True)
class Outcome:
    """The figure of every epoch, or why there is none."""

    values: tuple[float, ...] = ()
    seconds: float = 0.0
    failure: str = ""


class WorkerPool:
    """`count` processes; `start` gives one of them a task, `wait` returns what is done. A context manager."""

    def __init__(self, count: int) -> None:
        self._context = multiprocessing.get_context("spawn")  # TensorFlow does not live through a fork
        self._threads = max(1, (os.cpu_count() or 1) // count)
        self._unused = count
        self._idle: deque[tuple[BaseProcess, Connection]] = deque()
        self._busy: dict[Connection, tuple[BaseProcess, TrainingTask, float]] = {}

    @property
    def free(self) -> bool:
        """Whether `start` may be called."""
        return bool(self._idle) or self._unused > 0

    @property
    def busy(self) -> bool:
        """Whether `wait` may be called."""
        return bool(self._busy)

    def start(self, task: TrainingTask) -> None:
        """Have a free process train."""
        process, connection = self._idle.popleft() if self._idle else self._new()
        try:
            connection.send(task)
        except ConnectionError:  # it died while it had nothing to do
            self._remove(process, connection)
            process, connection = self._new()
            connection.send(task)
        self._busy[connection] = process, task, time.monotonic()

    def wait(self) -> Sequence[tuple[TrainingTask, Outcome]]:
        """Wait until at least one task is done; each with what became of it."""
        done = []
        for connection in wait(list(self._busy)):
            assert isinstance(connection, Connection)
            process, task, began = self._busy.pop(connection)
            try:
                values, failure = connection.recv()
                self._idle.append((process, connection))
            except (EOFError, ConnectionError):
                self._remove(process, connection)
                values, failure = (), f"its process ended with status {process.exitcode}: out of memory?"
            done.append((task, Outcome(values, time.monotonic() - began, failure)))
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End all processes at once, whatever they are at."""
        running = [*self._idle, *((process, connection) for connection, (process, _, _) in self._busy.items())]
        for process, _ in running:
            process.kill()
        for process, connection in running:
            process.join()
            connection.close()

    def _remove(self, process: BaseProcess, connection: Connection) -> None:
        process.join()
        connection.close()
        self._unused += 1

    def _new(self) -> tuple[BaseProcess, Connection]:
        self._unused -= 1
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._threads), daemon=True)
        process.start()
        theirs.close()
        return process, ours


def _end_with_parent() -> None:
    """A search that was killed closes nothing: do not train on for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(connection: Connection, threads: int) -> None:
    """The life of a process: until the search ends, which closes the connection, train what comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the search decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with silence_tensorflow():
        import tensorflow as tf

        from bookserve.training.run import objective
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    answer: tuple[tuple[float, ...], str]
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            values = objective(task.model, task.config, task.request, task.seed, task.figure)
            answer = tuple(values), ""
        except Exception as error:  # a setting that cannot be trained must not cost the others
            words = (str(error).strip() or repr(error)).splitlines()[0]
            answer = (), words if type(error).__module__.startswith("bookserve") else f"{type(error).__name__}: {words}"
        connection.send(answer)
