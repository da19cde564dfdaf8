"""`make bench`: how fast the model server starts and answers, and how much memory it takes.

Every figure is measured against a real server process on loopback. Start and memory are those of a model store; rates
are those of three models made on the spot: one multiplication, LeNet-5 on one picture a request (the peers' benchmark),
and 10 MiB a request. Rates need generators of load that cost less than the server: h2load (Debian: nghttp2-client) for
gRPC and wrk for REST; without them they are left out. Generator and server share the cores: compare figures of one run.

With `--triton VENV`, a virtual environment that holds nvidia-pytriton and onnxruntime, NVIDIA's Triton serves the same
LeNet-5 by its Python backend in the same run, in turns with this server.
"""

import json
import os
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from bookserve.clients.errors import PredictError
from bookserve.clients.grpc_client import GrpcClient
from bookserve.serving.wire import open_inference_pb2, tensors
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import Array

_HOST = "127.0.0.1"
_STARTS = 7
_CONNECTIONS = (1, 4, 16, 64, 256)
_SECONDS = 4
_WARM_UP_CALLS = 500
_WAIT_SECONDS = 60.0
_RETRY_SECONDS = 0.002
_ROUNDS = 5  # in turns with Triton
_PICTURE = (1, 28, 28, 1)
_BATCH = 16  # of ONNX Runtime alone; with 8 and 32 it is no faster


@dataclass(frozen=True)
class Model:
    """A model made for the benchmark, and what it is asked: `x` float32 of that shape, at these connections."""

    name: str
    what: str
    shape: tuple[int, ...]
    write: Callable[[Path], None]
    connections: tuple[int, ...] = _CONNECTIONS
    calls: int = 12_000


@click.command()
@click.option("--models-dir", default=Path("models"), type=click.Path(path_type=Path), show_default=True)
@click.option("--triton", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="VENV")
@click.option("--flag", "flags", multiple=True, help="A flag of the model server, such as --flag=--workers=2.")
def main(models_dir: Path, triton: Path | None, flags: tuple[str, ...]) -> None:
    """Measure the model server."""
    click.echo(f"bookserve model server, {os.cpu_count()} cores, loopback{''.join(f' {flag}' for flag in flags)}\n")
    if any(models_dir.glob("*/[1-9]*")):
        _starts(models_dir, flags)
    else:
        click.echo(f"{models_dir} holds no models (make train-all): start and memory are left out\n")
    for tool, package in (("h2load", "nghttp2-client"), ("wrk", "wrk")):
        if not shutil.which(tool):
            click.echo(f"{tool} is not installed (Debian: apt-get install {package}): its rates are left out")
    with tempfile.TemporaryDirectory() as scratch:
        for model in MODELS:
            folder = Path(scratch, model.name)
            model.write(folder / model.name / "1")
            _rates(model, folder, flags)
        if triton is not None:
            _beside_triton(Path(scratch), triton, flags)


def _starts(models_dir: Path, flags: tuple[str, ...]) -> None:
    """Medians of the seconds to readiness with all models of the store, and of the MiB resident then."""
    names = sorted({version.parent.name for version in models_dir.glob("*/[1-9]*")})
    seconds, resident = [], []
    for _ in range(_STARTS):
        began = time.perf_counter()
        with _server(f"--model_root={models_dir}", *flags) as server:
            seconds.append(time.perf_counter() - began)
            resident.append(server.resident_mib())
    click.echo(f"{len(names)} models of {models_dir}: {', '.join(names)}")
    click.echo(f"process start to ready  {statistics.median(seconds):6.2f} s    median of {_STARTS}")
    click.echo(f"resident memory         {statistics.median(resident):6.0f} MiB  median of {_STARTS}\n")


# The server


@dataclass(frozen=True)
class Server:
    """A running server, and the processes that it is made of."""

    process: subprocess.Popen[bytes]
    grpc_port: int
    rest_port: int

    def resident_mib(self) -> float:
        """The memory of the process and its children."""
        return sum(_resident_kib(pid) for pid in _family(self.process.pid)) / 1024


@contextmanager
def _server(*flags: str) -> Iterator[Server]:
    grpc_port, rest_port = _free_port(), _free_port()
    ports = [f"--port={grpc_port}", f"--rest_api_port={rest_port}", f"--bind_address={_HOST}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bookserve.clients.command_line", "model-server", *ports, *flags],
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(process, rest_port)
        yield Server(process, grpc_port, rest_port)
    finally:
        process.terminate()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            socket.create_connection((_HOST, port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise click.ClickException(f"the server did not start: {' '.join(map(str, process.args))}") from None  # type: ignore[arg-type]
            time.sleep(_RETRY_SECONDS)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in _family(int(child)))]


