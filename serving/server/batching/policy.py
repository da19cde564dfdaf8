"""How requests become batches: the adaptive default, or BatchingParameters as TensorFlow Serving reads them.

The defaults of the fields are the adaptive policy: a batch is what queued while the last ones ran, nobody waits for it
to fill, and what cannot be batched runs alone. BatchingParameters are somebody's decision: they hold to the letter, and
what cannot be batched is an error, as in TensorFlow Serving (batching_session.cc, shared_batch_scheduler.h).
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

from bookserve.serving.server.settings import text_protos
from bookserve.serving.server.types.errors import invalid_argument
from bookserve.serving.wire import version_folder
from bookserve.serving.wire.batching_parameters_pb2 import BatchingParameters

_THREAD_POOL = "batch_threads"  # of a file that names none
PER_MODEL_FILE = version_folder.BATCHING
# TensorFlow's process gets a socket for each thread, all in one message (engines/tensorflow_process.py).
MAX_THREADS = 250


@dataclass(frozen=True)
class BatchPolicy:
    """The limits of one version's batches; rows are sizes of the first dimension."""

    strict: bool = False  # from BatchingParameters
    max_rows: int = 64  # of one run: enough to amortise it, few enough that nobody waits long behind it
    max_bytes: int | None = 8 << 20  # of the inputs of one run
    max_request_rows: int | None = None
    wait_seconds: float = 0.0  # that a batch may wait to fill, from its first request
    max_queued_batches: int | None = None  # a signature
    allowed_rows: tuple[int, ...] = ()  # a run has the next of these, filled with copies of its first row
    pad_inputs: bool = False  # bring inputs of different sizes to the largest
    split_requests: bool = False  # a request that is larger than `max_rows` runs in pieces
    parallel_runs: int = 1  # of one version
    share_runs: bool = False  # a batch takes no more than its share of what is under way, so that all runs have work

    def run_rows(self, rows: int) -> int:
        """How many rows a run of that many gets."""
        return next((allowed for allowed in self.allowed_rows if allowed >= rows > 0), rows)


def adaptive(parallel_runs: int) -> BatchPolicy:
    """The default: that many runs of a version at a time, each with its share of the requests."""
    return BatchPolicy(parallel_runs=parallel_runs, share_runs=parallel_runs > 1)


def read_parameters(path: Path) -> BatchingParameters:
    """Reads a text BatchingParameters file. Raises ServingError (INVALID_ARGUMENT) when it cannot be read."""
    return text_protos.read(path, BatchingParameters())


def batch_threads(parameters: BatchingParameters, cores: int) -> int:
    """How many threads run batches, by default one per core.

    Raises ServingError (INVALID_ARGUMENT) below one and above MAX_THREADS.
    """
    if not parameters.HasField("num_batch_threads"):
        return cores
    threads = _at_least(1, "num_batch_threads", parameters.num_batch_threads.value)
    if threads > MAX_THREADS:
        raise invalid_argument(f"num_batch_threads must be at most {MAX_THREADS}; was {threads}")
    return threads


def thread_pool(parameters: BatchingParameters) -> str:
    """The name of the threads that run batches, which the metrics show."""
    return parameters.thread_pool_name.value if parameters.HasField("thread_pool_name") else _THREAD_POOL


def from_parameters(parameters: BatchingParameters, threads: int) -> BatchPolicy:
    """The policy of a version whose batches run on a pool of `threads` threads.

    Raises ServingError (INVALID_ARGUMENT) for values that make no sense.
    """
    max_rows = 1000
    if parameters.HasField("max_batch_size"):
        max_rows = _at_least(1, "max_batch_size", parameters.max_batch_size.value)
    max_request_rows = max_rows
    split = parameters.enable_large_batch_splitting.value
    if split and parameters.HasField("max_execution_batch_size"):
        max_rows = _at_least(1, "max_execution_batch_size", parameters.max_execution_batch_size.value)
        if max_rows > max_request_rows:
            raise invalid_argument(
                "When enable_large_batch_splitting is true, max_execution_batch_size must be less than or equal to"
                f" max_batch_size; max_execution_batch_size was {max_rows}, max_batch_size was {max_request_rows}"
            )
    wait_micros = _at_least(0, "batch_timeout_micros", parameters.batch_timeout_micros.value)
    max_queued = 10
    if parameters.HasField("max_enqueued_batches"):
        max_queued = _at_least(0, "max_enqueued_batches", parameters.max_enqueued_batches.value)
    allowed = tuple(parameters.allowed_batch_sizes)
    if any(one >= next_one for one, next_one in itertools.pairwise(allowed)):
        raise invalid_argument("allowed_batch_sizes entries must be monotonically increasing")
    if allowed:
        _at_least(1, "allowed_batch_sizes", allowed[0])
        if allowed[-1] != max_rows:
            raise invalid_argument(
                "Last entry in allowed_batch_sizes must match max_batch_size;"
                f" last entry was {allowed[-1]}; expected {max_rows}"
            )
    return BatchPolicy(
        strict=True,
        max_rows=max_rows,
        max_bytes=None,
        max_request_rows=max_request_rows,
        wait_seconds=wait_micros / 1e6,
        max_queued_batches=max_queued,
        allowed_rows=allowed,
        pad_inputs=parameters.pad_variable_length_inputs,
        split_requests=split,
        parallel_runs=threads,
    )


def _at_least(least: int, name: str, value: int) -> int:
    if value < least:
        raise invalid_argument(f"{name} must be {'positive' if least else 'non-negative'}; was {value}")
    return value
