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
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import click
import onnxruntime

from bookserve.serving.server import flags as flag_parser
from bookserve.serving.server import grpc_api, lazy, logs, metrics, model_service, oip_grpc, rest_api
from bookserve.serving.server.admin import Access, ModelAdmin, default_roots
from bookserve.serving.server.admin_api import AdminApi
from bookserve.serving.server.batch_policy import adaptive, batch_threads, from_parameters, read_parameters
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.errors import ServingError, invalid_argument
from bookserve.serving.server.flags import FlagError, Flags
from bookserve.serving.server.health import Health
from bookserve.serving.server.http1 import Handler as RestHandler
from bookserve.serving.server.http1 import HttpExchange
from bookserve.serving.server.http2 import GrpcCall, StreamHandler
from bookserve.serving.server.loader import InProcessLoader, LoadOptions
from bookserve.serving.server.manager import ManagerOptions, ModelManager
from bookserve.serving.server.metrics import Metrics
from bookserve.serving.server.model_config import ModelSetting, discover, merged, read_config_file
from bookserve.serving.server.observer import Observer
from bookserve.serving.server.ports import Ports
from bookserve.serving.server.request_log import RequestLogSetting
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.batching_parameters_pb2 import BatchingParameters

log = logging.getLogger(__name__)

# The worker threads give the interpreter lock back to the event loop that often. With Python's 5 ms the loop waits for
# a worker after every batch; measured on 2 cores, 50 us is worth 10 to 20 % of the rate.
_SWITCH_SECONDS = 5e-5


