"""The commands of README.md and clients/README.md in a fresh copy: install, train, serve, ask, publish again, stop."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from playwright.sync_api import expect
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from bookserve.training.models import MODELS
from gateway_pages import CHROMIUM, open_browser, open_page
from model_servers import free_port, wait_until
from page_checks import check_axe

ROOT = Path(__file__).resolve().parents[2]


def readme_commands() -> list[str]:
    text = "\n".join((ROOT / name).read_text() for name in ("README.md", "clients/README.md"))
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_every_command_is_run_by_a_test_below() -> None:
    run = ("make train-all", "make serve", ".venv/bin/bookserve predict ", "curl ")
    assert [command for command in readme_commands() if not command.startswith(run)] == []


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git would clone, with the changes that are not committed yet."""
    folder = tmp_path_factory.mktemp("clone") / "bookserve"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    for name in listed.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


class Project:
    """The clone, its ports, and the README's commands run in it with PROFILE=smoke DATA=sample."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"8500": free_port(), "8501": free_port(), "8080": free_port()}
        inherited = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "MAKEFLAGS")}
        self.environment = inherited | {
            "PROFILE": "smoke",
            "DATA": "sample",
            "GRPC_PORT": str(self.ports["8500"]),
            "REST_PORT": str(self.ports["8501"]),
            "GATEWAY_PORT": str(self.ports["8080"]),
        }

    def on_our_ports(self, command: str) -> str:
        for default, port in self.ports.items():
            command = command.replace(f"127.0.0.1:{default}", f"127.0.0.1:{port}")
            option = {"8500": "--grpc", "8501": "--rest"}.get(default)
            scheme = "http://" if default == "8501" else ""
            if option and command.endswith(option):
                command += f" {scheme}127.0.0.1:{port}"
        if "bookserve predict" in command and "--grpc" not in command and "--rest" not in command:
            command += f" --gateway http://127.0.0.1:{self.ports['8080']}"
        return command

    def run(self, command: str, **environment: str) -> str:
        done = subprocess.run(
            shlex.split(self.on_our_ports(command)),
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(clone: Path) -> Project:
    return Project(clone)


@pytest.fixture(scope="module")
def served(project: Project) -> Iterator[subprocess.Popen[str]]:
    """`make serve` on an empty store, ready."""
    assert "make serve" in readme_commands()
    log = project.folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["make", "serve"],
            cwd=project.folder,
            env=project.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def printed() -> bool:
        assert process.poll() is None, log.read_text()
        return "Ctrl-C stops both" in log.read_text()

    try:
        wait_until(printed, "make serve has printed its addresses", seconds=500)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)


def ask(project: Project, images: np.ndarray) -> predict_pb2.PredictResponse:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "mnist"
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
    with grpc.insecure_channel(f"127.0.0.1:{project.ports['8500']}") as channel:
        return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=10)


def rest(project: Project, body: Any) -> Any:
    url = f"http://127.0.0.1:{project.ports['8501']}/v1/models/mnist:predict"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=10) as response:
        return json.load(response)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_serve_alone_trains_first_and_says_that_it_used_the_sample(
    project: Project, served: subprocess.Popen[str]
) -> None:
    log = (project.folder / "serve.log").read_text()
    assert "holds no models yet: training them first" in log
    manifest = json.loads((project.folder / "models/mnist/1/assets.extra/manifest.json").read_text())
    assert manifest["data"]["source"] == "sample"
    with urllib.request.urlopen(f"http://127.0.0.1:{project.ports['8080']}/models/mnist", timeout=10) as page:
        assert b"<canvas" in page.read()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_way_to_ask_gives_the_same_answer(project: Project, served: subprocess.Popen[str]) -> None:
    examples = np.load(next((project.folder / "runs/mnist").glob("*/examples.npz")))
    images = examples["images"][:8]
    over_grpc = tf.make_ndarray(ask(project, images).outputs["probabilities"])
    over_rest = [row["probabilities"] for row in rest(project, {"instances": images.tolist()})["predictions"]]
    np.testing.assert_allclose(over_rest, over_grpc, rtol=1e-6)
    predictions = [project.run(command) for command in readme_commands() if "predict mnist" in command]
    assert len(predictions) == 4  # one of them stands on both pages
    classes = {re.search(r"\bclass\W+([0-9])\b", answer)[1] for answer in predictions}  # type: ignore[index]
    assert len(classes) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_model_answers_the_command_line_and_curl(project: Project, served: subprocess.Popen[str]) -> None:
    commands = readme_commands()
    for model in MODELS:
        assert any(f"predict {model} " in command for command in commands), model
        assert any(command.startswith("curl") and f"/api/v1/{model}" in command for command in commands), model
    for command in commands:
        if "bookserve predict" in command:
            assert project.run(command)
        elif command.startswith("curl"):
            output = project.run(command)
            answer = json.loads(output[output.index("{") : output.rindex("}") + 1])
            assert answer.get("version") == 1 or answer["model_version_status"][0]["state"] == "AVAILABLE", command


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.timeout(600)
def test_axe_finds_nothing_on_the_pages_with_the_cards_of_real_trainings(
    project: Project, served: subprocess.Popen[str]
) -> None:
    with open_browser() as browser, open_page(browser, f"http://127.0.0.1:{project.ports['8080']}") as page:
        for model in MODELS:
            page.goto(f"/models/{model}")
            expect(page.locator("#card-content table").first).to_be_visible()
            page.wait_for_load_state("networkidle")
            expect(page.locator(".try[aria-busy]")).to_have_count(0)  # an answer is grey while the next one is awaited
            page.set_viewport_size({"width": 360, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            check_axe(page)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_train_all_is_swapped_in_without_a_failed_request(
    project: Project, served: subprocess.Popen[str]
) -> None:
    assert "make train-all" in readme_commands()
    stop = threading.Event()
    answered: list[int] = []
    failed: list[BaseException] = []
    image = np.zeros((1, 28, 28), np.uint8)

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                answered.append(ask(project, image).model_spec.version.value)
                rest(project, {"instances": image.tolist()})
            except BaseException as error:
                failed.append(error)
                return

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        project.run("make train-all", MODELS="mnist")
        wait_until(lambda: bool(failed) or 2 in answered, "version 2 answers", seconds=60)
    finally:
        stop.set()
        asking.join()
    assert failed == []
    assert answered == sorted(answered)
    assert {1, 2} == set(answered)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_ctrl_c_stops_everything_cleanly(project: Project, served: subprocess.Popen[str]) -> None:
    os.killpg(served.pid, signal.SIGINT)
    served.wait(60)
    log = (project.folder / "serve.log").read_text()
    assert "Traceback" not in log
    assert "stopping: what was asked is answered first" in log
    for port in project.ports.values():
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
