"""How fast `bookserve batch` is beside a plain loop over ONNX Runtime, in turns, in this process.

Both read the same file, ask the same graph in runs of as many rows on as many threads, and write a file of the same
form. The loop is what one would write with Python's csv and json modules and NumPy; for CSV there is a second one that
reads and writes with pyarrow. Figures: rows a second of all of it, and rows a second of processor time inside the
model's runs alone (the model part: for the loop `session.run`, for the command what it calls in its place). Start and
trial of the version are not in them.
"""

import csv
import json
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from onnx import TensorProto, helper, numpy_helper

import benchmark_models
import measurements
from bookserve.clients.answers import Array
from bookserve.export import manifest
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.manifest import Manifest
from bookserve.serving.batch import chosen_version, input_file, results
from bookserve.serving.batch.local_model import LocalModel
from bookserve.serving.batch.model import Pace, rows_of_a_run
from bookserve.serving.batch.parts import Parts
from bookserve.serving.batch.questions import Columns, Questions
from bookserve.serving.batch.records import MAX_ROW_BYTES
from bookserve.serving.batch.results import Form
from bookserve.serving.batch.run import Run
from measurements import Figures

_THREADS = os.cpu_count() or 1
_TABLE = 20  # columns
_UNITS = 256


@click.command()
@click.option("--rounds", default=5, type=click.IntRange(min=1), show_default=True)
@click.option("--pictures", default=10_000, type=click.IntRange(min=1), show_default=True, help="Rows of NDJSON.")
@click.option("--lines", default=200_000, type=click.IntRange(min=1), show_default=True, help="Rows of a table.")
@click.option("--only", multiple=True, type=click.Choice(["pictures", "csv", "ndjson", "parquet"]))
@click.option("--batch-size", type=click.IntRange(min=1), help="By default what the command takes for the model.")
def main(rounds: int, pictures: int, lines: int, only: Sequence[str], batch_size: int | None) -> None:
    """Measure `bookserve batch` in turns with a plain loop."""
    click.echo(f"{_THREADS} cores, {rounds} rounds; medians (minimum..maximum)")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        benchmark_models.LENET5.write(root / "models/lenet5/1")
        _write_table_model(root / "models/table/1")
        table = np.random.default_rng(0).standard_normal((lines, _TABLE))
        for case in _CASES:
            if only and case.name not in only:
                continue
            path = root / f"{case.name}{case.suffix}"
            case.write_input(path, pictures if case.model == "lenet5" else table)
            graph = root / f"models/{case.model}/1/model.onnx"
            contract = chosen_version.in_store(root / "models", case.model, None, None).contract
            rows = batch_size or rows_of_a_run(contract)
            click.echo(f"{case.name}: {path.stat().st_size / 1e6:.0f} MB, {rows} rows a run")
            batch = partial(_batch, root / "models", case, path, rows)
            for way in case.ways:
                contenders = {way.name: partial(_loop, graph, path, way, rows), "batch": batch}
                _check(path, case, contenders)
                for line in measurements.lines(case.name, measurements.in_turns(contenders, rounds)):
                    click.echo(line)


Write = Callable[[Sequence[Array]], None]


@dataclass(frozen=True)
class _Way:
    """How a loop reads and writes."""

    name: str
    read: Callable[[Path, int], Iterator[Array]]
    write: Callable[[Path, Sequence[str]], AbstractContextManager[Write]]


@dataclass(frozen=True)
class _Case:
    """One form of INPUT and OUTPUT, and the model that is asked."""

    name: str
    model: str
    suffix: str
    write_input: Callable[[Path, Any], None]
    ways: tuple[_Way, ...]
    form: Callable[[Questions], Form]


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


