"""The model server itself: its start, the two ports, signals and the drain.

The order of the start is TensorFlow Serving's: models first, then the ports, so that an open port means that every
model has a version; one that fails for good ends the start. With --model_root, what can be served is served.

On SIGTERM or SIGINT nothing that was accepted stays unanswered: readiness turns false, clients are told to go
elsewhere, requests under way and those that still arrive are answered, and then the process ends with 0.
"""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

from bookserve.serving.server.api.admin import ModelAdmin, default_roots
from bookserve.serving.server.assembly import Process, check, run, worker_count
from bookserve.serving.server.models import integrity, trial
from bookserve.serving.server.models.buckets.cache import Cache
from bookserve.serving.server.models.buckets.root import BucketRoot
from bookserve.serving.server.models.buckets.source import Buckets, FetchingLoader
from bookserve.serving.server.models.config import (
    ModelSetting,
    base_path,
    copied_from,
    discover,
    from_message,
    merged,
    read_config_file,
)
from bookserve.serving.server.models.manager import ManagerOptions, ModelManager, unavailable
from bookserve.serving.server.models.servable import Loader
from bookserve.serving.server.models.trial import Trials
from bookserve.serving.server.settings import text_protos
from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.transport.listeners import Listeners
from bookserve.serving.server.transport.ports import DRAIN_STEP_SECONDS
from bookserve.serving.server.types.errors import ServingError, failed_precondition, invalid_argument
from bookserve.serving.server.workers.pool import Pool
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.bucket import BucketAddress, BucketError
from bookserve.serving.wire.store_servers import Registration

log = logging.getLogger(__name__)


