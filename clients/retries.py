"""Calls that are made again: predictions, metadata and status change nothing, so asking twice does no harm.

Again is asked only where nobody answered or the server was full or going down (`Unavailable`), and only while the
deadline of the call is not over: it holds for all tries together. REST and gateway clients ask again here; over gRPC
the channel does it, by the same settings.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from bookserve.clients.errors import Unavailable

_T = TypeVar("_T")
_LEAST = 0.001  # seconds of a try


@dataclass(frozen=True)
class Retry:
    """How often a call is made at most, and how many seconds lie between: a random part of a time that doubles.

    A server that says when to come again (`Retry-After`) is asked no sooner. ValueError for what is not positive.
    """

    attempts: int = 4
    first: float = 0.05
    longest: float = 1.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first <= 0 or self.longest <= 0:
            raise ValueError(f"{self} cannot be: at least 1 attempt, and seconds above 0")

    def call(self, ask: Callable[[float], _T], timeout: float) -> _T:
        """What `ask` gives, which gets the seconds that are left of `timeout`. Raises what it raised last."""
        deadline = time.monotonic() + timeout
        for tried in range(self.attempts):
            try:
                return ask(max(_LEAST, deadline - time.monotonic()))
            except Unavailable as error:
                wait = self._wait(tried, error)
                if tried + 1 >= self.attempts or time.monotonic() + wait >= deadline:
                    raise
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    async def call_async(self, ask: Callable[[float], Awaitable[_T]], timeout: float) -> _T:
        """As `call`, for asyncio."""
        deadline = time.monotonic() + timeout
        for tried in range(self.attempts):
            try:
                return await ask(max(_LEAST, deadline - time.monotonic()))
            except Unavailable as error:
                wait = self._wait(tried, error)
                if tried + 1 >= self.attempts or time.monotonic() + wait >= deadline:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _wait(self, tried: int, error: Unavailable) -> float:
        longest: float = min(self.longest, self.first * 2.0**tried)
        return max(random.random() * longest, error.retry_after)


AGAIN = Retry()
ONCE = Retry(attempts=1)
