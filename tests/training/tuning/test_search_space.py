import math

import pytest

from bookserve.training.tuning.search_space import Choice, LogUniform, Search, Uniform


def test_grids_have_both_ends() -> None:
    assert Choice((1, "a", (2, 3))).grid() == (1, "a", (2, 3))
    assert Uniform(0.0, 1.0, points=5).grid() == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert LogUniform(1e-4, 1e-1, points=4).grid() == pytest.approx((1e-4, 1e-3, 1e-2, 1e-1))
    assert max(LogUniform(3e-4, 0.7, points=7).grid()) <= 0.7
    assert Uniform(2.0, 3.0, points=1).grid() == (2.0,)


@pytest.mark.parametrize(
    ("higher", "epoch", "expected"),
    [(True, "best", 3.0), (False, "best", 1.0), (True, "last", 2.0), (False, "last", 2.0)],
)
def test_the_epoch_that_counts(higher: bool, epoch: str, expected: float) -> None:
    search = Search("val_loss", higher, {}, epoch)  # type: ignore[arg-type]
    assert search.kept([1.0, 3.0, 2.0]) == expected
    assert math.isnan(search.kept([1.0, math.nan, 2.0]))
    assert math.isnan(search.kept([]))
