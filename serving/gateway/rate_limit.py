"""How many predictions a caller may ask for: so many at once, and then at the same rate (off unless it is asked for).

The generic cell rate algorithm keeps one number a caller, the time at which its allowance is whole again (ITU-T I.371).
A caller is the name of an API key, or an address where there are no keys. Each gateway counts for itself.
"""

import math
import threading
import time
from collections.abc import Callable

from flask import Request, g

from bookserve.serving.gateway.problems import Problem

_MINUTE = 60.0  # seconds
_CALLERS = 10_000  # of whom is known how much they asked; beyond these all begin anew


class RateLimit:
    """At most `per_minute` questions of a caller in a minute. Shared by the gateway's threads."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._whole: dict[str, float] = {}  # caller -> when its allowance is whole again

    def check(self, request: Request) -> None:
        """Counts a question of the request's caller. Raises Problem 429 where it is one too many."""
        wait = self.seconds_to_wait(g.get("caller") or request.remote_addr or "")
        if wait > 0:
            raise Problem(
                429,
                f"more than {self._per_minute} predictions a minute of one caller: ask again in {math.ceil(wait)} s",
                headers={"Retry-After": str(math.ceil(wait))},
            )

    def seconds_to_wait(self, caller: str) -> float:
        """0 where the caller may ask, which counts; else how long it has to wait, which does not."""
        each = _MINUTE / self._per_minute
        with self._lock:
            now = self._clock()
            whole = max(self._whole.get(caller, now), now)
            wait = whole + each - now - _MINUTE
            if wait > 1e-9:
                return wait
            if len(self._whole) >= _CALLERS and caller not in self._whole:
                self._whole = {name: when for name, when in self._whole.items() if when > now}
                if len(self._whole) >= _CALLERS:
                    self._whole.clear()
            self._whole[caller] = whole + each
            return 0.0