class ModelServer:
    """The models and the listeners; with --workers the main process, which lets others answer."""

    def __init__(self, flags: Flags, trials: Trials | None = None) -> None:
        """Raises ServingError for settings that make no sense and for a port that is taken."""
        self._flags = flags
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._registration: Registration | None = None
        # A folder of many models is served as far as it can be; models that were named are all needed.
        self._lenient = bool(flags.model_root) and not flags.model_config_file
        count = worker_count(flags)
        options = ManagerOptions(
            poll_seconds=flags.file_system_poll_wait_seconds,
            max_retries=flags.max_num_load_retries,
            retry_seconds=max(0.0, flags.load_retry_interval_micros / 1e6),
            labels_for_unavailable=flags.allow_version_labels_for_unavailable_models,
            lazy=flags.lazy_loading,
            max_loaded=flags.max_loaded_models,
            lenient=self._lenient,
        )
        self._buckets = Buckets(Cache(_cache_folder(flags), flags.model_cache_max_bytes))
        self._bucket_root: BucketRoot | None = None
        self._answering: Process | Pool
        self._manager: ModelManager[Any]
        if count > 1:
            options_of_loads = check(flags)

            def try_version(path: Path) -> None:
                if trials is not None:
                    seen = integrity.check(path)
                    trials.check(path, seen, options_of_loads.engine, warm_up=options_of_loads.warm_up)

            self._listeners = Listeners(flags, count)
            self._answering = pool = Pool(flags, count, self._listeners, try_version)
            loader: Loader[Any] = FetchingLoader(pool, self._buckets)
            in_bucket = self._buckets.versions
            self._manager = ModelManager(loader, options, on_change=pool.changed, in_bucket=in_bucket)
        else:
            self._answering = process = Process(flags, trials=trials)
            self._listeners = Listeners(flags)
            loader = FetchingLoader(process.loader, self._buckets)
            in_bucket, on_settings = self._buckets.versions, process.observer.follow
            self._manager = ModelManager(loader, options, on_settings, in_bucket=in_bucket)

    async def start(self) -> None:
        """Loads the models, then opens the ports. Raises ServingError for settings that make no sense."""
        flags = self._flags
        if flags.max_loaded_models and not flags.lazy_loading:
            raise invalid_argument("--max_loaded_models needs --lazy_loading")
        settings = await self._settings()
        self._check_buckets(settings)
        admin = self._make_admin(settings)
        if flags.model_config_file:
            self._manager.check_labels(settings)
        await self._answering.prepare(self._manager, admin)
        new = await self._manager.apply(settings)
        self._manager.start_polling()
        if self._lenient:
            await self._manager.until_tried(new)
        elif failures := await self._manager.until_available(new):
            raise ServingError(
                tensorflow_error_pb2.UNKNOWN,
                f"{len(failures)} servable(s) did not become available: {unavailable(failures)}",
            )
        if flags.model_config_file and flags.model_config_file_poll_wait_seconds > 0:
            self._start(self._follow_config_file(flags.model_config_file_poll_wait_seconds))
        elif flags.model_root and not flags.model_config_file and flags.file_system_poll_wait_seconds > 0:
            self._start(self._follow_root(settings, flags.file_system_poll_wait_seconds))
        gc.collect()
        gc.freeze()
        self._listeners.listen()
        self._register()
        await self._answering.serve(self._listeners.of_process[0])

    def _register(self) -> None:
        """Lets the commands that change a model store find this server, where it follows one."""
        flags = self._flags
        config = Path(flags.model_config_file)
        root = config.absolute().parent if config.name == "models.config" else base_path(flags.model_root)
        follows = flags.model_config_file_poll_wait_seconds > 0 if flags.model_config_file else flags.model_root
        if follows and flags.port and isinstance(root, Path):
            try:
                self._registration = Registration(
                    root, flags.bind_address, flags.port, flags.grpc_tls, flags.rest_api_port, flags.rest_tls
                )
            except OSError as error:
                log.info("commands do not find this server by its store %s: %s", root, error.strerror or error)

    def _unregister(self) -> None:
        if self._registration is not None:
            self._registration.close()
            self._registration = None

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _make_admin(self, settings: list[ModelSetting]) -> ModelAdmin:
        flags = self._flags
        roots = [base_path(root) for root in flags.allowed_model_roots.split(",") if root]
        logs_of_start = [setting.request_log.prefix for setting in settings if setting.request_log]
        log_roots = {Path(prefix).absolute().parent for prefix in (*logs_of_start, flags.request_log_file) if prefix}
        return ModelAdmin(
            self._manager,
            roots or default_roots(settings, flags.model_root),
            log_roots,
            self._answering.until_in_step,
        )

    async def _settings(self) -> list[ModelSetting]:
        """The models to serve, as they are configured now. Raises ServingError where that cannot be read."""
        flags = self._flags
        if flags.model_config_file:
            settings = read_config_file(Path(flags.model_config_file))
            for name, elsewhere in copied_from(Path(flags.model_config_file), settings).items():
                text = (
                    "%s has %s in %s, not beside it: where the store was copied, 'bookserve models config' mends that"
                )
                log.warning(text, flags.model_config_file, name, elsewhere)
            return settings
        if flags.model_root:
            root = base_path(flags.model_root)
            if isinstance(root, Path):
                return await asyncio.to_thread(discover, root)
            self._bucket_root = self._bucket_root or BucketRoot(self._buckets, root)
            return await self._bucket_root.settings()
        if not flags.model_base_path:
            raise invalid_argument(
                "Both server_options.model_base_path and server_options.model_config_file are empty!"
            )
        log.info(
            "Building single TensorFlow model file config:  model_name: %s model_base_path: %s",
            flags.model_name,
            flags.model_base_path,
        )
        return [ModelSetting(flags.model_name, base_path(flags.model_base_path))]

    def _check_buckets(self, settings: list[ModelSetting]) -> None:
        """Raises ServingError (INVALID_ARGUMENT) for a bucket that can never be asked here."""
        for setting in settings:
            if isinstance(setting.base_path, BucketAddress):
                try:
                    self._buckets.listing(setting.base_path)
                except BucketError as error:
                    raise invalid_argument(str(error)) from error

    async def _follow_config_file(self, poll_seconds: float) -> None:
        """Applies the config file over and over, whatever was changed meanwhile; a broken one changes nothing."""
        path, complaint = Path(self._flags.model_config_file), ""
        while True:
            await asyncio.sleep(poll_seconds)
            problem = ""
            try:
                config = await asyncio.to_thread(text_protos.read, path, messages.ModelServerConfig())
            except ServingError as error:
                problem = f"Failed to read ModelServerConfig file: {error}"
            else:
                try:
                    await self._replace(config)
                except ServingError as error:
                    problem = f"PollFilesystemAndReloadConfig failed to ReloadConfig: {error}"
            if problem and problem != complaint:
                log.error("%s", problem)
            complaint = problem

    async def _replace(self, config: messages.ModelServerConfig) -> None:
        """Makes these the models, where they are not yet. Raises ServingError for a config that is refused."""
        if config.WhichOneof("config") != "model_config_list" and self._manager.settings:
            # Such as the empty file that there is for a moment when an editor writes it again.
            raise failed_precondition(
                "Cannot transition to requested config."
                " It is only legal to transition from one ModelConfigList to another."
            )
        settings = from_message(config, self._manager.names)
        if settings != self._manager.settings:
            self._manager.check_labels(settings, await self._manager.wanted(settings))
            await self._manager.apply(settings)

    async def _follow_root(self, known: list[ModelSetting], poll_seconds: float) -> None:
        """Applies what changes below --model_root; what was changed by other means stays as it is."""
        complaint = ""
        while True:
            await asyncio.sleep(poll_seconds)
            try:
                found = await self._settings()
            except ServingError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    log.error("Failed to read the models below --model_root: %s", error)
                continue
            complaint = ""
            if found != known:
                await self._manager.apply(merged(self._manager.settings, known, found))
                known = found

    async def drain(self) -> None:
        """Answers what was accepted and what still arrives, then closes; at the latest after --drain_seconds."""
        begun = self._loop.time()
        end = begun + self._flags.drain_seconds
        self._unregister()
        self._answering.stop_being_ready()
        for task in self._tasks:
            task.cancel()
        await self._until_quiet(begun + self._flags.drain_seconds / 2)
        self._listeners.refuse_new()
        await asyncio.sleep(DRAIN_STEP_SECONDS)  # in which what waits is accepted
        await self._answering.finish(max(0.0, end - self._loop.time()))
        self._listeners.close()
        await self._manager.close()
        await self._answering.write_logs()

    async def _until_quiet(self, end: float) -> None:
        """Tells clients to go; returns when for --drain_quiet_seconds nothing was asked or is under way."""
        quiet_since = self._loop.time()
        requests = -1
        while self._loop.time() < min(end, quiet_since + self._flags.drain_quiet_seconds):
            activity = await self._answering.drain()
            if activity.requests != requests or not activity.idle:
                requests, quiet_since = activity.requests, self._loop.time()
            await asyncio.sleep(DRAIN_STEP_SECONDS)

    async def give_up(self) -> None:
        """Leaves nothing behind where the server does not start."""
        self._unregister()
        self._listeners.close()
        await self._answering.kill()


