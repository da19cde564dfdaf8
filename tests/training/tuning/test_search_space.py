import math

import pytest
from optuna.distributions import FloatDistribution

from bookserve.training.tuning.search_space import Search, choice, grid, hyperparameters


def test_grids_have_both_ends() -> None:
    assert grid(choice(1, "a", (2, 3)), 5) == ["1", '"a"', "[2, 3]"]
    assert grid(FloatDistribution(0.0, 1.0), 5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert grid(FloatDistribution(1e-4, 1e-1, log=True), 4) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert max(grid(FloatDistribution(3e-4, 0.7, log=True), 7)) <= 0.7
    assert grid(FloatDistribution(2.0, 3.0), 1) == [2.0]


def test_choices_come_back_as_they_went_in() -> None:
    values = (1, 0.5, True, None, "a", (2, 3))
    assert [hyperparameters({"x": text})["x"] for text in choice(*values).choices] == list(values)
    assert hyperparameters({"rate": 0.25}) == {"rate": 0.25}


@pytest.mark.parametrize(
    ("higher", "epoch", "expected"),
    [(True, "best", 3.0), (False, "best", 1.0), (True, "last", 2.0), (False, "last", 2.0)],
)
def test_the_epoch_that_counts(higher: bool, epoch: str, expected: float) -> None:
    search = Search("val_loss", higher, {}, epoch)  # type: ignore[arg-type]
    assert search.kept([1.0, 3.0, 2.0]) == expected
    assert math.isnan(search.kept([1.0, math.nan, 2.0]))
    assert math.isnan(search.kept([]))
