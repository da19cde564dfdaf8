"""Batches in process: a stand-in engine that says which rows it was given together."""

import asyncio
import gc
import os
import queue
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bookserve.serving.server.batching import batcher as batcher_module
from bookserve.serving.server.batching.batcher import Batcher, Outcome, RunThreads, Task
from bookserve.serving.server.batching.policy import BatchPolicy, adaptive, from_parameters
from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.server.types.signatures import Signature
from bookserve.serving.wire import tensorflow_error_pb2, tensorflow_pb2
from bookserve.serving.wire.batching_parameters_pb2 import BatchingParameters
from bookserve.serving.wire.tensors import Array, TensorSpec
from model_servers import wait_until

SIGNATURE = Signature(
    "serving_default",
    {"x": TensorSpec("x", tensorflow_pb2.DT_FLOAT, (None, None))},
    {"y": TensorSpec("y", tensorflow_pb2.DT_FLOAT, (None, None))},
)
NAMES = {"serving_default"}
ADAPTIVE = adaptive(1)


@dataclass
class Doubler:
    """`y = 2 x`; refuses what is negative. `runs` holds what it was given; nothing ends before `gate` opens."""

    computes_alone = False
    keeps_state = False
    doubts: Mapping[str, str] = field(default_factory=dict)
    name: str = "stand-in"
    signatures: Mapping[str, Signature] = field(default_factory=lambda: {"serving_default": SIGNATURE})
    signature_defs: Mapping[str, tensorflow_pb2.SignatureDef] = field(default_factory=dict)
    runs: list[Array] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        self.started.set()
        assert self.gate.wait(60)
        self.runs.append(inputs["x"])
        if (inputs["x"] < 0).any():
            raise invalid_argument("negative")
        return [self.answer(inputs["x"])]

    def answer(self, x: Array) -> Array:
        return 2 * x

    @property
    def sizes(self) -> list[int]:
        return [len(x) for x in self.runs]


@dataclass
class Client:
    open: bool = True


def rows(*values: float, width: int = 2) -> Array:
    return np.repeat(np.array(values, np.float32)[:, None], width, axis=1)


def ask(
    engine: Doubler,
    policy: BatchPolicy,
    requests: Sequence[Array],
    *,
    busy: bool = True,
    gone: Sequence[int] = (),
    batchable: set[str] = NAMES,
    max_queued: int = 2000,
) -> list[Outcome]:
    """Submits the requests while the engine is `busy` with a first one, and answers their outcomes."""

    async def run() -> list[Outcome]:
        loop = asyncio.get_running_loop()
        workers = RunThreads(max(1, policy.parallel_runs))
        batcher = Batcher(engine, workers, loop, max_queued, policy, batchable)
        futures: list[asyncio.Future[Outcome]] = []

        def submit(x: Array, client: Client) -> None:
            future: asyncio.Future[Outcome] = loop.create_future()
            futures.append(future)
            try:
                batcher.submit(Task(SIGNATURE, {"x": x}, ("y",), client, future.set_result))
            except ServingError as error:
                future.set_result(error)

        if busy:
            submit(rows(0, width=1), Client())  # of another shape, so that nothing shares its batch
            await loop.run_in_executor(None, engine.started.wait, 60)
        clients = [Client() for _ in requests]
        for x, client in zip(requests, clients, strict=True):
            submit(x, client)
        for place in gone:
            clients[place].open = False
        engine.gate.set()
        outcomes = await asyncio.wait_for(asyncio.gather(*futures), 60)
        await loop.run_in_executor(None, workers.stop)
        return outcomes[1:] if busy else outcomes

    return asyncio.run(run())


def answers(outcomes: Sequence[Outcome]) -> list[Array]:
    for outcome in outcomes:
        assert not isinstance(outcome, ServingError), outcome
    return [outcome["y"] for outcome in outcomes if not isinstance(outcome, ServingError)]


def strict(**values: int) -> BatchPolicy:
    parameters = BatchingParameters()
    for name, value in values.items():
        if name in ("pad_variable_length_inputs",):
            setattr(parameters, name, bool(value))
        else:
            getattr(parameters, name).value = value
    return from_parameters(parameters, 1)


POLICIES = {
    "adaptive": ADAPTIVE,
    "adaptive, in shares": adaptive(3),
    "small": BatchPolicy(max_rows=4, max_bytes=40),
    "side by side": BatchPolicy(max_rows=3, parallel_runs=3),
    "sizes": BatchPolicy(strict=True, max_rows=8, allowed_rows=(2, 4, 8), max_queued_batches=1000),
    "split": BatchPolicy(strict=True, max_rows=3, split_requests=True, allowed_rows=(1, 3), max_queued_batches=1000),
    "waiting": BatchPolicy(strict=True, max_rows=8, wait_seconds=0.001, max_queued_batches=1000),
}


