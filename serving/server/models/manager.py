"""The models: what should be loaded, and what a request finds. Loading itself is a `Loader`'s affair.

A new version is loaded beside the old one, takes over when it is available, and the old one goes when its last request
is answered; where the new one does not load, or is not on disk, the old one stays. A label moves the same way: when the
version that it shall name is available. Everything here runs on the event loop, but for the
listing of folders. A missing or broken model never holds up another.

With `lazy` a version is loaded by the first request for it; with `max_loaded` the version that was not asked for
longest makes room.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

from bookserve.serving.server.models import version_policy
from bookserve.serving.server.models.catalog import (
    ModelState,
    State,
    VersionSnapshot,
    nameless,
    not_served,
    number_of,
    statuses,
)
from bookserve.serving.server.models.config import ModelSetting
from bookserve.serving.server.models.servable import Loaded, Loader
from bookserve.serving.server.models.version_policy import Policy
from bookserve.serving.server.types.errors import ServingError, exhausted, failed_precondition, not_found
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.bucket import BucketAddress, BucketRefused
from bookserve.serving.wire.tensorflow_serving_pb2 import GetModelStatusResponse, ModelVersionStatus

log = logging.getLogger(__name__)

_START, _LOADING, _AVAILABLE = ModelVersionStatus.START, ModelVersionStatus.LOADING, ModelVersionStatus.AVAILABLE
_UNLOADING, _END = ModelVersionStatus.UNLOADING, ModelVersionStatus.END

# What is remembered of the past: versions of a model that have ended, and models that have been removed.
_ENDED_VERSIONS = 5
_REMOVED_MODELS = 32
_MAX_WAITING = 2000  # requests that wait for one version to load

InBucket = Callable[[BucketAddress], Awaitable[dict[int, Path]]]  # raises BucketError


async def _no_buckets(address: BucketAddress) -> dict[int, Path]:
    raise BucketRefused(f"{address} cannot be read here")


_CANCELLED = ServingError(tensorflow_error_pb2.CANCELLED, "Loading of servable cancelled")


@dataclass(frozen=True)
class ManagerOptions:
    """How versions are followed."""

    poll_seconds: float = 1.0  # between two looks at the folders; 0: only when the models change; negative: never
    max_retries: int = 5  # after a first failure
    retry_seconds: float = 60.0
    labels_for_unavailable: bool = False  # whether a new label may name a version that is not available
    lazy: bool = False  # load a version when it is first asked for
    max_loaded: int = 0  # versions at a time, with `lazy`; 0 means no limit
    lenient: bool = False  # whether a model that has failed once, or has no version, leaves the server ready


@dataclass(frozen=True)
class LoadFailure:
    """A model that was named and is not available: one version that failed, or None where there is no version."""

    model: str
    version: int | None
    error: ServingError


class LoadPending(Exception):
    """With `lazy`: the version is on its way. What is appended to `waiters` is called when it is worth asking again."""

    def __init__(self, waiters: list[Callable[[], None]]) -> None:
        super().__init__("the version is being loaded")
        self.waiters = waiters


@dataclass(eq=False)
class _Version(Generic[Loaded]):
    number: int
    path: Path
    state: ModelVersionStatus.State = _START
    error: ServingError | None = None
    servable: Loaded | None = None
    tried: asyncio.Event = field(default_factory=asyncio.Event)  # set after the first attempt to load
    dropped: asyncio.Event = field(default_factory=asyncio.Event)  # set while the version is not wanted
    waiters: list[Callable[[], None]] = field(default_factory=list)
    retry_at: float = 0.0  # with `lazy`: when a request may try again what failed; seconds of the loop's clock


@dataclass(eq=False)
class _Model(Generic[Loaded]):
    setting: ModelSetting
    versions: dict[int, _Version[Loaded]] = field(default_factory=dict)
    on_disk: dict[int, Path] = field(default_factory=dict)
    wanted: set[int] = field(default_factory=set)
    missing: set[int] = field(default_factory=set)  # that the policy names and that are not on disk
    labels: dict[str, int] = field(default_factory=dict)  # as they are now: on their way to those of the setting
    latest: Loaded | None = None  # of its own versions
    complaint: str = ""  # the last problem with the folder, so that it is logged once
    former: dict[int, _Version[Loaded]] = field(default_factory=dict)  # of an older base path, for their states
    replaces: "_Model[Loaded] | None" = None  # as it was at its old base path, until a version is available here

    def available(self) -> list[_Version[Loaded]]:
        return [version for version in self.versions.values() if version.state == _AVAILABLE]


class ModelManager(Generic[Loaded]):
    """All models of the server."""

    def __init__(
        self,
        loader: Loader[Loaded],
        options: ManagerOptions,
        on_settings: Callable[[Sequence[ModelSetting]], None] = lambda settings: None,
        on_change: Callable[[], None] = lambda: None,
        in_bucket: InBucket = _no_buckets,
    ) -> None:
        """`on_settings` is told the configured models, before the first request that can meet them.

        `on_change` is called when what `state` answers has changed, maybe more than once for one change.
        `in_bucket` answers the versions below the address of a bucket.
        """
        self._loader = loader
        self._in_bucket = in_bucket
        self._on_settings = on_settings
        self._tell_change = on_change
        self._change = asyncio.Event()  # set by every change
        self._options = options
        self._models: dict[str, _Model[Loaded]] = {}
        self._removed: dict[str, _Model[Loaded]] = {}
        self._loop = asyncio.get_running_loop()
        self._looking = asyncio.Lock()  # one listing at a time, so that an older one never overrules a newer one
        self._tasks: set[asyncio.Task[None]] = set()  # polling, loads and unloads under way
        self._uses = itertools.count()
        self._loaded = 0  # versions that are loading or loaded, counted with `max_loaded`
        self._room = asyncio.Condition()

    # Requests

    def find(self, name: str, version: int | None = None, label: str | None = None) -> Loaded:
        """The version that a request names: by number, by label, or the latest available one.

        Raises ServingError: INVALID_ARGUMENT without a name or for an unknown label, NOT_FOUND where nothing is loaded.
        With `lazy`: raises LoadPending while the version loads, and the error of the load when it failed.
        """
        if not name:
            raise nameless()
        model = self._models.get(name)
        if label is not None:
            version = number_of(model.labels if model is not None else {}, label)
        servable = None
        if model is not None:
            servable = _latest(model) if version is None else _available(model, version)
            if self._options.lazy:
                servable = servable or self._load_for_request(model, version)
                servable.last_used = next(self._uses)
        if servable is None:
            raise not_served(name, version)
        return servable

    def _load_for_request(self, model: _Model[Loaded], number: int | None) -> Loaded:
        """Starts what brings the version, by default the latest; meanwhile any version of the model serves for that."""
        name = model.setting.name
        if number is None:
            if not model.wanted:
                raise not_served(name, None)
            versions = [model.versions[number] for number in sorted(model.wanted, reverse=True)]
            version = next((version for version in versions if not self._has_failed(version)), versions[0])
        elif number in model.wanted:
            version = model.versions[number]
        else:
            raise not_served(name, number)
        if version.state == _END and not self._has_failed(version):
            version.state, version.error = _START, None
        if version.state == _START:
            self._begin_load(model, version)
        others = model.available() if number is None else []
        if others:
            return _servable(max(others, key=lambda other: other.number))
        if version.state == _END and version.error is not None:
            raise failed_precondition(
                f"Loading of servable {{name: {name} version: {version.number}}} failed: {version.error}"
            )
        if len(version.waiters) >= _MAX_WAITING:
            raise exhausted(
                f"{_MAX_WAITING} requests already wait for {name} version {version.number} to load: try again later",
            )
        raise LoadPending(version.waiters)

    def _has_failed(self, version: _Version[Loaded]) -> bool:
        return version.state == _END and version.error is not None and self._loop.time() < version.retry_at

    def status(self, name: str, version: int | None = None) -> list[ModelVersionStatus]:
        """The states of all versions of a model, highest first, or of one version.

        Of versions that have ended the last few are remembered, also of models that are no longer configured.
        Raises ServingError: INVALID_ARGUMENT without a name, NOT_FOUND for an unknown model or version.
        """
        model = self._models.get(name) or self._removed.get(name)
        known: dict[int, ModelVersionStatus] = {}
        if model is not None:
            known = {status.version: status for status in _statuses(model)}
        return statuses(name, known, version, lambda status: status)

    def overview(self) -> dict[str, tuple[Mapping[str, int], list[ModelVersionStatus]]]:
        """The labels and the versions, highest first, of every configured model, by its name."""
        return {name: (model.labels, _statuses(model)) for name, model in sorted(self._models.items())}

    def state(self) -> State:
        """Everything that another process needs to answer as this one does."""
        return State(
            {
                name: ModelState(
                    model.setting,
                    dict(model.labels),
                    latest.key if (latest := _latest(model)) is not None else None,
                    {number: servable.key for number, servable in _all_available(model).items()},
                    _packed(model),
                )
                for name, model in self._models.items()
            },
            {name: _packed(model) for name, model in self._removed.items()},
            self.ready,
        )

    def snapshot(self) -> list[VersionSnapshot]:
        """The versions at this moment."""
        return [
            VersionSnapshot(
                name,
                number,
                version.state,
                version.servable.in_flight if version.servable is not None else None,
                _servable(version).queued if version.state == _AVAILABLE else None,
            )
            for name, model in self._models.items()
            for number, version in model.versions.items()
        ]

    @property
    def names(self) -> list[str]:
        """The configured models."""
        return sorted(self._models)

    @property
    def removed(self) -> list[str]:
        """The models that were configured and no longer are, as far as they are remembered."""
        return sorted(self._removed.keys() - self._models.keys())

    def removed_setting(self, name: str) -> ModelSetting | None:
        """The settings of such a model."""
        model = self._removed.get(name)
        return model.setting if model is not None else None

    def has_given_up(self, name: str) -> bool:
        """Whether a configured model serves nothing, and is not on its way to."""
        return all(version.state == _END for version in self._models[name].versions.values())

    @property
    def settings(self) -> list[ModelSetting]:
        """The configured models with all their settings, in the order in which they were named."""
        return [model.setting for model in self._models.values()]

    @property
    def ready(self) -> bool:
        """Whether every model serves a version; with `lazy`, could; with `lenient`, does or has failed to."""
        return all(_latest(model) is not None or self._is_excused(model) for model in self._models.values())

    def _is_excused(self, model: _Model[Loaded]) -> bool:
        if self._options.lazy and model.wanted:
            return True
        tried = all(version.state != _LOADING or version.tried.is_set() for version in model.versions.values())
        return self._options.lenient and tried

    # Configuration

    async def wanted(self, settings: Iterable[ModelSetting]) -> dict[str, set[int]]:
        """The versions that these settings want loaded, of those on disk, by model."""
        listed = list(settings)
        folders = await self._list(listed)
        return {
            setting.name: set() if isinstance(found, OSError) else version_policy.wanted(setting.policy, found)
            for setting, found in zip(listed, folders, strict=True)
        }

    def check_labels(
        self, settings: Iterable[ModelSetting], coming: Mapping[str, Collection[int]] | None = None
    ) -> None:
        """TensorFlow Serving's rule for labels (model_servers/server_core.cc), before `apply`.

        Raises ServingError (FAILED_PRECONDITION) for a label whose version is not available now; with
        `labels_for_unavailable` only where a label that exists would move to such a version. Versions that are
        `coming`, by model, may have labels: they move when these are available.
        """
        for setting in settings:
            model = self._models.get(setting.name)
            for label, number in setting.labels.items():
                if model is not None and (
                    _available(model, number) is not None or (self._options.lazy and number in model.wanted)
                ):
                    continue
                if number in (coming or {}).get(setting.name, ()):
                    continue
                current = model.setting.labels.get(label) if model is not None else None
                if self._options.labels_for_unavailable and current in (None, number):
                    continue
                raise failed_precondition(
                    f"Request to assign label to version {number} of model {setting.name},"
                    " which is not currently available for inference"
                )

    async def apply(self, settings: Iterable[ModelSetting]) -> list[str]:
        """Makes these the configured models and starts what that asks for; returns the names that are new."""
        log.info("Adding/updating models.")
        given = {setting.name: setting for setting in settings}
        self._on_settings(list(given.values()))
        for name in [name for name in self._models if name not in given]:
            self._retire(self._models.pop(name))
        new = []
        models = {}
        for name, setting in given.items():
            model = self._models.get(name)
            if model is not None and model.setting.base_path == setting.base_path:
                model.setting = setting
            else:
                log.info(" (Re-)adding model: %s", name)
                if "/" in name or ":" in name:
                    log.warning("Model %s is served over gRPC; REST's /v1/models/NAME takes no '/' and no ':'", name)
                old, former = model, _former(model or self._removed.get(name))
                labels = dict(model.labels) if model is not None else {}
                model = _Model[Loaded](setting, labels=labels, former=former)
                if old is not None and self._options.lazy:
                    self._retire(old)
                elif old is not None:
                    model.replaces = old
                new.append(name)
            models[name] = model
        self._models = models
        self._on_change()
        if self._options.poll_seconds >= 0:
            await self._look()
        for model in models.values():  # also where the folder could not be listed
            _move_labels(model, at_once=self._options.lazy)
        self._on_change()
        return new

    async def until_tried(self, names: Iterable[str]) -> list[LoadFailure]:
        """Waits until every wanted version of these models is available or has failed once; returns what failed."""
        if self._options.poll_seconds < 0:
            return []
        failures = []
        for name in names:
            model = self._models.get(name)
            if model is None:
                continue  # removed meanwhile
            if not model.wanted:
                failures.append(LoadFailure(name, None, not_found(model.complaint)))
            for number in [] if self._options.lazy else sorted(model.wanted):
                version = model.versions.get(number)
                if version is None:
                    continue  # no longer wanted
                await version.tried.wait()
                if version.error is not None:
                    failures.append(LoadFailure(name, number, version.error))
        return failures

    async def until_available(self, names: Iterable[str]) -> list[LoadFailure]:
        """Waits until each of these models has a version that is available, as long as that takes; with `lazy`, one
        that could be loaded.

        Answers the versions that failed for good of models that have nothing left to try, as soon as the only models
        that still wait have no version on disk.
        """
        if self._options.poll_seconds < 0:
            return []
        told: set[str] = set()
        while True:
            self._change.clear()
            models = [model for name in names if (model := self._models.get(name)) is not None]
            without = [model for model in models if _latest(model) is None]
            if self._options.lazy:
                without = [model for model in without if not model.wanted]
            failures = [failure for model in without for failure in _failures(model)]
            absent = {model.setting.name for model in without if not model.wanted}
            failed = {failure.model for failure in failures}
            if len(failed) + len(absent) == len(without) and (failed or not absent):
                return failures
            if absent - told:
                told = absent
                log.warning("the ports stay closed until there is a version of: %s", ", ".join(sorted(absent)))
            await self._change.wait()

    def _on_change(self) -> None:
        self._change.set()
        self._tell_change()

    def _retire(self, model: _Model[Loaded]) -> None:
        """Unloads a model that is no longer configured, and remembers its end."""
        if model.replaces is not None:
            self._retire(model.replaces)
            model.replaces = None
        name = model.setting.name
        self._removed.pop(name, None)
        self._removed[name] = model
        if len(self._removed) > _REMOVED_MODELS:
            del self._removed[next(iter(self._removed))]
        model.wanted, model.missing = set(), set()
        self._reconcile(model)

    # Folders

    def start_polling(self) -> None:
        """From now on new and removed version folders are noticed."""
        if self._options.poll_seconds > 0:
            self._start(self._poll())

    async def close(self) -> None:
        """Stops following the folders and closes the loader."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._loader.close()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._options.poll_seconds)
            try:
                await self._look()
            except Exception:
                log.exception("fault while looking for new versions")

    async def _look(self) -> None:
        """Looks at the version folders of all models and acts on what changed."""
        async with self._looking:
            models = list(self._models.values())
            settings = [model.setting for model in models]
            for model, setting, found in zip(models, settings, await self._list(settings), strict=True):
                if self._models.get(setting.name) is model and model.setting is setting:
                    self._take(model, found)

    async def _list(self, settings: list[ModelSetting]) -> list[dict[int, Path] | OSError]:
        """The versions of each model; local folders one after another, buckets all at once."""
        local = [(s.policy, s.base_path) for s in settings if isinstance(s.base_path, Path)]
        addresses = {s.base_path for s in settings if isinstance(s.base_path, BucketAddress)}
        remote = asyncio.gather(*(self._list_bucket(address) for address in addresses))
        in_folders = iter(await asyncio.to_thread(_list_all, local))
        in_buckets = dict(zip(addresses, await remote, strict=True))
        return [
            in_buckets[setting.base_path] if isinstance(setting.base_path, BucketAddress) else next(in_folders)
            for setting in settings
        ]

    async def _list_bucket(self, address: BucketAddress) -> dict[int, Path] | OSError:
        try:
            return await self._in_bucket(address)
        except OSError as error:
            return error

    def _take(self, model: _Model[Loaded], found: dict[int, Path] | OSError) -> None:
        """Acts on the listing of a model's folder: what cannot be listed changes nothing."""
        name, base_path = model.setting.name, model.setting.base_path
        if isinstance(found, OSError):
            missing_path = isinstance(found, FileNotFoundError)
            reason = f"NOT_FOUND: {base_path} not found" if missing_path else f"{found.strerror}"
            reason += version_policy.why_none(base_path)
            self._complain(
                model,
                "FileSystemStoragePathSource encountered a filesystem access error:"
                f" Could not find base path {base_path} for servable {name} with error {reason}",
                logging.ERROR,
            )
            return
        model.on_disk = found
        model.wanted = version_policy.wanted(model.setting.policy, found)
        missing = model.missing = version_policy.missing(model.setting.policy, found)
        if missing:
            self._complain(model, _lost(model, min(missing)), logging.WARNING if model.wanted else logging.ERROR)
        elif not model.wanted:
            self._complain(
                model,
                f"No versions of servable {name} found under base path {base_path}."
                " Did you forget to name your leaf directory as a number (eg. '/1/')?"
                + version_policy.why_none(base_path),
            )
        else:
            model.complaint = ""
        self._reconcile(model)

    @staticmethod
    def _complain(model: _Model[Loaded], problem: str, level: int = logging.WARNING) -> None:
        if problem != model.complaint:
            model.complaint = problem
            log.log(level, "%s", problem)

    # Versions

    def _reconcile(self, model: _Model[Loaded]) -> None:
        """Starts what separates the model from what is wanted: loads, and unloads that leave no gap."""
        for number in sorted(model.wanted, reverse=True):
            version = model.versions.get(number)
            if version is None or (version.state == _END and version.dropped.is_set()):
                version = model.versions[number] = _Version[Loaded](number, model.on_disk[number])
                if not self._options.lazy:
                    self._begin_load(model, version)
            elif version.state == _LOADING and version.dropped.is_set():
                version.error = None  # it is on its way after all
                version.tried.clear()
            version.dropped.clear()
        unwanted = [version for version in model.versions.values() if version.number not in model.wanted]
        for version in unwanted:
            version.dropped.set()
            if version.state == _START:
                del model.versions[version.number]
            elif version.state == _LOADING:
                version.error = _CANCELLED
                version.tried.set()
        _move_labels(model, at_once=self._options.lazy)
        left = {number for label, number in model.labels.items() if number != model.setting.labels[label]}
        idle = [v for v in unwanted if v.state == _AVAILABLE and v.number not in left]  # a label waits to leave those
        idle.sort(key=lambda version: version.number)
        if (model.wanted or model.missing) and not any(version.number in model.wanted for version in model.available()):
            idle = idle[:-1]  # serves until a wanted one does
        for version in idle:
            self._begin_unload(model, version)
        ended = sorted(version.number for version in unwanted if version.state == _END)
        for number in ended[:-_ENDED_VERSIONS]:
            del model.versions[number]
        if model.replaces is not None and model.available():
            self._retire(model.replaces)
            model.replaces = None
        self._choose_latest(model)

    def _choose_latest(self, model: _Model[Loaded]) -> None:
        available = model.available()
        newest = max(available, key=lambda version: version.number) if available else None
        if newest is not None and self._options.lazy and newest.number != max(model.wanted, default=newest.number):
            newest = None  # so that the next request brings the one that is wanted
        model.latest = newest.servable if newest is not None else None
        self._on_change()

    def _begin_load(self, model: _Model[Loaded], version: _Version[Loaded]) -> None:
        version.state = _LOADING
        self._on_change()
        self._start(self._load(model, version))

    def _begin_unload(self, model: _Model[Loaded], version: _Version[Loaded]) -> None:
        version.state = _UNLOADING
        self._choose_latest(model)
        self._start(self._unload(model, version))

    async def _load(self, model: _Model[Loaded], version: _Version[Loaded]) -> None:
        name, number, options = model.setting.name, version.number, self._options
        if options.max_loaded:
            await self._make_room()
        log.info("Loading servable: {name: %s version: %d}", name, number)
        retries = 0 if options.lazy else max(0, options.max_retries)
        for attempt in range(retries + 1):
            try:
                version.servable = await self._loader.load(name, number, version.path)
            except Exception as fault:
                version.error = _as_serving_error(fault, name, number)
                version.tried.set()
                self._on_change()
            else:
                version.state, version.error = _AVAILABLE, None
                log.info("Successfully loaded servable version {name: %s version: %d}", name, number)
                break
            if attempt < retries:
                with suppress(TimeoutError):
                    await asyncio.wait_for(version.dropped.wait(), options.retry_seconds)
            if version.dropped.is_set():
                version.error = _CANCELLED
                break
            if attempt < retries:
                log.info("Retrying of Loading servable: {name: %s version: %d} retry: %d", name, number, attempt + 1)
        if version.servable is None:
            log.error("Loading servable: {name: %s version: %d} exhausted max_num_retries: %d", name, number, retries)
            version.state = _END
            version.retry_at = self._loop.time() + options.retry_seconds
        version.tried.set()
        self._reconcile(model)
        self._wake(version)
        await self._change_room(freed=version.servable is None)

    async def _unload(self, model: _Model[Loaded], version: _Version[Loaded]) -> None:
        servable = _servable(version)
        await self._loader.unload(servable)
        version.servable = None
        if self._options.lazy and version.number in model.wanted:
            version.state = _START  # it has made room for another, and comes back with its next request
        else:
            version.state = _END
            version.dropped.set()
        log.info("Unloaded servable version {name: %s version: %d}", servable.model, servable.version)
        await self._change_room(freed=True)
        self._reconcile(model)
        self._wake(version)

    @staticmethod
    def _wake(version: _Version[Loaded]) -> None:
        waiters = version.waiters[:]
        version.waiters.clear()
        for waiter in waiters:
            waiter()

    # Room, with `max_loaded`

    async def _make_room(self) -> None:
        """Waits for the right to load one more version; unloads the least recently used one where that is needed."""
        async with self._room:
            while self._loaded >= self._options.max_loaded:
                if not any(v.state == _UNLOADING for model in self._models.values() for v in model.versions.values()):
                    loaded = [(model, v) for model in self._models.values() for v in model.available()]
                    if loaded:
                        self._begin_unload(*min(loaded, key=lambda pair: _least_used(pair[1])))
                await self._room.wait()
            self._loaded += 1

    async def _change_room(self, *, freed: bool) -> None:
        if self._options.max_loaded:
            async with self._room:
                self._loaded -= freed
                self._room.notify_all()


