"""What a search may vary: a model names fields of its `Config` and the values that each of them may take.

A module in `training/models/` that wants to be tuned has `SEARCHES`, which gives a `Search` to each configuration that
may be the start of one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args


@dataclass(frozen=True)
class Choice:
    """One of a few values, which may be of any kind that JSON has, and tuples."""

    values: tuple[Any, ...]

    def grid(self) -> tuple[Any, ...]:
        """All of them."""
        return self.values


@dataclass(frozen=True)
class Uniform:
    """Any number from `low` to `high`, all alike; a grid takes `points` of them."""

    low: float
    high: float
    points: int = 3

    def grid(self) -> tuple[float, ...]:
        """At equal distances, both ends among them."""
        step = (self.high - self.low) / max(1, self.points - 1)
        return tuple(self.low + number * step for number in range(self.points))


@dataclass(frozen=True)
class LogUniform:
    """Any number from `low` to `high`, each order of magnitude alike, as rates are best drawn (chapter 5)."""

    low: float
    high: float
    points: int = 3

    def grid(self) -> tuple[float, ...]:
        """At equal ratios, both ends among them."""
        ratio = (self.high / self.low) ** (1 / max(1, self.points - 1))
        return tuple(min(self.high, self.low * ratio**number) for number in range(self.points))


Sampler = Literal["tpe", "random", "grid"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)

Parameter = Choice | Uniform | LogUniform


@dataclass(frozen=True)
class Search:
    """`objective` is a figure of validation rows in the history that `train` returns.

    Of its epochs the one counts whose weights `train` keeps: the best or the last. `shortcut` makes of a setting, a
    `Config`, what the search trains instead, to leave out what the objective does not depend on.
    """

    objective: str
    higher_is_better: bool
    space: Mapping[str, Parameter]
    epoch: Literal["best", "last"] = "best"
    shortcut: Callable[[Any], Any] = lambda config: config

    def kept(self, epochs: Sequence[float]) -> float:
        """The objective of the epoch that counts; NaN where one of the epochs was no number."""
        if not epochs or not all(map(math.isfinite, epochs)):
            return math.nan
        if self.epoch == "last":
            return epochs[-1]
        return max(epochs) if self.higher_is_better else min(epochs)