def test_parallel_runs_share_what_is_under_way() -> None:
    alone, shared = Doubler(), Doubler()
    answers(ask(alone, adaptive(1), [rows(n) for n in range(9)]))
    answers(ask(shared, adaptive(2), [rows(n) for n in range(9)]))
    assert max(alone.sizes) == 9
    assert max(shared.sizes) <= 5  # half of ten under way


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=12), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_batched_answers_are_the_unbatched_ones(policy: BatchPolicy, counts: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    requests = [random.random((count, random.integers(1, 3)), np.float32) for count in counts]
    for request, y in zip(requests, answers(ask(Doubler(), policy, requests)), strict=True):
        np.testing.assert_array_equal(y, 2 * request)


def test_an_idle_version_runs_one_request_at_once_and_a_busy_one_all_that_wait() -> None:
    engine = Doubler()
    answers(ask(engine, ADAPTIVE, [rows(1)] * 3))
    assert engine.sizes == [1, 3]


def test_batches_stay_bounded_in_rows_and_bytes() -> None:
    engine = Doubler()
    answers(ask(engine, BatchPolicy(max_rows=4), [rows(1, 2, 3)] * 3 + [rows(*range(9))] + [rows(1)] * 5))
    assert engine.sizes == [1, 3, 3, 3, 9, 4, 1]
    engine = Doubler()
    answers(ask(engine, BatchPolicy(max_bytes=2 * rows(1).nbytes), [rows(1)] * 5))
    assert engine.sizes == [1, 2, 2, 1]


def test_a_request_that_the_model_refuses_harms_no_other() -> None:
    for policy in (ADAPTIVE, strict(max_batch_size=8)):
        first, bad, last = ask(Doubler(), policy, [rows(1), rows(-1), rows(3)])
        np.testing.assert_array_equal(answers([first, last]), [rows(2), rows(6)])
        assert isinstance(bad, ServingError)
        assert bad.message == "negative"


def test_requests_of_clients_that_are_gone_are_not_run() -> None:
    engine = Doubler()
    outcomes = ask(engine, ADAPTIVE, [rows(1), rows(2), rows(3)], gone=[0, 2])
    assert [x.tolist() for x in engine.runs[1:]] == [rows(2).tolist()]
    assert [isinstance(outcome, ServingError) for outcome in outcomes] == [True, False, True]
    engine = Doubler()
    ask(engine, ADAPTIVE, [rows(1), rows(2)], gone=[0, 1])
    assert engine.sizes == [1]


def test_rows_of_other_shapes_and_of_signatures_that_mix_rows_do_not_share_a_batch() -> None:
    engine = Doubler()
    answers(ask(engine, ADAPTIVE, [rows(1, width=width) for width in (2, 3, 2, 3)]))
    assert engine.sizes == [1, 2, 2]
    engine = Doubler()
    answers(ask(engine, ADAPTIVE, [rows(1), rows(2)], batchable=set()))
    assert engine.sizes == [1, 1, 1]


class Total(Doubler):
    def answer(self, x: Array) -> Array:
        return x.sum(axis=0)


class Scalar(Doubler):
    def answer(self, x: Array) -> Array:
        return np.float32(x.sum())[()]


def test_outputs_that_do_not_follow_the_rows_are_answered_alone_or_refused() -> None:
    engine = Total()
    np.testing.assert_array_equal(answers(ask(engine, ADAPTIVE, [rows(1, 2, 3), rows(5)])), [[6, 6], [5, 5]])
    refused = ask(Total(), strict(max_batch_size=8), [rows(1, 2, 3)], busy=False)[0]
    assert str(refused) == (
        "FAILED_PRECONDITION: Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes"
        " of the input tensors"
    )
    refused = ask(Scalar(), strict(max_batch_size=8), [rows(1)], busy=False)[0]
    assert str(refused) == "FAILED_PRECONDITION: Batched output tensor has 0 dimensions"


# Batching parameters


def test_batches_are_filled_to_the_next_allowed_size_with_copies_of_the_first_row() -> None:
    engine = Doubler()
    policy = BatchPolicy(strict=True, max_rows=8, allowed_rows=(2, 5, 8))
    answers(ask(engine, policy, [rows(1, 2), rows(3)]))
    assert engine.runs[1].tolist() == rows(1, 2, 3, 1, 1).tolist()
    assert engine.sizes[0] == 2


def test_variable_lengths_are_padded_with_the_first_value() -> None:
    engine = Doubler()
    policy = strict(max_batch_size=8, pad_variable_length_inputs=1)
    y = answers(ask(engine, policy, [np.array([[5, 6]], np.float32), np.array([[7, 8, 9, 10]], np.float32)]))
    assert engine.runs[-1].tolist() == [[5, 6, 5, 5], [7, 8, 9, 10]]
    assert [one.tolist() for one in y] == [[[10, 12, 10, 10]], [[14, 16, 18, 20]]]


def test_large_requests_are_split_or_refused() -> None:
    engine = Doubler()
    policy = strict(max_batch_size=100, enable_large_batch_splitting=1, max_execution_batch_size=4)
    answered = answers(ask(engine, policy, [rows(1, 2, 3), rows(*range(10)), rows(7)]))
    assert [len(y) for y in answered] == [3, 10, 1]
    np.testing.assert_array_equal(answered[1], 2 * rows(*range(10)))
    assert engine.sizes == [1, 4, 4, 4, 2]
    refused = ask(engine, strict(max_batch_size=4), [rows(*range(5))], busy=False)[0]
    assert str(refused) == "INVALID_ARGUMENT: Task size 5 is larger than maximum input batch size 4"


def test_a_piece_that_the_model_refuses_fails_its_request_alone() -> None:
    policy = strict(max_batch_size=100, enable_large_batch_splitting=1, max_execution_batch_size=2)
    first, bad = ask(Doubler(), policy, [rows(1), rows(1, 2, 3, -4, 5)])
    np.testing.assert_array_equal(answers([first])[0], rows(2))
    assert isinstance(bad, ServingError)


def test_a_full_queue_of_batches_is_unavailable() -> None:
    outcomes = ask(Doubler(), strict(max_batch_size=2, max_enqueued_batches=2), [rows(1)] * 5)
    assert [isinstance(outcome, ServingError) for outcome in outcomes] == [False] * 4 + [True]
    assert str(outcomes[-1]) == (
        "UNAVAILABLE: The batch scheduling queue to which this task was submitted is full;"
        " currently 2 batches enqueued and max_enqueued_batches is 2"
    )
    policy = strict(
        max_batch_size=100, max_execution_batch_size=2, enable_large_batch_splitting=1, max_enqueued_batches=2
    )
    outcomes = ask(Doubler(), policy, [rows(1), rows(*range(4)), rows(*range(3))])
    assert [isinstance(outcome, ServingError) for outcome in outcomes] == [False, True, False]
    assert "full; task size is 4 but scheduling capacity is only 3" in str(outcomes[1])


def test_a_full_queue_of_requests_is_exhausted() -> None:
    outcomes = ask(Doubler(), ADAPTIVE, [rows(1)] * 4, max_queued=3)
    assert [isinstance(outcome, ServingError) for outcome in outcomes] == [False] * 3 + [True]
    assert str(outcomes[-1]).startswith("RESOURCE_EXHAUSTED: the model's queue is full (3 requests")


def test_what_cannot_be_batched_is_refused() -> None:
    (refused,) = ask(Doubler(), strict(max_batch_size=4), [np.float32(1)[()]], busy=False)  # type: ignore[list-item]
    assert str(refused) == "INVALID_ARGUMENT: Batching Run() input tensors must have at least one dimension"


def test_a_batch_waits_to_fill_but_no_longer_than_it_may() -> None:
    engine = Doubler()
    answers(ask(engine, strict(max_batch_size=4, batch_timeout_micros=3_600_000_000), [rows(1)] * 8, busy=False))
    assert engine.sizes == [4, 4]
    engine = Doubler()
    answers(ask(engine, strict(max_batch_size=4, batch_timeout_micros=50_000), [rows(1)] * 3, busy=False))
    assert engine.sizes == [3]


@pytest.mark.parametrize(
    ("values", "allowed", "message"),
    [
        ({"max_batch_size": 0}, [], "max_batch_size must be positive; was 0"),
        ({"batch_timeout_micros": -1}, [], "batch_timeout_micros must be non-negative; was -1"),
        ({"max_enqueued_batches": -1}, [], "max_enqueued_batches must be non-negative; was -1"),
        (
            {"max_batch_size": 8},
            [2, 4],
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 8",
        ),
        ({"max_batch_size": 4}, [4, 4], "allowed_batch_sizes entries must be monotonically increasing"),
        ({"max_batch_size": 4}, [0, 4], "allowed_batch_sizes must be positive; was 0"),
        (
            {"max_batch_size": 4, "enable_large_batch_splitting": True, "max_execution_batch_size": 8},
            [],
            "max_execution_batch_size must be less than or equal to max_batch_size",
        ),
    ],
)
def test_parameters_that_make_no_sense(values: dict[str, int], allowed: list[int], message: str) -> None:
    parameters = BatchingParameters(allowed_batch_sizes=allowed)
    for name, value in values.items():
        getattr(parameters, name).value = value
    with pytest.raises(ServingError) as caught:
        from_parameters(parameters, 1)
    assert caught.value.code == tensorflow_error_pb2.INVALID_ARGUMENT
    assert message in caught.value.message


def test_the_defaults_are_tensorflow_servings() -> None:
    policy = from_parameters(BatchingParameters(), 7)
    assert (policy.max_rows, policy.wait_seconds, policy.max_queued_batches, policy.parallel_runs) == (1000, 0, 10, 7)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are kept to cores on Linux alone")
def test_threads_that_run_side_by_side_keep_to_their_cores_behind_the_event_loop() -> None:
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) < 2:
        pytest.skip("there is one core")
    cores = sorted(everywhere)[:2]
    seen: queue.SimpleQueue[tuple[set[int], int]] = queue.SimpleQueue()

    class Run:
        def __init__(self) -> None:
            self.ended = threading.Event()

        def run_one_batch(self) -> None:
            seen.put((os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0)))
            assert self.ended.wait(60)

    def start(run: Run) -> tuple[set[int], int]:
        workers.schedule(run)  # type: ignore[arg-type]
        return seen.get(timeout=60)

    own = os.getpriority(os.PRIO_PROCESS, 0)
    workers = RunThreads(2, cores)
    alone, beside, alone_again = Run(), Run(), Run()
    try:
        assert start(alone) == (everywhere, own + 5)
        where, niceness = start(beside)
        assert len(where) == 1
        assert where < set(cores)
        assert niceness == own + 5
        beside.ended.set()
        alone.ended.set()
        wait_until(lambda: not workers._running, "the end of both runs")
        assert start(alone_again) == (everywhere, own + 5)
        alone_again.ended.set()
    finally:
        for run in (alone, beside, alone_again):
            run.ended.set()
        workers.stop()
    assert os.sched_getaffinity(0) == everywhere
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


