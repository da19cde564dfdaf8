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
    left, right = outputs([[0.1, 0.2, 0.7]], [2]), outputs([[0.1, 0.20004, 0.7]], [2])
    assert parity.difference(SCORES, left, right) == pytest.approx(4e-5, rel=1e-2)
    assert parity.difference(CLASSES, left, right) == 0


@pytest.mark.parametrize("value", [0.2002, float("nan")])
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
    for probability, accepted in ((0.50002, True), (0.6, False)):
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
