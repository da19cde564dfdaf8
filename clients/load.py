"""`bookserve load NAME`: how many predictions a second a model server gives, and how long each takes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from bookserve.clients import ask_server, grpc_client, load_run, predict_inputs, rest_client
from bookserve.clients.ask_server import Asked, Choice
from bookserve.clients.completion import model_names
from bookserve.clients.errors import FailedPrecondition, InvalidArgument, PredictError, Unavailable
from bookserve.clients.grpc_client import GrpcClient, predict_request
from bookserve.clients.http_exchange import Server
from bookserve.clients.load_run import Caller, GrpcCaller, Load, RestCaller
from bookserve.clients.rest_client import RestClient, predict_body, predict_path
from bookserve.clients.store_contracts import StoreContracts
from bookserve.export import example_inputs
from bookserve.export.errors import ExportError
from bookserve.export.example_inputs import Rows

_BLOCKS = "▁▂▃▄▅▆▇█"
_COLUMNS = 60  # of a picture
_WARM_UP = 1.0  # seconds
_MAX_BYTES = 64 << 20  # of a request
_MESSAGE = 300  # characters of an error


@click.command()
@click.argument("name", shell_complete=model_names)
@click.option(
    "--grpc",
    "grpc_target",
    metavar="HOST:PORT",
    is_flag=False,
    flag_value=grpc_client.DEFAULT_TARGET,
    help=f"Ask over gRPC, which is the default.  [without a value: {grpc_client.DEFAULT_TARGET}]",
)
@click.option(
    "--rest",
    "rest_url",
    metavar="URL",
    is_flag=False,
    flag_value=rest_client.DEFAULT_URL,
    help=f"Ask over REST; with --grpc, after it.  [without a value: {rest_client.DEFAULT_URL}]",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    help="Connections at once, each with one request at a time.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 600),
    default=10.0,
    show_default=True,
    help="How long, after one second that does not count.",
)
@click.option("--input", "source", metavar="FILE", help="Tensors to send: .json in the REST form, .npz, .npy or .csv.")
@click.option(
    "--rows", type=click.IntRange(1, 4096), help="Rows in each request: the input's are repeated or cut to so many."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.001, 600),
    default=10.0,
    show_default=True,
    help="Seconds after which a request counts as failed.",
)
@click.option("--version", type=click.IntRange(1), help="Ask this version instead of the newest.")
@click.option("--label", help="Ask the version that has this label.")
@click.option(
    "--models-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The model store, whose manifests have the examples.  [default: models, if it is there]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    name: str,
    grpc_target: str | None,
    rest_url: str | None,
    connections: int,
    seconds: float,
    source: str | None,
    rows: int | None,
    timeout: float,
    version: int | None,
    label: str | None,
    models_dir: Path | None,
    as_json: bool,
) -> None:
    """Ask the model NAME the same over and over, and say how fast the answers come.

    What is sent is the example in the manifest of the version, or else random tensors of its signature.

    The command ends with status 1 where a request failed. It shares this machine's cores with a server that runs here,
    and needs CPU time of its own, which is shown: compare figures of one machine.
    """
    if version is not None and label is not None:
        raise click.UsageError("give one of --version and --label")
    if models_dir is None and Path("models").is_dir():
        models_dir = Path("models")
    if grpc_target is None and rest_url is None:
        grpc_target = grpc_client.DEFAULT_TARGET
    choice, runs = Choice(version, label, models_dir), []
    try:
        ways: list[_Way] = [_over_grpc(grpc_target, name, choice, source, rows, timeout)] if grpc_target else []
        ways += [_over_rest(rest_url, name, choice, source, rows, timeout)] if rest_url else []
    except Unavailable as error:
        mend = ": start one with 'make serve', or say where it is (--grpc or --rest)"
        raise click.ClickException(f"{error}{mend if 'nothing answers' in str(error) else ''}") from error
    except (PredictError, ExportError) as error:
        raise click.ClickException(str(error)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for way in ways:
        load_run.run(way.connect, connections, _WARM_UP)
        load = load_run.run(way.connect, connections, seconds)
        runs.append(_figures(way, load, connections))
        if not as_json:
            click.echo(_text(way, load, connections))
    if as_json:
        click.echo(json.dumps({"model": name, "runs": runs}))
    if any(run["failed"] or not run["answered"] for run in runs):
        raise SystemExit(1)


@dataclass(frozen=True)
class _Way:
    """One transport to one version, with the request that is sent; `size` is the request's in bytes."""

    transport: str
    target: str
    asked: Asked
    inputs: Rows
    origin: str
    size: int
    connect: Callable[[], Caller]

    @property
    def rows(self) -> int:
        """Of each request; 1 where the first input has no rows."""
        first = next(iter(self.inputs.values()))
        return len(first) if first.ndim else 1


def _over_grpc(target: str, name: str, choice: Choice, source: str | None, rows: int | None, timeout: float) -> _Way:
    with GrpcClient(target) as client:
        asked, inputs, origin = _request(client, name, choice, source, rows)
    message = predict_request(name, inputs, choice.version, choice.label, asked.contract.signature)
    request = message.SerializeToString()
    _check_size(len(request))
    return _Way("gRPC", target, asked, inputs, origin, len(request), lambda: GrpcCaller(target, request, timeout))


def _over_rest(url: str, name: str, choice: Choice, source: str | None, rows: int | None, timeout: float) -> _Way:
    server = Server.at(url)
    asked, inputs, origin = _request(RestClient(url), name, choice, source, rows)
    path, body = predict_path(name, choice.version, choice.label), predict_body(inputs, asked.contract.signature)
    _check_size(len(body))
    return _Way("REST", url, asked, inputs, origin, len(body), lambda: RestCaller(server, path, body, timeout))