@pytest.mark.parametrize(
    ("error", "code"),
    [(MemoryError(), tensorflow_error_pb2.RESOURCE_EXHAUSTED), (ValueError("x"), tensorflow_error_pb2.INTERNAL)],
)
@pytest.mark.parametrize("place", ["_split", "_misfit"])
def test_a_fault_around_a_run_is_answered_and_ends_no_thread(
    monkeypatch: pytest.MonkeyPatch, place: str, error: Exception, code: int
) -> None:
    """Memory may end anywhere: also while the answer of a batch is cut into those of its requests."""
    right, fails = getattr(batcher_module, place), [True]

    def fail(*arguments: object) -> object:
        if fails:
            fails.pop()
            raise error
        return right(*arguments)

    monkeypatch.setattr(batcher_module, place, fail)
    requests = [rows(1), rows(2), rows(3, width=3), rows(4, width=3)]  # two batches, for one thread
    outcomes = ask(Doubler(), ADAPTIVE, requests)
    assert [outcome.code for outcome in outcomes[:2] if isinstance(outcome, ServingError)] == [code, code]
    assert [answer[0, 0] for answer in answers(outcomes[2:])] == [6, 8]


def test_an_outcome_is_handed_over_once_there_is_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop:
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.loop, self.refusals = loop, 3

        def call_soon_threadsafe(self, *arguments: Any) -> None:
            self.refusals -= 1
            if self.refusals >= 0:
                raise MemoryError
            self.loop.call_soon_threadsafe(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.loop, name)

    made = Batcher.__init__

    def make(self: Batcher, engine: Any, threads: Any, loop: asyncio.AbstractEventLoop, *rest: Any) -> None:
        made(self, engine, threads, Loop(loop), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Batcher, "__init__", make)
    assert [answer.tolist() for answer in answers(ask(Doubler(), ADAPTIVE, [rows(1)], busy=False))] == [[[2.0, 2.0]]]


def test_a_refused_request_keeps_none_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the garbage collector, which the server lets come seldom: a refusal must be no cycle with its frames."""
    made: list[weakref.ref[Array]] = []

    def run(signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        result = 2 * inputs["x"]
        made.append(weakref.ref(result))
        try:
            raise ValueError(f"{result.shape} does not fit")
        except ValueError as error:
            refusal = invalid_argument(str(error))
            raise refusal from error

    engine = Doubler()
    monkeypatch.setattr(engine, "run", run)
    gc.disable()
    try:
        (outcome,) = ask(engine, ADAPTIVE, [rows(1.5, -2.0)], busy=False)
        assert isinstance(outcome, ServingError)
        assert [reference() for reference in made] == [None]
    finally:
        gc.enable()