def _loop(graph: Path, path: Path, way: _Way, batch_size: int) -> Figures:
    """What one would write by hand: read, run on some threads, write."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options)
    names = [value.name for value in session.get_outputs()]
    clock = _Clock()
    run = clock.timed(lambda inputs: session.run(names, dict(inputs)))
    rows = 0
    began = time.perf_counter()
    with way.write(path.with_suffix(f".{way.name}"), names) as write, ThreadPoolExecutor(_THREADS) as pool:
        under_way: deque[Future[Any]] = deque()

        def take() -> int:
            found = under_way.popleft().result()
            write(found)
            return len(found[0])

        for batch in way.read(path, batch_size):
            under_way.append(pool.submit(run, {"x": batch}))
            if len(under_way) > 2 * _THREADS:
                rows += take()
        while under_way:
            rows += take()
    return {"rows/s": rows / (time.perf_counter() - began), "rows/s of runs": rows / clock.seconds}


def _batch(store: Path, case: _Case, path: Path, batch_size: int) -> Figures:
    """What the command does once the version is loaded."""
    source = input_file.open_source(path, None, MAX_ROW_BYTES)
    chosen = chosen_version.in_store(store, case.model, None, None)
    model = LocalModel(chosen.folder, chosen.contract, Pace(batch_size, _THREADS), False, 60.0, None)
    questions = Questions(chosen.contract, chosen.version, source, Columns(), None, 1)
    clock = _Clock()
    setattr(model, "run", clock.timed(model.run))  # noqa: B010 - it is a method
    form = case.form(questions)
    output = path.with_suffix(".batch")
    with Parts(output) as parts:
        began = time.perf_counter()
        run = Run(source, questions, model, form, parts, 0, lambda _: None)
        done = run.go_on(parts.begin({}))
        with parts.whole_file(output) as stream:
            form.write(stream, parts.answers(done.parts), done.columns)
        parts.drop()
        seconds = time.perf_counter() - began
    model.close()
    return {"rows/s": done.answered / seconds, "rows/s of runs": done.answered / clock.seconds}


def _check(path: Path, case: _Case, contenders: Mapping[str, Callable[[], Figures]]) -> None:
    """Both give the same answers, to the digits that the command writes."""
    found = []
    for name, measure in contenders.items():
        measure()
        found.append(_answers(path.with_suffix(f".{name}"), case.suffix))
    if not np.allclose(found[0], found[1], rtol=1e-4, atol=1e-5):
        raise measurements.MeasurementError("the command and the loop differ")


def _answers(path: Path, suffix: str) -> Array:
    """The numbers of all outputs in a file."""
    match suffix:
        case ".csv":
            rows: list[Mapping[str, Any]] = list(pyarrow.csv.read_csv(path).to_pylist())
        case ".parquet":
            rows = list(pyarrow.parquet.read_table(path).to_pylist())
        case _:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
    outputs = [[value for name, value in row.items() if name not in ("line", "id")] for row in rows]
    return np.array([np.ravel(row) for row in outputs])


def _objects(path: Path, batch_size: int) -> Iterator[Array]:
    with path.open() as stream:
        while lines := list(islice(stream, batch_size)):
            yield np.array([json.loads(line)["x"] for line in lines], np.float32)


def _lines(path: Path, batch_size: int) -> Iterator[Array]:
    with path.open(newline="") as stream:
        rows = csv.reader(stream)
        next(rows)
        while cells := list(islice(rows, batch_size)):
            yield np.array(cells, np.float32)


def _arrow_lines(path: Path, batch_size: int) -> Iterator[Array]:
    """Blocks of about as many rows, as pyarrow gives them."""
    size = path.stat().st_size * batch_size // max(1, _rows_in(path))
    with pyarrow.csv.open_csv(path, pyarrow.csv.ReadOptions(block_size=max(1, size))) as reader:
        for batch in reader:
            yield np.stack([column.to_numpy() for column in batch.columns], axis=1).astype(np.float32)


def _rows_in(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


def _parquet_rows(path: Path, batch_size: int) -> Iterator[Array]:
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=batch_size):
            yield np.stack([column.to_numpy() for column in batch.columns], axis=1).astype(np.float32)


@contextmanager
def _json_writer(path: Path, names: Sequence[str]) -> Iterator[Write]:
    with path.open("w") as output:

        def write(found: Sequence[Array]) -> None:
            for row in zip(*found, strict=True):
                output.write(json.dumps(dict(zip(names, (value.tolist() for value in row), strict=True))) + "\n")

        yield write


@contextmanager
def _csv_writer(path: Path, names: Sequence[str]) -> Iterator[Write]:
    with path.open("w", newline="") as output:
        writer = csv.writer(output)
        writer.writerow(names)
        yield lambda found: writer.writerows(zip(*(array[:, 0].tolist() for array in found), strict=True))


def _arrow_table(names: Sequence[str], found: Sequence[Array]) -> pyarrow.Table:
    return pyarrow.table({name: array[:, 0] for name, array in zip(names, found, strict=True)})


def _arrow_schema(names: Sequence[str]) -> pyarrow.Schema:
    return pyarrow.schema([(name, pyarrow.float32()) for name in names])


@contextmanager
def _arrow_csv_writer(path: Path, names: Sequence[str]) -> Iterator[Write]:
    with closing(pyarrow.csv.CSVWriter(path, _arrow_schema(names))) as writer:
        yield lambda found: writer.write_table(_arrow_table(names, found))


@contextmanager
def _parquet_writer(path: Path, names: Sequence[str]) -> Iterator[Write]:
    with closing(pyarrow.parquet.ParquetWriter(path, _arrow_schema(names))) as writer:
        yield lambda found: writer.write_table(_arrow_table(names, found))


def _write_pictures(path: Path, count: int) -> None:
    chance = np.random.default_rng(0)
    with path.open("w") as stream:
        for _ in range(count):
            stream.write(json.dumps({"x": chance.random(benchmark_models.PICTURE).round(3).tolist()}) + "\n")


def _write_lines(path: Path, table: Array) -> None:
    names = ",".join(f"c{place}" for place in range(_TABLE))
    np.savetxt(path, table, "%.5g", delimiter=",", header=names, comments="")


def _write_objects(path: Path, table: Array) -> None:
    with path.open("w") as stream:
        for row in table.round(5).tolist():
            stream.write(json.dumps({"x": row}) + "\n")


def _write_parquet(path: Path, table: Array) -> None:
    columns = {f"c{place}": table[:, place] for place in range(_TABLE)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


_CASES = (
    _Case(
        *("pictures", "lenet5", ".ndjson", _write_pictures),
        (_Way("loop", _objects, _json_writer),),
        lambda questions: results.Ndjson(questions.has_names),
    ),
    _Case(
        *("csv", "table", ".csv", _write_lines),
        (_Way("loop", _lines, _csv_writer), _Way("arrow", _arrow_lines, _arrow_csv_writer)),
        lambda questions: results.Csv(questions.has_names),
    ),
    _Case(
        *("ndjson", "table", ".ndjson", _write_objects),
        (_Way("loop", _objects, _json_writer),),
        lambda questions: results.Ndjson(questions.has_names),
    ),
    _Case(
        *("parquet", "table", ".parquet", _write_parquet),
        (_Way("loop", _parquet_rows, _parquet_writer),),
        lambda questions: results.Parquet(questions.has_names, questions.contract),
    ),
)


def _write_table_model(folder: Path) -> None:
    """`x` float32 [n, 20] to `y` float32 [n, 1], by two layers of 256 units; a regression by its manifest."""
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
    (folder / "assets.extra").mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    names = tuple(f"c{place}" for place in range(_TABLE))
    x, y = Tensor("x", "float32", (None, _TABLE)), Tensor("y", "float32", (None, 1))
    contract = Contract("table", 1, (x,), (y,), task="regression", columns=names)
    told = Manifest("table", 1, "2026-01-02T03:04:05+00:00", contract, {}, manifest.digests(folder), {})
    (folder / manifest.LOCATION).write_text(told.to_json())


if __name__ == "__main__":
    main()
