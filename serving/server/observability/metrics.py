"""What the server counts, under TensorFlow Serving's names, and the Prometheus page that shows it.

A request costs one look-up and some additions: the cells that its answers add to are kept together (`_Served`). All
counting is done on the event loop, but for what the loading threads report, which takes a lock. A snapshot is plain
data, and snapshots of several processes can be rendered as one page.

The page is written here: prometheus_client's exposition would add `_total` to the names of TensorFlow's counters.
"""

import re
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path

from bookserve.serving.server.batching.batcher import BatchRun
from bookserve.serving.server.models.catalog import VersionSnapshot
from bookserve.serving.server.models.version_counts import VersionCounts
from bookserve.serving.server.observability.metric_families import (
    EXAMPLE_COUNT_TOTAL,
    EXAMPLE_COUNTS,
    FAMILIES,
    GRAPH_RUN_MICROS,
    GRAPH_RUN_TIMES,
    GRAPH_RUNS,
    IN_FLIGHT,
    INFERENCE_COUNT,
    INFERENCE_MICROS,
    INFERENCE_ROWS,
    INFERENCE_RUNS,
    INPUT_BATCH_SIZE,
    LAST_INFERENCE,
    LOAD_ATTEMPTS,
    LOAD_LATENCY,
    MLMD_MAP,
    PADDING_SIZE,
    PROCESSED_BATCH_SIZE,
    QUEUE_LENGTH,
    QUEUING_LATENCY,
    REQUEST_COUNT,
    REQUEST_LATENCY,
    REQUEST_LOG_COUNT,
    RESPONSE_BYTES,
    RUN_COUNT,
    RUNTIME_LATENCY,
    SESSION_RUNS,
    SIGNATURE_COUNT,
    VERSION_STATE,
    WARMUP_LATENCY,
    WARMUP_RECORDS,
    Family,
)
from bookserve.serving.server.settings import text_protos
from bookserve.serving.server.types.errors import invalid_argument
from bookserve.serving.wire import tensorflow_serving_pb2 as messages

DEFAULT_PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = "text/plain"
# A client may name models that do not exist: so many of them get series of their own.
MAX_UNKNOWN_MODELS = 100
_MAX_UNKNOWN_NAME = 128
OTHER_MODELS = "(other)"
# Series of versions, newest kept.
_MAX_VERSIONS = 500
_RUNTIMES = {"tensorflow": "TF1", "onnx": "ONNX"}

Labels = tuple[str, ...]
# Family name -> (label values, value) of each series; of a histogram the bucket counts and then the sum. As JSON keeps
# it, but that tuples come back as lists.
Snapshot = dict[str, list[tuple[Labels, list[float]]]]
Gauge = tuple[Family, Labels, float]


class Counter:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def values(self) -> list[float]:
        """As a snapshot holds it."""
        return [self.value]