def _resident_kib(pid: int) -> int:
    return int(_found(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


# Rates


def _rates(model: Model, folder: Path, flags: tuple[str, ...]) -> None:
    x = np.random.default_rng(0).random(model.shape, np.float32).round(4)
    grpc_body, rest_body = _tensorflow_serving_bodies(folder, model.name, x)
    with _server(f"--model_root={folder}", *flags) as server:
        _check_answer(server, model.name, x)
        click.echo(f"{model.name}: {model.what}")
        click.echo("  connections   gRPC calls/s   mean       failed   REST calls/s   p50       p99")
        for connections in model.connections:
            grpc_rate, mean, failed = _h2load(
                grpc_body,
                server.grpc_port,
                "tensorflow.serving.PredictionService/Predict",
                connections,
                model.calls,
            )
            rest_rate, median, tail = _wrk(rest_body, server.rest_port, f"v1/models/{model.name}:predict", connections)
            grpc_columns = f"{grpc_rate:12s}   {mean:8s}   {failed:6s}"
            click.echo(f"  {connections:11d}   {grpc_columns}   {rest_rate:12s}   {median:8s}  {tail}")
        click.echo(f"  resident memory {server.resident_mib():.0f} MiB\n")


def _check_answer(server: Server, name: str, x: Array) -> None:
    with GrpcClient(f"{_HOST}:{server.grpc_port}") as client:
        try:
            client.predict(name, {"x": x})
        except PredictError as error:
            raise click.ClickException(f"the server does not answer: {error}") from error


def _tensorflow_serving_bodies(folder: Path, name: str, x: Array) -> tuple[Path, Path]:
    request = messages.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tensors.to_proto(x))
    return _bodies(folder, "tensorflow-serving", request.SerializeToString(), {"instances": x.tolist()})


def _open_inference_bodies(folder: Path, name: str, x: Array) -> tuple[Path, Path]:
    request = open_inference_pb2.ModelInferRequest(model_name=name, raw_input_contents=[x.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    return _bodies(folder, "open-inference", request.SerializeToString(), {"inputs": [tensor]})


def _bodies(folder: Path, form: str, message: bytes, value: Mapping[str, Any]) -> tuple[Path, Path]:
    """The files that the generators of load send: a gRPC message with its prefix, and a script with a JSON body."""
    grpc_body, rest_body, script = (folder / f"{form}.{suffix}" for suffix in ("grpc", "json", "lua"))
    grpc_body.write_bytes(struct.pack(">BL", 0, len(message)) + message)
    rest_body.write_text(json.dumps(value))
    script.write_text(f"wrk.method = 'POST'\nlocal file = io.open('{rest_body}')\nwrk.body = file:read('*a')\n")
    return grpc_body, script


def _h2load(body: Path, port: int, method: str, connections: int, calls: int) -> tuple[str, str, str]:
    """Calls a second, the mean time of a call and how many failed; dashes without h2load."""
    if not shutil.which("h2load"):
        return "-", "-", "-"
    command = ["h2load", "-t", "1", "-d", str(body), "-H", "content-type: application/grpc", "-H", "te: trailers"]
    url = f"http://{_HOST}:{port}/{method}"
    _output(*command, "-c", str(connections), "-n", str(max(connections, min(calls, _WARM_UP_CALLS))), url)
    output = _output(*command, "-c", str(connections), "-n", str(max(connections, calls)), url)
    rate = float(_found(r"([\d.]+) req/s", output))
    mean = _found(r"time for request:\s+\S+\s+\S+\s+(\S+)", output)
    return f"{rate:.0f}", mean, _found(r"(\d+) failed", output)


def _wrk(script: Path, port: int, path: str, connections: int) -> tuple[str, str, str]:
    """Requests a second, the median and the 99th percentile of their times; dashes without wrk."""
    if not shutil.which("wrk"):
        return "-", "-", "-"
    command = ["wrk", "-t1", f"-c{connections}", "--latency", "--timeout=30s", "-s", str(script)]
    url = f"http://{_HOST}:{port}/{path}"
    _output(*command, "-d1s", url)
    output = _output(*command, f"-d{_SECONDS}s", url)
    if "Non-2xx" in output:
        raise click.ClickException(f"the server refused requests:\n{output}")
    rate = float(_found(r"Requests/sec:\s+(\S+)", output))
    return f"{rate:.0f}", _found(r"^ +50% +(\S+)", output), _found(r"^ +99% +(\S+)", output)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise click.ClickException(f"something unexpected was printed:\n{text}")
    return match[1]


# Beside Triton

_TRITON_CONFIG = """name: "lenet5"
backend: "python"
max_batch_size: 64
input [{ name: "x" data_type: TYPE_FP32 dims: [28, 28, 1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [10] }]
dynamic_batching { max_queue_delay_microseconds: 500 }
instance_group [{ count: 1 kind: KIND_CPU }]
"""
_TRITON_MODEL = """import sys
sys.path.insert(0, {site!r})
import numpy as np
import onnxruntime
import triton_python_backend_utils as backend

class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession({graph!r}, options)

    def execute(self, requests):
        arrays = [backend.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        (y,) = self.session.run(None, {{"x": np.concatenate(arrays)}})
        parts = np.split(y, np.cumsum([len(array) for array in arrays])[:-1])
        return [backend.InferenceResponse(output_tensors=[backend.Tensor("y", part)]) for part in parts]
"""


def _beside_triton(scratch: Path, venv: Path, flags: tuple[str, ...]) -> None:
    """LeNet-5 at 16 connections by both servers in turns, and by ONNX Runtime alone."""
    folder = scratch / "lenet5"
    x = np.random.default_rng(0).random(_PICTURE, np.float32).round(4)
    ours = _tensorflow_serving_bodies(folder, "lenet5", x)
    theirs = _open_inference_bodies(folder, "lenet5", x)
    figures: dict[str, list[float]] = {}
    for _ in range(_ROUNDS):
        with _server(f"--model_root={folder}", *flags) as server:
            method, path = "tensorflow.serving.PredictionService/Predict", "v1/models/lenet5:predict"
            _compare(figures, "bookserve", ours, (server.grpc_port, method), (server.rest_port, path))
        with _triton(scratch, venv, folder / "lenet5" / "1" / "model.onnx") as (grpc_port, rest_port):
            method, path = "inference.GRPCInferenceService/ModelInfer", "v2/models/lenet5/infer"
            _compare(figures, "Triton", theirs, (grpc_port, method), (rest_port, path))
        figures.setdefault("ONNX Runtime pictures/s", []).append(_runtime_alone(folder / "lenet5" / "1" / "model.onnx"))
    click.echo(f"lenet5 at 16 connections, medians of {_ROUNDS} rounds in turns")
    for name, measured in figures.items():
        click.echo(f"  {name:25s} {statistics.median(measured):8.1f}  of {min(measured):.1f} to {max(measured):.1f}")


def _compare(
    figures: dict[str, list[float]], name: str, bodies: tuple[Path, Path], grpc: tuple[int, str], rest: tuple[int, str]
) -> None:
    if shutil.which("h2load"):
        figures.setdefault(f"{name} gRPC calls/s", []).append(float(_h2load(bodies[0], *grpc, 16, 12_000)[0]))
    if shutil.which("wrk"):
        rate, _, slowest = _wrk(bodies[1], *rest, 16)
        figures.setdefault(f"{name} REST requests/s", []).append(float(rate))
        figures.setdefault(f"{name} REST p99 ms", []).append(_milliseconds(slowest))


def _runtime_alone(graph: Path) -> float:
    """Pictures a second of ONNX Runtime with a thread for each core, in batches and without any server."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options)
    batch = np.zeros((_BATCH, *_PICTURE[1:]), np.float32)
    end = time.monotonic() + _SECONDS

    def run(_: int) -> int:
        batches = 0
        while time.monotonic() < end:
            session.run(None, {"x": batch})
            batches += 1
        return batches

    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(run, range(threads))) * _BATCH / _SECONDS


def _milliseconds(text: str) -> float:
    """A time as wrk prints it, such as 870.00us."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


@contextmanager
def _triton(scratch: Path, venv: Path, graph: Path) -> Iterator[tuple[int, int]]:
    site = next(venv.glob("lib/python3*/site-packages"))
    home = site / "pytriton" / "tritonserver"
    version = site.parent.name.removeprefix("python")
    stub = home / "backends" / "python" / "triton_python_backend_stub"
    if not stub.exists():
        shutil.copy(home / "python_backend_stubs" / version / stub.name, stub)
    for program in (stub, home / "bin" / "tritonserver"):
        program.chmod(0o755)
    repository = scratch / "triton"
    (repository / "lenet5" / "1").mkdir(parents=True, exist_ok=True)
    (repository / "lenet5" / "config.pbtxt").write_text(_TRITON_CONFIG)
    (repository / "lenet5" / "1" / "model.py").write_text(_TRITON_MODEL.format(site=str(site), graph=str(graph)))
    libraries = _output(
        str(venv / "bin" / "python"), "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    )
    grpc_port, rest_port, metrics_port = _free_port(), _free_port(), _free_port()
    process = subprocess.Popen(
        [
            *(home / "bin" / "tritonserver", f"--model-repository={repository}"),
            *(f"--backend-directory={home / 'backends'}", f"--http-port={rest_port}", f"--http-address={_HOST}"),
            *(f"--grpc-port={grpc_port}", f"--grpc-address={_HOST}", f"--metrics-port={metrics_port}"),
        ],
        env=os.environ | {"LD_LIBRARY_PATH": f"{libraries.strip()}:{site / 'nvidia_pytriton.libs'}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(process, rest_port)
        yield grpc_port, rest_port
    finally:
        for pid in _family(process.pid):  # its own stop waits for connections, and its death leaves its children
            os.kill(pid, signal.SIGKILL)
        process.wait()


# The models


def _write_multiplication(version: Path) -> None:
    from onnx import TensorProto, helper

    node = helper.make_node("Mul", ["x", "two"], ["y"])
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    _write(version, [node], [two], ["n", None], ["n", None])


def _write_lenet5(version: Path) -> None:
    """The network of chapter 6 with random weights, pictures [n, 28, 28, 1]."""
    from onnx import helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {"conv1": (32, 1, 5, 5), "conv2": (64, 32, 5, 5), "dense1": (3136, 512), "dense2": (512, 10)}
    values = []
    for name, shape in weights.items():
        outputs = shape[0] if len(shape) == 4 else shape[1]
        values.append(numpy_helper.from_array(random.normal(0, 0.05, shape).astype(np.float32), name))
        values.append(numpy_helper.from_array(np.zeros(outputs, np.float32), f"{name}_bias"))
    values.append(numpy_helper.from_array(np.array([0, 1, 28, 28], np.int64), "planes"))
    values.append(numpy_helper.from_array(np.array([0, 3136], np.int64), "flat"))

    def convolution(name: str, source: str) -> list[Any]:
        return [
            helper.make_node("Conv", [source, name, f"{name}_bias"], [f"{name}_sum"], pads=[2] * 4),
            helper.make_node("Relu", [f"{name}_sum"], [f"{name}_relu"]),
            helper.make_node("MaxPool", [f"{name}_relu"], [f"{name}_pool"], kernel_shape=[2, 2], strides=[2, 2]),
        ]

    nodes = [
        helper.make_node("Reshape", ["x", "planes"], ["x_planes"]),
        *convolution("conv1", "x_planes"),
        *convolution("conv2", "conv1_pool"),
        helper.make_node("Reshape", ["conv2_pool", "flat"], ["features"]),
        helper.make_node("Gemm", ["features", "dense1", "dense1_bias"], ["dense1_sum"]),
        helper.make_node("Relu", ["dense1_sum"], ["dense1_relu"]),
        helper.make_node("Gemm", ["dense1_relu", "dense2", "dense2_bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["y"]),
    ]
    _write(version, nodes, values, ["n", *_PICTURE[1:]], ["n", 10])


def _write_sums(version: Path) -> None:
    from onnx import TensorProto, helper

    node = helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=0)
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    _write(version, [node], [axis], ["n", None], ["n"])


def _write(version: Path, nodes: list[Any], values: list[Any], x: list[Any], y: list[Any]) -> None:
    import onnx
    from onnx import TensorProto, helper

    inputs, outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", y))
    )
    graph = helper.make_graph(nodes, "benchmark", [inputs], [outputs], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    version.mkdir(parents=True)
    onnx.save(model, version / "model.onnx")


MODELS = (
    Model("multiplication", "one multiplication of 3 numbers", (1, 3), _write_multiplication),
    Model("lenet5", "LeNet-5, one 28x28 float32 picture a request", _PICTURE, _write_lenet5),
    Model("sums", "10 MiB a request, 256 rows of 10,240 float32", (256, 10_240), _write_sums, (1, 4), 100),
)


if __name__ == "__main__":
    main()
