"""`bookserve gateway`: the domain API and the web page, in one process, until SIGTERM or SIGINT.

Granian serves, embedded in this process; only RDKit runs in others, which end with it. On a signal the gateway first
says that it is unready and goes on answering for `--drain-seconds`, then takes no more connections, answers what is in
flight and exits with 0. A second signal ends it at once.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
import structlog
import structlog.stdlib
from structlog.typing import Processor

from bookserve.clients.grpc_client import CallMetadata, GrpcClient, channel_to
from bookserve.serving.gateway import cors
from bookserve.serving.gateway.api_keys import ApiKeysError
from bookserve.serving.gateway.app import create_app, request_id_metadata
from bookserve.serving.gateway.bridge import Bridge
from bookserve.serving.gateway.bucket_store import BucketStore
from bookserve.serving.gateway.config import GatewayConfig, Limits
from bookserve.serving.gateway.listener import Listener, ListenerTls, reserve
from bookserve.serving.gateway.listener import tls as listener_tls
from bookserve.serving.gateway.metrics import Metrics
from bookserve.serving.gateway.molecule_pool import MoleculePool
from bookserve.serving.gateway.server_metrics import ServerMetrics
from bookserve.serving.gateway.server_tls import FollowedTls, ServerTls
from bookserve.serving.wire import bucket, hosts, span_export
from bookserve.serving.wire.bucket import BucketAddress, BucketError

if TYPE_CHECKING:
    from bookserve.serving.gateway.tracing import Tracing

_LOOK_SECONDS = 1.0  # between looks at the files of certificates
_PEM = click.Path(exists=True, dir_okay=False, path_type=Path)

_log = structlog.get_logger()


def _http_url(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value and not value.startswith(("http://", "https://")):
        raise click.BadParameter("give a URL such as http://127.0.0.1:8501")
    return value.rstrip("/")


def _target(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        channel_to(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value


def _collector(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value:
        try:
            span_export.check(value)
        except span_export.SpanExportError as error:
            raise click.BadParameter(str(error)) from error
    return value


def _models_dir(context: click.Context, parameter: click.Parameter, value: str | None) -> Path | BucketAddress | None:
    if value is None:
        return None
    try:
        place = bucket.parse(value) if bucket.is_address(value) else Path(value)
    except BucketError as error:
        raise click.BadParameter(str(error)) from error
    if isinstance(place, Path) and not place.is_dir():
        raise click.BadParameter(f"Directory '{place}' does not exist.")
    return place


def _origins(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    try:
        return cors.origins(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.option(
    "--port",
    "--gateway-port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="The port to listen on; 0 takes a free one.",
)
@click.option("--bind", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--tls-cert", type=_PEM, help="PEM file of the gateway's own certificate: speak TLS on the port.")
@click.option("--tls-key", type=_PEM, help="PEM file of its key.")
@click.option("--tls-client-ca", type=_PEM, help="PEM file of an authority: clients must show a certificate of it.")
@click.option(
    "--allowed-hosts",
    default="",
    help="Names that requests may have as Host, with commas, beside loopback's and --bind; * for any.",
)
@click.option(
    "--model-server",
    default="127.0.0.1:8500",
    show_default=True,
    metavar="HOST:PORT",
    callback=_target,
    help="The model server's gRPC. Several servers, with commas or behind one name, are asked in turns.",
)
@click.option(
    "--model-server-rest",
    default="",
    metavar="URL",
    callback=_http_url,
    help="The model server's REST, such as http://127.0.0.1:8501: the page shows it, and its last minutes' metrics.",
)
@click.option("--model-server-ca", type=_PEM, help="PEM file of the model server's authority: speak TLS with it.")
@click.option("--model-server-cert", type=_PEM, help="PEM file of the gateway's certificate, for servers that ask.")
@click.option("--model-server-key", type=_PEM, help="PEM file of its key.")
@click.option(
    "--model-seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1, 600),
    help="How long the model server may take for an answer.",
)
@click.option(
    "--models-dir",
    callback=_models_dir,
    metavar="FOLDER",
    help="The model store, or its address in a bucket (s3://, gs:// or az://BUCKET/PATH): its manifests say what each "
    "model takes. Without it all models take tensors.",
)
@click.option(
    "--bucket-poll-seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    help="How often a --models-dir in a bucket is listed.",
)
@click.option(
    "--max-body-bytes",
    default=Limits.body_bytes,
    show_default=True,
    type=click.IntRange(1024),
    help="Of a request's body.",
)
@click.option(
    "--max-json-bytes", default=Limits.json_bytes, show_default=True, type=click.IntRange(1024), help="Of a JSON body."
)
@click.option(
    "--max-json-depth",
    default=Limits.json_depth,
    show_default=True,
    type=click.IntRange(4, 1000),
    help="Nested lists and objects in JSON.",
)
@click.option(
    "--max-form-parts",
    default=Limits.form_parts,
    show_default=True,
    type=click.IntRange(1),
    help="Files and fields of a form.",
)
@click.option(
    "--max-form-field-bytes",
    default=Limits.form_field_bytes,
    show_default=True,
    type=click.IntRange(1024),
    help="Of the text of a field, and of the headers of a file.",
)
@click.option(
    "--max-items",
    default=Limits.items,
    show_default=True,
    type=click.IntRange(1),
    help="Pictures, molecules, texts or boards a request.",
)
@click.option(
    "--max-points",
    default=Limits.points,
    show_default=True,
    type=click.IntRange(1),
    help="Rows of numbers a request, of the tasks regression and tabular.",
)
@click.option(
    "--max-generated-words",
    default=Limits.generated_words,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Words that a text may be continued by.",
)
@click.option(
    "--body-seconds",
    default=Limits.body_seconds,
    show_default=True,
    type=click.FloatRange(0.1),
    help="How long a body may take to arrive.",
)
@click.option(
    "--concurrent",
    default=Limits.concurrent,
    show_default=True,
    type=click.IntRange(1, 512),
    help="Requests answered at once, each by a thread.",
)
@click.option(
    "--waiting",
    default=Limits.waiting,
    show_default=True,
    type=click.IntRange(0),
    help="Requests that wait for a thread; more get 503.",
)
@click.option(
    "--max-streams",
    default=Limits.streams,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Requests of many lines (NDJSON) at once, each on a thread.",
)
@click.option(
    "--api-keys",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file with a key a line, or NAME:KEY: a request to /api/ and /metrics must have one. Read anew when it "
    "changes.",
)
@click.option(
    "--requests-per-minute",
    default=0,
    type=click.IntRange(0),
    help="Predictions that one caller, a key or an address, may ask for in a minute; more get 429.  "
    "[default: any number]",
)
@click.option(
    "--cors-origins",
    default="",
    callback=_origins,
    help="Pages that may ask from a browser: origins such as https://app.example, with commas; * for any.",
)
@click.option(
    "--otlp-endpoint",
    default="",
    metavar="URL",
    callback=_collector,
    help="An OpenTelemetry collector, such as http://127.0.0.1:4318: requests to /api/ are traced.",
)
@click.option(
    "--drain-seconds",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 300),
    help="How long to go on answering, unready, after a signal.",
)
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["info", "warning", "error"]),
    help="The least of what is logged; a line a request is info.",
)
def main(
    port: int,
    bind: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    allowed_hosts: str,
    model_server: str,
    model_server_rest: str,
    model_server_ca: Path | None,
    model_server_cert: Path | None,
    model_server_key: Path | None,
    model_seconds: float,
    models_dir: Path | BucketAddress | None,
    bucket_poll_seconds: float,
    max_body_bytes: int,
    max_json_bytes: int,
    max_json_depth: int,
    max_form_parts: int,
    max_form_field_bytes: int,
    max_items: int,
    max_points: int,
    max_generated_words: int,
    body_seconds: float,
    concurrent: int,
    waiting: int,
    max_streams: int,
    api_keys: Path | None,
    requests_per_minute: int,
    cors_origins: tuple[str, ...],
    otlp_endpoint: str,
    drain_seconds: float,
    log_level: str,
) -> None:
    """Serve the domain API and the web page, in front of a model server."""
    _configure_log(log_level)
    tls = ServerTls(model_server_ca, model_server_cert, model_server_key)
    try:
        own_tls = listener_tls(tls_cert, tls_key, tls_client_ca)
        tls.check()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    limits = Limits(
        body_bytes=max_body_bytes,
        body_seconds=body_seconds,
        form_parts=max_form_parts,
        form_field_bytes=max_form_field_bytes,
        items=max_items,
        points=max_points,
        generated_words=max_generated_words,
        json_bytes=max_json_bytes,
        json_depth=max_json_depth,
        concurrent=concurrent,
        waiting=waiting,
        streams=max_streams,
    )
    config = GatewayConfig(
        model_server,
        model_server_rest,
        model_seconds,
        models_dir if isinstance(models_dir, Path) else None,
        str(models_dir) if isinstance(models_dir, BucketAddress) else "",
        bind,
        tuple(hosts.listed(allowed_hosts)),
        api_keys,
        cors_origins,
        limits,
        requests_per_minute,
    )
    server_metrics = ServerMetrics(model_server_rest, context=tls.context()) if model_server_rest else None
    tracing = _tracing(otlp_endpoint)
    client = GrpcClient(model_server, credentials=tls.credentials(), call_metadata=_call_metadata(tracing))
    with ExitStack() as stack:
        reserved = stack.enter_context(reserve(bind, port))
        if isinstance(models_dir, BucketAddress):
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="bookserve-gateway-")))
            config = replace(config, models_dir=folder)
            _follow(models_dir, folder, bucket_poll_seconds, stack)
        backend = stack.enter_context(client)
        molecule_pool = stack.enter_context(closing(MoleculePool()))
        asyncio.run(
            _serve(config, backend, molecule_pool, server_metrics, tls, own_tls, tracing, reserved, drain_seconds)
        )
    # Granian's threads may still be winding down, and one that meets the end of the interpreter aborts the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _tracing(otlp_endpoint: str) -> "Tracing | None":
    if not otlp_endpoint:
        return None
    from bookserve.serving.gateway.tracing import Tracing

    return Tracing(otlp_endpoint)


def _call_metadata(tracing: "Tracing | None") -> CallMetadata:
    if tracing is None:
        return request_id_metadata

    def both() -> Sequence[tuple[str, str]]:
        return (*request_id_metadata(), *tracing.metadata())

    return both


def _follow(address: BucketAddress, folder: Path, seconds: float, stack: ExitStack) -> None:
    """Copies the store of a bucket into a folder, and goes on until the stack is left."""
    try:
        store = BucketStore(address, folder, seconds)
    except BucketError as error:
        raise click.ClickException(f"--models-dir: {error}") from error
    store.start()
    stack.callback(store.close)


def _configure_log(level: str) -> None:
    """One JSON object a line on standard error, of this gateway's and of libraries' messages.

    JSON with ASCII escapes, so that nothing a request carries can forge a line or move a terminal's cursor.
    """
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *processors],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    structlog.configure(
        processors=[*processors, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


async def _serve(
    config: GatewayConfig,
    backend: GrpcClient,
    molecule_pool: MoleculePool,
    server_metrics: ServerMetrics | None,
    tls: ServerTls,
    own_tls: ListenerTls | None,
    tracing: "Tracing | None",
    reserved: socket.socket,
    drain_seconds: float,
) -> None:
    metrics = Metrics()
    draining = threading.Event()
    if server_metrics is not None:
        server_metrics.start()
    try:
        client = backend if tracing is None else tracing.client(backend)
        app = create_app(config, client, molecule_pool, metrics, draining.is_set, server_metrics, tracing)
    except ApiKeysError as error:
        raise click.ClickException(f"--api-keys: {error}") from error
    bridge = Bridge(app, config.limits, metrics, draining.is_set)
    listener = Listener(bridge, reserved, own_tls)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            _log.warning("killed", reason="a second signal")
            sys.exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await listener.start()
    following = [
        loop.create_task(_follow_certificates(FollowedTls(tls), backend, server_metrics, config.model_seconds)),
        loop.create_task(listener.follow_certificates()),
    ]
    click.echo(f"gateway ready on {listener.url} (model server {config.model_server})")
    sweeping = loop.create_task(bridge.sweep(reserved))
    stopped = loop.create_task(stop.wait())
    ended = loop.create_task(listener.ended())
    await asyncio.wait([stopped, ended], return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        _log.info("draining", seconds=drain_seconds)
        draining.set()
        await asyncio.sleep(drain_seconds)
    for task in following:
        task.cancel()
    await listener.stop()
    sweeping.cancel()
    bridge.close()
    if tracing is not None:
        tracing.close()
    _log.info("stopped")


async def _follow_certificates(
    files: FollowedTls, backend: GrpcClient, server_metrics: ServerMetrics | None, model_seconds: float
) -> None:
    """For ever: when the files for TLS with the model server change, new connections to it are made with them."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if (found := files.renewed()) is not None:
            credentials, context = found
            if credentials is not None:
                before = backend.renew(credentials)
                asyncio.get_running_loop().call_later(model_seconds + _LOOK_SECONDS, before.close)
            if server_metrics is not None:
                server_metrics.use(context)
