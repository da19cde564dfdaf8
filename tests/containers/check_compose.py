"""The images and docker/compose.yaml: built, brought up with sample models, asked for every model, stopped.

`make test-containers` runs this file; its name keeps it out of `make test`. It needs Docker with the compose plugin, or
buildah, podman and docker-compose with DOCKER_HOST naming podman's socket.
"""

import json
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from book_contracts import CONTRACTS
from bookserve.clients.gateway_client import GatewayClient
from bookserve.clients.grpc_client import GrpcClient
from bookserve.clients.inputs import boards, molecules, pictures
from bookserve.clients.rest_client import RestClient
from bookserve.training.models import MODELS
from model_servers import answers, free_port, wait_until

pytestmark = pytest.mark.timeout(3600)

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker" / "compose.yaml"
TARGETS = ("model-server", "gateway", "training")
SERVERS = ("model-server", "gateway")
SEVEN = ROOT / "clients" / "examples" / "seven.png"
BOARD = ["X", "", "O", "", "X", "", "", "", ""]
TAG = "check"


@dataclass(frozen=True)
class Example:
    """One input of a model: as tensors for the model server, and as the gateway's call."""

    tensors: Callable[[], dict[str, npt.NDArray[Any]]]
    ask_gateway: Callable[[GatewayClient], dict[str, Any]]


def ethanol() -> dict[str, npt.NDArray[Any]]:
    """A molecule as tensors."""
    means = CONTRACTS["tox21"].preprocessing
    assert means is not None
    return {name: row[None] for name, row in molecules.features("CCO", means).items()}


EXAMPLES: Mapping[str, Example] = {
    "linear": Example(lambda: {"x": np.array([[0.5]], np.float32)}, lambda gateway: gateway.linear([0.5])),
    "logistic": Example(
        lambda: {"x": np.array([[0.5, -1]], np.float32)}, lambda gateway: gateway.logistic([[0.5, -1]])
    ),
    "tox21": Example(ethanol, lambda gateway: gateway.tox21(["CCO"])),
    "mnist": Example(lambda: {"images": pictures.digit(SEVEN)[None]}, lambda gateway: gateway.mnist([SEVEN])),
    "ptb": Example(lambda: {"tokens": np.array([[1, 2, 3]], np.int32)}, lambda gateway: gateway.ptb(["the stock"])),
    "cifar10": Example(lambda: {"images": pictures.photo(SEVEN)[None]}, lambda gateway: gateway.cifar10([SEVEN])),
    "tictactoe": Example(lambda: {"board": boards.planes(BOARD)[None]}, lambda gateway: gateway.tictactoe([BOARD])),
}