def _move_labels(model: _Model[Loaded], *, at_once: bool) -> None:
    """Lets each label name its version: once that is available where the one that it named before still is."""
    here = {version.number for version in model.available()}
    serving = _all_available(model).keys()
    labels = {}
    for label, number in model.setting.labels.items():
        before = model.labels.get(label, number)
        waits = not at_once and number not in here and before in serving and number in model.wanted
        labels[label] = before if waits else number
    model.labels = labels


def _failures(model: _Model[Loaded]) -> list[LoadFailure]:
    """The versions that are wanted and have failed for good; none while another may still become available."""
    versions = [model.versions[number] for number in sorted(model.wanted)]
    if any(version.state != _END for version in versions):
        return []
    return [LoadFailure(model.setting.name, v.number, v.error) for v in versions if v.error is not None]


def unavailable(failures: Iterable[LoadFailure]) -> str:
    """The text that lists failures, as in TensorFlow Serving (core/load_servables_fast.cc)."""

    def name(failure: LoadFailure) -> str:
        version = "" if failure.version is None else f" version: {failure.version}"
        return f"{{name: {failure.model}{version}}}"

    return "{" + "".join(f"{name(failure)} due to error: {failure.error}}}, " for failure in failures) + "}"


def _lost(model: _Model[Loaded], number: int) -> str:
    there = ", ".join(map(str, sorted(model.on_disk))) or "none"
    return (
        f"Version {number} of servable {model.setting.name}, which its version policy names, is not below"
        f" {model.setting.base_path} (there: {there})"
    )


