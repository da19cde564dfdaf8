"""`make bench`: how fast the model server starts and answers, and how much memory it takes.

Every figure is measured against a real server process on loopback that serves a model store. Rates need a generator
of load that costs less than the server: h2load (Debian: nghttp2-client) for gRPC and wrk for REST; without them the
rates are left out. Generator and server share the cores, so compare figures of one run only.
"""

import json
import os
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

from bookserve.clients.errors import PredictError
from bookserve.clients.grpc_client import GrpcClient
from bookserve.export.contracts import MNIST
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import to_proto

_HOST = "127.0.0.1"
_STARTS = 7
_CONNECTIONS = (1, 4, 16, 64, 256)
_GRPC_CALLS = 20_000
_REST_SECONDS = 4
_RETRY_SECONDS = 0.002


@click.command()
@click.option("--models-dir", default=Path("models"), type=click.Path(path_type=Path), show_default=True)
def main(models_dir: Path) -> None:
    """Measure the model server on the MNIST model of a store."""
    if not (models_dir / "mnist").is_dir():
        raise click.ClickException(f"{models_dir} holds no model 'mnist': run make train-all first")
    image = np.zeros((1, 28, 28), np.uint8)
    image[:, 6:22, 10:18] = np.random.default_rng(0).integers(0, 256, (16, 8))
    click.echo(f"model server, mnist from {models_dir}, one image a request, {os.cpu_count()} cores, loopback\n")
    seconds, resident = _starts(models_dir, image)
    click.echo(f"process start to first answer  {seconds:6.2f} s    median of {_STARTS}")
    click.echo(f"resident memory after it       {resident:6.0f} MiB  median of {_STARTS}\n")
    with tempfile.TemporaryDirectory() as scratch, _server(models_dir) as (_, grpc_port, rest_port):
        _first_answer(grpc_port, image)
        if shutil.which("h2load"):
            _grpc_rates(Path(scratch), grpc_port, image)
        else:
            click.echo("no gRPC rates: h2load is not installed (Debian: apt-get install nghttp2-client)")
        if shutil.which("wrk"):
            _rest_rates(Path(scratch), rest_port, image)
        else:
            click.echo("no REST rates: wrk is not installed (Debian: apt-get install wrk)")


def _starts(models_dir: Path, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> tuple[float, float]:
    """Medians of the seconds to the first answer and of the MiB resident after it."""
    seconds, resident = [], []
    for _ in range(_STARTS):
        began = time.perf_counter()
        with _server(models_dir) as (process, grpc_port, _):
            _first_answer(grpc_port, image)
            seconds.append(time.perf_counter() - began)
            resident.append(_resident_mib(process.pid))
    return statistics.median(seconds), statistics.median(resident)


@contextmanager
def _server(models_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    grpc_port, rest_port = _free_port(), _free_port()
    flags = [f"--port={grpc_port}", f"--rest_api_port={rest_port}", f"--bind_address={_HOST}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bookserve.clients.command_line", "model-server", *flags, f"--model_root={models_dir}"],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process, grpc_port, rest_port
    finally:
        process.terminate()
        process.wait()


def _first_answer(port: int, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    while True:
        try:
            socket.create_connection((_HOST, port), 1).close()
            break
        except OSError:
            time.sleep(_RETRY_SECONDS)
    with GrpcClient(f"{_HOST}:{port}") as client:
        try:
            client.predict("mnist", {"images": image})
        except PredictError as error:
            raise click.ClickException(f"the server does not answer: {error}") from error


def _grpc_rates(scratch: Path, port: int, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    request = messages.PredictRequest()
    request.model_spec.name = MNIST.model
    request.inputs["images"].CopyFrom(to_proto(image))
    message = request.SerializeToString()
    body = scratch / "request"
    body.write_bytes(struct.pack(">BL", 0, len(message)) + message)
    click.echo("gRPC  connections   calls/s   mean    failed")
    for connections in _CONNECTIONS:
        output = _output(
            *("h2load", "-n", str(_GRPC_CALLS), "-c", str(connections), "-t", "1", "-d", str(body)),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
            f"http://{_HOST}:{port}/tensorflow.serving.PredictionService/Predict",
        )
        rate = _found(r"([\d.]+) req/s", output)
        failed = _found(r"(\d+) failed", output)
        mean = _found(r"time for request:\s+\S+\s+\S+\s+(\S+)", output)
        click.echo(f"      {connections:11d}  {float(rate):8.0f}  {mean:>7}  {failed:>5}")


def _rest_rates(scratch: Path, port: int, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    script = scratch / "post.lua"
    script.write_text(f"wrk.method = 'POST'\nwrk.body = '{json.dumps({'instances': image.tolist()})}'\n")
    click.echo("REST  connections   calls/s   p50      p99")
    for connections in _CONNECTIONS:
        output = _output(
            *("wrk", "-t1", f"-c{connections}", f"-d{_REST_SECONDS}s", "--latency", "-s", str(script)),
            f"http://{_HOST}:{port}/v1/models/mnist:predict",
        )
        if "Non-2xx" in output:
            raise click.ClickException(f"the server refused requests:\n{output}")
        rate = _found(r"Requests/sec:\s+(\S+)", output)
        median, tail = _found(r"^ +50% +(\S+)", output), _found(r"^ +99% +(\S+)", output)
        click.echo(f"      {connections:11d}  {float(rate):8.0f}  {median:>7}  {tail:>7}")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise click.ClickException(f"the load generator printed something unexpected:\n{text}")
    return match[1]


def _resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(_found(r"VmRSS:\s+(\d+) kB", status)) / 1024


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
