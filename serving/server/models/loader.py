"""Loads versions into this process: folder -> engine -> batcher, on threads beside the event loop."""

import asyncio
import ctypes
import gc
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bookserve.serving.server.batching import row_independence
from bookserve.serving.server.batching.batcher import Batcher, BatchRun, RunThreads
from bookserve.serving.server.batching.policy import (
    PER_MODEL_FILE,
    BatchPolicy,
    adaptive,
    from_parameters,
    read_parameters,
)
from bookserve.serving.server.engines import choose
from bookserve.serving.server.engines.engine import Engine, EngineOptions
from bookserve.serving.server.models import integrity, manifest, warmup
from bookserve.serving.server.models.own_thread import on_own_thread
from bookserve.serving.server.models.picture_input import PictureDecoder, PictureInput
from bookserve.serving.server.models.servable import Servable
from bookserve.serving.server.models.trial import Trials
from bookserve.serving.server.models.version_counts import VersionCounts
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire.tensorflow_error_pb2 import Code

if TYPE_CHECKING:
    from bookserve.serving.server.engines.tensorflow_engine import TensorFlowEngine

log = logging.getLogger(__name__)

_MLMD_UUID = "assets.extra/mlmd_uuid"  # in a version's folder, as in TensorFlow Serving
_MAX_MLMD_UUID = 128  # bytes of it that are read


@dataclass(frozen=True)
class LoadOptions:
    """How a version is loaded and run."""

    load_threads: int = 4  # versions that load at the same time
    unload_threads: int = 1
    engine: EngineOptions = field(default_factory=EngineOptions)
    worker_threads: int = 2  # that run batches
    worker_cores: tuple[int, ...] = ()  # where they run, if they shall stay there
    max_queued: int = 2000  # requests a model
    max_pictures: int = 256  # of requests, that are decoded or wait for that; 0 takes none
    policy: BatchPolicy = field(default_factory=lambda: adaptive(1))
    per_model_policies: bool = False  # a version batches by the file in its folder, and adaptively without one
    unasked_batching: bool = True  # where rows are proved or declared to be independent
    warm_up: bool = True
    warm_up_iterations: int = 1  # of every warm-up request
    check_method_names: bool = False  # of signatures, against the method that a request calls
    public_key: str = ""  # file of the key whose signature a version must have; "" for none


class LoadEvents(Protocol):
    """Who is told what the loader does. `loaded`, `warmed_up` and `identified` are called from any thread."""

    enabled: bool  # whether anybody wants to know of `ran` and `identified`

    def loaded(self, path: Path, succeeded: bool, seconds: float) -> None:
        """There was an attempt to load the version in `path`."""
        ...

    def warmed_up(self, path: Path, status: str, seconds: float, records: int) -> None:
        """The version in `path` was warmed up with that many records."""
        ...

    def identified(self, model: str, version: int, uuid: str) -> None:
        """The ML Metadata store knows a version that is loaded by this name."""
        ...

    def counts(self, model: str, version: int) -> VersionCounts:
        """Where the requests of a version that is loaded now are counted."""
        ...

    def ran(self, run: BatchRun, engine: str) -> None:
        """That engine has run a batch."""
        ...


