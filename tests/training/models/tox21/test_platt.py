import numpy as np
import pytest

from bookserve.training.models.tox21 import platt

ONE = np.ones(1, np.float32)


def test_the_numbers_that_made_the_results_are_found() -> None:
    chance = np.random.default_rng(0)
    logits = chance.normal(size=(20_000, 2)) * 2
    chances = 1 / (1 + np.exp(-(logits * [0.5, 2.0] + [-1.5, 0.7])))
    results = (chance.random(logits.shape) < chances).astype(np.float32)
    results[:9_000, 1] = np.nan
    scales, shifts = platt.fit(logits, results, np.ones(2, np.float32))
    assert scales == pytest.approx([0.5, 2.0], rel=0.08)
    assert shifts == pytest.approx([-1.5, 0.7], abs=0.1)


def test_without_a_measured_row_the_weight_of_the_actives_is_undone() -> None:
    scales, shifts = platt.fit(np.zeros((4, 1)), np.full((4, 1), np.nan, np.float32), np.array([4.0], np.float32))
    assert scales == pytest.approx([1.0])
    assert shifts == pytest.approx([-np.log(4)])


@pytest.mark.parametrize("true", [[0, 0, 0], [1, 1, 1], [1, 0, 0]])
def test_few_rows_neither_reverse_an_order_nor_make_it_certain(true: list[int]) -> None:
    logits = np.array([[-30.0], [1.0], [40.0]])  # in the last case the order is the wrong one
    scales, shifts = platt.fit(logits, np.array(true, np.float32)[:, None], ONE)
    assert 0 < scales[0] < 1.5
    assert abs(shifts[0]) < 3
