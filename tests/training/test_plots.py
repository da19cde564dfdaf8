from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bookserve.training import plots

pytestmark = pytest.mark.usefixtures("drawn")


def test_the_matrix_counts_true_rows_and_predicted_columns(tmp_path: Path) -> None:
    counts = plots.confusion_matrix(
        np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0]), ["a", "b", "c"], tmp_path / "confusion.png"
    )
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert _width(tmp_path / "confusion.png") > 300


def test_curves_have_a_panel_a_figure(tmp_path: Path) -> None:
    plots.curves({"loss": [1.0, 0.5], "val_loss": [1.1, 0.7]}, tmp_path / "one.png")
    plots.curves({"loss": [1.0], "accuracy": [0.5], "val_accuracy": [0.4]}, tmp_path / "two.png")
    assert _width(tmp_path / "two.png") == 2 * _width(tmp_path / "one.png")


def test_shares_have_a_bar_a_row(tmp_path: Path) -> None:
    plots.fractions({"x": [0.5, 0.3, 0.2]}, ["won", "drawn", "lost"], "one", tmp_path / "one.png")
    plots.fractions({"x": [0, 0, 1], "o": [1, 0, 0]}, ["won", "drawn", "lost"], "two", tmp_path / "two.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.height > one.height > 100


def test_pictures_stand_eight_in_a_row(tmp_path: Path) -> None:
    red = np.zeros((9, 32, 32, 3), np.uint8)
    red[..., 0] = 255
    areas, heights = [], []
    for count in (0, 8, 9):
        plots.images(red[:count], ["cat, not\ndog"] * count, "wrong", tmp_path / "pictures.png")
        with Image.open(tmp_path / "pictures.png") as image:
            areas.append(int((np.asarray(image.convert("RGB")) == (255, 0, 0)).all(axis=-1).sum()))
            heights.append(image.height)
    assert areas[0] == 0
    assert areas[1] > 8 * 50**2
    assert areas[2] > areas[1]
    assert heights[2] > 1.5 * heights[1]


def _width(path: Path) -> int:
    with Image.open(path) as image:
        return image.width


def test_trials_have_a_panel_a_parameter(tmp_path: Path) -> None:
    parameters: dict[str, list[float | str]] = {"rate": [1e-3, 1e-2, 1e-1], "hidden": ["(8,)", "(8, 4)", "(8,)"]}
    plots.trials([0, 1, 2], [0.5, 0.7, 0.6], parameters, {"rate"}, "val_auc", True, tmp_path / "three.png")
    plots.trials([0], [0.5], {"rate": [1e-3]}, set(), "val_auc", False, tmp_path / "two.png")
    plots.trials([], [], {"rate": []}, {"rate"}, "val_auc", False, tmp_path / "none.png")
    assert _width(tmp_path / "three.png") * 2 == _width(tmp_path / "two.png") * 3
