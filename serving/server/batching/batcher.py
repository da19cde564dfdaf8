"""Runs requests on worker threads, in batches that a BatchPolicy forms.

A batch takes requests until it is full or a worker takes it. By default a worker takes it as soon as one is free: an
idle version runs a single request at once, a busy one runs all that queued while the last batches ran, in shares that
keep every worker busy. Requests share a
batch where their rows have the same shapes and nothing mixes rows. Versions run side by side on the shared threads.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from bookserve.serving.server.batching.brevity import Brevity
from bookserve.serving.server.batching.policy import BatchPolicy
from bookserve.serving.server.engines import refusals
from bookserve.serving.server.engines.engine import Engine
from bookserve.serving.server.settings import memory
from bookserve.serving.server.types.errors import (
    ServingError,
    exhausted,
    failed_precondition,
    invalid_argument,
    out_of_memory,
    unavailable,
)
from bookserve.serving.server.types.signatures import Signature
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensors import Array

log = logging.getLogger(__name__)

_NICENESS = 5  # of worker threads: the loop goes first, and beside other programs they still get a third of a core


_RETRY_SECONDS = 0.01


class Owner(Protocol):
    """Who asked. A task whose owner is no longer open (gone, or past its deadline) is dropped instead of run."""

    open: bool


Outcome = dict[str, Array] | ServingError


@dataclass(slots=True, eq=False)
class BatchRun:
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
    rows: int = 0  # the common first dimension of the inputs; 0 where they have none, or an optional one is given
    shapes: tuple[tuple[int, ...], ...] = ()  # of one row, input by input in the signature's order
    queued: float = field(default_factory=time.perf_counter)
    run: BatchRun | None = None  # once it is over

    def __post_init__(self) -> None:
        signature = self.signature
        arrays = [self.inputs[name] for name in signature.required]
        rows = {array.shape[0] if array.ndim else 0 for array in arrays}
        if len(rows) == 1 and len(arrays) == len(self.inputs):
            self.rows = rows.pop()
            self.shapes = tuple([array.shape[1:] for array in arrays])

    @property
    def nbytes(self) -> int:
        """The size of the inputs."""
        return sum([array.nbytes for array in self.inputs.values()])

    def piece(self, start: int, stop: int, done: Callable[[Outcome], None]) -> "Task":
        """These rows as a task of their own."""
        inputs = {name: array[start:stop] for name, array in self.inputs.items()}
        return Task(self.signature, inputs, self.outputs, self.owner, done)


@dataclass(slots=True, eq=False)
class Batch:
    """Tasks that run together; open for more until it is full or a worker takes it."""

    key: Any  # what its tasks have in common; None for one that stays alone
    signature: Signature
    outputs: tuple[str, ...]
    tasks: list[Task] = field(default_factory=list)
    rows: int = 0
    nbytes: int = 0
    ready: bool = False  # may be taken
    timer: asyncio.TimerHandle | None = None  # makes it ready


class RunThreads:
    """The threads that run batches, shared by all loaded versions."""

    def __init__(self, threads: int, cores: Sequence[int] = ()) -> None:
        """`cores` are the processor's, one for each thread; without them the threads run where the system puts them."""
        self._ready: queue.SimpleQueue[Batcher | None] = queue.SimpleQueue()
        self._running: set[int] = set()  # numbers of the threads that run a batch
        self._everywhere = os.sched_getaffinity(0) if sys.platform == "linux" else set()
        self._threads = [
            threading.Thread(
                target=self._work, args=(number, *cores[number : number + 1]), name=f"worker-{number}", daemon=True
            )
            for number in range(threads)
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

    def _work(self, number: int, core: int | None = None) -> None:
        """The life of a thread. While others run, too, it keeps to its core, and the event loop goes first everywhere.

        Left alone, Linux has the loop wait behind a batch while another core has nothing to do: with LeNet-5 on 2 cores
        a fifth of the time. A batch that runs alone is best where the system puts it.
        """
        kept = False
        if core is not None:
            _lower_priority()
        while (batcher := self._ready.get()) is not None:
            try:
                self._running.add(number)
                if core is not None and kept != (len(self._running) > 1):
                    kept = not kept
                    _keep_to({core} if kept else self._everywhere)
                batcher.run_one_batch()
            except Exception:  # a thread that ends would leave its share of all requests unanswered
                with contextlib.suppress(Exception):
                    log.exception("fault on a run thread")
            finally:
                self._running.discard(number)


def _lower_priority() -> None:
    """Of the calling thread alone, where the system allows it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)


def _keep_to(cores: Collection[int]) -> None:
    """Has the calling thread run on these cores alone, where the system allows it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cores)