def _latest(model: _Model[Loaded]) -> Loaded | None:
    if model.latest is None and model.replaces is not None:
        return _latest(model.replaces)
    return model.latest


def _available(model: _Model[Loaded], number: int) -> Loaded | None:
    version = model.versions.get(number)
    if version is not None and version.state == _AVAILABLE:
        return version.servable
    return _available(model.replaces, number) if model.replaces is not None else None


def _all_available(model: _Model[Loaded]) -> dict[int, Loaded]:
    older = _all_available(model.replaces) if model.replaces is not None else {}
    return older | {version.number: _servable(version) for version in model.available()}


def _servable(version: _Version[Loaded]) -> Loaded:
    assert version.servable is not None
    return version.servable


def _least_used(version: _Version[Loaded]) -> tuple[bool, int]:
    servable = _servable(version)
    return servable.in_flight > 0, servable.last_used


def _list_all(folders: list[tuple[Policy, Path]]) -> list[dict[int, Path] | OSError]:
    found: list[dict[int, Path] | OSError] = []
    for policy, base_path in folders:
        try:
            found.append(version_policy.find(policy, base_path))
        except OSError as error:
            found.append(error)
    return found


def _as_serving_error(fault: Exception, name: str, number: int) -> ServingError:
    log.error("Loading servable: {name: %s version: %d} failed: %s", name, number, fault)
    if isinstance(fault, ServingError):
        return fault
    log.error("the fault in full", exc_info=fault)
    return ServingError(tensorflow_error_pb2.UNKNOWN, f"{type(fault).__name__}: {fault}")


