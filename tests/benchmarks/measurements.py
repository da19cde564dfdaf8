"""Figures of several contenders, measured in turns, and the lines of text that show them.

A machine that gets slower or faster meanwhile changes the figures of all contenders alike, and their ratios little.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

Figures = Mapping[str, float]
Measure = Callable[[], Figures]


class MeasurementError(Exception):
    """Something could not be measured; the text tells why."""


def in_turns(contenders: Mapping[str, Measure], rounds: int) -> dict[str, list[Figures]]:
    """Each contender's figures of each round; every other round goes through the contenders backwards."""
    measured: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in contenders if number % 2 == 0 else reversed(list(contenders)):
            try:
                measured[name].append(contenders[name]())
            except (MeasurementError, OSError) as error:
                raise MeasurementError(f"{name}: {error}") from error
    return measured


def lines(label: str, measured: Mapping[str, Sequence[Figures]]) -> Iterator[str]:
    """A line for each figure: median and range of each contender, and of the ratios of the second to the first.

    A ratio is one of two figures of the same round.
    """
    names = list(measured)
    for figure in dict.fromkeys(figure for rounds in measured.values() for figures in rounds for figure in figures):
        values = {name: [figures[figure] for figures in measured[name] if figure in figures] for name in names}
        columns = [f"{name} {_range(values[name])}" for name in names if values[name]]
        if len(names) > 1:
            pairs = zip(values[names[0]], values[names[1]], strict=False)
            ratios = [second / first for first, second in pairs if first]
            columns += [f"ratio {_range(ratios)}"] if ratios else []
        yield f"  {label:12s} {figure:18s} " + "".join(f"{column:36s}" for column in columns).rstrip()


def _range(values: Sequence[float]) -> str:
    """Median, and minimum..maximum where there are several values."""
    median = _number(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({_number(min(values))}..{_number(max(values))})"


def _number(value: float) -> str:
    """Three digits at least, but for a count of calls below that."""
    if isinstance(value, int) or value == 0:
        return f"{value:,}" if value else "0"
    return f"{value:,.{max(0, 2 - max(0, math.floor(math.log10(abs(value)))))}f}"
