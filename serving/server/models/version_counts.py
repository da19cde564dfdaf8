"""What one version has been asked since the server started, counted whether or not metrics are on."""

import time

from bookserve.serving.server.batching.batcher import BatchRun


class VersionCounts:
    """The counts of one version in one process; changed on the event loop alone. Times are by time.perf_counter()."""

    __slots__ = (
        "answered",
        "failed",
        "failed_seconds",
        "last_ended",
        "loaded",
        "queued_seconds",
        "rows",
        "run_seconds",
        "runs",
    )

    def __init__(self) -> None:
        self.loaded = 0  # how many times the version is loaded now: at two paths while one succeeds the other
        self.answered = 0  # requests
        self.rows = 0  # of these; a request without rows counts as one
        self.queued_seconds = 0.0  # of these, until their batches ran
        self.run_seconds = 0.0  # of their batches
        self.failed = 0  # requests that queued and were not answered
        self.failed_seconds = 0.0  # of these, from their start to their end
        self.runs = 0  # batches
        self.last_ended = 0.0  # the last of these; 0 before it

    def ran(self, run: BatchRun) -> None:
        """Counts one batch."""
        self.runs += 1
        self.last_ended = run.ended

    @property
    def last_time(self) -> float:
        """When the last batch ended, in seconds since 1970; 0 where there was none."""
        return time.time() - (time.perf_counter() - self.last_ended) if self.runs else 0.0
