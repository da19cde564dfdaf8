"""How fast `bookserve batch` is beside a plain loop over ONNX Runtime, in turns, in this process.

Both read the same file, ask the same graph in runs of as many rows on as many threads, and write NDJSON. Figures: rows
a second of all of it, and rows a second of processor time inside the model's runs alone (the model part: for the loop
`session.run`, for the command what it calls in its place). Start and trial of the version are not in them.
"""

import csv
import json
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import benchmark_models
import measurements
from bookserve.clients.answers import Array
from bookserve.serving.batch import chosen_version, input_file, results
from bookserve.serving.batch.local_model import LocalModel
from bookserve.serving.batch.model import Pace, rows_of_a_run
from bookserve.serving.batch.parts import Parts
from bookserve.serving.batch.questions import Columns, Questions
from bookserve.serving.batch.records import MAX_ROW_BYTES
from bookserve.serving.batch.run import Run
from measurements import Figures

_THREADS = os.cpu_count() or 1
_TABLE = 20  # columns
_UNITS = 256


@click.command()
@click.option("--rounds", default=5, type=click.IntRange(min=1), show_default=True)
@click.option("--pictures", default=10_000, type=click.IntRange(min=1), show_default=True, help="Rows of NDJSON.")
@click.option("--lines", default=200_000, type=click.IntRange(min=1), show_default=True, help="Rows of CSV.")
@click.option("--batch-size", type=click.IntRange(min=1), help="By default what the command takes for the model.")
def main(rounds: int, pictures: int, lines: int, batch_size: int | None) -> None:
    """Measure `bookserve batch` in turns with a plain loop."""
    click.echo(f"{_THREADS} cores, {rounds} rounds; medians (minimum..maximum)")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        benchmark_models.LENET5.write(root / "models/lenet5/1")
        _write_table_model(root / "models/table/1/model.onnx")
        files = {
            "lenet5": (_write_pictures(root / "pictures.ndjson", pictures), _pictures),
            "table": (_write_lines(root / "lines.csv", lines), _lines),
        }
        for name, (path, read) in files.items():
            graph = root / f"models/{name}/1/model.onnx"
            rows = batch_size or rows_of_a_run(chosen_version.in_store(root / "models", name, None, None).contract)
            click.echo(f"{name}: {rows} rows a run")
            contenders = {
                "loop": partial(_loop, graph, path, read, rows),
                "batch": partial(_batch, root / "models", name, path, rows),
            }
            _check(path, contenders)
            for line in measurements.lines(name, measurements.in_turns(contenders, rounds)):
                click.echo(line)


class _Clock:
    """Processor time that threads spend in calls, summed up."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def timed(self, call: Callable[[Mapping[str, Array]], Any]) -> Callable[[Mapping[str, Array]], Any]:
        """The same call, with its processor time noted."""

        def run(inputs: Mapping[str, Array]) -> Any:
            began = time.thread_time()
            try:
                return call(inputs)
            finally:
                spent = time.thread_time() - began
                with self._lock:
                    self.seconds += spent

        return run


def _loop(graph: Path, path: Path, read: Callable[[Path, int], Iterator[Array]], batch_size: int) -> Figures:
    """What one would write by hand: read, run on some threads, write."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options)
    names = [value.name for value in session.get_outputs()]
    clock = _Clock()
    run = clock.timed(lambda inputs: session.run(names, dict(inputs)))
    rows = 0
    began = time.perf_counter()
    with path.with_suffix(".loop").open("w") as output, ThreadPoolExecutor(_THREADS) as pool:
        under_way: deque[Future[Any]] = deque()

        def take() -> int:
            found = under_way.popleft().result()
            for row in zip(*found, strict=True):
                output.write(json.dumps(dict(zip(names, (value.tolist() for value in row), strict=True))) + "\n")
            return len(found[0])

        for batch in read(path, batch_size):
            under_way.append(pool.submit(run, {"x": batch}))
            if len(under_way) > 2 * _THREADS:
                rows += take()
        while under_way:
            rows += take()
    return {"rows/s": rows / (time.perf_counter() - began), "rows/s of runs": rows / clock.seconds}


