"""The loaded models: follows the version folders, loads, swaps, drains and unloads, and finds what a request asks for.

A new version is loaded beside the old one, takes over when it is available, and the old one goes when its last request
is answered; where the new one does not load, the old one stays. Everything here runs on the event loop, but for the
loading itself and the listing of folders, which run on threads. A missing or broken model never holds up another.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bookserve.serving.server import rows, sources
from bookserve.serving.server.batch_policy import (
    ADAPTIVE,
    PER_MODEL_FILE,
    BatchPolicy,
    from_parameters,
    read_parameters,
)
from bookserve.serving.server.batching import Batcher, Workers
from bookserve.serving.server.engines import engine as engines
from bookserve.serving.server.engines.engine import Engine, EngineOptions
from bookserve.serving.server.errors import ServingError, invalid_argument, not_found
from bookserve.serving.server.model_config import ModelSetting
from bookserve.serving.server.signatures import TensorSpec
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensorflow_serving_pb2 import ModelVersionStatus
from bookserve.serving.wire.tensors import Array

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadOptions:
    """How versions are found and loaded."""

    poll_seconds: float = 1.0  # between two looks at the version folders; 0 looks once, at the start
    max_retries: int = 5  # after a first failure
    retry_seconds: float = 60.0
    load_threads: int = 4
    engine: EngineOptions = field(default_factory=EngineOptions)
    worker_threads: int = 2  # that run batches
    max_queued: int = 2000  # requests a model
    policy: BatchPolicy = ADAPTIVE
    per_model_policies: bool = False  # a version batches by the file in its folder, and adaptively without one


class Servable:
    """One version that is loaded and may be asked."""

    __slots__ = ("batcher", "engine", "in_flight", "model", "on_idle", "version")

    def __init__(self, model: str, version: int, engine: Engine, batcher: Batcher) -> None:
        self.model = model
        self.version = version
        self.engine = engine
        self.batcher = batcher
        self.in_flight = 0
        self.on_idle: asyncio.Event | None = None  # set once the version is to be unloaded

    def release(self) -> None:
        """Ends one use of the version."""
        self.in_flight -= 1
        if not self.in_flight and self.on_idle is not None:
            self.on_idle.set()


@dataclass(eq=False)
class _Version:
    number: int
    path: Path
    state: ModelVersionStatus.State = ModelVersionStatus.START
    error: ServingError | None = None
    servable: Servable | None = None
    tried: asyncio.Event = field(default_factory=asyncio.Event)  # set after the first attempt to load


@dataclass(eq=False)
class _Model:
    setting: ModelSetting
    versions: dict[int, _Version] = field(default_factory=dict)
    wanted: set[int] = field(default_factory=set)
    latest: Servable | None = None
    complaint: str = ""  # the last problem with the folder, so that it is logged once


class ModelManager:
    """All models of the server."""

    def __init__(self, options: LoadOptions) -> None:
        self.options = options
        self._models: dict[str, _Model] = {}
        self._loop = asyncio.get_running_loop()
        self._workers = Workers(options.worker_threads)
        self._loaders = ThreadPoolExecutor(options.load_threads, thread_name_prefix="loader")
        self._tasks: set[asyncio.Task[None]] = set()  # polling, loads and unloads under way

    # Requests

    def find(self, name: str, version: int | None = None, label: str | None = None) -> Servable:
        """The version that a request names: by number, by label, or the latest available one.

        Raises ServingError: INVALID_ARGUMENT without a name or for an unknown label, NOT_FOUND where nothing is loaded.
        """
        if not name:
            raise invalid_argument("ModelSpec has no name specified.")
        model = self._models.get(name)
        if label is not None and model is not None:
            version = model.setting.labels.get(label)
            if version is None:
                raise invalid_argument(f"Unrecognized servable version label: {label}")
        if version is None:
            if model is None or model.latest is None:
                raise not_found(f"Servable not found for request: Latest({name})")
            return model.latest
        found = model.versions.get(version) if model is not None else None
        if found is None or found.servable is None or found.state != ModelVersionStatus.AVAILABLE:
            raise not_found(f"Servable not found for request: Specific({name}, {version})")
        return found.servable

    def status(self, name: str, version: int | None = None) -> list[ModelVersionStatus]:
        """The states of all versions of a model, highest first, or of one version.

        Raises ServingError: INVALID_ARGUMENT without a name, NOT_FOUND for an unknown model or version.
        """
        if not name:
            raise invalid_argument("ModelSpec has no name specified.")
        model = self._models.get(name)
        if model is None or not model.versions:
            raise not_found(f"Could not find any versions of model {name}")
        if version is not None:
            if version not in model.versions:
                raise not_found(f"Could not find version {version} of model {name}")
            return [_status(model.versions[version])]
        return [_status(model.versions[number]) for number in sorted(model.versions, reverse=True)]

    @property
    def names(self) -> list[str]:
        """The configured models."""
        return sorted(self._models)

    @property
    def ready(self) -> bool:
        """Whether every version that is wanted has been tried, so that what can be served is served."""
        return all(
            version.tried.is_set() or version.state == ModelVersionStatus.AVAILABLE
            for model in self._models.values()
            for version in model.versions.values()
        )

    # Configuration and folders

    async def apply(self, settings: Iterable[ModelSetting]) -> None:
        """Makes these the configured models; returns when every new version has been loaded or has failed once."""
        wanted = {setting.name: setting for setting in settings}
        for name, model in list(self._models.items()):
            if name not in wanted or wanted[name].base_path != model.setting.base_path:
                del self._models[name]
                model.wanted = set()
                self._reconcile(model, {})
        for name, setting in wanted.items():
            if name in self._models:
                self._models[name].setting = setting
            else:
                log.info("(Re-)adding model: %s", name)
                self._models[name] = _Model(setting)
        await self._look()
        await asyncio.gather(
            *(version.tried.wait() for model in self._models.values() for version in model.versions.values())
        )

    def start_polling(self) -> None:
        """From now on new and removed version folders are noticed."""
        if self.options.poll_seconds > 0:
            self._start(self._poll())

    async def close(self) -> None:
        """Stops following the folders, waits for batches under way and ends the threads."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._loaders.shutdown(wait=False, cancel_futures=True)
        await self._loop.run_in_executor(None, self._workers.stop)
        for model in self._models.values():
            for version in model.versions.values():
                if version.servable is not None:
                    version.servable.engine.close()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self.options.poll_seconds)
            try:
                await self._look()
            except Exception:
                log.exception("fault while looking for new versions")

    async def _look(self) -> None:
        """Looks at the version folders of all models and acts on what changed."""
        models = list(self._models.values())
        for model, found in zip(
            models, await self._loop.run_in_executor(self._loaders, _list_all, models), strict=True
        ):
            if self._models.get(model.setting.name) is not model:
                continue
            if isinstance(found, OSError):
                self._complain(model, f"Could not list the versions of {model.setting.name}: {found}")
                continue
            model.wanted = sources.wanted(model.setting.policy, found)
            if model.wanted:
                model.complaint = ""
            else:
                self._complain(
                    model,
                    f"No versions of servable {model.setting.name} found under base path {model.setting.base_path}."
                    " Did you forget to name your leaf directory as a number (eg. '/1/')?",
                )
            self._reconcile(model, found)

    @staticmethod
    def _complain(model: _Model, problem: str) -> None:
        if problem != model.complaint:
            model.complaint = problem
            log.warning("%s", problem)

    # Versions

    def _reconcile(self, model: _Model, on_disk: dict[int, Path]) -> None:
        """Starts what separates the model from what is wanted: loads, then unloads that leave no gap."""
        for number in sorted(model.wanted, reverse=True):
            version = model.versions.get(number)
            ended = version is not None and version.state == ModelVersionStatus.END and version.error is None
            if version is None or ended:
                version = model.versions[number] = _Version(number, on_disk[number])
                self._start(self._load(model, version))
        available = [v for v in model.versions.values() if v.state == ModelVersionStatus.AVAILABLE]
        if not model.wanted or any(version.number in model.wanted for version in available):
            for version in available:
                if version.number not in model.wanted:
                    version.state = ModelVersionStatus.UNLOADING
                    self._start(self._unload(version))
        for version in list(model.versions.values()):
            failed = version.state == ModelVersionStatus.END and version.error is not None
            if failed and version.number not in model.wanted:
                del model.versions[version.number]  # so that it is tried afresh when it comes back
        self._choose_latest(model)

    @staticmethod
    def _choose_latest(model: _Model) -> None:
        available = [v for v in model.versions.values() if v.state == ModelVersionStatus.AVAILABLE]
        model.latest = max(available, key=lambda version: version.number).servable if available else None

    async def _load(self, model: _Model, version: _Version) -> None:
        name, options = model.setting.name, self.options
        version.state = ModelVersionStatus.LOADING
        for attempt in range(options.max_retries + 1):
            try:
                engine, policy, batchable = await self._loop.run_in_executor(
                    self._loaders, _load_and_warm_up, version.path, options
                )
            except Exception as fault:
                version.error = _as_serving_error(fault, name, version.number)
                version.tried.set()
                if attempt < options.max_retries and version.number in model.wanted:
                    await asyncio.sleep(options.retry_seconds)
                if version.number not in model.wanted:
                    version.error = ServingError(tensorflow_error_pb2.CANCELLED, "Loading of servable cancelled")
                    break
            else:
                batcher = Batcher(engine, self._workers, self._loop, options.max_queued, policy, batchable)
                version.servable = Servable(name, version.number, engine, batcher)
                version.error = None
                version.state = ModelVersionStatus.AVAILABLE
                version.tried.set()
                log.info("Successfully loaded servable version {name: %s version: %d}", name, version.number)
                break
        else:
            log.error("Loading servable {name: %s version: %d} failed for good", name, version.number)
        if version.servable is None:
            version.state = ModelVersionStatus.END
        self._reconcile(model, {number: v.path for number, v in model.versions.items()})

    async def _unload(self, version: _Version) -> None:
        servable = version.servable
        assert servable is not None
        if servable.in_flight:
            servable.on_idle = asyncio.Event()
            await servable.on_idle.wait()
        version.servable = None
        await self._loop.run_in_executor(self._loaders, servable.engine.close)
        version.state = ModelVersionStatus.END
        log.info("Unloaded servable version {name: %s version: %d}", servable.model, servable.version)