class Engine:
    """Docker, or podman behind its Docker-compatible socket, and the compose command that goes with it."""

    def __init__(self) -> None:
        self.cli = "podman" if "podman" in os.environ.get("DOCKER_HOST", "") else "docker"
        if self.cli == "docker" and not (shutil.which("docker") and _succeeds("docker", "version")):
            pytest.exit(
                "no container engine: install Docker with its compose plugin; or buildah, podman and docker-compose, "
                "with DOCKER_HOST=unix:///run/podman/podman.sock and 'podman system service' running",
                returncode=2,
            )
        plugin = self.cli == "docker" and _succeeds("docker", "compose", "version")
        self._compose = ["docker", "compose"] if plugin else ["docker-compose"]
        self.project = f"bookserve-check-{uuid.uuid4().hex[:8]}"
        self.grpc_port, self.rest_port, self.gateway_port = free_port(), free_port(), free_port()
        self._environment = os.environ | {
            "COMPOSE_PROJECT_NAME": self.project,
            "TAG": TAG,
            "PROFILE": "smoke",
            "DATA": "sample",
            "BIND": "127.0.0.1",
            "GRPC_PORT": str(self.grpc_port),
            "REST_PORT": str(self.rest_port),
            "GATEWAY_PORT": str(self.gateway_port),
        }
        for unset in ("DATA_DIR", "MODEL_SERVER", "MODEL_SERVER_REST"):
            self._environment.pop(unset, None)

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    def build(self, target: str) -> None:
        """Docker's own builder where there is one, else buildah, whose own format knows no HEALTHCHECK."""
        build = ["docker", "build"] if self.cli == "docker" else ["buildah", "bud", "--format=docker", "--layers"]
        pull = [] if self.cli == "docker" else ["--pull=false"]
        named = [f"--target={target}", f"--tag=bookserve-{target}:{TAG}", "--file=docker/Dockerfile"]
        subprocess.run([*build, *pull, *named, "."], cwd=ROOT, check=True, timeout=3000)

    def compose(self, *arguments: str, seconds: float = 600) -> str:
        """What docker-compose printed; it fails when that did."""
        command = [*self._compose, f"--file={COMPOSE_FILE}", "--profile=cpu", *arguments]
        done = subprocess.run(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
        return done.stdout

    def container(self, service: str) -> str:
        return self.compose("ps", "--quiet", *(["--all"] if "compose" in self._compose else []), service).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        output = subprocess.run(
            [self.cli, "inspect", self.container(service)], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        described: dict[str, Any] = json.loads(output)[0]
        return described

    def execute(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.cli, "exec", self.container(service), *command], capture_output=True, text=True, timeout=60
        )

    def volumes(self) -> list[str]:
        listed = subprocess.run(
            [self.cli, "volume", "ls", "--format={{.Name}}"], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        return [name for name in listed.split() if name.startswith(self.project)]


class HealthTimer:
    """Stands in for systemd, whose timers run podman's health checks, on a machine that has podman but no systemd."""

    def __init__(self, engine: Engine) -> None:
        self._needed = engine.cli == "podman" and not Path("/run/systemd/system").is_dir()
        self._label = f"label=com.docker.compose.project={engine.project}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        if self._needed:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._needed:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(2):
            running = subprocess.run(
                ["podman", "ps", "--quiet", "--filter", self._label], capture_output=True, text=True, timeout=60
            ).stdout.split()
            for container in running:
                subprocess.run(["podman", "healthcheck", "run", container], capture_output=True, timeout=60)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The images, built; at the end nothing of the project is left but them."""
    engine = Engine()
    for target in TARGETS:
        engine.build(target)
    try:
        with HealthTimer(engine):
            yield engine
    finally:
        engine.compose("down", "--volumes", "--timeout=20")
    assert engine.volumes() == []


@pytest.fixture(scope="module")
def trained(engine: Engine) -> Engine:
    """The whole profile, up, with a version of every model in the store."""
    engine.compose("up", "--detach", "--no-build", seconds=1800)

    def ended() -> bool:
        return bool(engine.inspect("train")["State"]["Status"] == "exited")

    wait_until(ended, "the training ends", seconds=1800)
    assert engine.inspect("train")["State"]["ExitCode"] == 0, engine.compose("logs", "train")
    return engine


def unready_models(engine: Engine) -> dict[str, str]:
    """The models that cannot answer, and why."""
    known = {model["name"]: model for model in GatewayClient(engine.gateway_url).models()}
    away = [name for name in MODELS if name not in known or not known[name]["ready"]]
    return {name: known[name]["reason"] if name in known else "not in the store" for name in away}


def test_both_servers_start_on_an_empty_store_and_the_gateway_is_unready(engine: Engine) -> None:
    engine.compose("up", "--detach", "--no-build", *SERVERS)
    wait_until(lambda: answers(f"{engine.gateway_url}/healthz"), "the gateway listens", seconds=60)
    assert _status(f"{engine.rest_url}/readyz") == 200
    assert _status(f"{engine.gateway_url}/readyz") == 503


def test_every_model_is_trained_and_picked_up(trained: Engine) -> None:
    end = time.monotonic() + 60
    while (unready := unready_models(trained)) and time.monotonic() < end:
        time.sleep(0.5)
    assert unready == {}
    assert _status(f"{trained.rest_url}/readyz") == 200
    assert _status(f"{trained.gateway_url}/readyz") == 200


@pytest.mark.parametrize("model", list(MODELS))
def test_a_prediction_over_grpc_rest_and_the_gateway(trained: Engine, model: str) -> None:
    example = EXAMPLES[model]
    contract = CONTRACTS[model]
    tensors = example.tensors()
    with GrpcClient(f"127.0.0.1:{trained.grpc_port}") as client:
        over_grpc = client.predict(model, tensors)
    over_rest = RestClient(trained.rest_url).predict(model, tensors)
    through_gateway = example.ask_gateway(GatewayClient(trained.gateway_url))
    assert over_grpc.outputs.keys() == {tensor.name for tensor in contract.outputs}
    for tensor in contract.outputs:
        value = over_grpc.outputs[tensor.name]
        assert value.dtype == tensor.dtype
        assert value.shape[0] == 1
        assert np.isfinite(value).all()
        np.testing.assert_allclose(over_rest.outputs[tensor.name], value, rtol=1e-5, atol=1e-6)
    assert over_rest.version == over_grpc.version == through_gateway["version"]
    assert len(through_gateway["predictions"]) == 1


def test_the_gateway_shows_what_the_store_says_of_a_version(trained: Engine) -> None:
    version = GatewayClient(trained.gateway_url).model("mnist")["versions"][0]
    assert version["manifest"]["data"]["source"] == "sample"
    assert version["manifest"]["profile"] == "smoke"
    assert version["report"]
    assert _status(trained.gateway_url + version["report"][0]) == 200


def test_the_gateway_draws_molecules(trained: Engine) -> None:
    with urllib.request.urlopen(f"{trained.gateway_url}/api/v1/tox21/drawing?smiles=CCO", timeout=10) as response:
        assert b"<svg" in response.read()


def test_a_second_up_trains_nothing_and_a_named_model_becomes_its_next_version(trained: Engine) -> None:
    trained.compose("up", "--detach", "--no-build")
    wait_until(lambda: "holds every model" in trained.compose("logs", "train"), "train has nothing to do", seconds=60)
    assert [status.version for status in RestClient(trained.rest_url).status("mnist")] == [1]
    trained.compose("run", "--rm", "-T", "train", "mnist", seconds=900)

    def swapped() -> bool:
        newest = RestClient(trained.rest_url).status("mnist")[0]
        return (newest.version, newest.state) == (2, "AVAILABLE")

    wait_until(swapped, "version 2 is served", seconds=60)
    assert GatewayClient(trained.gateway_url).mnist([SEVEN])["version"] == 2


@pytest.mark.parametrize("service", SERVERS)
def test_a_server_runs_without_root_without_tensorflow_and_cannot_write(trained: Engine, service: str) -> None:
    assert trained.execute(service, "id", "-u").stdout.strip() == "10001"
    assert "Read-only" in trained.execute(service, "touch", "/usr/local/lib/probe").stderr
    assert "Read-only" in trained.execute(service, "touch", "/models/mine").stderr
    missing = trained.execute(service, "python", "-c", "import tensorflow")
    assert "No module named 'tensorflow'" in missing.stderr
    bindings = trained.inspect(service)["HostConfig"]["PortBindings"]
    assert {binding["HostIp"] for ports in bindings.values() for binding in ports} == {"127.0.0.1"}


def test_stopped_with_sigterm_both_servers_drain_and_end_with_0(trained: Engine) -> None:
    trained.compose("stop", *SERVERS)
    for service in SERVERS:
        state = trained.inspect(service)["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 0), trained.compose("logs", service)
    assert "stopped" in trained.compose("logs", *SERVERS)
