import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from bookserve.training import bench


def test_rates_are_units_a_second_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    done: list[str] = []

    def piece(name: str, took: float) -> bench.Work:
        def work() -> int:
            nonlocal now
            now += took
            done.append(name)
            return 10

        return work

    monkeypatch.setattr("time.perf_counter", lambda: now)
    rates = bench.rates({"slow": piece("slow", 2.0), "fast": piece("fast", 0.5)}, seconds=4.0)
    assert rates == {"slow": 5.0, "fast": 20.0}
    assert done == ["slow", "fast"] * 5  # one to warm up, then 2.5 s a turn until 8 s are spent


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
@pytest.mark.timeout(1800)
def test_the_input_of_every_model_is_listed() -> None:
    done = CliRunner().invoke(bench.bench, ["input", "--data", "sample", "--seconds", "0"])
    assert done.exit_code == 0, done.output
    assert re.findall(r"│ (\w+) +│ +\d+ +│ +[\d,]+", done.output) == ["mnist", "cifar10", "tox21"]
