"""The programs and commands of clients/examples/README.md, and README.md's program, run as they are printed."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from book_contracts import CONTRACTS, write_manifests
from stand_in_models import WORDS, FakeServer, serve

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "clients" / "examples" / "README.md"
BIN = Path(sys.executable).parent


def _blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in _blocks(EXAMPLES, "sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[str, str, Path]]:
    """The addresses of a gateway and of the model server behind it, and their model store."""
    store = tmp_path_factory.mktemp("models")
    (write_manifests(store) / "ptb" / "3" / "assets").mkdir(parents=True)
    (store / "ptb" / "3" / "assets" / "vocabulary.txt").write_text("".join(f"{word}\n" for word in WORDS))
    fake = FakeServer(models=tuple(CONTRACTS))
    server = serve(fake)
    options = ["--port=0", f"--model-server={fake.target}", f"--models-dir={store}", "--drain-seconds=0"]
    with (store / "log").open("w") as log:
        process = subprocess.Popen(
            [BIN / "bookserve", "gateway", *options], stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert process.stdout is not None
    match = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    assert match, (store / "log").read_text()
    yield match[0], fake.target, store
    process.terminate()
    assert process.wait(20) == 0
    process.stdout.close()
    server.stop(None).wait()


def _here(text: str, served: tuple[str, str, Path]) -> str:
    gateway, server, store = served
    text = text.replace("http://127.0.0.1:8080", gateway).replace("127.0.0.1:8500", server)
    return text.replace('Path("models")', f"Path({str(store)!r})")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_model_has_its_examples() -> None:
    for name in CONTRACTS:
        assert any(command.startswith(f"bookserve predict {name} ") for command in COMMANDS)
        assert any(command.startswith("curl ") and f"/api/v1/{name}" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_gets_its_prediction(served, command) -> None:
    words = shlex.split(_here(command, served))
    if words[0] == "bookserve":
        output = _run([str(BIN / "bookserve"), *words[1:], "--gateway", served[0]])
        assert output.startswith(f"{words[2]} version 3\n")
        return
    if shutil.which("curl") is None:
        pytest.skip("no curl on PATH")
    answer = json.loads(_run(["curl", "--silent", *words[1:]]))
    assert answer["version"] == 3
    assert answer["predictions"]


@pytest.mark.parametrize(
    "program",
    [*_blocks(EXAMPLES, "python"), *_blocks(ROOT / "README.md", "python")],
    ids=["gateway", "lines", "asyncio", "grpc", "readme"],
)
def test_a_program_runs(served, program) -> None:
    output = _run([sys.executable, "-W", "error", "-c", _here(program, served)])
    assert len(output.splitlines()) >= program.count("print(")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "file", "command", "expected"),
    [
        ("go", "predict.go", ("go", "run"), "3 9.5"),
        ("java", "Predict.java", ("java",), '{"model":"linear","version":3,"predictions":[{"y":9.5}]}'),
    ],
)
def test_a_program_in_another_language_runs(served, tmp_path, language, file, command, expected) -> None:
    if shutil.which("go" if language == "go" else "javac") is None:
        pytest.skip(f"no {language} on PATH")
    (program,) = _blocks(EXAMPLES, language)
    (tmp_path / file).write_text(program)
    assert _run([*command, str(tmp_path / file), served[0], "1.5"]).strip() == expected