class Histogram:
    """One series of a histogram."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Counts one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def values(self) -> list[float]:
        """As a snapshot holds it."""
        return [*self.counts, self.total]


class _Served:
    """The cells of the answers of one signature of one version over one API."""

    __slots__ = ("by_signature", "bytes", "count", "examples", "examples_total", "latency", "run")

    def __init__(self, count: Counter, latency: Histogram, size: Histogram) -> None:
        self.count = count
        self.latency = latency
        self.bytes = size
        # Where a model ran:
        self.by_signature: Counter
        self.run: Histogram
        self.examples: Histogram
        self.examples_total: Counter


# Model, version, signature, API, entry point and engine of a request.
Key = tuple[str, int, str, str, str, str]


class Metrics:
    """The counts of one process; `enabled` says whether anybody can read those of requests and batches."""

    def __init__(self, *, enabled: bool = True, thread_pool: str = "") -> None:
        """`thread_pool` is the name of the threads that run batches."""
        self.enabled = enabled
        self.models: frozenset[str] = frozenset()  # the configured ones
        self._strangers: set[str] = set()
        self._cells: dict[str, dict[Labels, Counter | Histogram]] = {family.name: {} for family in FAMILIES}
        self._served: dict[Key, _Served] = {}
        self._versions: dict[tuple[str, int], VersionCounts] = {}
        self._loading = threading.Lock()
        self._queuing = self._histogram(QUEUING_LATENCY, thread_pool)
        self._runs = self._counter(RUN_COUNT)
        self._input_rows = self._histogram(INPUT_BATCH_SIZE)
        self._processed_rows = self._histogram(PROCESSED_BATCH_SIZE)
        self._padding_rows = self._histogram(PADDING_SIZE)
        self._graph_runs = self._counter(GRAPH_RUNS)
        self._graph_micros = self._counter(GRAPH_RUN_MICROS)
        self._graph_times = self._histogram(GRAPH_RUN_TIMES)
        self._session_runs = self._counter(SESSION_RUNS)

    # Requests

    def succeeded(self, key: Key, micros: float, nbytes: int) -> None:
        """Counts a request that was answered without a model's run: status and metadata over REST."""
        served = self._served.get(key) or self._serve(key)
        served.count.value += 1
        served.latency.add(micros)
        served.bytes.add(nbytes)

    def predicted(
        self, key: Key, micros: float, nbytes: int, rows: int, queued_micros: float, run_micros: float
    ) -> None:
        """Counts a request that a model answered: in all `micros`, of which it waited for its batch, and that ran.

        Histogram.add is written out here: this is the one place that every prediction passes.
        """
        served = self._served.get(key) or self._serve(key)
        served.count.value += 1
        served.by_signature.value += 1
        served.examples_total.value += rows
        cell = served.latency
        cell.counts[bisect_left(cell.bounds, micros)] += 1
        cell.total += micros
        cell = served.run
        cell.counts[bisect_left(cell.bounds, run_micros)] += 1
        cell.total += run_micros
        cell = self._queuing
        cell.counts[bisect_left(cell.bounds, queued_micros)] += 1
        cell.total += queued_micros
        cell = served.bytes
        cell.counts[bisect_left(cell.bounds, nbytes)] += 1
        cell.total += nbytes
        cell = served.examples
        cell.counts[bisect_left(cell.bounds, rows)] += 1
        cell.total += rows

    def failed(self, model: str, status: str, version: int, signature: str) -> None:
        """Counts a request that was answered with an error; version 0 where it found none."""
        model = self._model_label(model)
        self._counter(REQUEST_COUNT, model, status).value += 1
        if version:
            self._counter(SIGNATURE_COUNT, model, str(version), signature, status).value += 1

    def logged(self, model: str, status: str) -> None:
        """Counts a record of the request log that was taken (OK) or dropped."""
        self._counter(REQUEST_LOG_COUNT, self._model_label(model), status).value += 1

    def _serve(self, key: Key) -> _Served:
        model, version, signature, api, entrypoint, engine = key
        if len(self._served) >= _MAX_VERSIONS:
            self._served.clear()
            self._cells[SIGNATURE_COUNT.name].clear()
        served = self._served[key] = _Served(
            self._counter(REQUEST_COUNT, model, "OK"),
            self._histogram(REQUEST_LATENCY, model, api, entrypoint),
            self._histogram(RESPONSE_BYTES, model, entrypoint),
        )
        if engine:
            served.by_signature = self._counter(SIGNATURE_COUNT, model, str(version), signature, "OK")
            served.run = self._histogram(RUNTIME_LATENCY, model, api, _RUNTIMES.get(engine, engine))
            served.examples = self._histogram(EXAMPLE_COUNTS, model)
            served.examples_total = self._counter(EXAMPLE_COUNT_TOTAL, model)
        return served

    def _model_label(self, model: str) -> str:
        if model in self.models or model in self._strangers:
            return model
        if len(self._strangers) >= MAX_UNKNOWN_MODELS or len(model) > _MAX_UNKNOWN_NAME:
            return OTHER_MODELS
        self._strangers.add(model)
        return model

    # Versions

    def counts(self, model: str, version: int) -> VersionCounts:
        """Those of a version that is loaded now; `loaded` is the caller's to lower. Those unloaded longest ago go."""
        counts = self._versions.setdefault((model, version), VersionCounts())
        counts.loaded += 1
        if len(self._versions) > _MAX_VERSIONS:
            unloaded = next((key for key, counts in self._versions.items() if not counts.loaded), None)
            if unloaded is not None:
                del self._versions[unloaded]
        return counts

    # Batches

    def ran(self, run: BatchRun, engine: str) -> None:
        """Counts one batch, which that engine has run."""
        micros = round((run.ended - run.started) * 1e6)
        self._graph_runs.value += 1
        self._graph_micros.value += micros
        self._graph_times.add(micros)
        if engine == "tensorflow":
            self._session_runs.value += 1
        self._runs.value += 1
        self._input_rows.add(run.rows)
        self._processed_rows.add(run.rows + run.padding)
        self._padding_rows.add(run.padding)

    # Loading; from any thread

    def loaded(self, path: Path, succeeded: bool, seconds: float) -> None:
        """Counts an attempt to load the version in `path`."""
        with self._loading:
            self._counter(LOAD_ATTEMPTS, str(path), "success" if succeeded else "fail").value += 1
            if succeeded:
                self._counter(LOAD_LATENCY, str(path)).value += round(seconds * 1e6)
            self._forget()

    def warmed_up(self, path: Path, status: str, seconds: float, records: int) -> None:
        """Counts the warm-up of the version in `path`, and how many records it read for that."""
        with self._loading:
            self._histogram(WARMUP_LATENCY, str(path), status).add(seconds * 1e6)
            self._counter(WARMUP_RECORDS, str(path), status).value += records
            self._forget()

    def identified(self, model: str, version: int, uuid: str) -> None:
        """Shows by which name the ML Metadata store knows a version that is loaded."""
        with self._loading:
            self._counter(MLMD_MAP, model, str(version), uuid).value = 1
            self._forget()

    def _forget(self) -> None:
        for family in (LOAD_ATTEMPTS, LOAD_LATENCY, WARMUP_LATENCY, WARMUP_RECORDS, MLMD_MAP):
            cells = self._cells[family.name]
            while len(cells) > _MAX_VERSIONS:
                del cells[next(iter(cells))]

    # The page

    def snapshot(self, gauges: Iterable[Gauge] = ()) -> Snapshot:
        """Every series with its value, and `gauges`, which are measured when they are asked for."""
        with self._loading:
            taken: Snapshot = {
                name: [(labels, cell.values()) for labels, cell in cells.items()] for name, cells in self._cells.items()
            }
        for family, labels, value in (*gauges, *self._version_series()):
            taken[family.name].append((labels, [value]))
        return taken

    def _version_series(self) -> Iterator[Gauge]:
        for (model, number), counts in self._versions.items():
            version = (model, str(number))
            yield INFERENCE_COUNT, (*version, "success"), counts.answered
            yield INFERENCE_COUNT, (*version, "failure"), counts.failed
            yield INFERENCE_MICROS, (*version, "queue"), counts.queued_seconds * 1e6
            yield INFERENCE_MICROS, (*version, "run"), counts.run_seconds * 1e6
            yield INFERENCE_MICROS, (*version, "failure"), counts.failed_seconds * 1e6
            yield INFERENCE_ROWS, version, counts.rows
            yield INFERENCE_RUNS, version, counts.runs
            yield LAST_INFERENCE, version, counts.last_time

    def _counter(self, family: Family, *labels: str) -> Counter:
        cells = self._cells[family.name]
        cell = cells.get(labels)
        if cell is None:
            cell = cells[labels] = Counter()
        assert isinstance(cell, Counter)
        return cell

    def _histogram(self, family: Family, *labels: str) -> Histogram:
        cells = self._cells[family.name]
        cell = cells.get(labels)
        if cell is None:
            cell = cells[labels] = Histogram(family.bounds)
        assert isinstance(cell, Histogram)
        return cell


