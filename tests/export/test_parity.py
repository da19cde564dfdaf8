import numpy as np
import pytest

from bookserve.export import parity
from bookserve.export.contracts import Tensor
from bookserve.export.errors import ExportError

SCORES = Tensor("scores", "float32", (None, 3))
CLASSES = Tensor("classes", "int64", (None,), ranks="scores")
TOP = Tensor("top", "int32", (None, 2), ranks="scores")


def outputs(scores: list[list[float]], classes: list[int]) -> dict[str, np.ndarray]:
    return {"scores": np.array(scores, np.float32), "classes": np.array(classes, np.int64)}


def test_the_largest_difference_is_reported() -> None:
    left, right = outputs([[0.1, 0.2, 0.7]], [2]), outputs([[0.1, 0.200004, 0.7]], [2])
    assert parity.difference(SCORES, left, right) == pytest.approx(4e-6, rel=1e-2)
    assert parity.difference(CLASSES, left, right) == 0


@pytest.mark.parametrize("value", [0.20001, float("nan")])
def test_a_larger_one_is_refused(value: float) -> None:
    with pytest.raises(ExportError, match="differ in 'scores' by"):
        parity.difference(SCORES, outputs([[0.1, 0.2, 0.7]], [2]), outputs([[0.1, value, 0.7]], [2]))


def test_classes_may_differ_only_where_their_scores_are_tied() -> None:
    tied, clear = [0.45, 0.45, 0.1], [0.6, 0.3, 0.1]
    share = parity.difference(CLASSES, outputs([tied, clear], [0, 0]), outputs([tied, clear], [1, 0]))
    assert share == 0.5
    with pytest.raises(ExportError, match="differ in 'classes' for 1 of 2 values"):
        parity.difference(CLASSES, outputs([tied, clear], [0, 0]), outputs([tied, clear], [0, 1]))


def test_ranked_lists_may_swap_tied_places() -> None:
    scores = np.array([[0.45, 0.45, 0.1]], np.float32)
    left, right = (
        {"scores": scores, "top": np.array([[0, 1]], np.int32)},
        {
            "scores": scores,
            "top": np.array([[1, 0]], np.int32),
        },
    )
    assert parity.difference(TOP, left, right) == 1.0


def test_a_yes_or_no_class_is_tied_at_one_half() -> None:
    ranked = Tensor("class", "int64", (None,), ranks="probability")
    for probability, accepted in ((0.500002, True), (0.50002, False), (0.6, False)):
        left = {"probability": np.array([probability], np.float32), "class": np.array([1])}
        right = {"probability": np.array([probability], np.float32), "class": np.array([0])}
        if accepted:
            assert parity.difference(ranked, left, right) == 1.0
        else:
            with pytest.raises(ExportError, match="differ in 'class'"):
                parity.difference(ranked, left, right)


def test_whole_numbers_that_rank_nothing_must_agree() -> None:
    counts = Tensor("counts", "int64", (None,))
    with pytest.raises(ExportError, match="differ in 'counts'"):
        parity.difference(counts, {"counts": np.array([1])}, {"counts": np.array([2])})


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float64), "of the ONNX graph is float64"),
        (np.zeros((2, 3), np.float16), np.zeros((2, 3), np.float32), "of the SavedModel is float16"),
        (np.zeros((2, 3), np.float32), np.zeros((3, 3), np.float32), r"\(2, 3\) from the SavedModel"),
    ],
)
def test_types_and_shapes_must_agree(left: np.ndarray, right: np.ndarray, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        parity.difference(SCORES, {"scores": left}, {"scores": right})


def test_the_tolerance_is_a_fraction_of_the_largest_value() -> None:
    left = {"scores": np.array([[1000.0, 0.001, -3.0]], np.float32)}
    for change, accepted in ((0.009, True), (0.02, False)):
        right = {"scores": left["scores"] + np.array([0.0, change, 0.0], np.float32)}
        if accepted:
            parity.difference(SCORES, left, right)
        else:
            with pytest.raises(ExportError, match=r"by 0\.02, more than 0\.01"):
                parity.difference(SCORES, left, right)
            parity.difference(SCORES, left, right, tolerance=parity.DOUBLE_SOURCE)
    one = {"scores": left["scores"][:, 1:]}
    off = {"scores": one["scores"] + np.float32(0.009)}
    assert parity.difference(SCORES, one, off, sizes=parity.largest(left)) > 0
    with pytest.raises(ExportError, match="more than 3e-05"):
        parity.difference(SCORES, one, off)
    half = {"scores": np.array([[0.5, 0.25, 0.25]], np.float16)}
    parity.difference(
        Tensor("scores", "float16", (None, 3)), half, {"scores": np.nextafter(half["scores"], np.float16(1))}
    )


def test_nan_is_no_agreement_unless_the_inputs_hold_it() -> None:
    both = {"scores": np.array([[0.5, np.nan, -np.inf]], np.float32)}
    with pytest.raises(ExportError, match=r"'scores' of the SavedModel is NaN for 1 of 3 values.*--example"):
        parity.difference(SCORES, both, both)
    assert parity.difference(SCORES, both, both, nan_expected=True) == 0
    with pytest.raises(ExportError, match="differ in 'scores'"):
        parity.difference(SCORES, both, {"scores": np.array([[0.5, 1.0, -np.inf]], np.float32)}, nan_expected=True)
