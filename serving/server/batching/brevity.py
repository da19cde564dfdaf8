"""Whether the runs of a version are so short that to hand them to a thread costs more than they do.

A run of 20 us on a thread of its own costs another 50 us for waking it and coming back. So batches of a version whose
last runs were all short are run by the event loop itself, where everything that came in meanwhile shares the next one.
Only batches up to a size that has been short on a thread are; one long run, and the version is back on the threads.
"""

_SHORT_SECONDS = 1e-4  # of the processor's time, for a batch of one request
_SECONDS_A_REQUEST = 2e-5  # more: to put requests together and to take them apart
_LONG_SECONDS = 1e-3  # a run on the event loop that holds up everybody else
_STREAK = 32  # short runs before one is trusted
_BANISHED = 10_000  # runs on threads after a long one


class Brevity:
    """What is known of the runs of one version. A lock of the caller's guards it."""

    def __init__(self, possible: bool) -> None:
        """`possible` says whether the engine computes in the thread that calls it, and there alone."""
        self._possible = possible
        self._streak = 0  # short runs one after another; negative after a long one
        self._nbytes = 0  # the largest inputs that were short

    @property
    def known(self) -> bool:
        """Whether there are batches that the event loop may run."""
        return self._possible and self._streak >= _STREAK

    def covers(self, nbytes: int) -> bool:
        """Whether a batch with inputs of that size is one of them."""
        return self.known and nbytes <= self._nbytes

    def ran(self, nbytes: int, seconds: float, requests: int = 1) -> None:
        """Notes a run: the size of its inputs, the processor's time that it took, and how many shared it."""
        if seconds <= _SHORT_SECONDS + _SECONDS_A_REQUEST * requests:
            self._streak += 1
            if self._streak <= _STREAK or nbytes > self._nbytes:
                self._nbytes = max(self._nbytes, nbytes)
        elif self.covers(nbytes):
            if seconds > _LONG_SECONDS + _SECONDS_A_REQUEST * requests:
                self._streak, self._nbytes = -_BANISHED, 0
        elif not self.known:
            self._streak, self._nbytes = min(self._streak, 0), 0
