"""The code blocks of README.md ("Serve your own model"), serving/README.md and docs/open-inference.md, run as printed.

A document's blocks run in their order in one folder, as a reader would paste them: a block that starts a server leaves
it running for those that follow, until the next one. Only addresses and folders are others.
"""

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import picture_models
from bookserve.serving.server.settings import text_protos
from bookserve.serving.wire.tensorflow_serving_pb2 import ModelConfig
from documents import Block, blocks
from model_servers import answers, free_port, wait_until, write_scale_model

BIN = Path(sys.executable).parent
SERVER = "bookserve model-server"
EXAMPLES = Path("clients/examples")
# Blocks that import TensorFlow, by the beginning of a line of theirs.
TENSORFLOW = ("import tensorflow", "python -c 'import tensorflow")


class Reader:
    """Runs blocks in `folder`, which has a store of models and a model.onnx."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: subprocess.Popen[str] | None = None
        self.ports = {"8500": free_port(), "8501": free_port()}
        for name, versions in (("mnist", (1, 2)), ("linear", (1,))):
            for version in versions:
                write_scale_model(folder / "models" / name, version, float(version), width=1)
        shutil.copy2(folder / "models/linear/1/model.onnx", folder)
        picture_models.write(folder / "models", picture_models.DIGITS)
        (folder / EXAMPLES).mkdir(parents=True)
        shutil.copy2(Path(__file__).parents[2] / EXAMPLES / "seven.png", folder / EXAMPLES)
        (folder / "log").mkdir()
        (folder / "bin").mkdir()
        pip = folder / "bin" / "pip"  # everything is installed already
        pip.write_text("#!/bin/sh\n")
        pip.chmod(0o755)
        # A status of 400 and more makes curl fail, as its reader would see it.
        (folder / ".curlrc").write_text("silent\nshow-error\nfail\n")
        self.environment = os.environ | {
            "PATH": f"{folder / 'bin'}:{BIN}:{os.environ['PATH']}",
            "CURL_HOME": str(folder),
            "PYTHONWARNINGS": "error",
        }

    def here(self, text: str) -> str:
        """The block with our ports, our folders, and servers on loopback only."""
        folders = {"/srv/models": "/models", "/var/log/bookserve": "/log", "/tmp": ""}
        text = re.sub(
            "|".join(rf"(?<![\w.]){folder}\b" for folder in folders),
            lambda found: f"{self.folder}{folders[found[0]]}",
            text,
        )
        if '"b64' in text:  # the store's mnist takes one number here
            text = text.replace("/mnist:predict", f"/{picture_models.DIGITS.model}:predict")
        text = text.replace(SERVER, f"{SERVER} --bind_address=127.0.0.1 --port=8500")
        for default, port in self.ports.items():
            text = re.sub(rf"\b{default}\b", str(port), text)
        return text

    def run(self, block: Block) -> str:
        """What a block prints; one that ends with a server is left running when that is ready."""
        text = self.here(block.text)
        if block.language == "python":
            return self._finish([sys.executable, "-c", text])
        if block.language == "text":
            config = self.folder / "model.config"
            config.write_text(text)
            text_protos.read(config, ModelConfig())
            return ""
        last = text.replace("\\\n", " ").strip().splitlines()[-1]
        if last.startswith(SERVER):
            self.stop()
            self._start(text)
            return ""
        # What a block leaves in the background ends with it, also where a command fails.
        return self._finish(["bash", "-e", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{text}"])

    def _finish(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=800
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _start(self, text: str) -> None:
        log = self.folder / "server.log"
        with log.open("w") as output:
            self.server = subprocess.Popen(
                ["bash", "-e", "-c", text],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        scheme = "https" if "--rest_ssl_config_file" in text else "http"
        unverified = ssl._create_unverified_context() if scheme == "https" else None

        def up() -> bool:
            assert self.server is not None
            assert self.server.poll() is None, log.read_text()
            return answers(f"{scheme}://127.0.0.1:{self.ports['8501']}/readyz", unverified)

        wait_until(up, f"the server is ready: {text}", seconds=120)

    def stop(self) -> None:
        """Ends the server of the last block, and returns when it is gone with the shell that started it."""
        server, self.server = self.server, None
        if server is None or server.poll() is not None:
            return
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)

        def gone() -> bool:
            try:
                os.killpg(server.pid, 0)
            except ProcessLookupError:
                return True
            return False

        wait_until(gone, "the server has ended", seconds=60)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.stop()


def needs_tensorflow(block: Block) -> bool:
    return any(line.startswith(TENSORFLOW) for line in block.text.splitlines())


def test_my_model_is_served_and_asked(reader: Reader) -> None:
    printed = [reader.run(block) for block in blocks("README.md") if block.language == "bash"]
    assert '"predictions": [1.0, 2.0]' in " ".join(printed[-1].split()) or "[1.0]" in printed[-1]


def test_the_open_inference_protocol(reader: Reader) -> None:
    reader._start(reader.here(f"{SERVER} --model_root=models --port=8500 --rest_api_port=8501"))
    printed = [reader.run(block) for block in blocks("docs/open-inference.md")]
    assert '"data":[1.5]' in printed[0]
    assert printed[1].split() == ["[[1.5]", "[2.5]]"]
    assert printed[2].strip() in set("0123456789")


@pytest.mark.slow
def test_the_model_servers_page(reader: Reader) -> None:
    for block in blocks("serving/README.md"):
        if not needs_tensorflow(block) and "s3://" not in block.text and "8080" not in block.text:
            reader.run(block)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_that_parses_examples(reader: Reader) -> None:
    (block,) = (block for block in blocks("serving/README.md") if "HalfPlusTwo" in block.text)
    text = block.text.replace("--retry 10", "--retry 600 --retry-delay 1")  # for a machine that is busy
    assert json.loads(reader.run(Block(block.document, block.language, text))) == {"results": [3.0, 4.5]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_request_log_is_read(reader: Reader) -> None:
    flags = "--request_log_file=/var/log/bookserve/mnist --request_log_format=tfrecord --enable_profiler"
    reader._start(reader.here(f"{SERVER} --model_root=models --port=8500 --rest_api_port=8501 {flags}"))
    body = b'{"instances": [[1.0], [2.0]]}'
    url = f"http://127.0.0.1:{reader.ports['8501']}/v1/models/mnist:predict"
    with urllib.request.urlopen(url, body, timeout=20) as response:
        assert response.status == 200
    reader.stop()
    (block,) = (block for block in blocks("serving/README.md") if block.language == "python")
    assert 'name: "mnist"' in reader.run(block)
