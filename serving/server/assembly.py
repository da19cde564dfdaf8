"""What every process of the model server that answers requests is made of: the one, or each of several workers."""

import asyncio
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from bookserve.serving.server.api import admin_grpc, grpc_handlers, open_inference_grpc, rest_handlers, tensorflow_grpc
from bookserve.serving.server.api.admin import Access, Admin, ModelAdmin
from bookserve.serving.server.api.health import Health
from bookserve.serving.server.api.profiler import Profiler
from bookserve.serving.server.api.rest_api import RestApi
from bookserve.serving.server.api.wait_for_load import when_loaded
from bookserve.serving.server.batching.policy import (
    MAX_THREADS,
    adaptive,
    batch_threads,
    from_parameters,
    read_parameters,
    thread_pool,
)
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.models.catalog import Catalog
from bookserve.serving.server.models.config import RequestLogSetting
from bookserve.serving.server.models.loader import InProcessLoader, LoadOptions
from bookserve.serving.server.models.trial import Trials
from bookserve.serving.server.observability import metrics
from bookserve.serving.server.observability.metric_families import CONNECTIONS, REFUSED, RESIDENT_BYTES
from bookserve.serving.server.observability.metrics import Metrics, Snapshot
from bookserve.serving.server.observability.observer import Observer
from bookserve.serving.server.settings import memory, text_protos
from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.transport import tls
from bookserve.serving.server.transport.grpc_call import StreamHandler
from bookserve.serving.server.transport.http_exchange import Handler as RestHandler
from bookserve.serving.server.transport.listeners import Api
from bookserve.serving.server.transport.ports import Activity, Ports
from bookserve.serving.server.types.errors import invalid_argument
from bookserve.serving.wire import span_export, version_signature
from bookserve.serving.wire.batching_parameters_pb2 import BatchingParameters

if TYPE_CHECKING:
    from bookserve.serving.server.observability.tracing import Tracing

log = logging.getLogger(__name__)

# The worker threads give the interpreter lock back to the event loop that often. With Python's 5 ms the loop waits for
# a worker after every batch; measured on 2 cores, 50 us is worth 10 to 20 % of the rate.
_SWITCH_SECONDS = 5e-5
# A request makes some fifty objects that the collector counts and none that it is needed for; with Python's 700 it took
# 4 % of the event loop's time.
_GC_THRESHOLDS = (50_000, 20, 50)


