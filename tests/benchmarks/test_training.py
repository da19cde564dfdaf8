import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import made_up_molecules
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from bookserve.training.datasets import tox21 as tox21_data
from bookserve.training.datasets.files import Origin
from bookserve.training.datasets.splits import ImageSplits, LabelledImages
from bookserve.training.devices import exactness
from bookserve.training.models import STANDARD, mnist
from bookserve.training.models.cifar10 import model as cifar10
from bookserve.training.models.cifar10 import modern as cifar10_modern
from bookserve.training.models.ptb import model as ptb
from bookserve.training.models.tox21 import model as tox21


def load_benchmark() -> Any:
    """By its path: a file named training is not to be imported as `training`."""
    spec = importlib.util.spec_from_file_location("training_benchmark", Path(__file__).with_name("training.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = load_benchmark()


def test_rows_take_turns_and_a_rate_is_the_median_of_its_pieces() -> None:
    clock = [0.0]
    calls = []

    def work(name: str, *seconds: float) -> Callable[[], int]:
        durations = iter(seconds)

        def piece() -> int:
            calls.append(name)
            clock[0] += next(durations)
            return 10

        return piece

    rows = {"slow": work("slow", 9.0, 2.0, 4.0, 2.0), "fast": work("fast", 9.0, 1.0, 1.0, 0.5)}
    assert bench.rates(rows, 5.0, lambda: clock[0]) == {"slow": 5.0, "fast": 10.0}
    assert calls == ["slow", "fast"] * 4


@pytest.mark.slow
def test_ptb_prints_words_a_second_and_how_many_times_those_of_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(ptb.BOOK, batch=2, steps=2, units=4, layers=1, bfloat16=False)
    monkeypatch.setattr(ptb, "BOOK", tiny)
    monkeypatch.setattr(bench, "STEPS", 2)
    for profile in ("default", "full"):
        monkeypatch.setitem(ptb.CONFIGS[STANDARD], profile, replace(tiny, tied=True, samples=10))
    result = CliRunner().invoke(bench.bench, ["ptb", "--seconds", "0"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    rows = [line.strip("│ ").split("│") for line in result.output.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows] == [
        "the book's network by model.fit",
        "configuration book",
        "configuration standard, profile default",
        "configuration standard, profile full",
    ]
    rates = [float(row[1].replace(",", "")) for row in rows]
    assert all(rate > 0 for rate in rates)
    assert [float(row[2]) for row in rows] == pytest.approx([rate / rates[0] for rate in rates], rel=0.1)


def test_every_part_of_a_training_counts_the_same_examples() -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    rows = np.ones((64, 3), np.float32)
    dataset = tf.data.Dataset.from_tensor_slices((rows, rows[:, :1])).batch(8).repeat()
    parts = bench.parts(model, dataset)
    assert list(parts) == ["input", "step", "both"]
    for name, work in parts.items():
        before = int(model.optimizer.iterations)
        assert work() == bench.STEPS * 8
        assert int(model.optimizer.iterations) - before == (0 if name == "input" else bench.STEPS)


@pytest.mark.slow
def test_the_moves_of_every_number_of_workers_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WORKERS", (1, 2))
    monkeypatch.setattr(bench, "BOARDS", (3,))
    monkeypatch.setattr(bench, "UPDATES", 2)
    done = CliRunner().invoke(bench.bench, ["tictactoe", "--seconds", "0"])
    assert done.exit_code == 0, done.output
    rows = re.findall(r"workers: (\d), boards of each: 3 │ ([\d,]+)", done.output)
    assert [workers for workers, _ in rows] == ["1", "2"]
    assert all(int(rate.replace(",", "")) > 0 for _, rate in rows)


@pytest.mark.slow
def test_the_input_of_every_model_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    origin = Origin("sample", "made up", "0" * 64)
    digits = LabelledImages(random.integers(0, 256, (40, 28, 28), np.uint8), random.integers(0, 10, 40))
    things = LabelledImages(random.integers(0, 256, (40, 32, 32, 3), np.uint8), random.integers(0, 10, 40))
    molecules = made_up_molecules.split(
        random.integers(0, 2, (40, 1024), np.uint8), random.integers(0, 2, (40, 12)).astype(np.float32)
    )
    tiny = {
        mnist: (ImageSplits, digits, mnist.Config(epochs=1, batch=8, filters_1=2, filters_2=2, hidden=4)),
        cifar10: (ImageSplits, things, cifar10_modern.Config(epochs=1, batch=8, widths=(4,))),
        tox21: (tox21_data.Molecules, molecules, tox21.Config(epochs=1, batch=8, members=2, hidden=(4,), memory=40)),
    }
    for module, (kind, split, config) in tiny.items():
        rows = kind(split, split, split, origin)
        monkeypatch.setattr(module, "load_data", lambda config, request, seed, rows=rows: rows)
        monkeypatch.setitem(module.CONFIGS[STANDARD], "default", config)
    monkeypatch.setattr(bench, "STEPS", 2)
    done = CliRunner().invoke(bench.bench, ["input", "--data", "sample", "--seconds", "0"])
    assert done.exit_code == 0, done.output
    assert re.findall(r"│ (\w+) +│ +8 +│ +[\d,]+", done.output) == ["mnist", "cifar10", "tox21"]


@pytest.mark.slow
def test_the_modes_of_a_model_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    before = exactness.mode()
    switched = []
    switch = exactness.switch
    switch("fast")  # as a process begins; other tests may have left this one exact
    monkeypatch.setattr(exactness, "switch", lambda mode: switched.append(mode) or switch(mode))
    try:
        done = CliRunner().invoke(bench.bench, ["modes", "linear", "--seconds", "0"])
    finally:
        switch(before)
    assert done.exit_code == 0, done.output
    rates = [int(rate.replace(",", "")) for rate in re.findall(r"[\d,]+(?= +│)", done.output)][:3]
    assert len(rates) == 3
    assert all(rate > 0 for rate in rates)
    assert switched[-6:] == ["exact", "fast", "fast"] * 2
