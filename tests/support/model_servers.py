"""Real model servers on loopback, and small ONNX models made on the spot."""

import itertools
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
CRASH = re.compile(r"the server \(process \d+\) died of")  # as its supervisor tells
_numbers = itertools.count(os.getpid() * 97)  # each process of tests begins somewhere else


def free_port() -> int:
    """A port that nothing listens on, below those that the system gives to connections."""
    while True:
        port = 10_000 + next(_numbers) % 22_000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def write_scale_model(base: Path, version: int, factor: float, *, width: int | None = 3) -> Path:
    """`y = factor * x` for x float32 [n, width], written as TensorFlow Serving's bare version folder, atomically."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width or "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width or "w"])],
        [numpy_helper.from_array(np.float32(factor), "factor")],
    )
    return write_graph(base, version, graph)


def write_echo_model(base: Path, version: int, data_types: dict[str, TensorProto.DataType]) -> Path:
    """`out_NAME = in_NAME` for each name, of that type, [n, w]."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in data_types],
        "echo",
        [helper.make_tensor_value_info(f"in_{name}", number, ["n", "w"]) for name, number in data_types.items()],
        [helper.make_tensor_value_info(f"out_{name}", number, ["n", "w"]) for name, number in data_types.items()],
    )
    return write_graph(base, version, graph)


def write_graph(base: Path, version: int, graph: onnx.GraphProto) -> Path:
    model = helper.make_model(graph, opset_imports=_OPSETS, ir_version=10)
    onnx.checker.check_model(model)
    scratch = base / f"{version}.tmp"
    scratch.mkdir(parents=True)
    onnx.save(model, scratch / "model.onnx")
    return scratch.rename(base / str(version))


@dataclass
class Server:
    process: subprocess.Popen[str]
    grpc_port: int
    rest_port: int
    log: Path
    supervised: bool = False
    may_crash: bool = False  # else a crash, after which the server answers again, fails the test in the end

    @property
    def pid(self) -> int:
        """The process that answers, or leads its workers: of a supervised server the child."""
        started = self.process.pid
        children = Path(f"/proc/{started}/task/{started}/children").read_text() if self.supervised else ""
        return int(children or started)

    @property
    def crashes(self) -> list[str]:
        """The lines of the log that tell of one."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if CRASH.search(line)]

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20.0) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def kill(self) -> None:
        """Ends it at once; nothing of it runs any more."""
        pid = self.pid
        self.process.kill()
        self.process.wait()
        wait_until(lambda: not runs(pid), "the process that answers is gone")


def runs(pid: int) -> bool:
    """Whether there is such a process, and a thread of it has not ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return state != "Z" or int(rest[16]) > 1


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def answers(url: str, context: ssl.SSLContext | None = None) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as response:
            return bool(response.status == 200)
    except OSError:
        return False


StartServer = Callable[..., Server]


@contextmanager
def server_starter(folder: Path) -> Iterator[StartServer]:
    """A function that starts model servers with flags; all that still run at the end are killed.

    A variable of `environment` that is None is not set.
    """
    servers: list[Server] = []

    def start(*flags: str, wait: bool = True, environment: Mapping[str, str | None] | None = None) -> Server:
        grpc_port, rest_port = free_port(), free_port()
        log = folder / f"server-{len(servers)}.log"
        arguments = [f"--port={grpc_port}", f"--rest_api_port={rest_port}", "--bind_address=127.0.0.1", *flags]
        # This process may have turned TensorFlow's log off, which would be the server's, too.
        chosen = {"PYTHONWARNINGS": "error", "TF_CPP_MIN_LOG_LEVEL": "0", **(environment or {})}
        variables = {name: value for name, value in {**os.environ, **chosen}.items() if value is not None}
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "bookserve.clients.command_line", "model-server", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env=variables,
            )
        supervised = sys.platform == "linux" and not any(
            flag.startswith(("--workers", "--supervise")) for flag in flags
        )
        server = Server(process, grpc_port, rest_port, log, supervised)
        servers.append(server)
        if wait:

            def up() -> bool:
                assert process.poll() is None, log.read_text()
                return answers(f"{server.url}/readyz")

            wait_until(up, "the server is ready", seconds=120)
        return server

    try:
        yield start
    finally:
        for server in servers:
            if server.process.poll() is None:
                server.kill()
            assert server.may_crash or not server.crashes, server.log.read_text(errors="replace")


def start_again(start: StartServer, gone: Server) -> Server:
    """A new server on the ports of one that has ended, ready."""
    server = start(f"--port={gone.grpc_port}", f"--rest_api_port={gone.rest_port}", wait=False)
    server.grpc_port, server.rest_port = gone.grpc_port, gone.rest_port
    wait_until(lambda: answers(f"{server.url}/readyz"), "the server is back", seconds=60)
    return server
