"""The process `bookserve model-server`: flags, start, the two ports, signals and the drain.

The order of the start is TensorFlow Serving's: models first, then the ports, so that an open port means that what can
be served is served. On SIGTERM or SIGINT nothing that was accepted stays unanswered: readiness turns false, clients are
told to go elsewhere, requests under way and those that still arrive are answered, and then the process ends with 0.
"""

import asyncio
import contextlib
import ctypes
import gc
import importlib.metadata
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import click
import onnxruntime

from bookserve.serving.server import flags as flag_parser
from bookserve.serving.server import grpc_api, rest_api
from bookserve.serving.server.batch_policy import ADAPTIVE, batch_threads, from_parameters, read_parameters
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.errors import ServingError, invalid_argument
from bookserve.serving.server.flags import FlagError, Flags
from bookserve.serving.server.http1 import Http1Limits, HttpConnection
from bookserve.serving.server.http2 import GrpcConnection, Http2Limits
from bookserve.serving.server.manager import LoadOptions, ModelManager
from bookserve.serving.server.model_config import ModelSetting, discover, read_config_file
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.batching_parameters_pb2 import BatchingParameters

log = logging.getLogger(__name__)

# The worker threads give the interpreter lock back to the event loop that often. With Python's 5 ms the loop waits for
# a worker after every batch; measured on 2 cores, 50 us is worth 10 to 20 % of the rate.
_SWITCH_SECONDS = 5e-5
_SWEEP_SECONDS = 1.0
_BACKLOG = 1024
_DRAIN_STEP_SECONDS = 0.02
_SO_ATTACH_FILTER = 26  # Linux's socket(7); Python has no name for it