def _list_all(models: list[_Model]) -> list[dict[int, Path] | OSError]:
    found: list[dict[int, Path] | OSError] = []
    for model in models:
        try:
            found.append(sources.versions_on_disk(model.setting.base_path))
        except OSError as error:
            found.append(error)
    return found


def _load_and_warm_up(path: Path, options: LoadOptions) -> tuple[Engine, BatchPolicy, set[str]]:
    """Loads a version and runs one row of zeros through it, so that the first request does not pay for set-up.

    Answers also how its requests are batched, and the signatures whose rows are independent.
    """
    policy = options.policy
    if options.per_model_policies:
        parameters = path / PER_MODEL_FILE
        policy = ADAPTIVE
        if parameters.is_file():
            policy = from_parameters(read_parameters(parameters), options.worker_threads)
    engine = engines.load(path, options.engine)
    for signature in engine.signatures.values():
        if all(_has_known_rows(spec) for spec in signature.inputs.values()):
            inputs = {name: _one_row(spec) for name, spec in signature.inputs.items()}
            try:
                engine.run(signature, inputs, tuple(signature.outputs))
            except Exception as error:  # a model may well refuse zeros
                log.info("the warm-up of %s with zeros was refused: %s", path, error)
    return engine, policy, set() if policy.strict else rows.independent(engine)


def _has_known_rows(spec: TensorSpec) -> bool:
    return spec.shape is not None and None not in spec.shape[1:] and spec.dtype.kind != "O"


def _one_row(spec: TensorSpec) -> Array:
    return np.zeros([1 if size is None else size for size in spec.shape or ()], dtype=spec.dtype)


def _as_serving_error(fault: Exception, name: str, number: int) -> ServingError:
    log.error("Loading servable: {name: %s version: %d} failed: %s", name, number, fault)
    if isinstance(fault, ServingError):
        return fault
    log.error("the fault in full", exc_info=fault)
    return ServingError(tensorflow_error_pb2.UNKNOWN, f"{type(fault).__name__}: {fault}")


def _status(version: _Version) -> ModelVersionStatus:
    status = ModelVersionStatus(version=version.number, state=version.state)
    status.status.error_code = version.error.code if version.error else tensorflow_error_pb2.OK
    status.status.error_message = version.error.message if version.error else ""
    return status