def _batch(store: Path, name: str, path: Path, batch_size: int) -> Figures:
    """What the command does once the version is loaded."""
    source = input_file.open_source(path, None, MAX_ROW_BYTES)
    chosen = chosen_version.in_store(store, name, None, None)
    model = LocalModel(chosen.folder, chosen.contract, Pace(batch_size, _THREADS), False, 60.0, None)
    questions = Questions(chosen.contract, chosen.version, source, Columns(), None, 1)
    clock = _Clock()
    setattr(model, "run", clock.timed(model.run))  # noqa: B010 - it is a method
    form = results.Ndjson(questions.has_names)
    output = path.with_suffix(".batch")
    with Parts(output) as parts:
        began = time.perf_counter()
        run = Run(source, questions, model, form, parts, 0, lambda _: None)
        done = run.go_on(parts.begin({}))
        with parts.whole_file(output) as stream:
            form.write(stream, parts.answers(done.parts), ())
        parts.drop()
        seconds = time.perf_counter() - began
    model.close()
    return {"rows/s": done.answered / seconds, "rows/s of runs": done.answered / clock.seconds}


def _check(path: Path, contenders: Mapping[str, Callable[[], Figures]]) -> None:
    """Both give the same answers, to the digits that the command writes."""
    found = []
    for name, measure in contenders.items():
        measure()
        output = path.with_suffix(f".{name}")
        found.append([_numbers(json.loads(line)) for line in output.read_text().splitlines()])
    if not np.allclose(found[0], found[1], rtol=1e-4, atol=1e-5):
        raise measurements.MeasurementError("the command and the loop differ")


def _numbers(row: Mapping[str, Any]) -> list[float]:
    """The values of a row's outputs."""
    return [value for name, values in row.items() if name not in ("line", "id") for value in np.ravel(values)]


def _pictures(path: Path, batch_size: int) -> Iterator[Array]:
    with path.open() as stream:
        while lines := list(islice(stream, batch_size)):
            yield np.array([json.loads(line)["x"] for line in lines], np.float32)


def _lines(path: Path, batch_size: int) -> Iterator[Array]:
    with path.open(newline="") as stream:
        rows = csv.reader(stream)
        next(rows)
        while cells := list(islice(rows, batch_size)):
            yield np.array(cells, np.float32)


def _write_pictures(path: Path, count: int) -> Path:
    chance = np.random.default_rng(0)
    with path.open("w") as stream:
        for _ in range(count):
            stream.write(json.dumps({"x": chance.random(benchmark_models.PICTURE).round(3).tolist()}) + "\n")
    return path


def _write_lines(path: Path, count: int) -> Path:
    chance = np.random.default_rng(0)
    np.savetxt(
        path,
        chance.standard_normal((count, _TABLE)),
        "%.5g",
        delimiter=",",
        header=",".join(f"c{place}" for place in range(_TABLE)),
        comments="",
    )
    return path


def _write_table_model(path: Path) -> None:
    """`x` float32 [n, 20] to `y` float32 [n, 1], by two layers of 256 units."""
    chance = np.random.default_rng(0)
    sizes = (_TABLE, _UNITS, _UNITS, 1)
    nodes, value = [], "x"
    weights = []
    for place, (before, behind) in enumerate(pairwise(sizes)):
        array = (chance.standard_normal((before, behind)) / np.sqrt(before)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{place}"))
        last = place == len(sizes) - 2
        nodes.append(helper.make_node("MatMul", [value, f"w{place}"], ["y" if last else f"m{place}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{place}"], [f"r{place}"]))
        value = f"r{place}"
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", _TABLE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True)
    onnx.save(model, path)


if __name__ == "__main__":
    main()
