"""The process `bookserve model-server`: flags, start, the two ports, signals and the drain.

The order of the start is TensorFlow Serving's: models first, then the ports, so that an open port means that what can
be served is served. On SIGTERM or SIGINT nothing that was accepted stays unanswered: readiness turns false, clients are
told to go elsewhere, requests under way and those that still arrive are answered, and then the process ends with 0.
"""

import asyncio
import gc
import importlib.metadata
import logging
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import click
import onnxruntime

from bookserve.serving.server import flags as flag_parser
from bookserve.serving.server import grpc_api, lazy, model_service, oip_grpc, rest_api
from bookserve.serving.server.admin import Access, ModelAdmin, default_roots
from bookserve.serving.server.admin_api import AdminApi
from bookserve.serving.server.errors import ServingError, invalid_argument
from bookserve.serving.server.flags import FlagError, Flags
from bookserve.serving.server.health import Health
from bookserve.serving.server.http1 import Handler as RestHandler
from bookserve.serving.server.http1 import HttpExchange
from bookserve.serving.server.http2 import GrpcCall, StreamHandler
from bookserve.serving.server.loader import InProcessLoader, LoadOptions
from bookserve.serving.server.manager import ManagerOptions, ModelManager
from bookserve.serving.server.model_config import ModelSetting, discover, merged, read_config_file
from bookserve.serving.server.ports import Ports
from bookserve.serving.server.profiler import Profiler
from bookserve.serving.wire import tensorflow_error_pb2

log = logging.getLogger(__name__)

# The worker threads give the interpreter lock back to the event loop that often. With Python's 5 ms the loop waits for
# a worker after every batch; measured on 2 cores, 50 us is worth 10 to 20 % of the rate.
_SWITCH_SECONDS = 5e-5


class ModelServer:
    """The models and the listeners of one process."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._loop = asyncio.get_running_loop()
        loader = InProcessLoader(
            LoadOptions(
                load_threads=max(1, flags.num_load_threads),
                unload_threads=max(1, flags.num_unload_threads),
                worker_threads=max(1, os.cpu_count() or 1),
                threads_per_run=flags.tensorflow_intra_op_parallelism or 1,
                max_queued=flags.max_queued_requests,
                warm_up=flags.enable_model_warmup,
                warm_up_iterations=max(1, flags.num_request_iterations_for_warmup),
                check_method_names=flags.enable_signature_method_name_check,
            )
        )
        self._manager = ModelManager(
            loader,
            ManagerOptions(
                poll_seconds=flags.file_system_poll_wait_seconds,
                max_retries=flags.max_num_load_retries,
                retry_seconds=max(0.0, flags.load_retry_interval_micros / 1e6),
                labels_for_unavailable=flags.allow_version_labels_for_unavailable_models,
                lazy=flags.lazy_loading,
                max_loaded=flags.max_loaded_models,
            ),
        )
        self._rest = rest_api.RestApi(self._manager)
        self._health = Health()
        self._ports: Ports
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Loads the models, then opens the ports.

        Raises ServingError for settings that make no sense and for a port that is taken.
        """
        flags = self._flags
        if flags.max_loaded_models and not flags.lazy_loading:
            raise invalid_argument("--max_loaded_models needs --lazy_loading")
        settings = self._settings()
        roots = [Path(root).absolute() for root in flags.allowed_model_roots.split(",") if root]
        admin = ModelAdmin(self._manager, roots or default_roots(settings, flags.model_root))
        self._ports = self._make_ports(admin, Access(flags.admin_token_file))
        if flags.model_config_file:
            self._manager.check_labels(settings)
        await self._manager.until_tried(await self._manager.apply(settings))
        self._manager.start_polling()
        if flags.model_config_file and flags.model_config_file_poll_wait_seconds > 0:
            self._start(self._follow_config_file(flags.model_config_file_poll_wait_seconds))
        elif flags.model_root and not flags.model_config_file and flags.file_system_poll_wait_seconds > 0:
            self._start(self._follow_root(settings, flags.file_system_poll_wait_seconds))
        gc.collect()
        gc.freeze()
        await self._ports.open()
        self._start(self._ports.sweep())

    def _make_ports(self, admin: ModelAdmin, access: Access) -> Ports:
        flags = self._flags
        handlers = grpc_api.handlers(self._manager, tensor_content=flags.enable_serialization_as_tensor_content)
        handlers |= oip_grpc.handlers(self._manager, lambda: self._rest.ready)
        handlers |= model_service.handlers(admin, access)
        handlers |= Profiler(enabled=flags.enable_profiler).handlers
        rest: RestHandler = AdminApi(admin, access, self._rest.handle).handle
        streams: dict[bytes, StreamHandler] = {}
        if flags.enable_grpc_healthcheck_service:
            handlers |= self._health.handlers
        if flags.enable_grpc_reflection:
            from bookserve.serving.server.reflection import Reflection

            streams |= Reflection(handlers).streams
        if flags.lazy_loading:
            handlers = {path: lazy.when_loaded(handler, _fail_call) for path, handler in handlers.items()}
            rest = lazy.when_loaded(rest, _fail_exchange)
        return Ports(flags, handlers, streams, rest)

    def _settings(self) -> list[ModelSetting]:
        flags = self._flags
        if flags.model_config_file:
            return read_config_file(Path(flags.model_config_file))
        if flags.model_root:
            return discover(Path(flags.model_root).absolute())
        if not flags.model_base_path:
            raise invalid_argument(
                "Both server_options.model_base_path and server_options.model_config_file are empty!"
            )
        log.info(
            "Building single TensorFlow model file config:  model_name: %s model_base_path: %s",
            flags.model_name,
            flags.model_base_path,
        )
        return [ModelSetting(flags.model_name, Path(flags.model_base_path).absolute())]

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow_config_file(self, poll_seconds: float) -> None:
        """Applies the config file over and over, whatever was changed meanwhile; a broken one changes nothing."""
        complaint = ""
        while True:
            await asyncio.sleep(poll_seconds)
            problem = ""
            try:
                settings = await asyncio.to_thread(self._settings)
            except ServingError as error:
                problem = f"Failed to read ModelServerConfig file: {error}"
            else:
                if settings == self._manager.settings:
                    continue
                try:
                    self._manager.check_labels(settings)
                    await self._manager.apply(settings)
                except ServingError as error:
                    problem = f"PollFilesystemAndReloadConfig failed to ReloadConfig: {error}"
            if problem and problem != complaint:
                log.error("%s", problem)
            complaint = problem

    async def _follow_root(self, known: list[ModelSetting], poll_seconds: float) -> None:
        """Applies what changes below --model_root; what was changed by other means stays as it is."""
        complaint = ""
        while True:
            await asyncio.sleep(poll_seconds)
            try:
                found = await asyncio.to_thread(self._settings)
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
        self._rest.draining = True
        self._health.drain()
        await self._ports.drain()
        for task in list(self._tasks):
            task.cancel()
        await self._manager.close()