class Process:
    """Loads versions and answers requests for them."""

    loader: InProcessLoader
    observer: Observer
    ports: Ports  # after `connect`

    def __init__(self, flags: Flags, worker: int = 0, trials: Trials | None = None) -> None:
        """`worker` numbers the processes; `trials` try versions before they are loaded here.

        Raises ServingError for settings that make no sense.
        """
        self._flags = flags
        memory.limit(flags.max_memory_bytes)
        self._worker = worker
        self._metrics_path = _metrics_path(flags)
        parameters = _batching_parameters(flags)
        self._metrics = Metrics(enabled=self._metrics_path is not None, thread_pool=thread_pool(parameters))
        log_all = None
        if flags.request_log_file:
            log_all = RequestLogSetting(
                flags.request_log_file, flags.request_log_sampling_rate, flags.request_log_format
            )
        self.observer = Observer(
            self._metrics,
            log_requests=flags.log_requests,
            log_all=log_all,
            max_file_bytes=flags.request_log_max_bytes,
            max_files=flags.request_log_max_files,
            worker=worker,
            tracing=_tracing(flags, worker),
        )
        self.loader = InProcessLoader(_load_options(flags, parameters, worker), self._metrics, trials)
        self._health = Health()
        self._tasks: set[asyncio.Task[None]] = set()
        self._catalog: Catalog
        self._rest: RestApi

    def connect(self, catalog: Catalog, admin: Admin, snapshots: Callable[[], Awaitable[list[Snapshot]]]) -> None:
        """Makes what answers requests; `snapshots` are the metrics of all processes.

        Raises ServingError for settings that make no sense.
        """
        flags = self._flags
        self._catalog = catalog
        access = Access(flags.admin_token_file, flags.bind_address, flags.allowed_hosts)
        self._rest = RestApi(
            catalog, admin, access, snapshots, cors=flags.rest_api_enable_cors_support, metrics_path=self._metrics_path
        )
        handlers = tensorflow_grpc.handlers(catalog, tensor_content=flags.enable_serialization_as_tensor_content)
        handlers |= open_inference_grpc.handlers(catalog, lambda: self._rest.ready, snapshots, admin, access)
        handlers |= admin_grpc.handlers(admin, access, self._metrics)
        handlers |= Profiler(self.loader, access, self.start, enabled=flags.enable_profiler).handlers
        rest: RestHandler = self._rest.handle
        streams: dict[bytes, StreamHandler] = {}
        if flags.enable_grpc_healthcheck_service:
            handlers |= self._health.handlers
        if flags.enable_grpc_reflection:
            from bookserve.serving.server.api.reflection import Reflection

            streams |= Reflection(handlers).streams
        if flags.lazy_loading:
            handlers = {path: when_loaded(handler, grpc_handlers.fail) for path, handler in handlers.items()}
            rest = when_loaded(rest, rest_handlers.fail)
        if self._metrics_path and not flags.rest_api_port:
            log.warning("the metrics are on the REST port, and --rest_api_port is 0: they cannot be read")
        observer, body = self.observer, rest_handlers.error_body
        self.ports = Ports(flags, observer.grpc(handlers), streams, observer.rest(rest), body)

    async def prepare(self, catalog: Catalog, admin: ModelAdmin) -> None:
        """Makes ready what answers requests, where this is the one process. Raises as `connect`."""

        async def snapshots() -> list[Snapshot]:
            return [self.snapshot()]

        self.connect(catalog, admin, snapshots)

    async def until_in_step(self) -> None:
        """Every request finds what the manager knows at once, here."""

    async def serve(self, sockets: list[tuple[Api, socket.socket]]) -> None:
        """Answers what comes in on these listening sockets."""
        await self.ports.open(sockets)
        self.start(self.ports.sweep())
        self.start(self.ports.follow_certificates())

    def snapshot(self) -> Snapshot:
        """The metrics of this process."""
        series = metrics.version_gauges(self._catalog.snapshot())
        connections = self.ports.connections()
        for api in Api:
            series.append((CONNECTIONS, (str(self._worker), api.value), connections[api]))
            series += [(REFUSED, (api.value, reason), count) for reason, count in self.ports.refused[api].items()]
        if held := memory.resident_bytes():
            series.append((RESIDENT_BYTES, (str(self._worker),), held))
        return self._metrics.snapshot(series)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Has something done beside, until it is done or the process stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop_being_ready(self) -> None:
        """Tells whoever asks for readiness or health that the server goes."""
        self._rest.draining = True
        self._health.drain()

    async def drain(self) -> Activity:
        """Tells clients to go elsewhere, and what happens."""
        return self.ports.drain()

    async def finish(self, seconds: float) -> None:
        """Closes the ports once what is under way is answered, at the latest after `seconds`."""
        await self.ports.finish(seconds)
        self.stop_tasks()

    async def kill(self) -> None:
        """Ends what the process has started, where the server does not start."""

    def stop_tasks(self) -> None:
        """Ends what `start` began."""
        for task in list(self._tasks):
            task.cancel()

    async def write_logs(self) -> None:
        """Waits until the request logs are written, after the last request."""
        await asyncio.get_running_loop().run_in_executor(None, self.observer.close)


