"""The progress of a run on the terminal: a bar with rows, rate and time left; lines now and then where it is none."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from bookserve.serving.batch.parts import Done

_LINE_SECONDS = 10.0  # between two lines where there is no terminal


class ProgressBar:
    """A context manager; `show` tells it how far the run is."""

    def __init__(self, total: int, done: Done) -> None:
        """`total` is in the unit of Place.offset; `done` is where this run begins."""
        self._console = Console(stderr=True)
        self._total = total
        self._begin = done
        self._started = self._told = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal, transient=True)
        self._task = self._bar.add_task("", total=total, completed=done.place.offset)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, done: Done) -> None:
        """The run is so far."""
        text = f"{done.answered + done.bad:,} rows, {self.rate(done):,.0f}/s"
        if done.bad:
            text += f", {done.bad:,} bad"
        self._bar.update(self._task, completed=done.place.offset, description=text)
        now = time.monotonic()
        if self._bar.disable and now - self._told >= _LINE_SECONDS:
            self._told = now
            share = done.place.offset / max(1, self._total)
            gone = (done.place.offset - self._begin.place.offset) / max(1, self._total)
            left = (now - self._started) * (1 - share) / gone if gone > 0 else 0.0
            self._console.print(f"{share:.0%}: {text}, {_duration(left)} left", highlight=False)

    def rate(self, done: Done) -> float:
        """Rows a second of this run."""
        rows = done.answered + done.bad - self._begin.answered - self._begin.bad
        return rows / max(1e-9, time.monotonic() - self._started)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