class ModelServer:
    """The models and the listeners of one process."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._loop = asyncio.get_running_loop()
        self._metrics_path = _metrics_path(flags)
        self._metrics = Metrics(enabled=self._metrics_path is not None)
        log_all = None
        if flags.request_log_file:
            log_all = RequestLogSetting(flags.request_log_file, flags.request_log_sampling_rate)
        self._observer = Observer(
            self._metrics,
            log_requests=flags.log_requests,
            log_all=log_all,
            max_file_bytes=flags.request_log_max_bytes,
            max_files=flags.request_log_max_files,
        )
        self._manager = ModelManager(
            InProcessLoader(_load_options(flags), self._metrics),
            ManagerOptions(
                poll_seconds=flags.file_system_poll_wait_seconds,
                max_retries=flags.max_num_load_retries,
                retry_seconds=max(0.0, flags.load_retry_interval_micros / 1e6),
                labels_for_unavailable=flags.allow_version_labels_for_unavailable_models,
                lazy=flags.lazy_loading,
                max_loaded=flags.max_loaded_models,
            ),
            self._observer.follow,
        )
        self._rest = rest_api.RestApi(
            self._manager,
            cors=flags.rest_api_enable_cors_support,
            metrics_path=self._metrics_path.encode() if self._metrics_path else None,
            metrics_page=self._metrics_page,
        )
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
        logs_of_start = [setting.request_log.prefix for setting in settings if setting.request_log]
        log_roots = {Path(prefix).absolute().parent for prefix in (*logs_of_start, flags.request_log_file) if prefix}
        admin = ModelAdmin(self._manager, roots or default_roots(settings, flags.model_root), log_roots)
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
        handlers |= model_service.handlers(admin, access, self._metrics)
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
        if self._metrics_path and not flags.rest_api_port:
            log.warning("the metrics are on the REST port, and --rest_api_port is 0: they cannot be read")
        return Ports(flags, self._observer.grpc(handlers), streams, self._observer.rest(rest))

    def _metrics_page(self, done: Callable[[bytes], None]) -> None:
        snapshot = self._metrics.snapshot(self._manager.gauges())
        page = self._loop.run_in_executor(None, metrics.render, [snapshot])  # 20 ms for a hundred models
        page.add_done_callback(lambda rendered: done(rendered.result()))

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
        await self._loop.run_in_executor(None, self._observer.close)


def _metrics_path(flags: Flags) -> str | None:
    """Where the metrics are; None while they are off. Raises ServingError for a monitoring config that is malformed."""
    if flags.monitoring_config_file:
        path = metrics.read_monitoring_config(Path(flags.monitoring_config_file))
        if path is not None:
            return path
    return metrics.DEFAULT_PATH if flags.enable_metrics else None


def _fail_call(call: GrpcCall) -> None:
    call.fail(tensorflow_error_pb2.INTERNAL, "internal error")


def _fail_exchange(exchange: HttpExchange) -> None:
    exchange.respond(500, rest_api.error_body("internal error"))


def _load_options(flags: Flags) -> LoadOptions:
    """How versions are loaded, run and batched. Raises ServingError for settings that make no sense."""
    if flags.tensorflow_session_parallelism and (
        flags.tensorflow_intra_op_parallelism and flags.tensorflow_inter_op_parallelism
    ):
        raise invalid_argument(
            "Either configure server_options.tensorflow_session_parallelism or"
            " (server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism)"
            " separately. You cannot configure all."
        )
    if flags.mixed_precision and flags.mixed_precision != "bfloat16":
        log.warning("--mixed_precision=%s has no effect: only bfloat16 is known", flags.mixed_precision)
    intra_op_threads = flags.tensorflow_intra_op_parallelism or flags.tensorflow_session_parallelism or 1
    worker_threads = os.cpu_count() or 1
    policy = adaptive(max(1, worker_threads // intra_op_threads))
    if flags.enable_batching:
        parameters = BatchingParameters()
        if flags.batching_parameters_file:
            parameters = read_parameters(Path(flags.batching_parameters_file))
        worker_threads = batch_threads(parameters)
        policy = from_parameters(parameters, worker_threads)
    elif flags.batching_parameters_file:
        raise invalid_argument(
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true."
        )
    elif flags.enable_per_model_batching_parameters:
        log.warning("--enable_per_model_batching_parameters has no effect without --enable_batching")
    interpreters = (flags.num_tflite_pools or os.cpu_count() or 1) * flags.num_tflite_interpreters_per_pool
    return LoadOptions(
        load_threads=max(1, flags.num_load_threads),
        unload_threads=max(1, flags.num_unload_threads),
        engine=EngineOptions(
            intra_op_threads=intra_op_threads,
            inter_op_threads=flags.tensorflow_inter_op_parallelism or flags.tensorflow_session_parallelism or 1,
            parallel_runs=policy.parallel_runs,
            saved_model_tags=tuple(flags.saved_model_tags.split(",")),
            session_config_file=flags.tensorflow_session_config_file,
            gpu_memory_fraction=flags.per_process_gpu_memory_fraction,
            bfloat16=flags.mixed_precision == "bfloat16",
            allow_unsafe_ops=flags.allow_unsafe_ops,
            prefer_tflite=flags.prefer_tflite_model,
            tflite_interpreters=max(1, min(interpreters, policy.parallel_runs)),
        ),
        worker_threads=worker_threads,
        max_queued=flags.max_queued_requests,
        policy=policy,
        per_model_policies=flags.enable_batching and flags.enable_per_model_batching_parameters,
        warm_up=flags.enable_model_warmup,
        warm_up_iterations=max(1, flags.num_request_iterations_for_warmup),
        check_method_names=flags.enable_signature_method_name_check,
    )


async def _serve(flags: Flags) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    stopping = loop.create_task(stop.wait())
    try:
        server = ModelServer(flags)
        starting = loop.create_task(server.start())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            log.info("stopped before the models were loaded")
            starting.cancel()
            return 0
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
    try:
        flags, warnings = flag_parser.parse(arguments)
    except FlagError as error:
        click.echo(f"{error}\n\n{flag_parser.usage()}")
        sys.exit(255)
    logs.configure(flags.log_format, flags.log_level)
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