def _known(model: _Model[Loaded]) -> dict[int, _Version[Loaded]]:
    """The versions whose states are told: its own, and what is left of those at an older base path."""
    former = {number: version for number, version in model.former.items() if version.state != _START}
    return former | model.versions


def _former(model: _Model[Loaded] | None) -> dict[int, _Version[Loaded]]:
    """What is remembered of a model that another one of its name succeeds."""
    if model is None:
        return {}
    known = _known(model)
    ended = [number for number in sorted(known) if known[number].state == _END]
    return {number: version for number, version in known.items() if number not in ended[:-_ENDED_VERSIONS]}


def _statuses(model: _Model[Loaded]) -> list[ModelVersionStatus]:
    versions = {number: _status(version) for number, version in _known(model).items()}
    for number in model.missing:
        if number not in versions or versions[number].state == _END:
            versions[number] = status = ModelVersionStatus(version=number, state=_END)
            status.status.error_code = tensorflow_error_pb2.NOT_FOUND
            status.status.error_message = _lost(model, number)
    return [versions[number] for number in sorted(versions, reverse=True)]


def _packed(model: _Model[Loaded]) -> bytes:
    return GetModelStatusResponse(model_version_status=_statuses(model)).SerializeToString()


def _status(version: _Version[Loaded]) -> ModelVersionStatus:
    status = ModelVersionStatus(version=version.number, state=version.state)
    status.status.error_code = version.error.code if version.error else tensorflow_error_pb2.OK
    if version.error is not None:
        status.status.error_message = version.error.message
    elif version.state == _START:
        status.status.error_message = "not loaded yet: the first request loads it (--lazy_loading)"
    return status
