"""Versions are tried in a child process: what crashes, hangs or takes all memory is refused, and the server lives."""

import gc
import json
import os
import shutil
import signal
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.models import integrity, trial
from bookserve.serving.server.types.errors import ServingError
from model_servers import StartServer, wait_until, write_graph, write_scale_model

CRASHING = Path(__file__).with_name("crashing.tflite")  # keyword_scrambled_8bit of tflite-micro, Apache-2.0
ENDLESS = 1 << 62


def write_endless_model(base: Path, version: int) -> Path:
    """A loop that a session does not come to the end of."""
    body = helper.make_graph(
        [helper.make_node("Add", ["so_far", "x"], ["next"]), helper.make_node("Identity", ["going"], ["goes_on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("so_far", TensorProto.FLOAT, ["n"]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["n"]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "true", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.int64(ENDLESS), "trips"), numpy_helper.from_array(np.bool_(True), "true")],
    )
    return write_graph(base, version, graph)


def write_huge_model(base: Path, version: int) -> Path:
    """A constant of 4 TiB, made when the model is run."""
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["x"], ["rows"]),
            helper.make_node("Mul", ["rows", "factor"], ["size"]),
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["y"]),
        ],
        "huge",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array([1 << 40]), "factor")],
    )
    return write_graph(base, version, graph)


def write_crashing_model(base: Path, version: int) -> Path:
    (base / str(version)).mkdir(parents=True)
    shutil.copy(CRASHING, base / str(version) / "model.tflite")
    return base / str(version)


@pytest.fixture(scope="module")
def trials() -> Iterator[trial.Trials]:
    made = trial.start()
    assert made is not None
    yield made
    made.close()


def check(trials: trial.Trials, path: Path, seconds: float = 60.0) -> None:
    options = EngineOptions(prefer_tflite=True, trial_seconds=seconds)
    trials.check(path, integrity.check(path), options, warm_up=True)


def state(url: str, model: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/v1/models/{model}", timeout=10) as response:
        status: dict[str, Any] = json.load(response)["model_version_status"][0]
    return status


def test_what_works_passes_and_what_does_not_is_refused_with_the_reason(trials: trial.Trials, tmp_path: Path) -> None:
    good = write_scale_model(tmp_path / "good", 1, 2.0)
    check(trials, good)
    check(trials, good)
    with pytest.raises(ServingError, match=r"crash/1 is refused: .* died of SIG(SEGV|ABRT|BUS) while it"):
        check(trials, write_crashing_model(tmp_path / "crash", 1))
    with pytest.raises(ServingError, match=r"endless/1 is refused: .* hung while it ran the signature"):
        check(trials, write_endless_model(tmp_path / "endless", 1), seconds=1.0)
    with pytest.raises(ServingError, match=r"huge/1 is refused: it needs more memory than there is"):
        check(trials, write_huge_model(tmp_path / "huge", 1))
    check(trials, write_scale_model(tmp_path / "good", 2, 3.0))


def test_a_child_that_ended_between_two_versions_is_nobodys_fault(trials: trial.Trials, tmp_path: Path) -> None:
    check(trials, write_scale_model(tmp_path, 1, 2.0))
    (child,) = trials._idle
    os.kill(child.pid, signal.SIGKILL)
    check(trials, write_scale_model(tmp_path, 2, 2.0))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_old_version_serves_on_beside_one_that_would_crash(
    start_server: StartServer, tmp_path: Path, workers: int
) -> None:
    root = tmp_path / "models"
    write_scale_model(root / "scale", 1, 2.0)
    server = start_server(
        f"--model_root={root}",
        "--prefer_tflite_model",
        "--max_num_load_retries=0",
        "--file_system_poll_wait_seconds=0.05",
        f"--workers={workers}",
    )
    scratch = tmp_path / "scratch"
    write_crashing_model(scratch, 2).rename(root / "scale" / "2")

    def is_refused() -> bool:
        found = state(server.url, "scale")
        return found["state"] == "END" and "died of SIG" in found["status"]["error_message"]

    wait_until(is_refused, "version 2 is refused", seconds=60)  # the other worker learns it a moment later
    request = urllib.request.Request(f"{server.url}/v1/models/scale:predict", b'{"instances": [[1.0, 2.0, 3.0]]}')
    with urllib.request.urlopen(request, timeout=10) as response:
        assert json.load(response) == {"predictions": [[2.0, 4.0, 6.0]]}
    assert server.stop() == 0


def test_a_version_that_loads_when_the_server_stops_is_not_loaded_untried(tmp_path: Path) -> None:
    made = trial.start()
    assert made is not None
    made.close()
    version = write_scale_model(tmp_path / "scale", 1, 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        with pytest.raises(ServingError, match="is not loaded: the server is stopping"):
            check(made, version)
        gc.collect()