class Batcher:
    """The queue of one loaded version."""

    def __init__(
        self,
        engine: Engine,
        run_threads: RunThreads,
        loop: asyncio.AbstractEventLoop,
        max_queued: int,
        policy: BatchPolicy,
        batchable: Collection[str],
        on_run: Callable[[BatchRun], None] | None = None,
    ) -> None:
        """`batchable` names the signatures whose rows do not depend on each other; a strict policy does not ask.

        `on_run` is called with every batch that has run, on the event loop.
        """
        self._on_run = on_run
        self._engine = engine
        self._memory = memory.Memory()
        self._run_threads = run_threads
        self._loop = loop
        self._max_queued = max_queued
        self._policy = policy
        # Where requests share batches unasked: the ranks of one row, input by input.
        self._batchable = {
            name: tuple([len(spec.shape or ()) - 1 for spec in engine.signatures[name].required.values()])
            for name in batchable
        }
        # All below is guarded by the lock. Tasks are added on the event loop and taken by the run threads.
        self._lock = threading.Lock()
        self._open: dict[Any, Batch] = {}  # by key
        self._ready: deque[Batch] = deque()
        self._queued = 0  # tasks
        self._waiting_rows = 0
        self._running_rows = 0
        self._running = 0  # run threads that run a batch
        self._scheduled = 0  # these, and run threads that are called
        self._calls = 0  # of these, those that are yet to be called
        # Runs on the event loop itself; not where batches wait for more, as somebody has planned them.
        self._brevity = Brevity(engine.computes_alone and not policy.strict)

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return self._queued

    def submit(self, task: Task) -> None:
        """Queues a task; called on the event loop.

        Raises ServingError: RESOURCE_EXHAUSTED or UNAVAILABLE when a queue is full, INVALID_ARGUMENT for a task that a
        strict policy does not take.
        """
        if self._queued >= self._max_queued:
            raise exhausted(
                f"the model's queue is full ({self._max_queued} requests, --max_queued_requests): try again later",
            )
        policy = self._policy
        sizes: tuple[Any, ...] = task.shapes
        if policy.pad_inputs:
            sizes = tuple([len(shape) for shape in sizes])
        key = (task.signature.name, task.outputs, sizes)
        with self._lock:
            if policy.strict:
                self._check(task, key)
            if policy.split_requests and task.rows:
                for piece in self._pieces(task, key):
                    self._add(piece, key)
            else:
                self._add(task, key)
            calls = self._take_calls()
        # Outside the lock, which a worker that wakes wants first of all.
        self._call(calls)

    def _check(self, task: Task, key: object) -> None:
        """TensorFlow Serving's rules of what may be queued."""
        policy = self._policy
        if len(task.inputs) > len(task.signature.required):
            return  # it runs alone
        if not task.inputs:
            raise invalid_argument("Batching Run() must have at least one input tensor")
        if any(array.ndim == 0 for array in task.inputs.values()):
            raise invalid_argument("Batching Run() input tensors must have at least one dimension")
        if len({array.shape[0] for array in task.inputs.values()}) > 1:
            raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size")
        if policy.max_request_rows is not None and task.rows > policy.max_request_rows:
            raise invalid_argument(
                f"Task size {task.rows} is larger than maximum input batch size {policy.max_request_rows}"
            )
        last = self._open.get(key)
        filled = last.rows if last is not None else policy.max_rows
        room = policy.max_rows - filled
        if policy.max_queued_batches is None or task.rows <= room:
            return
        queued = [*self._ready, *(batch for batch in self._open.values() if not batch.ready)]
        count = sum(batch.signature is task.signature and batch.outputs == task.outputs for batch in queued)
        most = max(1, policy.max_queued_batches)  # an open batch always counts there, even while it is empty
        if policy.split_requests:
            capacity = (most - count) * policy.max_rows + room
            if task.rows > capacity:
                raise unavailable(
                    "The batch scheduling queue to which this task was submitted is full;"
                    f" task size is {task.rows} but scheduling capacity is only {capacity}"
                    f" (num_enqueued_batches={count}, max_enqueued_batches={policy.max_queued_batches},"
                    f" open_batch_size={filled % policy.max_rows}, max_execution_batch_size={policy.max_rows})"
                )
        elif count >= most:
            raise unavailable(
                "The batch scheduling queue to which this task was submitted is full;"
                f" currently {count} batches enqueued and max_enqueued_batches is {policy.max_queued_batches}"
            )

    def _pieces(self, task: Task, key: object) -> Iterator[Task]:
        """The task cut so that it first fills the open batch, then whole ones."""
        last = self._open.get(key)
        first = min(task.rows, self._policy.max_rows - (last.rows if last is not None else 0))
        cuts = [0, *range(first, task.rows, self._policy.max_rows), task.rows]
        if len(cuts) == 2:
            yield task
            return
        together = _Together(task, len(cuts) - 1)
        for place, (start, stop) in enumerate(itertools.pairwise(cuts)):
            piece = task.piece(start, stop, together.done(place))
            together.pieces.append(piece)
            yield piece

    def _add(self, task: Task, key: object) -> None:
        policy = self._policy
        nbytes = task.nbytes
        batch = self._open.get(key) if task.rows else None
        self._waiting_rows += task.rows or 1
        most = policy.max_rows
        if policy.share_runs:
            most = min(most, -(-(self._waiting_rows + self._running_rows) // self._parallel_runs))
        if batch is not None and (
            batch.rows + task.rows > most or (policy.max_bytes is not None and batch.nbytes + nbytes > policy.max_bytes)
        ):
            self._close(batch)
            batch = None
        if batch is None:
            batch = Batch(key if self._may_share(task) else None, task.signature, task.outputs)
            if batch.key is not None:
                self._open[key] = batch
        batch.tasks.append(task)
        batch.rows += task.rows
        batch.nbytes += nbytes
        self._queued += 1
        if batch.key is not None and batch.rows >= policy.max_rows:
            self._close(batch)
        elif batch.ready:
            self._call_worker()
        elif batch.key is None or not policy.wait_seconds:
            self._make_ready(batch)
        elif batch.timer is None:
            batch.timer = self._loop.call_later(policy.wait_seconds, self._time_out, batch)

    def _may_share(self, task: Task) -> bool:
        if not task.rows or any(0 in shape for shape in task.shapes):  # the proof holds for sizes of at least 1
            return False
        ranks = self._batchable.get(task.signature.name)
        return self._policy.strict or (ranks is not None and ranks == tuple([len(shape) for shape in task.shapes]))

    def _close(self, batch: Batch) -> None:
        del self._open[batch.key]
        if batch.timer is not None:
            batch.timer.cancel()
        self._make_ready(batch)

    def _time_out(self, batch: Batch) -> None:
        with self._lock:
            self._make_ready(batch)
            calls = self._take_calls()
        self._call(calls)

    def _make_ready(self, batch: Batch) -> None:
        if batch.ready:
            return
        batch.ready = True
        self._ready.append(batch)
        self._call_worker()

    def _call_worker(self) -> None:
        """Has one more worker run where there is a batch for it.

        Runs that share do not start with scraps beside the others: what waits has to be half of what each of them has.
        """
        policy = self._policy
        if self._scheduled >= self._parallel_runs or self._scheduled - self._running >= len(self._ready):
            return
        if policy.share_runs and 2 * self._waiting_rows * self._running < self._running_rows:
            return
        self._scheduled += 1
        self._calls += 1

    def _take_calls(self) -> int:
        """How many workers to call for what has become ready."""
        calls, self._calls = self._calls, 0
        return calls

    def _call(self, workers: int) -> None:
        """Calls run threads, or the event loop once it has done what it is about to do, where runs are brief."""
        for _ in range(workers):
            if self._brevity.known:
                self._loop.call_soon(self._run_here)
            else:
                self._run_threads.schedule(self)

    @property
    def _parallel_runs(self) -> int:
        return 1 if self._brevity.known else self._policy.parallel_runs

    def run_one_batch(self) -> None:
        """Takes the next batch off the queue, runs it and hands the outcomes to the event loop; on a run thread."""
        batch = self._take()
        if batch is None:
            return
        tasks, outcomes = self._run_batch(batch)
        if self._is_over(batch):
            self._run_threads.schedule(self)
        self._hand_over(tasks, outcomes)

    def _hand_over(self, tasks: list[Task], outcomes: list[Outcome]) -> None:
        """To the event loop; where there is no memory for that, once there is."""
        while True:
            try:
                self._loop.call_soon_threadsafe(_deliver, tasks, outcomes, self._on_run)
            except MemoryError:
                time.sleep(_RETRY_SECONDS)
            else:
                return

    def _run_here(self) -> None:
        """The same on the event loop, for a batch that is brief."""
        with self._lock:
            brief = not self._ready or self._brevity.covers(self._ready[0].nbytes)
        if not brief:
            self._run_threads.schedule(self)
        elif (batch := self._take()) is not None:
            tasks, outcomes = self._run_batch(batch)
            if self._is_over(batch):
                self._loop.call_soon(self._run_here)
            _deliver(tasks, outcomes, self._on_run)

    def _take(self) -> Batch | None:
        """The first batch that is ready; None where another worker was faster."""
        with self._lock:
            if not self._ready:
                self._scheduled -= 1
                return None
            batch = self._ready.popleft()
            if self._open.get(batch.key) is batch:
                del self._open[batch.key]
            self._queued -= len(batch.tasks)
            rows = sum([task.rows or 1 for task in batch.tasks])
            self._waiting_rows -= rows
            self._running_rows += rows
            self._running += 1
            return batch

    def _run_batch(self, batch: Batch) -> tuple[list[Task], list[Outcome]]:
        """The tasks, and the outcome of each: those whose owners are gone are not run. Raises nothing."""
        try:
            return self._run_those_wanted(batch)
        except MemoryError:
            outcome = out_of_memory()
        except Exception:
            log.exception("fault while running a batch")
            outcome = refusals.fault()
        return batch.tasks, [outcome] * len(batch.tasks)

    def _run_those_wanted(self, batch: Batch) -> tuple[list[Task], list[Outcome]]:
        tasks: list[Task] = []
        gone: list[Task] = []
        for task in batch.tasks:
            (tasks if task.owner.open else gone).append(task)
        outcomes: list[Outcome] = []
        if tasks:
            started, computed = time.perf_counter(), time.thread_time()
            outcomes = self._run(tasks)
            computed = time.thread_time() - computed
            rows = sum([task.rows or 1 for task in tasks])
            run = BatchRun(started, time.perf_counter(), rows, self._policy.run_rows(rows) - rows)
            for task in tasks:
                task.run = run
            with self._lock:
                self._brevity.ran(batch.nbytes, computed, len(tasks))
        return tasks + gone, outcomes + [_CANCELLED] * len(gone)

    def _is_over(self, batch: Batch) -> bool:
        """Notes that a batch has run; whether another is ready for who ran it."""
        with self._lock:
            self._running -= 1
            self._running_rows -= sum([task.rows or 1 for task in batch.tasks])
            more = bool(self._ready)
            if not more:
                self._scheduled -= 1
            return more

    def _run(self, tasks: list[Task]) -> list[Outcome]:
        first = tasks[0]
        rows = sum([task.rows for task in tasks])
        run_rows = self._policy.run_rows(rows)
        inputs = first.inputs
        outcome: ServingError
        try:
            if len(tasks) > 1 or run_rows > rows:
                inputs = {name: self._merge([task.inputs[name] for task in tasks], run_rows - rows) for name in inputs}
            if not self._memory.has_room():
                raise out_of_memory()
            arrays = self._engine.run(first.signature, inputs, first.outputs)
            if not memory.leaves_room_for(sum([array.nbytes for array in arrays])):
                raise out_of_memory()
        except ServingError as error:
            outcome = _without_frames(error)
        except MemoryError:
            outcome = out_of_memory()
        except Exception:
            if len(tasks) == 1:
                log.exception("the %s engine failed", self._engine.name)
            outcome = refusals.fault()
        else:
            if len(tasks) == 1 and not (self._policy.strict and rows):
                return [dict(zip(first.outputs, arrays, strict=True))]
            misfit = _misfit(arrays, run_rows)
            if misfit is None:
                return _split(tasks, arrays)
            if self._policy.strict:
                return [failed_precondition(misfit)] * len(tasks)
            self._batchable.pop(first.signature.name, None)
            return [self._run([task])[0] for task in tasks]
        if len(tasks) == 1 or outcome.code == tensorflow_error_pb2.UNAVAILABLE:  # the engine's fault, not a request's
            return [outcome] * len(tasks)
        # One request that the model refuses may not fail the others.
        return [self._run([task])[0] for task in tasks]

    def _merge(self, arrays: list[Array], copies: int) -> Array:
        """One array of all rows, then copies of the first."""
        if self._policy.pad_inputs:
            arrays = _same_sizes(arrays)
        if copies:
            arrays = [*arrays, np.broadcast_to(arrays[0][:1], (copies, *arrays[0].shape[1:]))]
        return np.concatenate(arrays)


class _Together:
    """Puts the outcomes of a task's pieces together; on the event loop."""

    def __init__(self, task: Task, pieces: int) -> None:
        self._task = task
        self.pieces: list[Task] = []
        self._outcomes: list[Outcome | None] = [None] * pieces
        self._missing = pieces

    def done(self, place: int) -> Callable[[Outcome], None]:
        def collect(outcome: Outcome) -> None:
            self._outcomes[place] = outcome
            self._missing -= 1
            if not self._missing:
                self._task.run = self.pieces[-1].run
                self._task.done(self._whole())

        return collect

    def _whole(self) -> Outcome:
        parts: list[dict[str, Array]] = []
        for outcome in self._outcomes:
            if isinstance(outcome, ServingError):
                return outcome
            assert outcome is not None
            parts.append(outcome)
        return {name: np.concatenate([part[name] for part in parts]) for name in self._task.outputs}


def _same_sizes(arrays: list[Array]) -> list[Array]:
    """Pads every dimension but the first to the largest, at its end, with the array's first value."""
    shape = tuple([max(sizes) for sizes in zip(*[array.shape[1:] for array in arrays], strict=True)])
    padded = []
    for array in arrays:
        if array.shape[1:] != shape:
            if not array.size:
                raise invalid_argument("Got empty tensor in batch of non-empty tensors.")
            larger = np.full((array.shape[0], *shape), array.flat[0], dtype=array.dtype)
            larger[tuple(slice(size) for size in array.shape)] = array
            array = larger
        padded.append(array)
    return padded


def _without_frames(error: ServingError) -> ServingError:
    """The error alone. The frames where it was raised refer to it, and would keep their tensors as a cycle does."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _misfit(arrays: Sequence[Array], rows: int) -> str | None:
    """What is wrong with outputs that cannot be cut by rows."""
    if any(array.ndim == 0 for array in arrays):
        return "Batched output tensor has 0 dimensions"
    if any(array.shape[0] != rows for array in arrays):
        return (
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input"
            " tensors"
        )
    return None


def _split(tasks: list[Task], arrays: Sequence[Array]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    start = 0
    for task in tasks:
        stop = start + task.rows
        outcomes.append({name: array[start:stop] for name, array in zip(task.outputs, arrays, strict=True)})
        start = stop
    return outcomes


_CANCELLED: Outcome = ServingError(tensorflow_error_pb2.CANCELLED, "the client is gone")


def _deliver(tasks: list[Task], outcomes: list[Outcome], on_run: Callable[[BatchRun], None] | None) -> None:
    if on_run is not None and tasks and tasks[0].run is not None:
        on_run(tasks[0].run)
    for task, outcome in zip(tasks, outcomes, strict=True):
        try:
            task.done(outcome)
        except Exception:  # the others still get their answers
            with contextlib.suppress(Exception):
                log.exception("fault while answering a request")