def _fail_call(call: GrpcCall) -> None:
    call.fail(tensorflow_error_pb2.INTERNAL, "internal error")


def _fail_exchange(exchange: HttpExchange) -> None:
    exchange.respond(500, rest_api.error_body("internal error"))


async def _serve(flags: Flags) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    server = ModelServer(flags)
    starting = loop.create_task(server.start())
    stopping = loop.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        log.info("stopped before the models were loaded")
        starting.cancel()
        return 0
    try:
        await starting
    except ServingError as error:
        print(f"Failed to start server. Error: {error}", flush=True)  # noqa: T201 - where TensorFlow Serving prints it
        return 255
    await stopping
    log.info("draining: answering what was accepted, then stopping")
    await server.drain()
    log.info("stopped")
    return 0


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(arguments: tuple[str, ...]) -> None:
    """Serve models over gRPC and REST, as tensorflow_model_server does."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )
    try:
        flags, warnings = flag_parser.parse(arguments)
    except FlagError as error:
        click.echo(f"{error}\n\n{flag_parser.usage()}")
        sys.exit(255)
    for warning in warnings:
        log.warning("%s", warning)
    if any(warning.startswith("unknown argument") for warning in warnings):
        click.echo("\n".join((*warnings, "", flag_parser.usage())))
    if flags.help:
        click.echo(flag_parser.usage())
        return
    if flags.version:
        click.echo(f"bookserve model server: {importlib.metadata.version('bookserve')}")
        click.echo(f"ONNX Runtime: {onnxruntime.__version__}")
        return
    sys.setswitchinterval(_SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        status = runner.run(_serve(flags))
    if any(thread.name.startswith("load ") for thread in threading.enumerate()):  # nothing can stop a load under way
        logging.shutdown()
        os._exit(status)
    sys.exit(status)


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it exists; it does not on Windows."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    return cast(asyncio.AbstractEventLoop, uvloop.new_event_loop())
