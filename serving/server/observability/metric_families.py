"""The metrics of the model server: names, types, meanings, labels and buckets.

Those of TensorFlow are as in tensorflow_serving/servables/tensorflow/util.cc and util/prometheus_exporter.cc, and in
tensorflow/core/framework/metrics.cc.
"""

from dataclasses import dataclass


def _exponential(scale: float, growth: float, count: int) -> tuple[float, ...]:
    return tuple(scale * growth**power for power in range(count))


_MICROS = _exponential(10, 1.8, 33)  # 10 us to 20 minutes
_QUEUING_MICROS = _exponential(100, 1.2, 52)
_GRAPH_MICROS = _exponential(1000, 2, 20)
_POWERS_OF_TWO = _exponential(1, 2, 15)
_BYTES = _exponential(64, 4, 11)  # 64 bytes to 64 MiB


@dataclass(frozen=True)
class Family:
    """One metric: its name, what kind it is, and its labels."""

    name: str  # with slashes, as TensorFlow names it
    kind: str  # "counter", "gauge" or "histogram"
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()  # inclusive upper bounds of a histogram's buckets; one more takes the rest
    newest: bool = False  # of several processes the largest value counts, not the sum


REQUEST_COUNT = Family(
    "/tensorflow/serving/request_count", "counter", "Requests answered, by status.", ("model_name", "status")
)
REQUEST_LATENCY = Family(
    "/tensorflow/serving/request_latency",
    "histogram",
    "Microseconds from a whole request to its response.",
    ("model_name", "API", "entrypoint"),
    _MICROS,
)
RUNTIME_LATENCY = Family(
    "/tensorflow/serving/runtime_latency",
    "histogram",
    "Microseconds of the run of a request's batch.",
    ("model_name", "API", "runtime"),
    _MICROS,
)
EXAMPLE_COUNTS = Family(
    "/tensorflow/serving/request_example_counts", "histogram", "Rows of a request.", ("model",), _POWERS_OF_TWO
)
EXAMPLE_COUNT_TOTAL = Family(
    "/tensorflow/serving/request_example_count_total", "counter", "Rows of all requests.", ("model",)
)
WARMUP_LATENCY = Family(
    "/tensorflow/serving/model_warmup_latency",
    "histogram",
    "Microseconds of a version's warm-up.",
    ("model_path", "status"),
    _MICROS,
)
WARMUP_RECORDS = Family(
    "/tensorflow/serving/model_warmup_records_read",
    "counter",
    "Warm-up records that were read.",
    ("model_path", "status"),
)
REQUEST_LOG_COUNT = Family(
    "/tensorflow/serving/request_log_count",
    "counter",
    "Records for the request log: taken (`OK`) or dropped.",
    ("model_name", "status_code"),
)
QUEUING_LATENCY = Family(
    "/tensorflow/serving/batching_session/queuing_latency",
    "histogram",
    "Microseconds that a request waited for its batch.",
    ("thread_pool_name",),
    _QUEUING_MICROS,
)
RUN_COUNT = Family("/tensorflow/serving/batching_session/wrapped_run_count", "counter", "Batches that ran.")
INPUT_BATCH_SIZE = Family(
    "/tensorflow/serving/batching_session/input_batch_size",
    "histogram",
    "Rows of a batch, without padding.",
    (),
    _POWERS_OF_TWO,
)
PROCESSED_BATCH_SIZE = Family(
    "/tensorflow/serving/batching_session/processed_batch_size",
    "histogram",
    "Rows of a batch, with padding.",
    (),
    _POWERS_OF_TWO,
)
PADDING_SIZE = Family(
    "/tensorflow/serving/batching_session/padding_size",
    "histogram",
    "Rows that were added to a batch.",
    (),
    _POWERS_OF_TWO,
)
LOAD_ATTEMPTS = Family(
    "/tensorflow/cc/saved_model/load_attempt_count",
    "counter",
    "Attempts to load a version, of every engine.",
    ("model_path", "status"),
)
LOAD_LATENCY = Family(
    "/tensorflow/cc/saved_model/load_latency",
    "counter",
    "Microseconds of all successful loads of a version.",
    ("model_path",),
)
GRAPH_RUNS = Family("/tensorflow/core/graph_runs", "counter", "Runs of a graph, of every engine.")
GRAPH_RUN_MICROS = Family("/tensorflow/core/graph_run_time_usecs", "counter", "Microseconds of all runs.")
GRAPH_RUN_TIMES = Family(
    "/tensorflow/core/graph_run_time_usecs_histogram", "histogram", "Microseconds of a run.", (), _GRAPH_MICROS
)
SESSION_RUNS = Family("/tensorflow/core/direct_session_runs", "counter", "Runs by TensorFlow.")
# There the value is the text, which Prometheus does not read; here it is a label, and the value 1.
MLMD_MAP = Family(
    "/tensorflow/serving/mlmd_map",
    "gauge",
    "Always 1; the label is the version's name in an ML Metadata store.",
    ("model_name", "version", "mlmd_uuid"),
    newest=True,
)
# Our own.
SIGNATURE_COUNT = Family(
    "/bookserve/signature_request_count",
    "counter",
    "Requests answered, by version, signature and status.",
    ("model_name", "version", "signature_name", "status"),
)
RESPONSE_BYTES = Family(
    "/bookserve/response_bytes", "histogram", "Bytes of a response.", ("model_name", "entrypoint"), _BYTES
)
QUEUE_LENGTH = Family(
    "/bookserve/queue_length", "gauge", "Requests that wait for a batch now.", ("model_name", "version")
)
IN_FLIGHT = Family(
    "/bookserve/requests_in_flight",
    "gauge",
    "Requests that are accepted and not yet answered now.",
    ("model_name", "version"),
)
VERSION_STATE = Family(
    "/bookserve/model_version_state",
    "gauge",
    "1 for the state of a version; with `--workers` the number of processes.",
    ("model_name", "version", "state"),
)
CONNECTIONS = Family(
    "/bookserve/connections",
    "gauge",
    "Open connections of a process (0 without `--workers`), on Linux.",
    ("worker", "api"),
)
RESIDENT_BYTES = Family(
    "/bookserve/resident_bytes",
    "gauge",
    "Memory of a process (0 without `--workers`), on Linux.",
    ("worker",),
)
REFUSED = Family(
    "/bookserve/refused_count",
    "counter",
    "Requests that the transport layer refused before a handler saw them.",
    ("api", "reason"),
)
INFERENCE_COUNT = Family(
    "/bookserve/inference_count",
    "counter",
    "Requests that a version answered (`success`) or failed (`failure`).",
    ("model_name", "version", "outcome"),
)
INFERENCE_MICROS = Family(
    "/bookserve/inference_microseconds",
    "counter",
    "Microseconds of all requests of a version: in the `queue`, in the `run`, or until a `failure`.",
    ("model_name", "version", "phase"),
)
INFERENCE_ROWS = Family(
    "/bookserve/inference_row_count", "counter", "Rows that a version answered.", ("model_name", "version")
)
INFERENCE_RUNS = Family(
    "/bookserve/inference_run_count", "counter", "Batches that a version ran.", ("model_name", "version")
)
LAST_INFERENCE = Family(
    "/bookserve/last_inference_time_seconds",
    "gauge",
    "Unix time of a version's last request.",
    ("model_name", "version"),
    newest=True,
)

FAMILIES = (
    *(REQUEST_COUNT, REQUEST_LATENCY, RUNTIME_LATENCY, EXAMPLE_COUNTS, EXAMPLE_COUNT_TOTAL, WARMUP_LATENCY),
    *(WARMUP_RECORDS, REQUEST_LOG_COUNT, QUEUING_LATENCY, RUN_COUNT, INPUT_BATCH_SIZE, PROCESSED_BATCH_SIZE),
    *(PADDING_SIZE, LOAD_ATTEMPTS, LOAD_LATENCY, GRAPH_RUNS, GRAPH_RUN_MICROS, GRAPH_RUN_TIMES, SESSION_RUNS),
    *(MLMD_MAP, SIGNATURE_COUNT, RESPONSE_BYTES, QUEUE_LENGTH, IN_FLIGHT, VERSION_STATE, CONNECTIONS, REFUSED),
    RESIDENT_BYTES,
    *(INFERENCE_COUNT, INFERENCE_MICROS, INFERENCE_ROWS, INFERENCE_RUNS, LAST_INFERENCE),
)
