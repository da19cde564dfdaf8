"""What judges an int8 graph of each model: its own figure, of outputs alone, on test rows."""

import made_up_molecules
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from bookserve.export import figures
from bookserve.training.datasets import ptb as ptb_data
from bookserve.training.datasets import toy
from bookserve.training.datasets.files import Origin
from bookserve.training.datasets.splits import LabelledImages, Splits
from bookserve.training.models import linear, logistic, mnist
from bookserve.training.models.cifar10 import model as cifar10
from bookserve.training.models.ptb import model as ptb
from bookserve.training.models.tictactoe import model as tictactoe
from bookserve.training.models.tictactoe import tree as trees
from bookserve.training.models.tox21 import model as tox21_model

ORIGIN = Origin("sample", "made up", "0" * 64)


def figure_of(measurement: figures.Measurement, **outputs: np.ndarray) -> float:
    return measurement.figure.score(outputs, np.arange(measurement.figure.count))


def test_points_have_r2_and_accuracy_of_the_rows_that_are_picked() -> None:
    points = toy.line(0)
    measured = linear.measurement(points)
    assert measured.calibration["x"] is points.train.x
    assert figure_of(measured, y=points.test.y) == pytest.approx(1.0)
    clouds = toy.clouds(0)
    wrong = clouds.test.y.copy()
    wrong[:10] = 1 - wrong[:10]
    measured = logistic.measurement(clouds)
    assert figure_of(measured, **{"class": wrong}) == pytest.approx(0.9)
    assert measured.figure.score({"class": wrong}, np.arange(10, 100)) == 1.0


def test_points_have_the_same_line_solved_at_once_as_their_baseline() -> None:
    points = toy.line(0)
    baseline = linear.measurement(points).baseline
    assert baseline is not None
    solved = LinearRegression().fit(points.train.x, points.train.y).predict(points.test.x)
    np.testing.assert_allclose(baseline.outputs()["y"], solved, rtol=1e-5)
    clouds = toy.clouds(0)
    baseline = logistic.measurement(clouds).baseline
    assert baseline is not None
    assert figure_of(logistic.measurement(clouds), **baseline.outputs()) >= 0.99


@pytest.mark.parametrize("module", [mnist, cifar10])
def test_images_have_accuracy(module: object) -> None:
    labels = np.arange(40) % 10
    images = LabelledImages(np.zeros((40, 28, 28), np.uint8), labels)
    measured = module.measurement(Splits(images, images, images, ORIGIN))  # type: ignore[attr-defined]
    assert figure_of(measured, classes=np.where(labels == 3, 5, labels)) == pytest.approx(0.9)


def test_molecules_have_the_mean_auc() -> None:
    chance = np.random.default_rng(0)
    results = chance.integers(0, 2, (60, 12)).astype(np.float32)
    split = made_up_molecules.split(chance.integers(0, 2, (60, 1024)).astype(np.uint8), results)
    measured = tox21_model.measurement(Splits(split, split, split, ORIGIN))
    assert figure_of(measured, probabilities=results) == 1.0
    assert figure_of(measured, probabilities=1 - results) == 0.0
    assert measured.baseline is not None  # forests, which were grown on these very rows
    assert figure_of(measured, **measured.baseline.outputs()) == 1.0


def test_words_have_the_perplexity_after_the_words_before_them() -> None:
    words = np.random.default_rng(0).integers(0, ptb_data.VOCABULARY, 300).astype(np.int32)
    measured = ptb.measurement(ptb_data.Text(words, words, words, (), ORIGIN))
    rows, nexts = ptb.windows(words)
    np.testing.assert_array_equal(rows[7], words[7 : 7 + ptb.WINDOW])
    assert nexts[7] == words[7 + ptb.WINDOW]
    alike = np.full((len(rows), ptb_data.VOCABULARY), 1 / ptb_data.VOCABULARY, np.float32)
    assert figure_of(measured, probabilities=alike) == pytest.approx(ptb_data.VOCABULARY, rel=1e-4)
    assert not measured.figure.higher_is_better


def test_boards_have_the_games_that_are_lost() -> None:
    data = tictactoe.load_data(tictactoe.CONFIGS["standard"]["smoke"], None, 0)  # type: ignore[arg-type]
    measured = tictactoe.measurement(data)
    tree = trees.tree()
    best = {board.tobytes(): policy for board, policy in zip(tree.boards, trees.optimal(tree), strict=True)}
    policy = np.stack([best[board.tobytes()] for board in data.boards])
    assert figure_of(measured, probabilities=policy) == 0
    worse = figure_of(measured, probabilities=1.0 - data.boards.sum(axis=3).reshape(-1, 9))  # the first free square
    assert worse > 10
    assert measured.figure.resamples == 0
