"""Figures of two graphs on the same rows: loss, paired interval, and what targets ask for."""

import numpy as np
import pytest
from scipy.stats import binomtest

from bookserve.export import figures
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.errors import ExportError

ROWS = {"x": np.zeros((2_000, 3), np.float32)}
SCORES = Contract(
    "score",
    1,
    (Tensor("x", "float32", (None, 3)),),
    (Tensor("scores", "float32", (None, 4)), Tensor("best", "int64", (None,), ranks="scores")),
)
HEIGHTS = Contract("height", 1, SCORES.inputs, (Tensor("y", "float32", (None, 1)),), task="regression")


def test_the_loss_is_a_fraction_of_the_float_figure_and_the_interval_holds_the_difference() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 2_000)
    right, worse = labels.copy(), labels.copy()
    right[:100] += 1
    worse[50:200] += 1
    figure = figures.from_targets(SCORES, ROWS, labels)
    found = figures.compare(figure, {"best": right}, {"best": worse})
    assert (found.figure, found.rows, found.float32, found.int8) == ("accuracy", 2_000, 0.95, 0.925)
    assert found.loss == pytest.approx(0.025 / 0.95)
    assert found.interval is not None
    low, high = found.interval
    # 50 rows got better and 100 worse: the standard error of the paired difference is sqrt(150) / 2000 = 0.0061
    assert low == pytest.approx(-0.025 - 1.96 * 0.0061, abs=0.002)
    assert high == pytest.approx(-0.025 + 1.96 * 0.0061, abs=0.002)


def test_a_figure_that_should_be_low_loses_when_it_rises_and_one_of_zero_loses_everything() -> None:
    def figure(name: str) -> figures.Figure:
        return figures.Figure(name, ROWS, lambda outputs, _: float(outputs["f"][0]), False, resamples=0)

    def one(value: float) -> dict[str, np.ndarray]:
        return {"f": np.array([value])}

    found = figures.compare(figure("perplexity"), one(100.0), one(101.0))
    assert (found.loss, found.interval) == (pytest.approx(0.01), None)
    assert figures.compare(figure("perplexity"), one(100.0), one(99.0)).loss == pytest.approx(-0.01)
    assert figures.compare(figure("lost_lines"), one(0.0), one(1.0)).loss == np.inf
    assert figures.compare(figure("lost_lines"), one(0.0), one(0.0)).loss == 0.0


def test_targets_of_numbers_give_r2_and_of_other_shapes_an_error() -> None:
    y = np.random.default_rng(0).standard_normal((2_000, 1)).astype(np.float32)
    figure = figures.from_targets(HEIGHTS, ROWS, y)
    found = figures.compare(figure, {"y": y}, {"y": y + np.float32(0.1)})
    assert (found.figure, found.float32) == ("r2", 1.0)
    assert found.int8 == pytest.approx(0.99, abs=0.002)
    with pytest.raises(ExportError, match=r"no output has the shape of the targets, \[2000, 5\]"):
        figures.from_targets(HEIGHTS, ROWS, np.zeros((2_000, 5)))
    with pytest.raises(ExportError, match="no output is one of classes"):
        figures.from_targets(HEIGHTS, ROWS, np.zeros(2_000, np.int64))


def test_without_targets_the_figure_is_how_far_the_graphs_agree() -> None:
    best = np.arange(2_000) % 4
    other = best.copy()
    other[:20] += 1
    agreed = figures.compare(figures.agreement(SCORES, ROWS, {"best": best}), {"best": best}, {"best": other})
    assert (agreed.figure, agreed.float32, agreed.int8) == ("agreement", 1.0, 0.99)
    y = np.ones((2_000, 1), np.float32)
    near = figures.compare(figures.agreement(HEIGHTS, ROWS, {"y": y}), {"y": y}, {"y": y * np.float32(1.01)})
    assert (near.figure, near.float32) == ("closeness", 1.0)
    assert near.int8 == pytest.approx(0.99)


def paired(won: int, lost: int, rows: int) -> figures.Difference:
    """A second model that alone is right on `won` rows, beside a first that alone is right on `lost`."""
    labels = np.zeros(rows, np.int64)
    first, second = labels.copy(), labels.copy()
    first[:won] = 1
    second[won : won + lost] = 1
    return figures.paired(figures.accuracy(SCORES, {"x": labels}, labels), {"best": first}, {"best": second})


@pytest.mark.parametrize(
    ("won", "lost"), [(0, 0), (0, 3), (0, 5), (0, 6), (0, 20), (5, 15), (8, 12), (30, 55), (40, 9)]
)
def test_a_model_is_worse_where_mcnemars_exact_test_says_so(won: int, lost: int) -> None:
    found = paired(won, lost, 1_000)
    sure = won + lost > 0 and binomtest(lost, won + lost).pvalue < 0.05
    assert (found.worse, found.better) == (sure and lost > won, sure and won > lost)
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]


def test_a_figure_without_chance_is_worse_by_any_difference() -> None:
    figure = figures.Figure("lost_lines", ROWS, lambda outputs, _: float(outputs["f"][0]), False, resamples=0)
    found = figures.paired(figure, {"f": np.zeros(1)}, {"f": np.ones(1)})
    assert (found.worse, found.better, found.text) == (True, False, "difference +1")
    assert figures.paired(figure, {"f": np.ones(1)}, {"f": np.zeros(1)}).better
