"""`make bench`: how fast the model server starts and answers, what CPU time it takes for that, and how much memory.

Every figure is measured against a real server process on loopback, which is started for it. Start and memory are those
of a model store; the others are those of models made on the spot. The generators of load are h2load for gRPC and wrk
for REST; what one of them would measure is left out without it. Generator and server share the cores, so compare
figures of one run.

What is compared runs in turns: with `--beside` the model server of another checkout of this project ("theirs") and this
one ("ours"); with `--triton VENV`, a virtual environment that holds nvidia-pytriton and onnxruntime, NVIDIA's Triton
and this one. Before each load the server's answer is compared with that of ONNX Runtime alone. Linux only.
"""

import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click

import batch_sizes
import benchmark_models
import checkouts
import load_generators
import measurements
import onnx_runtime_alone
import picture_requests
import request_files
import starts
import triton_server
from benchmark_models import MODELS, Model
from checkouts import Checkout
from load_generators import H2load, Wrk, url
from measurements import Figures, Measure, MeasurementError
from processes import Server, by_main_thread
from request_files import RequestFiles

_PARTS = ("start", *(model.name for model in MODELS), "int8", "pictures", "triton")
_TRITON_MODELS = (benchmark_models.LENET5, benchmark_models.LENET5_INT8)
_TRITON_CONNECTIONS = 16
_INT8_CONNECTIONS = (1, 16)
_PICTURE_CONNECTIONS = 16
_EXTRA_SECONDS = 3  # of a measurement: start, warm-up and stop


@dataclass(frozen=True)
class Point:
    """A way to ask: over gRPC or REST, by so many connections, with so many calls at once on each."""

    transport: str
    connections: int
    streams: int = 1

    def __str__(self) -> str:
        return f"{self.transport} {self.connections}" + (f"x{self.streams}" if self.streams > 1 else "")


@dataclass(frozen=True)
class Settings:
    """What the command line says of how to measure."""

    rounds: int
    seconds: int
    batches: bool
    flags: tuple[str, ...]


Serve = Callable[[], AbstractContextManager[Server]]


def _parts(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...]:
    parts = tuple(value.split(",")) if value else _PARTS
    for part in parts:
        if part not in _PARTS:
            raise click.BadParameter(f"{part}: there are {', '.join(_PARTS)}")
    return parts


@click.command()
@click.option("--models-dir", default=Path("models"), type=click.Path(path_type=Path), show_default=True)
@click.option("--beside", metavar="COMMIT_OR_CHECKOUT", help="Another state of this project; a folder has its .venv.")
@click.option("--triton", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="VENV")
@click.option("--only", callback=_parts, metavar="PART,...", help=f"Some of {', '.join(_PARTS)}.")
@click.option("--rounds", default=5, type=click.IntRange(min=1), show_default=True, help="Of each comparison.")
@click.option("--seconds", default=3, type=click.IntRange(min=1), show_default=True, help="Of load, each time.")
@click.option("--batches", is_flag=True, help="Batch sizes, too, by the metrics page, which costs some speed.")
@click.option("--flag", "flags", multiple=True, help="A flag of the model servers, such as --flag=--workers=2.")
def main(
    models_dir: Path,
    beside: str | None,
    triton: Path | None,
    only: tuple[str, ...],
    rounds: int,
    seconds: int,
    batches: bool,
    flags: tuple[str, ...],
) -> None:
    """Measure the model server; in turns with another one where one is named."""
    if batches:
        flags = (*flags, *batch_sizes.FLAGS)
    settings = Settings(rounds, seconds, batches, flags)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are stopped then, too
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contenders = {"ours": checkouts.own()}
        if beside is not None:
            contenders = {"theirs": stack.enter_context(checkouts.other(beside, scratch)), **contenders}
        _head(contenders, settings)
        if "start" in only:
            _starts(contenders, models_dir, settings)
        for model in MODELS:
            if model.name in only:
                _model(contenders, model, scratch, settings)
        if "int8" in only:
            _float_beside_int8(scratch, settings)
        if "pictures" in only:
            _pictures(scratch, settings)
        if "triton" in only and triton is not None:
            for model in _TRITON_MODELS:
                _beside_triton(model, triton, scratch, settings)