class InProcessLoader:
    """The `Loader` whose versions answer in this process."""

    def __init__(self, options: LoadOptions, events: LoadEvents, trials: Trials | None = None) -> None:
        """`trials` try each version first; without them it is loaded as it is."""
        self._options = options
        self._trials = trials
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._pictures = PictureDecoder(options.max_pictures, self._loop)
        self._run_threads = RunThreads(options.worker_threads, options.worker_cores)
        self._loads = asyncio.Semaphore(options.load_threads)
        self._unloads = asyncio.Semaphore(options.unload_threads)
        self._trim = _malloc_trim()
        self._engines: list[Engine] = []  # loaded, in that order

    async def load(self, name: str, version: int, path: Path) -> Servable:
        """See Loader.load."""
        options = self._options

        def load() -> tuple[Engine, BatchPolicy, set[str]]:
            loaded = _load(path, options, self._events, self._trials, (name, version))
            if self._events.enabled and (uuid := _mlmd_uuid(path)):
                self._events.identified(name, version, uuid)
            return loaded

        async with self._loads:
            loaded = await on_own_thread(self._loop, f"load {name} {version}", load)
        engine, policy, batchable = loaded
        self._engines.append(engine)
        counts = self._events.counts(name, version)

        engine_name = engine.name

        def on_run(run: BatchRun) -> None:
            counts.ran(run)
            if self._events.enabled:
                self._events.ran(run, engine_name)

        batcher = Batcher(engine, self._run_threads, self._loop, options.max_queued, policy, batchable, on_run)
        rule = manifest.picture_rule(path) if options.max_pictures else None
        pictures = PictureInput(rule, self._pictures) if rule is not None else None
        return Servable(name, version, engine, batcher, options.check_method_names, counts, pictures)

    async def unload(self, servable: Servable) -> None:
        """See Loader.unload."""
        await servable.until_idle()
        servable.counts.loaded -= 1
        held = [(servable.engine, servable.batcher)]
        self._engines.remove(servable.engine)
        del servable.engine, servable.batcher
        async with self._unloads:
            # On a thread, as freeing a large model takes its time; nobody else holds it any more.
            name = f"unload {servable.model} {servable.version}"
            await on_own_thread(self._loop, name, lambda: self._free(held))

    def profiled(self) -> "TensorFlowEngine | None":
        """The version that TensorFlow loaded last; None where it runs none."""
        from bookserve.serving.server.engines.tensorflow_engine import TensorFlowEngine

        return next((engine for engine in reversed(self._engines) if isinstance(engine, TensorFlowEngine)), None)

    async def close(self) -> None:
        """See Loader.close."""
        self._pictures.close()
        await self._loop.run_in_executor(None, self._run_threads.stop)
        for engine in self._engines:
            engine.close()
        from bookserve.serving.server.engines import tensorflow_engine

        await self._loop.run_in_executor(None, tensorflow_engine.end)

    def _free(self, held: list[tuple[Engine, Batcher]]) -> None:
        ((engine, _),) = held
        engine.close()
        del engine
        held.clear()
        gc.collect()
        self._trim()


def _load(
    path: Path,
    options: LoadOptions,
    events: LoadEvents,
    trials: Trials | None = None,
    served_as: tuple[str, int] = ("", 0),
) -> tuple[Engine, BatchPolicy, set[str]]:
    """Answers also how the version's requests are batched, and the signatures whose rows are independent."""
    started = time.perf_counter()
    try:
        seen = integrity.check(path)
        if options.public_key:
            integrity.check_signature(path, Path(options.public_key), *served_as)
        if trials is not None:
            trials.check(path, seen, options.engine, warm_up=options.warm_up)
        policy = options.policy
        if options.per_model_policies:
            parameters = path / PER_MODEL_FILE
            policy = adaptive(options.worker_threads)
            if parameters.is_file():
                policy = from_parameters(read_parameters(parameters), options.worker_threads)
        engine = choose.load(path, options.engine)
    except Exception:
        events.loaded(path, False, time.perf_counter() - started)
        raise
    events.loaded(path, True, time.perf_counter() - started)
    try:
        integrity.check_unchanged(path, seen)
        if options.warm_up:
            _warm_up(engine, path, options.warm_up_iterations, events)
        if policy.strict:
            return engine, policy, set()
        declared = manifest.rows_independent(path)
        return engine, policy, row_independence.shared(engine, path, options.unasked_batching, declared)
    except BaseException:
        engine.close()
        raise


def _mlmd_uuid(path: Path) -> str:
    """The name of a version in the ML Metadata store that made it; "" where its folder does not tell."""
    with suppress(OSError), (path / _MLMD_UUID).open("rb") as file:
        return file.read(_MAX_MLMD_UUID).decode("utf-8", "replace").strip()
    return ""


def _warm_up(engine: Engine, path: Path, iterations: int, events: LoadEvents) -> None:
    started = time.perf_counter()
    records, status = 0, "UNKNOWN"
    try:
        records, status = warmup.warm_up(engine, path, iterations), "OK"
    except ServingError as error:
        status = Code.Name(error.code)
        raise
    finally:
        events.warmed_up(path, status, time.perf_counter() - started, records)


def _malloc_trim() -> Callable[[], None]:
    """Gives freed memory back to the system where the C library is glibc, which otherwise keeps most of it."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return lambda: None
    return lambda: trim(0)