class ModelServer:
    """The models and the listeners of one process."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._loop = asyncio.get_running_loop()
        self._manager = ModelManager(_load_options(flags))
        self._rest = rest_api.RestApi(self._manager)
        self._grpc_connections: set[GrpcConnection] = set()
        self._http_connections: set[HttpConnection] = set()
        self._listeners: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Loads the models, then opens the ports.

        Raises ServingError for settings that make no sense and for a port that is taken.
        """
        flags = self._flags
        if not flags.port and not flags.grpc_socket_path:
            raise invalid_argument(
                "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set."
            )
        settings = self._settings()
        await self._manager.apply(settings)
        self._manager.start_polling()
        poll_seconds = (
            flags.model_config_file_poll_wait_seconds
            if flags.model_config_file
            else flags.file_system_poll_wait_seconds
        )
        if poll_seconds > 0 and (flags.model_config_file or flags.model_root):
            self._start(self._follow_settings(settings, poll_seconds))
        gc.collect()
        gc.freeze()
        await self._listen()
        self._start(self._sweep())

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

    async def _listen(self) -> None:
        flags, loop = self._flags, self._loop
        handlers = grpc_api.handlers(self._manager, tensor_content=flags.enable_serialization_as_tensor_content)
        grpc_limits = Http2Limits(max_message_bytes=flags.max_request_bytes)
        rest_limits = Http1Limits(max_body_bytes=flags.max_request_bytes)

        def grpc_connection() -> GrpcConnection:
            return GrpcConnection(handlers, grpc_limits, self._grpc_connections)

        def rest_connection() -> HttpConnection:
            return HttpConnection(self._rest.handle, rest_api.error_body, rest_limits, self._http_connections)

        host = flags.bind_address
        try:
            if flags.port:
                self._listeners.append(await loop.create_server(grpc_connection, host, flags.port, backlog=_BACKLOG))
                log.info("Running gRPC ModelServer at %s:%d ...", host, flags.port)
            if flags.grpc_socket_path:
                Path(flags.grpc_socket_path).unlink(missing_ok=True)  # left by a server that was killed
                self._listeners.append(
                    await loop.create_unix_server(grpc_connection, flags.grpc_socket_path, backlog=_BACKLOG)
                )
                log.info("Running gRPC ModelServer at unix:%s ...", flags.grpc_socket_path)
            if flags.rest_api_port and flags.rest_api_port == flags.port:
                log.error("--rest_api_port cannot be the same as --port: REST is off")
            elif flags.rest_api_port:
                port = flags.rest_api_port
                self._listeners.append(await loop.create_server(rest_connection, host, port, backlog=_BACKLOG))
                log.info("Exporting HTTP/REST API at:%s:%d ...", host, port)
        except OSError as error:
            raise ServingError(tensorflow_error_pb2.UNKNOWN, f"Failed to BuildAndStart gRPC server: {error}") from error

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow_settings(self, settings: list[ModelSetting], poll_seconds: float) -> None:
        """Applies what changes in the config file or below the model root; a broken file changes nothing."""
        complaint = ""
        while True:
            await asyncio.sleep(poll_seconds)
            try:
                found = self._settings()
            except ServingError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    log.error("Failed to read ModelServerConfig file: %s", error)
                continue
            complaint = ""
            if found != settings:
                settings = found
                await self._manager.apply(settings)

    async def _sweep(self) -> None:
        """Once a second: time-outs and refilled allowances of every connection."""
        last = self._loop.time()
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = self._loop.time()
            for grpc_connection in list(self._grpc_connections):
                grpc_connection.sweep(now, now - last)
            for http_connection in list(self._http_connections):
                http_connection.sweep(now)
            last = now

    async def drain(self) -> None:
        """Answers what was accepted and what still arrives, then closes; at the latest after --drain_seconds."""
        flags, loop = self._flags, self._loop
        start = loop.time()
        end = start + flags.drain_seconds
        self._rest.draining = True
        await self._until_quiet(start + flags.drain_seconds / 2)
        await self._stop_listening()
        await self._until_quiet(end)
        for connection in self._connections():
            if connection.idle:
                connection.close()
        while loop.time() < end and self._connections():  # for answers that the clients have yet to read
            await asyncio.sleep(_DRAIN_STEP_SECONDS)
        left = self._connections()
        if left:
            log.warning("%d connections are dropped after --drain_seconds=%g", len(left), flags.drain_seconds)
        for connection in left:
            connection.abort()
        if flags.grpc_socket_path:
            Path(flags.grpc_socket_path).unlink(missing_ok=True)
        for task in list(self._tasks):
            task.cancel()
        await self._manager.close()

    async def _until_quiet(self, end: float) -> None:
        """Tells every connection to drain; returns when for --drain_quiet_seconds nothing was asked or is under way."""
        quiet_since = self._loop.time()
        requests = -1
        while self._loop.time() < min(end, quiet_since + self._flags.drain_quiet_seconds):
            for connection in self._connections():
                connection.drain()  # also those that were opened meanwhile
            seen = sum(connection.requests for connection in self._connections())
            if seen != requests or not all(connection.idle for connection in self._connections()):
                requests, quiet_since = seen, self._loop.time()
            await asyncio.sleep(_DRAIN_STEP_SECONDS)

    async def _stop_listening(self) -> None:
        """Closes the listeners without resetting a connection that a client has already made.

        The kernel resets what waits to be accepted when a listener closes. So the listeners first drop new handshakes
        (a client repeats its own after a second, and is refused then), and what waits is accepted meanwhile.
        """
        for listener in self._listeners:
            for endpoint in listener.sockets:
                _drop_new_handshakes(endpoint.fileno())
        await asyncio.sleep(_DRAIN_STEP_SECONDS)
        for listener in self._listeners:
            listener.close()

    def _connections(self) -> list[GrpcConnection | HttpConnection]:
        return [*self._grpc_connections, *self._http_connections]


def _drop_new_handshakes(descriptor: int) -> None:
    """Attaches a packet filter that drops everything to a listening socket, where there are such filters (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # one instruction: return 0 bytes
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(drop_all))
    with socket.socket(fileno=os.dup(descriptor)) as endpoint, contextlib.suppress(OSError):
        endpoint.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _load_options(flags: Flags) -> LoadOptions:
    """How versions are found, loaded, run and batched. Raises ServingError for settings that make no sense."""
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
    worker_threads, policy = os.cpu_count() or 1, ADAPTIVE
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
        poll_seconds=flags.file_system_poll_wait_seconds,
        max_retries=flags.max_num_load_retries,
        retry_seconds=max(0.0, flags.load_retry_interval_micros / 1e6),
        load_threads=max(1, flags.num_load_threads),
        engine=EngineOptions(
            intra_op_threads=flags.tensorflow_intra_op_parallelism or flags.tensorflow_session_parallelism or 1,
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
    )


async def _serve(flags: Flags) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    try:
        server = ModelServer(flags)
        await server.start()
    except ServingError as error:
        print(f"Failed to start server. Error: {error}", flush=True)  # noqa: T201 - where TensorFlow Serving prints it
        return 255
    await stop.wait()
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
        sys.exit(runner.run(_serve(flags)))


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it exists; it does not on Windows."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    return cast(asyncio.AbstractEventLoop, uvloop.new_event_loop())