def _head(contenders: Mapping[str, Checkout], settings: Settings) -> None:
    revisions = ", ".join(f"{name} {checkout.revision()}" for name, checkout in contenders.items())
    click.echo(f"bookserve model server: {revisions}; {os.cpu_count()} cores, Python {platform.python_version()}")
    click.echo(f"{settings.rounds} rounds, {settings.seconds} s of load each; medians (minimum..maximum)")
    if settings.flags:
        click.echo(f"flags: {' '.join(settings.flags)}")
    for tool in load_generators.missing():
        package = load_generators.PACKAGES[tool]
        click.echo(f"{tool} is not installed (Debian: apt-get install {package}): what it measures is left out")


def _starts(contenders: Mapping[str, Checkout], store: Path, settings: Settings) -> None:
    names = starts.model_names(store)
    if not names:
        click.echo(f"\n{store} holds no models (make train-all): start is left out")
        return
    click.echo(f"\nstart: {len(names)} models of {store}: {', '.join(names)}")
    try:
        measures: dict[str, Measure] = {}
        for name, checkout in contenders.items():
            question = starts.find_question(checkout, store, settings.flags)
            measures[name] = partial(starts.measure, checkout, store, question, settings.flags)
    except (MeasurementError, OSError) as error:
        click.echo(f"  start        not measured: {error}")
        return
    _compare("start", measures, settings.rounds)


def _model(contenders: Mapping[str, Checkout], model: Model, scratch: Path, settings: Settings) -> None:
    store = _store(model, scratch)
    request = request_files.tensorflow_serving(store, model.name, model.request(), model.answer(store))
    points = [
        *(Point("gRPC", connections) for connections in model.connections),
        *([Point("gRPC", 1, model.streams)] if model.streams else []),
        *(Point("REST", connections) for connections in model.connections),
    ]
    points = _measurable(points)
    _say_how_long(f"{model.name}: {model.what}", len(points) * len(contenders), settings)
    for point in points:
        measures = {
            name: partial(
                _load, partial(checkout.serve, f"--model_root={store}", *settings.flags), request, point, settings
            )
            for name, checkout in contenders.items()
        }
        _compare(str(point), measures, settings.rounds)


def _float_beside_int8(scratch: Path, settings: Settings) -> None:
    """LeNet-5 in float32 and in int8, in turns."""
    points = _measurable([Point(transport, count) for transport in ("gRPC", "REST") for count in _INT8_CONNECTIONS])
    _say_how_long("LeNet-5, float32 beside int8", len(points) * 2, settings)
    served: dict[str, tuple[Serve, RequestFiles]] = {}
    for precision, model in (("float32", benchmark_models.LENET5), ("int8", benchmark_models.LENET5_INT8)):
        store = _store(model, scratch)
        serve = partial(checkouts.own().serve, f"--model_root={store}", *settings.flags)
        request = request_files.tensorflow_serving(store, model.name, model.request(), model.answer(store))
        served[precision] = (serve, request)
    for point in points:
        _compare(
            str(point),
            {name: partial(_load, serve, request, point, settings) for name, (serve, request) in served.items()},
            settings.rounds,
        )


def _pictures(scratch: Path, settings: Settings) -> None:
    """LeNet-5 asked in numbers, with a PNG and with a photograph, in turns."""
    model = benchmark_models.LENET5
    store = _store(model, scratch / "pictures")
    picture_requests.write_manifest(store, model.name)
    requests = picture_requests.requests(store, model.name)
    points = _measurable([Point(transport, _PICTURE_CONNECTIONS) for transport in ("gRPC", "REST")])
    _say_how_long("LeNet-5: numbers, PNG 28x28, JPEG 640x480", len(points) * len(requests), settings)
    serve = partial(checkouts.own().serve, f"--model_root={store}", *settings.flags)
    for point in points:
        _compare(
            str(point),
            {form: partial(_load, serve, request, point, settings) for form, request in requests.items()},
            settings.rounds,
        )


