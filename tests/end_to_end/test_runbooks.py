"""docs/runbooks.md, run as printed against running servers; and a store that is copied while versions are published,
asked for and removed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bookserve.export.store import ModelStore
from documents import blocks
from load import REST_BODY
from model_servers import Server, answers, free_port, server_starter, wait_until, write_scale_model

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with two versions of `score`, made by `models add`."""
    write_scale_model(tmp_path / "made", 1, 1.0)
    write_scale_model(tmp_path / "made", 2, 2.0)
    for version in (1, 2):
        run(tmp_path, f"bookserve models add score made/{version}/model.onnx", {})
    (tmp_path / ".curlrc").write_text("silent\nshow-error\nfail\n")
    return tmp_path


def run(folder: Path, text: str, ports: dict[str, int]) -> str:
    """What a block prints. It must succeed."""
    for default, port in ports.items():
        text = re.sub(rf"\b{default}\b", str(port), text)
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "CURL_HOME": str(folder)}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture
def serving(folder: Path) -> Iterator[dict[str, int]]:
    """`bookserve serve` over the store, and its ports by their defaults."""
    ports = {"8500": free_port(), "8501": free_port(), "8080": free_port()}
    options = dict(zip(("grpc", "rest", "gateway"), ports.values(), strict=True))
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [BIN / "bookserve", "serve", *(f"--{name}-port={port}" for name, port in options.items())],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{ports['8080']}/healthz"), "the servers are ready", seconds=120)
        yield ports
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def answer(printed: str) -> dict[str, Any]:
    """The first JSON object that a block prints."""
    found: dict[str, Any] = json.JSONDecoder().raw_decode(printed[printed.index("{") :])[0]
    return found


def test_every_command_of_the_runbooks_does_what_it_says(folder: Path, serving: dict[str, int]) -> None:
    texts = [block.text for block in blocks("docs/runbooks.md") if block.is_shell]
    printed = {text: run(folder, text, serving) for text in texts}

    def of(command: str) -> str:
        return next(output for text, output in printed.items() if command in text)

    states = answer(of("models rollback score\ncurl"))["model_version_status"]
    assert {state["version"]: state["state"] for state in states} == {"1": "AVAILABLE", "2": "END"}
    assert answer(of("labels/canary:predict"))["predictions"] == [[2, 4, 6]]
    assert "'bookserve models config' mends that" in of("cp -a models moved")
    assert ":bookserve:queue_length" in of("grep -E")
    assert ModelStore(folder / "restored").versions("score") == [1, 2]
    assert "'bookserve models config'" not in run(folder, "bookserve models list --models-dir restored", {})


def has_version(store: ModelStore, version: int) -> bool:
    return version in store.versions("score")


def test_a_store_that_is_copied_under_load_is_whole(folder: Path, serving: dict[str, int]) -> None:
    """Versions are published and removed, and clients ask, while the runbook's backup is made again and again."""
    backup = next(block.text for block in blocks("docs/runbooks.md") if "models.snapshot" in block.text)
    stop = threading.Event()
    failed: list[str] = []
    asked = [0]
    store = ModelStore(folder / "models")

    def ask() -> None:
        url = f"http://127.0.0.1:{serving['8501']}/v1/models/score:predict"
        while not stop.is_set():
            try:
                with urllib.request.urlopen(urllib.request.Request(url, REST_BODY), timeout=20) as response:
                    response.read()
                asked[0] += 1
            except OSError as error:
                failed.append(repr(error))

    def publish() -> None:
        while not stop.is_set():
            run(folder, "bookserve models add score made/1/model.onnx; bookserve models gc score --keep 3", {})

    threads = [threading.Thread(target=work) for work in (ask, publish)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            run(folder, backup, {})
            place = folder / f"restored-{number}"
            place.mkdir()
            run(folder, f"tar -xzf models.tar.gz -C {place.name}", {})
            run(folder, f"bookserve models config --models-dir {place.name}", {})
            run(folder, f"bookserve models verify --all --models-dir {place.name}", {})
            assert ModelStore(place).versions("score")
            newest = max(store.versions("score"))
            wait_until(partial(has_version, store, newest + 1), "another version", seconds=60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert asked[0] > 100
    assert failed == []


def test_a_server_warns_of_a_copied_store_and_then_reads_the_copy(folder: Path) -> None:
    shutil.copytree(folder / "models", folder / "moved")
    for version in (1, 2):
        shutil.rmtree(folder / "models" / "score" / str(version))
    shutil.copytree(folder / "moved" / "score" / "1", folder / "models" / "score" / "1")
    warning = f"has score in {folder / 'models' / 'score'}, not beside it"
    with server_starter(folder) as start:
        old = start(f"--model_config_file={folder / 'moved' / 'models.config'}")
        assert warning in old.log.read_text()
        run(folder, "bookserve models config --models-dir moved", {})
        new = start(f"--model_config_file={folder / 'moved' / 'models.config'}")
        assert "not beside it" not in new.log.read_text()
        assert served(old) == ["1"]
        assert served(new) == ["2"]


def served(server: Server) -> list[str]:
    """The versions of `score` that are available."""
    with urllib.request.urlopen(f"{server.url}/v1/models/score", timeout=10) as response:
        states = json.load(response)["model_version_status"]
    return [state["version"] for state in states if state["state"] == "AVAILABLE"]
