import fcntl
import os
from pathlib import Path

import pytest
from rich.console import Console

from book_contracts import CONTRACTS
from bookserve.export import run_reader
from bookserve.export.manifest import DataOrigin, Manifest
from bookserve.export.run_reader import TrainingRun
from bookserve.training.datasets import mnist as mnist_data
from bookserve.training.datasets.files import DataRequest
from bookserve.training.models import mnist
from bookserve.training.run import train_model


def pytest_configure(config: pytest.Config) -> None:
    # Keras 3.15 reads TensorFlow variables in a way that numpy 2.4 calls deprecated.
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation doesn't accept:DeprecationWarning")


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with one complete run of MNIST: a small network on a few hundred drawn digits.

    The first of the workers that needs it trains for all: nothing changes it.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "runs-of-export"
    with (shared / "runs-of-export.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _train(shared / "runs-of-export.tmp")
            (shared / "runs-of-export.tmp").rename(folder)
    return folder


def _train(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist_data, "SAMPLE_TRAIN_ROWS", 300)
        patch.setattr(mnist_data, "SAMPLE_TEST_ROWS", 60)
        tiny = mnist.Config(epochs=1, batch=32, filters_1=4, filters_2=8, hidden=16)
        patch.setitem(mnist.CONFIGS["standard"], "smoke", tiny)
        train_model("mnist", DataRequest("sample"), folder, Console(quiet=True), profile="smoke")


@pytest.fixture
def run(runs_dir: Path) -> TrainingRun:
    """The one run of `runs_dir`."""
    return run_reader.read(run_reader.latest(runs_dir, "mnist"), "mnist")


@pytest.fixture
def manifest() -> Manifest:
    """A manifest that belongs to no files."""
    return Manifest(
        model="mnist",
        version=1,
        created="2026-01-02T03:04:05+00:00",
        contract=CONTRACTS["mnist"],
        data=DataOrigin("sample", "drawn digits", "0" * 64),
        profile="smoke",
        seed=0,
        metrics={"test": {"accuracy": 0.5, "loss": 1.5, "rows": 60.0}},
        parity={"probabilities": 1e-7, "classes": 0.0},
        files={},
        made_with={"tensorflow": "2.21.0"},
    )