def _beside_triton(model: Model, venv: Path, scratch: Path, settings: Settings) -> None:
    """Triton and this server at 16 connections, and ONNX Runtime alone."""
    store = _store(model, scratch)
    graph = model.graph(store)
    theirs = request_files.open_inference(store, model.name, model.request(), model.answer(store))
    ours = request_files.tensorflow_serving(store, model.name, model.request(), model.answer(store))
    serve_theirs = partial(triton_server.serve, venv, scratch / f"triton-{model.name}", model.name, graph)
    serve_ours = partial(checkouts.own().serve, f"--model_root={store}", *settings.flags)
    points = _measurable([Point(transport, _TRITON_CONNECTIONS) for transport in ("gRPC", "REST")])
    _say_how_long(f"{model.name} beside Triton", len(points) * 2 + 1, settings)
    without_batches = replace(settings, batches=False)
    for point in points:
        measures: dict[str, Measure] = {
            "Triton": partial(_load, serve_theirs, theirs, point, without_batches),
            "bookserve": partial(_load, serve_ours, ours, point, settings),
        }
        if point is points[0]:
            measures["ONNX Runtime"] = partial(_runtime_alone, graph, settings.seconds)
        _compare(str(point), measures, settings.rounds)


def _runtime_alone(graph: Path, seconds: int) -> Figures:
    return {"calls/s": onnx_runtime_alone.pictures_a_second(graph, benchmark_models.PICTURE, seconds)}


def _store(model: Model, scratch: Path) -> Path:
    """A folder that holds this model alone; it is made once."""
    store = scratch / model.name / "models"
    if not store.exists():
        model.write(store / model.name / "1")
    return store


def _measurable(points: Sequence[Point]) -> list[Point]:
    left_out = {"h2load": "gRPC", "wrk": "REST"}
    missing = {left_out[tool] for tool in load_generators.missing()}
    return [point for point in points if point.transport not in missing]


def _say_how_long(what: str, measurements_a_round: int, settings: Settings) -> None:
    minutes = measurements_a_round * settings.rounds * (settings.seconds + _EXTRA_SECONDS) / 60
    click.echo(f"\n{what} (about {minutes:.1f} min)")


def _compare(label: str, measures: Mapping[str, Measure], rounds: int) -> None:
    """Prints the lines of one point, or why there are none."""
    try:
        for line in measurements.lines(label, measurements.in_turns(measures, rounds)):
            click.echo(line)
    except MeasurementError as error:
        click.echo(f"  {label:12s} not measured: {error}")


def _load(serve: Serve, request: RequestFiles, point: Point, settings: Settings) -> Figures:
    """The figures of a server that is started for this load."""
    with serve() as server:
        generator = _generator(server, request, point)
        generator.warm_up()
        page = batch_sizes.read(server.rest_port) if settings.batches else ""
        before = server.thread_seconds()
        load = generator.run(settings.seconds)
        main, others = by_main_thread(before, server.thread_seconds())
        return {
            "calls/s": load.rate,
            "p50 ms": load.p50_ms,
            "p99 ms": load.p99_ms,
            "failed calls": load.failed,
            "main thread us": main / load.calls * 1e6,
            "other threads us": others / load.calls * 1e6,
            "resident MiB": server.resident_mib(),
            **(batch_sizes.between(page, batch_sizes.read(server.rest_port)) if settings.batches else {}),
        }


def _generator(server: Server, request: RequestFiles, point: Point) -> H2load | Wrk:
    answer_bytes = request.check_answer(server.grpc_port)
    if point.transport == "REST":
        return Wrk(request.rest_script, url(server.rest_port, request.rest_path), point.connections)
    address = url(server.grpc_port, request.grpc_method)
    return H2load(request.grpc_body, address, point.connections, point.streams, answer_bytes)


if __name__ == "__main__":
    main()
