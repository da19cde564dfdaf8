"""An upgrade from older code without downtime: its store is served, today's versions come beside its own, and its
servers give way to today's one by one, while everybody asks.

`tests/data/store_before_contracts` was written by the code of the commit BEFORE, the last one whose manifests named a
contract instead of holding it: `bookserve train-all --profile=smoke --data=sample linear`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from clients_under_load import Clients, Question
from haproxy import HAPROXY, Haproxy, haproxy

from bookserve.clients.grpc_client import predict_request
from bookserve.serving.wire import tensors
from bookserve.serving.wire.tensorflow_serving_pb2 import PredictResponse
from gateway_pages import gateway
from model_servers import Server, answers, free_port, server_starter, wait_until

ROOT = Path(__file__).resolve().parents[2]
OLD_STORE = ROOT / "tests" / "data" / "store_before_contracts"
BEFORE = "315d876567c2"
BOOKSERVE = str(Path(sys.executable).with_name("bookserve"))
FLAGS = ("--enable_grpc_healthcheck_service", "--drain_seconds=10", "--drain_quiet_seconds=2")


def is_line(value: float) -> bool:
    """Whether it is what the line of the training says for 0.5: 5 * 0.5 + 2."""
    return abs(value - 4.5) < 0.3


def right(response: PredictResponse) -> bool:
    return is_line(float(tensors.to_array(response.outputs["y"])[0]))


LINEAR = Question(
    predict_request("linear", {"x": np.array([[0.5]], np.float32)}, None, None, None).SerializeToString(),
    "/v1/models/linear:predict",
    b'{"inputs": {"x": [[0.5]]}}',
    right,
    lambda answer: is_line(answer["outputs"][0]),
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_STORE, tmp_path / "models"))


def add_version(store: Path) -> None:
    """Today's code makes the next version of the same graph."""
    graph = store / "linear" / "1" / "assets.extra" / "model.onnx"
    command = [BOOKSERVE, "models", "add", "linear", str(graph), "--task=regression", f"--models-dir={store}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def asked_of_gateway(url: str, body: bytes) -> int:
    """The version that answers there."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/v1/linear", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read()) from error
    return int(answer["version"])


def schema(store: Path, version: int) -> int:
    """Of the manifest; older ones do not tell it."""
    manifest = json.loads((store / "linear" / str(version) / "assets.extra" / "manifest.json").read_text())
    return int(manifest.get("schema", 1))


@pytest.mark.slow
def test_a_store_of_older_code_is_served_and_gets_versions_of_today(store: Path, tmp_path: Path) -> None:
    with server_starter(tmp_path) as start:
        server = start(*FLAGS, f"--model_root={store}")
        with (
            Clients(server.target, server.rest_port, LINEAR) as clients,
            gateway(server.target, tmp_path, "--log-level=error") as url,
        ):
            # A manifest that only names its contract does not say what to make of numbers: tensors are asked.
            assert asked_of_gateway(url, b'{"instances": [[0.5]]}') == 1
            add_version(store)
            wait_until(lambda: clients.versions[2] > 100, "version 2 answers", seconds=60)
            assert asked_of_gateway(url, b'{"x": [0.5]}') == 2
        print(f"\nversions {dict(clients.versions)}: {clients}")  # noqa: T201
        assert clients.failed == []
    assert (schema(store, 1), schema(store, 2)) == (1, 2)
    verified = subprocess.run([BOOKSERVE, "models", "verify", "--all", f"--models-dir={store}"], timeout=120)
    assert verified.returncode == 0


@contextmanager
def older_code(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which `bookserve` is that of the commit BEFORE."""
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "cat-file", "-e", f"{BEFORE}^{{commit}}"], capture_output=True).returncode:
        pytest.skip(f"the commit {BEFORE} is not in this clone")
    tree = folder / "tree"
    subprocess.run([*git, "worktree", "add", "--quiet", "--detach", tree, BEFORE], check=True, timeout=120)
    try:
        (folder / "path" / "bookserve").mkdir(parents=True)
        for room in ("training", "export", "serving", "clients"):
            (folder / "path" / "bookserve" / room).symlink_to(tree / room)
        yield os.environ | {"PYTHONPATH": str(folder / "path")}
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", tree], check=True, timeout=120)


def start_older(environment: dict[str, str], store: Path, log: Path) -> Server:
    """A model server of older code, ready."""
    code = (
        "import bookserve.serving.server.main as program; print(program.__file__, flush=True);"
        "from bookserve.clients.command_line import main; main()"
    )
    grpc_port, rest_port = free_port(), free_port()
    flags = [f"--port={grpc_port}", f"--rest_api_port={rest_port}", "--bind_address=127.0.0.1", *FLAGS]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "model-server", f"--model_root={store}", *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
    server = Server(process, grpc_port, rest_port, log)
    wait_until(lambda: answers(f"{server.url}/readyz"), "the older server is ready", seconds=60)
    assert environment["PYTHONPATH"] in log.read_text() or "/tree/" in log.read_text(), log.read_text()[:500]
    return server


@pytest.mark.slow
@pytest.mark.skipif(not HAPROXY, reason="HAProxy is not installed: apt-get install haproxy")
def test_servers_of_older_code_give_way_to_todays_under_load(store: Path, tmp_path: Path) -> None:
    (tmp_path / "proxy").mkdir()
    with older_code(tmp_path) as environment, server_starter(tmp_path) as start:
        older = [start_older(environment, store, tmp_path / f"older-{number}.log") for number in range(2)]
        try:
            with (
                haproxy(tmp_path / "proxy", older) as proxy,
                Clients(proxy.grpc_target, proxy.rest_port, LINEAR) as clients,
            ):
                for server in older:
                    server.process.send_signal(signal.SIGTERM)
                    assert server.process.wait(40) == 0
                    clients.go_on()
                    start(
                        *FLAGS,
                        f"--model_root={store}",
                        f"--port={server.grpc_port}",
                        f"--rest_api_port={server.rest_port}",
                        wait=False,
                    )
                    for backend in ("model-server-grpc", "model-server-rest"):
                        wait_until(partial(both, proxy, backend), "the new server is asked", seconds=60)
                    clients.go_on()
                add_version(store)
                wait_until(lambda: clients.versions[2] > 100, "a version of today answers", seconds=60)
            print(f"\nolder servers replaced, versions {dict(clients.versions)}: {clients}")  # noqa: T201
            assert clients.failed == []
        finally:
            for server in older:
                if server.process.poll() is None:
                    server.process.kill()
                    server.process.wait(20)


def both(proxy: Haproxy, backend: str) -> bool:
    return len(proxy.healthy(backend)) == 2
