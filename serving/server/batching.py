"""Runs requests on worker threads, batching whatever has queued while the last batch ran.

No timer and no setting: an idle version runs a single request at once, a busy one takes all that waits, up to a limit,
as one batch. A version runs one batch at a time; versions run side by side on the shared threads.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bookserve.serving.server.engines.engine import Engine
from bookserve.serving.server.errors import ServingError
from bookserve.serving.server.signatures import Signature
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensors import Array

log = logging.getLogger(__name__)


# One batch: enough rows to amortise a run, few enough that nobody waits long behind it.
MAX_BATCH_ROWS = 64
MAX_BATCH_BYTES = 8 << 20


class Owner(Protocol):
    """Who asked. A task whose owner is no longer open is dropped from the queue instead of run."""

    open: bool


Outcome = dict[str, Array] | ServingError


@dataclass(slots=True, eq=False)
class Run:
    """One batch that has run: when, by time.perf_counter(), and with how many rows."""

    started: float
    ended: float
    rows: int
    padding: int = 0  # rows that were added


@dataclass(slots=True, eq=False)
class Task:
    """One request: inputs that its signature has checked, and where the outcome goes."""

    signature: Signature
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    owner: Owner
    done: Callable[[Outcome], None]  # called once, on the event loop
    rows: int = 0  # the common first dimension of the inputs; 0 where they have none
    shapes: tuple[tuple[int, ...], ...] = ()  # of one row, input by input
    queued: float = field(default_factory=time.perf_counter)
    run: Run | None = None  # once it is over

    def __post_init__(self) -> None:
        rows = {array.shape[0] if array.ndim else 0 for array in self.inputs.values()}
        if len(rows) == 1:
            self.rows = rows.pop()
            self.shapes = tuple([array.shape[1:] for array in self.inputs.values()])

    def fits(self, other: "Task") -> bool:
        """Whether both may run as one batch."""
        return (
            self.rows > 0
            and other.rows > 0
            and self.shapes == other.shapes
            and self.outputs == other.outputs
            and self.signature is other.signature
        )

    @property
    def nbytes(self) -> int:
        """The size of the inputs."""
        return sum(array.nbytes for array in self.inputs.values())


class Workers:
    """The threads that run batches, shared by all loaded versions."""

    def __init__(self, threads: int) -> None:
        self._ready: queue.SimpleQueue[Batcher | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def schedule(self, batcher: "Batcher") -> None:
        """Lets the next free thread run one batch of that version."""
        self._ready.put(batcher)

    def stop(self) -> None:
        """Ends the threads after the batches under way."""
        for _ in self._threads:
            self._ready.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (batcher := self._ready.get()) is not None:
            batcher.run_one_batch()


class Batcher:
    """The queue of one loaded version."""

    def __init__(
        self,
        engine: Engine,
        workers: Workers,
        loop: asyncio.AbstractEventLoop,
        max_queued: int,
        on_run: Callable[[Run], None] | None = None,
    ) -> None:
        """`on_run` is called with every batch that has run, on the event loop."""
        self._on_run = on_run
        self._engine = engine
        self._workers = workers
        self._loop = loop
        self._max_queued = max_queued
        self._waiting: deque[Task] = deque()
        self._busy = False  # scheduled or running; guarded by the lock, as is the queue's being empty
        self._lock = threading.Lock()
        # Until a batch shows outputs that do not follow the batch dimension.
        self._batchable = all(
            spec.shape is not None and len(spec.shape) > 0 and spec.shape[0] is None
            for signature in engine.signatures.values()
            for spec in (*signature.inputs.values(), *signature.outputs.values())
        )

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def submit(self, task: Task) -> None:
        """Queues a task; called on the event loop.

        Raises ServingError (RESOURCE_EXHAUSTED) when the queue is full.
        """
        if len(self._waiting) >= self._max_queued:
            raise ServingError(
                tensorflow_error_pb2.RESOURCE_EXHAUSTED,
                f"the model's queue is full ({self._max_queued} requests, --max_queued_requests): try again later",
            )
        with self._lock:
            self._waiting.append(task)
            if self._busy:
                return
            self._busy = True
        self._workers.schedule(self)

    def run_one_batch(self) -> None:
        """Takes the next batch off the queue, runs it and hands the outcomes to the event loop; on a worker thread."""
        batch, dropped = self._take()
        outcomes: list[Outcome] = []
        if batch:
            started = time.perf_counter()
            outcomes = self._run(batch)
            run = Run(started, time.perf_counter(), sum([task.rows or 1 for task in batch]))
            for task in batch:
                task.run = run
        with self._lock:
            self._busy = bool(self._waiting)
            if self._busy:
                self._workers.schedule(self)
        outcomes += [_CANCELLED] * len(dropped)
        self._loop.call_soon_threadsafe(_deliver, batch + dropped, outcomes, self._on_run)

    def _take(self) -> tuple[list[Task], list[Task]]:
        """The next batch, and the tasks met on the way that nobody waits for any more."""
        batch: list[Task] = []
        dropped: list[Task] = []
        rows = size = 0
        while self._waiting:
            task = self._waiting[0]
            if not task.owner.open:
                dropped.append(self._waiting.popleft())
                continue
            if batch:
                if not (self._batchable and batch[0].fits(task)):
                    break
                if rows + task.rows > MAX_BATCH_ROWS or size + task.nbytes > MAX_BATCH_BYTES:
                    break
            batch.append(self._waiting.popleft())
            rows += task.rows
            size += task.nbytes
        return batch, dropped

    def _run(self, batch: list[Task]) -> list[Outcome]:
        if len(batch) == 1:
            return [self._run_alone(batch[0])]
        first = batch[0]
        inputs = {name: np.concatenate([task.inputs[name] for task in batch]) for name in first.inputs}
        rows = sum(task.rows for task in batch)
        try:
            arrays = self._engine.run(first.signature, inputs, first.outputs)
        except Exception:
            # One request that the model refuses may not fail the others.
            return [self._run_alone(task) for task in batch]
        if any(array.ndim == 0 or array.shape[0] != rows for array in arrays):
            self._batchable = False
            return [self._run_alone(task) for task in batch]
        outcomes: list[Outcome] = []
        start = 0
        for task in batch:
            stop = start + task.rows
            outcomes.append({name: array[start:stop] for name, array in zip(first.outputs, arrays, strict=True)})
            start = stop
        return outcomes

    def _run_alone(self, task: Task) -> Outcome:
        try:
            return dict(zip(task.outputs, self._engine.run(task.signature, task.inputs, task.outputs), strict=True))
        except ServingError as error:
            return error
        except Exception:
            log.exception("the %s engine failed", self._engine.name)
            return ServingError(tensorflow_error_pb2.INTERNAL, "the model failed: see the server's log")


_CANCELLED: Outcome = ServingError(tensorflow_error_pb2.CANCELLED, "the client is gone")


def _deliver(tasks: list[Task], outcomes: list[Outcome], on_run: Callable[[Run], None] | None) -> None:
    if on_run is not None and tasks and tasks[0].run is not None:
        on_run(tasks[0].run)
    for task, outcome in zip(tasks, outcomes, strict=True):
        try:
            task.done(outcome)
        except Exception:
            log.exception("fault while answering a request")  # the others still get their answers