def _check_size(size: int) -> None:
    if size > _MAX_BYTES:
        raise ExportError(f"a request has {size:,} bytes, and may have {_MAX_BYTES:,} here: give fewer --rows")


def _request(
    client: GrpcClient | RestClient, name: str, choice: Choice, source: str | None, rows: int | None
) -> tuple[Asked, Rows, str]:
    """The version, the inputs that are sent, and where these come from. The version has answered them once.

    Raises:
        PredictError: nobody answers, or the inputs are refused.
        ExportError: the input cannot be read.
    """
    asked = ask_server.find(client, name, choice)
    if source is not None:
        given = _sized(predict_inputs.tensors(source, asked.contract), rows)
        _try(client, asked, given)
        return asked, given, source
    example = _example(asked, choice.models_dir)
    if example is not None:
        given = _sized(example, rows)
        _try(client, asked, given)
        return asked, given, "the manifest's example"
    refused: PredictError | None = None
    for drawn in example_inputs.draw(asked.contract, {}):  # until one is small enough for a model that looks words up
        given = _sized(drawn, rows or 1)
        try:
            _try(client, asked, given)
        except (InvalidArgument, FailedPrecondition) as error:
            refused = refused or error
        else:
            return asked, given, "random numbers"
    assert refused is not None
    raise ExportError(f"{name} refuses random inputs ({str(refused)[:_MESSAGE]}): give some with --input")


def _example(asked: Asked, models_dir: Path | None) -> Rows | None:
    if models_dir is None:
        return None
    manifest = StoreContracts(models_dir).manifest(asked.contract.model, asked.version) or {}
    contract = manifest.get("contract")
    example = contract.get("example") if isinstance(contract, dict) else None
    if asked.doubt or not isinstance(example, dict) or not isinstance(example.get("inputs"), dict):
        return None
    return example_inputs.fit(example["inputs"], asked.contract, "the manifest's example")


def _sized(inputs: Rows, rows: int | None) -> Rows:
    """The inputs with that many rows, the first ones or all of them again and again; as they are without a number."""
    if rows is None:
        return inputs
    return {name: np.resize(array, (rows, *array.shape[1:])) if array.ndim else array for name, array in inputs.items()}


def _try(client: GrpcClient | RestClient, asked: Asked, inputs: Rows) -> None:
    client.predict(asked.contract.model, inputs, version=asked.version, signature=asked.contract.signature)


def _figures(way: _Way, load: Load, connections: int) -> dict[str, Any]:
    """What --json prints of one transport; times in milliseconds, rates a second."""
    quantiles = {f"p{round(100 * share)}_ms": load.percentile(share) for share in (0.5, 0.9, 0.99)}
    return {
        "transport": way.transport,
        "target": way.target,
        "version": way.asked.version,
        "connections": connections,
        "seconds": load.seconds,
        "input": way.origin,
        "rows": way.rows,
        "request_bytes": way.size,
        "answered": load.answered,
        "failed": load.failed,
        "rate": round(load.rate, 2),
        "rows_rate": round(load.rate * way.rows, 2),
        **{name: None if time is None else round(1000 * time, 3) for name, time in quantiles.items()},
        "longest_ms": round(1000 * load.counts.longest, 3) if load.answered else None,
        "each_second": load.each_second(),
        "errors": {
            code: {"count": count, "message": load.counts.messages[code]}
            for code, count in load.counts.failed.most_common()
        },
        "cores_used_here": round(load.busy, 2),
    }


def _text(way: _Way, load: Load, connections: int) -> str:
    """The figures for a terminal, 80 columns wide."""
    each = "row" if way.rows == 1 else "rows"
    lines = [
        f"{way.asked.contract.model} version {way.asked.version} over {way.transport} at {way.target}",
        f"  {connections} connections for {load.seconds:g} s; {way.rows} {each} a request, {way.size:,} bytes",
        f"  input        {way.origin}",
        f"  answers      {load.rate:,.0f} a second: {load.answered:,} in all, {load.failed:,} failed",
    ]
    if way.rows > 1:
        lines.append(f"  rows         {load.rate * way.rows:,.0f} a second")
    if load.answered:
        times = "   ".join(f"p{round(100 * share)} {_time(load.percentile(share))}" for share in (0.5, 0.9, 0.99))
        lines.append(f"  time         {times}   longest {_time(load.counts.longest)}")
        lines.append(f"  each second  {_picture(load.each_second())}")
        edges = f"{_time(load.percentile(0.0))} to {_time(load.counts.longest)}"
        lines.append(f"  times        {_picture(load.spread(_COLUMNS - 22))} {edges}")
    for code, count in load.counts.failed.most_common():
        lines.append(f"  {code}  {count:,}: {load.counts.messages[code][:_MESSAGE]}")
    lines.append(f"  this command used {load.busy:.2f} cores" + _advice(load))
    return "\n".join(lines)


def _advice(load: Load) -> str:
    return ": the server may be faster than it can ask" if load.busy > 0.9 else ""


def _picture(values: Sequence[int]) -> str:
    """A block for each value, in at most _COLUMNS columns; the highest is full."""
    size = max(1, -(-len(values) // _COLUMNS))
    means = [
        sum(values[start : start + size]) / len(values[start : start + size]) for start in range(0, len(values), size)
    ]
    top = max(means, default=0) or 1
    return "".join(" " if not mean else _BLOCKS[round((len(_BLOCKS) - 1) * mean / top)] for mean in means)


def _time(seconds: float | None) -> str:
    assert seconds is not None
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
