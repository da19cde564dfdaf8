"""Work that blocks, on a thread of its own beside the event loop: nobody waits for it when the process ends."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")


async def on_own_thread(loop: asyncio.AbstractEventLoop, name: str, work: Callable[[], Result]) -> Result:
    """What `work` answers or raises; `name` is the thread's."""
    future: asyncio.Future[Result] = loop.create_future()

    def report(outcome: Result | Exception) -> None:
        if future.cancelled():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def run() -> None:
        outcome: Result | Exception
        try:
            outcome = work()
        except Exception as fault:
            outcome = fault
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(report, outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future