def version_gauges(versions: Iterable[VersionSnapshot]) -> list[Gauge]:
    """The state and the load of each version."""
    gauges: list[Gauge] = []
    for seen in versions:
        labels = (seen.model, str(seen.version))
        if seen.state is not None:
            gauges.append((VERSION_STATE, (*labels, messages.ModelVersionStatus.State.Name(seen.state)), 1))
        if seen.in_flight is not None:
            gauges.append((IN_FLIGHT, labels, seen.in_flight))
        if seen.queued is not None:
            gauges.append((QUEUE_LENGTH, labels, seen.queued))
    return gauges


def lasting(snapshot: Snapshot) -> Snapshot:
    """What remains true of a process that is gone: its counts, not its gauges."""
    return {family.name: snapshot.get(family.name, []) for family in FAMILIES if family.kind != "gauge"}


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Series of several processes with the same labels added together.

    So a gauge such as `model_version_state` says in how many processes a version is in that state. Of a `newest` one
    the largest value stays.
    """
    newest = {family.name for family in FAMILIES if family.newest}
    sums: dict[str, dict[Labels, list[float]]] = {family.name: {} for family in FAMILIES}
    for snapshot in snapshots:
        for name, series in snapshot.items():
            total = sums[name]
            for labels, values in series:
                key = tuple(labels)
                before = total.get(key)
                if before is None:
                    total[key] = list(values)
                elif name in newest:
                    total[key] = max(before, values)
                else:
                    total[key] = [a + b for a, b in zip(before, values, strict=True)]
    return {name: list(total.items()) for name, total in sums.items()}


def render(snapshots: Iterable[Snapshot]) -> bytes:
    """The Prometheus page of one process, or of several as `merged` adds them up."""
    whole = merged(snapshots)
    lines: list[str] = []
    for family in sorted(FAMILIES, key=lambda family: family.name):
        name = re.sub("[^A-Za-z0-9_]", ":", family.name)
        lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}"]
        for labels, values in sorted(whole[family.name]):
            pairs = ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(family.labels, labels, strict=True))
            if family.kind == "histogram":
                lines += _histogram_lines(name, pairs, family.bounds, values)
            else:
                lines.append(f"{name}{{{pairs}}} {_number(values[0])}")
    return "\n".join([*lines, ""]).encode("utf-8", "replace")


def _histogram_lines(name: str, pairs: str, bounds: tuple[float, ...], values: list[float]) -> list[str]:
    *counts, total = values
    lines, below = [], 0.0
    prefix = f"{name}_bucket{{{pairs},le=" if pairs else f"{name}_bucket{{le="
    for bound, count in zip((*(f"{bound:g}" for bound in bounds), "+Inf"), counts, strict=True):
        below += count
        lines.append(f'{prefix}"{bound}"}} {_number(below)}')
    return [*lines, f"{name}_sum{{{pairs}}} {_number(total)}", f"{name}_count{{{pairs}}} {_number(below)}"]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(value: str) -> str:
    """A label value; line breaks and other control characters are written as JSON writes them."""
    value = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return re.sub("[\x00-\x1f\x7f]", lambda match: f"\\\\u{ord(match[0]):04x}", value)


def read_monitoring_config(path: Path) -> str | None:
    """The path of the metrics page that a text MonitoringConfig asks for; None where it leaves them off.

    Raises ServingError (INVALID_ARGUMENT) when the file cannot be read or parsed, or the path does not begin with "/".
    """
    config = text_protos.read(path, messages.MonitoringConfig()).prometheus_config
    page = config.path or DEFAULT_PATH
    if not page.startswith("/"):
        raise invalid_argument(f"'{path}': prometheus_config.path must begin with '/', it is '{page}'")
    return page if config.enable else None