def _cache_folder(flags: Flags) -> Path:
    """Where versions of buckets are kept."""
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(flags.model_cache_dir or Path(user) / "bookserve" / "models").expanduser().absolute()


async def _serve(flags: Flags, trials: Trials | None, serves: Callable[[], None]) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    stopping = loop.create_task(stop.wait())
    server = None
    try:
        server = ModelServer(flags, trials)
        starting = loop.create_task(server.start())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            log.info("stopped before the models were loaded")
            starting.cancel()
            await server.give_up()
            return 0
        await starting
    except ServingError as error:
        if server is not None:
            await server.give_up()
        log.error("the server does not start: %s", error)
        print(f"Failed to start server. Error: {error}", flush=True)  # noqa: T201 - where TensorFlow Serving prints it
        return 255
    serves()
    await stopping
    log.info("draining: answering what was accepted, then stopping")
    await server.drain()
    log.info("stopped")
    return 0


async def _try_and_serve(flags: Flags, trials: Trials | None, serves: Callable[[], None]) -> int:
    try:
        return await _serve(flags, trials, serves)
    finally:
        if trials is not None:
            trials.close()


def serve(flags: Flags, serves: Callable[[], None]) -> NoReturn:
    """Runs the server until it is stopped; calls `serves` once it answers."""
    run(_try_and_serve(flags, trial.start() if flags.trial_seconds > 0 else None, serves))
