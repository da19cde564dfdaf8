"""Figures of labelled rows: classes, yes-or-no labels with gaps, calibration, intervals, and their text."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import brier_score_loss, confusion_matrix, precision_recall_fscore_support

from book_contracts import CONTRACTS, without_nearest
from bookserve.export import evaluation, evaluation_trial, figures
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.errors import ExportError

NAMES = ("cat", "dog", "horse")
ROWS = 3_000
X = {"x": np.zeros((ROWS, 2), np.float32)}
PETS = Contract(
    "pets",
    1,
    (Tensor("x", "float32", (None, 2)),),
    (
        Tensor("probabilities", "float32", (None, 3), unit="probability"),
        Tensor("classes", "int64", (None,), ranks="probabilities"),
    ),
    labels=NAMES,
    task="image-classification",
)
ASSAYS = Contract("assays", 1, PETS.inputs, PETS.outputs[:1], labels=("a", "b", "c"), task="molecules")
COIN = Contract(
    "coin", 1, PETS.inputs, (Tensor("p", "float32", (None,), unit="probability"),), labels=("tails", "heads")
)


def pets(sharpness: float) -> tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[Any]]]:
    """Classes drawn from probabilities, which are told as they are (1.0) or too sure of themselves (above)."""
    chance = np.random.default_rng(0)
    logits = chance.normal(0, 1.5, (ROWS, 3))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (chance.random((ROWS, 1)) > honest.cumsum(axis=1)).sum(axis=1)
    told = np.exp(logits * sharpness)
    told /= told.sum(axis=1, keepdims=True)
    return truth, {"probabilities": told.astype(np.float32), "classes": told.argmax(axis=1)}


def test_classes_are_judged_as_scikit_learn_judges_them() -> None:
    truth, outputs = pets(1.0)
    found = evaluation.evaluate(figures.accuracy(PETS, X, truth), outputs, PETS)
    assert found.confusion == confusion_matrix(truth, outputs["classes"]).tolist()
    precision, recall, _, support = precision_recall_fscore_support(truth, outputs["classes"])
    assert [one.name for one in found.classes] == list(NAMES)
    assert [one.precision for one in found.classes] == pytest.approx(precision.tolist())
    assert [one.recall for one in found.classes] == pytest.approx(recall.tolist())
    assert [one.positives for one in found.classes] == support.tolist()
    for place, one in enumerate(found.classes):
        others = truth != place
        assert one.specificity == pytest.approx((outputs["classes"][others] != place).mean())
        assert one.false_positive_rate == pytest.approx(1 - float(one.specificity or 0))
        assert one.false_negative_rate == pytest.approx(1 - float(one.recall or 0))


def test_the_interval_is_that_of_a_mean_of_so_many_rows() -> None:
    truth, outputs = pets(1.0)
    found = evaluation.evaluate(figures.accuracy(PETS, X, truth), outputs, PETS)
    assert found.interval is not None
    error = np.sqrt(found.value * (1 - found.value) / ROWS)
    assert found.interval == (
        pytest.approx(found.value - 1.96 * error, abs=0.003),
        pytest.approx(found.value + 1.96 * error, abs=0.003),
    )


def test_few_rows_that_are_all_right_leave_doubt() -> None:
    rows = {"x": np.zeros((18, 2), np.float32)}
    truth = np.arange(18) % 3
    outputs = {"probabilities": np.eye(3, dtype=np.float32)[truth], "classes": truth}
    found = evaluation.evaluate(figures.accuracy(PETS, rows, truth), outputs, PETS)
    assert (found.value, found.interval) == (1.0, (pytest.approx(18 / (18 + 1.959964**2)), 1.0))  # Wilson's, at 1


def test_honest_probabilities_have_a_small_calibration_error_and_too_sure_ones_a_large_one() -> None:
    honest, sure = (
        evaluation.evaluate(figures.accuracy(PETS, X, truth), outputs, PETS).calibration
        for truth, outputs in (pets(1.0), pets(4.0))
    )
    assert honest is not None
    assert sure is not None
    assert honest.ece < 0.03
    assert sure.ece > 0.15
    assert sure.brier > honest.brier
    assert sum(one.count for one in sure.bins) == ROWS


def test_below_the_doubt_half_of_the_answers_are_wrong() -> None:
    sure = np.array([0.9, 0.4, 0.7, 0.5, 0.6, 0.8])
    right = np.array([True, False, True, True, False, True])
    assert evaluation.doubt(sure, right) == pytest.approx(0.75)  # 2 of 4 are wrong below it, 2 of 5 up to 0.8
    assert evaluation.doubt(sure, np.ones(6, bool)) is None
    assert evaluation.doubt(sure, np.zeros(6, bool)) == pytest.approx(0.9)
    alike = np.array([0.5, 0.5, 0.5, 0.5, 0.9])
    assert evaluation.doubt(alike, np.array([False, False, True, True, True])) == pytest.approx(0.7)
    assert evaluation.doubt(alike, np.array([False, True, True, True, True])) is None
    truth, outputs = pets(1.0)
    found = evaluation.evaluate(figures.accuracy(PETS, X, truth), outputs, PETS)
    assert found.doubt is not None
    below = outputs["probabilities"].max(axis=1) < found.doubt
    assert below.sum() > 20
    assert (outputs["classes"] != truth)[below].mean() == pytest.approx(0.5, abs=0.02)
    assert f"Of those below {found.doubt:.2f}, half or more are of another class" in evaluation.text(found)[0]
    assert found.to_json()["doubt"] == found.doubt


def test_labels_that_are_not_known_count_nowhere() -> None:
    chance = np.random.default_rng(1)
    said = chance.random((ROWS, 3)).astype(np.float32)
    truth = (chance.random((ROWS, 3)) < said).astype(np.float32)
    truth[chance.random((ROWS, 3)) < 0.3] = np.nan
    figure = figures.Figure("share", X, lambda _, places: float(len(places)), resamples=0, truth=truth)
    found = evaluation.evaluate(figure, {"probabilities": said}, ASSAYS)
    assert (found.cutoff, found.confusion, found.interval) == (0.5, [], None)
    for place, one in enumerate(found.classes):
        known = ~np.isnan(truth[:, place])
        true, seen = truth[known, place] > 0.5, said[known, place] > 0.5
        assert (one.rows, one.positives) == (known.sum(), true.sum())
        assert one.precision == pytest.approx(true[seen].mean())
        assert one.recall == pytest.approx(seen[true].mean())
    known = ~np.isnan(truth)
    assert found.calibration is not None
    assert found.calibration.brier == pytest.approx(brier_score_loss(truth[known], said[known]))
    assert found.calibration.ece < 0.02


def test_a_probability_of_one_class_has_a_table_of_both() -> None:
    chance = np.random.default_rng(2)
    said = chance.random(ROWS).astype(np.float32)
    truth = (chance.random(ROWS) < said).astype(np.int64)
    found = evaluation.evaluate(figures.accuracy(COIN, X, truth), {"p": said}, COIN)
    assert found.confusion == confusion_matrix(truth, said > 0.5).tolist()
    assert (found.labels, [one.name for one in found.classes]) == (["tails", "heads"], ["heads"])
    assert "| heads |" in "\n".join(evaluation.text(found))


def test_a_class_that_nobody_is_and_nobody_sees_has_no_rates() -> None:
    truth = np.zeros(ROWS, np.int64)
    outputs = {"probabilities": np.tile(np.float32([0.9, 0.1, 0.0]), (ROWS, 1)), "classes": truth}
    found = evaluation.evaluate(figures.accuracy(PETS, X, truth), outputs, PETS)
    dog = found.classes[1]
    assert (dog.precision, dog.recall, dog.specificity) == (None, None, 1.0)
    assert evaluation.text(found)  # an empty cell, no error


@pytest.mark.parametrize("wrong", [-1, 3, 10**12])
def test_a_right_answer_that_is_no_class_of_the_model_is_refused(wrong: int) -> None:
    truth, outputs = pets(1.0)
    truth[17] = wrong
    with pytest.raises(ExportError, match=f"a right answer is class {wrong}: the model has 3, from 0 to 2"):
        evaluation.evaluate(figures.accuracy(PETS, X, truth), outputs, PETS)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    for truth, outputs in (pets(1.0), (np.zeros(ROWS, np.int64), pets(1.0)[1])):
        found = evaluation.evaluate(figures.accuracy(PETS, X, truth), outputs, PETS)
        path = tmp_path / "evaluation.json"
        path.write_text(json.dumps(found.to_json(), allow_nan=False))
        assert evaluation.text(evaluation.read(path)) == evaluation.text(found)
        assert evaluation.figures_of(evaluation.read(path)) == evaluation.figures_of(found)


@pytest.mark.parametrize(("wrong", "verdict"), [(0, "better"), (60, "no different"), (150, "worse")])
def test_a_model_stands_beside_its_baseline(tmp_path: Path, wrong: int, verdict: str) -> None:
    truth, outputs = pets(1.0)
    right, plain, model = (np.array(truth) for _ in range(3))
    plain[:60] = (right[:60] + 1) % 3
    model[100 : 100 + wrong] = (right[100 : 100 + wrong] + 1) % 3
    figure = figures.accuracy(PETS, X, truth)
    measured = figures.Measurement(X, figure, figures.Baseline("a coin", lambda: outputs | {"classes": plain}))
    mine = outputs | {"classes": model}
    found = evaluation.beside(evaluation.evaluate(figure, mine, PETS), measured, mine)
    assert found.baseline is not None
    assert (found.baseline.verdict, found.baseline.value) == (verdict, pytest.approx(1 - 60 / ROWS))
    kept = evaluation.figures_of(found)
    assert kept["less_baseline"] == pytest.approx((60 - wrong) / ROWS)
    assert kept["less_baseline_low"] < kept["less_baseline"] < kept["less_baseline_high"]
    (tmp_path / "evaluation.json").write_text(json.dumps(found.to_json()))
    assert evaluation.text(evaluation.read(tmp_path / "evaluation.json")) == evaluation.text(found)
    assert evaluation.text(found)[2].startswith("The baseline, a coin, has 0.98 on the same rows: difference ")


def test_one_row_in_ten_is_unlike_the_training_rows() -> None:
    contract = replace(CONTRACTS["tox21"], labels=("active",))
    outputs = {"probabilities": np.full((11, 1), 0.25, np.float32), "nearest": np.linspace(0, 1, 11, dtype=np.float32)}
    figure = figures.Figure("auc", outputs, lambda *_: 0.5, truth=np.zeros((11, 1)))
    found = evaluation.evaluate(figure, outputs, contract)
    assert found.unlike == pytest.approx(0.1)
    assert evaluation.figures_of(found)["unlike"] == found.unlike == found.to_json()["unlike"]
    assert "For one row in ten the nearest training row has a similarity below 0.10" in evaluation.text(found)[0]
    assert evaluation.unlike(without_nearest(), outputs) is None


@pytest.mark.parametrize("word", ["Zürich", "東京", "\udcff"])
def test_words_reach_the_engine_as_they_are(tmp_path: Path, word: str) -> None:
    given = np.array([[word.encode("utf-8", "surrogateescape")], [b"Bern"]], object)
    evaluation_trial.write(tmp_path / "rows.npz", {"city": given, "age": np.float32([[1], [2]])})
    with np.load(tmp_path / "rows.npz", allow_pickle=False) as content:
        read = evaluation_trial._as_bytes(content["city"])
    assert read.tolist() == given.tolist()
