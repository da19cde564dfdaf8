"""Rows a second of ONNX graphs, by ONNX Runtime on one core, in turns: a machine that slows down slows all alike."""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bookserve.export.engines import Run, onnx_graph
from bookserve.export.figures import Rows

BATCHES = (1, 16)
_ROUNDS = 35
_SECONDS = 0.01  # of processor time: of each graph in each round; many short turns tell more than few long ones


@dataclass(frozen=True)
class Rate:
    """Rows a second of the float and of the int8 graph, and the median of the rounds' ratios."""

    float32: float
    int8: float
    speed_up: float


def compare(float32: Path, int8: Path, rows: Rows, fixed_batch: int | None = None) -> dict[int, Rate]:
    """Batch -> the rates; a graph whose batch is fixed has that alone.

    Seconds are those of the processor, so that other programs count little.
    """
    runs = {"float32": onnx_graph(float32, threads=1), "int8": onnx_graph(int8, threads=1)}
    found = {}
    for batch in (fixed_batch,) if fixed_batch else BATCHES:
        inputs = {name: array.take(range(batch), axis=0, mode="wrap") for name, array in rows.items()}
        calls = {name: _calls(run, inputs) for name, run in runs.items()}
        rounds: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(_ROUNDS):
            for name in runs if number % 2 else reversed(runs):
                seconds = _seconds(runs[name], inputs, calls[name])
                rounds[name].append(calls[name] * batch / seconds)
        ratios = [after / before for before, after in zip(rounds["float32"], rounds["int8"], strict=True)]
        before, after = (statistics.median(rounds[name]) for name in runs)
        found[batch] = Rate(before, after, statistics.median(ratios))
    return found


def _calls(run: Run, inputs: Rows) -> int:
    """How many calls take about _SECONDS. The clock is asked seldom: on some machines it takes as long as a call."""
    calls = 1
    while (seconds := _seconds(run, inputs, calls)) < _SECONDS / 2:
        calls *= 2
    return max(1, round(calls * _SECONDS / seconds))


def _seconds(run: Run, inputs: Rows, calls: int) -> float:
    began = time.thread_time()
    for _ in range(calls):
        run(inputs)
    return max(time.thread_time() - began, 1e-9)


def speed_up(rates: Mapping[int, Rate]) -> float:
    """The geometric mean of the batches' speed-ups."""
    return math.exp(statistics.fmean(math.log(rate.speed_up) for rate in rates.values()))
