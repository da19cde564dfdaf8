"""What a search may vary: a model names fields of its `Config`, and Optuna's distribution of the values of each.

A module in `training/models/` that wants to be tuned has `SEARCHES`, which gives a `Search` to each configuration that
may be the start of one.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from optuna.distributions import CategoricalDistribution, FloatDistribution

Distribution = CategoricalDistribution | FloatDistribution


@dataclass(frozen=True)
class Search:
    """`objective` is a figure of validation rows in the history that `train` returns.

    Of its epochs the one counts whose weights `train` keeps: the best or the last. `shortcut` makes of a setting, a
    `Config`, what the search trains instead, to leave out what the objective does not depend on. A grid takes `points`
    values of each range.
    """

    objective: str
    higher_is_better: bool
    space: Mapping[str, Distribution]
    epoch: Literal["best", "last"] = "best"
    shortcut: Callable[[Any], Any] = lambda config: config
    points: int = 3

    def over(self, values: Mapping[str, Sequence[Any]] | None) -> "Search":
        """The same search over a grid of these values of fields; over its own space where there are none."""
        return self if values is None else replace(self, space={name: choice(*each) for name, each in values.items()})

    def kept(self, epochs: Sequence[float]) -> float:
        """The objective of the epoch that counts; NaN where one of the epochs was not a number."""
        if not epochs or not all(map(math.isfinite, epochs)):
            return math.nan
        if self.epoch == "last":
            return epochs[-1]
        return max(epochs) if self.higher_is_better else min(epochs)


def choice(*values: Any) -> CategoricalDistribution:
    """One of a few values, of any kind that JSON has, or tuples of them. Optuna, which stores no tuples, gets texts."""
    return CategoricalDistribution([json.dumps(value) for value in values])


def hyperparameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's parameters as fields of `Config`: what `choice` made texts of is itself again."""
    decoded = {name: json.loads(value) if isinstance(value, str) else value for name, value in parameters.items()}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in decoded.items()}


def grid(distribution: Distribution, points: int) -> list[Any]:
    """All choices; of a range `points` values at equal distances, or at equal ratios where it is logarithmic."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    low, high, steps = distribution.low, distribution.high, max(1, points - 1)
    if distribution.log:
        ratio = (high / low) ** (1 / steps)
        return [min(high, low * ratio**number) for number in range(points)]
    step = (high - low) / steps
    return [low + number * step for number in range(points)]