def run(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Runs the event loop of a process; the work answers its exit status."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.set_threshold(*_GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        status = runner.run(work)
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


def worker_count(flags: Flags) -> int:
    """How many processes answer requests. Raises ServingError (INVALID_ARGUMENT) where they cannot be."""
    if flags.workers < 0:
        raise invalid_argument(f"--workers={flags.workers}: give the number of processes, or 0 for one per core")
    count = flags.processes
    if count > 1 and flags.lazy_loading:
        raise invalid_argument(
            f"--workers={flags.workers} and --lazy_loading exclude each other: all processes load the same versions,"
            " and requests cannot choose them for all. Leave one of the two out"
        )
    if count > 1 and sys.platform == "win32":
        raise invalid_argument(f"--workers={flags.workers}: on Windows processes cannot share a port. Use --workers=1")
    return count


def check(flags: Flags) -> LoadOptions:
    """How versions are loaded, without loading or starting anything.

    Raises ServingError for settings that make no sense, as `Process` does.
    """
    _metrics_path(flags)
    options = _load_options(flags, _batching_parameters(flags), 0)
    Access(flags.admin_token_file)
    _check_tracing(flags)
    for config_file in (flags.ssl_config_file, flags.rest_ssl_config_file):
        if (source := tls.source(flags, config_file)) is not None:
            source.identity()
    return options


def _metrics_path(flags: Flags) -> str | None:
    """Where the metrics are; None while they are off. Raises ServingError for a monitoring config that is malformed."""
    if flags.monitoring_config_file:
        path = metrics.read_monitoring_config(Path(flags.monitoring_config_file))
        if path is not None:
            return path
    return metrics.DEFAULT_PATH if flags.enable_metrics else None


def _check_tracing(flags: Flags) -> None:
    if flags.otlp_endpoint:
        try:
            span_export.check(flags.otlp_endpoint)
        except span_export.SpanExportError as error:
            raise invalid_argument(f"--otlp_endpoint: {error}") from error


def _tracing(flags: Flags, worker: int) -> "Tracing | None":
    """Raises ServingError where requests cannot be traced."""
    _check_tracing(flags)
    if not flags.otlp_endpoint:
        return None
    from bookserve.serving.server.observability.tracing import Tracing

    return Tracing(flags.otlp_endpoint, worker)


def _batching_parameters(flags: Flags) -> BatchingParameters:
    """Those of the flags. Raises ServingError for a file that cannot be read, or that nothing reads."""
    if flags.batching_parameters_file:
        if flags.enable_batching:
            return read_parameters(Path(flags.batching_parameters_file))
        raise invalid_argument(
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true."
        )
    parameters = BatchingParameters()
    parameters.thread_pool_name.value = "model_server_batch_threads"
    return parameters


def _own_cores(flags: Flags, worker: int) -> tuple[int, ...]:
    """This process's share of the cores that the server may use."""
    usable = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else range(os.cpu_count() or 1)
    share = max(1, min(MAX_THREADS, len(usable) // worker_count(flags)))
    return tuple([usable[(worker * share + number) % len(usable)] for number in range(share)])


def _load_options(flags: Flags, parameters: BatchingParameters, worker: int) -> LoadOptions:
    """How versions are loaded, run and batched. Raises ServingError for settings that make no sense."""
    if flags.tensorflow_session_parallelism and (
        flags.tensorflow_intra_op_parallelism and flags.tensorflow_inter_op_parallelism
    ):
        raise invalid_argument(
            "Either configure server_options.tensorflow_session_parallelism or"
            " (server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism)"
            " separately. You cannot configure all."
        )
    if flags.tensorflow_session_config_file:  # which TensorFlow alone can parse, in its own process
        text_protos.text(Path(flags.tensorflow_session_config_file))
    custom_op_libraries = tuple(filter(None, flags.custom_op_libraries.split(",")))
    for library in custom_op_libraries:
        if not Path(library).is_file():
            raise invalid_argument(f"--custom_op_libraries: there is no file {library}")
    if flags.require_signature:
        try:
            version_signature.check_key(Path(flags.require_signature))
        except version_signature.SignatureError as error:
            raise invalid_argument(f"--require_signature: {error}") from error
    if flags.mixed_precision and flags.mixed_precision != "bfloat16":
        log.warning("--mixed_precision=%s has no effect: only bfloat16 is known", flags.mixed_precision)
    own_cores = _own_cores(flags, worker)
    cores = len(own_cores)
    intra_op_threads = flags.tensorflow_intra_op_parallelism or flags.tensorflow_session_parallelism or 1
    worker_threads, policy = cores, adaptive(max(1, cores // intra_op_threads))
    if flags.enable_batching:
        worker_threads = batch_threads(parameters, cores)
        policy = from_parameters(parameters, worker_threads)
    elif flags.enable_per_model_batching_parameters:
        log.warning("--enable_per_model_batching_parameters has no effect without --enable_batching")
    interpreters = (flags.num_tflite_pools or cores) * flags.num_tflite_interpreters_per_pool
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
            custom_op_libraries=custom_op_libraries,
            prefer_tflite=flags.prefer_tflite_model,
            trial_seconds=max(0.0, flags.trial_seconds),
            tflite_interpreters=max(1, min(interpreters, policy.parallel_runs)),
        ),
        worker_threads=worker_threads,
        worker_cores=own_cores if worker_threads == cores and intra_op_threads == 1 else (),
        max_queued=flags.max_queued_requests,
        max_pictures=flags.max_pictures,
        policy=policy,
        per_model_policies=flags.enable_batching and flags.enable_per_model_batching_parameters,
        unasked_batching=flags.unasked_batching,
        warm_up=flags.enable_model_warmup,
        warm_up_iterations=max(1, flags.num_request_iterations_for_warmup),
        check_method_names=flags.enable_signature_method_name_check,
        public_key=flags.require_signature,
    )
