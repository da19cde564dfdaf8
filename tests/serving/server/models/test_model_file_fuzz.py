"""Model files that were cut off or changed in places: the server lives, answers, and says of each why it is refused.

`python tests/serving/server/models/test_model_file_fuzz.py SECONDS [SEED]` goes on for that long and prints figures.
"""

import itertools
import json
import random
import shutil
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "support"))

from model_servers import Server, server_starter, wait_until, write_scale_model

CRASHING = Path(__file__).with_name("crashing.tflite")
SETTLE_SECONDS = 120.0  # for all versions of a round, each of which may hang for --trial_seconds


def saved_model(folder: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.weights = tf.Variable([[0.25], [1.5], [-3.0]])
    module.serve = tf.function(
        lambda x: {"y": tf.nn.relu(x @ module.weights)}, input_signature=[tf.TensorSpec([None, 3], tf.float32)]
    )
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})


def changed(data: bytes, chance: random.Random) -> bytes:
    """Cut off, or with a few bits, bytes or blocks changed."""
    content = bytearray(data)
    match chance.randrange(4):
        case 0:
            del content[chance.randrange(len(content)) :]
        case 1:
            for _ in range(chance.choice((1, 2, 8, 64))):
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        case 2:
            for _ in range(chance.choice((1, 4, 16))):
                content[chance.randrange(len(content))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        case _:
            start, length = chance.randrange(len(content)), chance.choice((4, 32, 256))
            content[start : start + length] = chance.randbytes(length)
    return bytes(content)


def originals(scratch: Path) -> list[tuple[Path, str]]:
    """Version folders, and the file of each that is changed."""
    saved_model(scratch / "saved_model")
    graph = write_scale_model(scratch / "onnx", 1, 2.0)
    lite = scratch / "tflite"
    lite.mkdir()
    shutil.copy(CRASHING, lite / "model.tflite")
    manifest = write_scale_model(scratch / "manifest", 1, 2.0)
    (manifest / "assets.extra").mkdir()
    (manifest / "assets.extra/manifest.json").write_text(json.dumps({"files": {"model.onnx": "0" * 64}}))
    return [
        (scratch / "saved_model", "saved_model.pb"),
        (graph, "model.onnx"),
        (lite, "model.tflite"),
        (manifest, "assets.extra/manifest.json"),
    ]


def rounds(server: Server, root: Path, scratch: Path, chance: random.Random) -> Iterator[Counter[str]]:
    """Each adds one changed version of each kind, waits for its state, and asks the model that is whole."""
    sources = originals(scratch)
    for number in itertools.count(2):
        for folder, file in sources:
            copy = scratch / "copy"
            shutil.copytree(folder, copy)
            (copy / file).write_bytes(changed((copy / file).read_bytes(), chance))
            base = root / Path(file).suffix.removeprefix(".")
            base.mkdir(exist_ok=True)
            copy.rename(base / str(number))
            shutil.rmtree(base / str(number - 2), ignore_errors=True)
        yield outcome(server, root, number)


def outcome(server: Server, root: Path, number: int) -> Counter[str]:
    states: dict[str, tuple[str, str]] = {}
    bases = [base for base in root.iterdir() if base.is_dir()]

    def settled() -> bool:
        for base in bases:
            if base.name != "whole":
                try:
                    with urllib.request.urlopen(f"{server.url}/v1/models/{base.name}", timeout=30) as response:
                        entries = json.load(response)["model_version_status"]
                except OSError:
                    return False
                for entry in entries:
                    if entry["version"] == str(number) and entry["state"] in ("AVAILABLE", "END"):
                        states[base.name] = entry["state"], entry["status"]["error_message"]
        return len(states) == len(bases) - 1

    try:
        wait_until(settled, f"version {number} of every model has a state", seconds=SETTLE_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}: {states}\n{server.log.read_text()[-4000:]}") from None
    assert all(reason for state, reason in states.values() if state == "END"), states
    request = urllib.request.Request(f"{server.url}/v1/models/whole:predict", b'{"instances": [[1.0, 2.0, 3.0]]}')
    with urllib.request.urlopen(request, timeout=30) as response:
        assert json.load(response) == {"predictions": [[2.0, 4.0, 6.0]]}
    assert server.process.poll() is None
    counts = Counter(f"{name} {state}" for name, (state, _) in states.items())
    counts["refused after a death of the child"] = sum(" died" in reason for _, reason in states.values())
    counts["refused after a hang of the child"] = sum(" hung" in reason for _, reason in states.values())
    return counts


def fuzz(scratch: Path, seed: int, seconds: float, limit: int) -> Counter[str]:
    root = scratch / "models"
    write_scale_model(root / "whole", 1, 2.0)
    (scratch / "sources").mkdir()
    chance = random.Random(seed)
    with server_starter(scratch) as start:
        server = start(
            f"--model_root={root}",
            "--prefer_tflite_model",
            "--max_num_load_retries=0",
            "--file_system_poll_wait_seconds=0.1",
            "--trial_seconds=20",
            environment={"PYTHONWARNINGS": "default"},
        )
        end, total = time.monotonic() + seconds, Counter[str]()
        for number, counts in enumerate(rounds(server, root, scratch / "sources", chance), 1):
            total += counts
            if number % 20 == 0:
                print(number * 4, "files", dict(total), memory(server), flush=True)  # noqa: T201
            if number >= limit or time.monotonic() >= end:
                break
        assert server.stop() == 0
    return total


def memory(server: Server) -> str:
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next((" ".join(line.split()) for line in lines if line.startswith("VmRSS")), "")


@pytest.mark.slow
def test_no_changed_model_file_ends_the_server(tmp_path: Path) -> None:
    total = fuzz(tmp_path, seed=13, seconds=200, limit=40)
    assert sum(count for name, count in total.items() if name.endswith("END")) > 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print("in all", dict(fuzz(Path(folder), int((*sys.argv, 13)[2]), float(sys.argv[1]), 1_000_000)))  # noqa: T201
