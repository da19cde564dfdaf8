from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from book_contracts import CONTRACTS
from bookserve.training import run
from bookserve.training.datasets.files import DataRequest
from bookserve.training.models import STANDARD, linear


@pytest.mark.parametrize("profile", ["smoke", pytest.param("default", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("drawn")
def test_gradient_descent_finds_the_line_within_the_noise(profile: str, tmp_path: Path) -> None:
    result = run.train_model("linear", DataRequest("sample"), tmp_path, Console(quiet=True), profile=profile)
    found = result.metrics["parameters"]
    data = linear.load_data(linear.CONFIGS[STANDARD][profile], DataRequest("sample"), 0)
    slope, intercept = np.polyfit(data.train.x[:, 0], data.train.y, 1)  # least squares: where the descent must end
    assert found["w"] == pytest.approx(slope, abs=0.01)
    assert found["b"] == pytest.approx(intercept, abs=0.01)
    assert abs(found["w"] - found["w_true"]) < 3 * found["w_noise"]
    assert abs(found["b"] - found["b_true"]) < 3 * found["b_noise"]
    assert 0.01 < found["b_noise"] < found["w_noise"] < 0.05
    assert result.metrics["test"]["r2"] > 0.99
    assert 0.08 < result.metrics["test"]["rmse"] < 0.12
    assert result.origin.source == "real"
    report = {path.name for path in (result.folder / "report").iterdir()}
    assert report == {"curves.png", "line.png", "predicted.png", "evaluation.json"}


def test_r2_is_the_squared_correlation_of_chapter_3() -> None:
    true = np.array([1.0, 2.0, 4.0, 3.0])
    assert linear.pearson_r2(true, -3 * true + 7) == pytest.approx(1)
    assert linear.pearson_r2(true, np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.64)
    assert linear.pearson_r2(true, np.zeros(4)) == 0


def test_a_line_that_is_off_shows_in_the_root_mean_square(tmp_path: Path) -> None:
    data = linear.load_data(linear.CONFIGS[STANDARD]["smoke"], DataRequest("sample"), 0)
    model = linear.build_model(linear.CONFIGS[STANDARD]["smoke"])
    model.get_layer("line").set_weights([np.array([[5.0]]), np.array([4.0])])
    figures = linear.evaluate(model, data, tmp_path)["test"]
    assert figures["r2"] > 0.99
    assert figures["rmse"] == pytest.approx(2, abs=0.1)


def test_the_serving_model_keeps_the_contract() -> None:
    model = linear.build_model(linear.CONFIGS[STANDARD]["smoke"])
    model.get_layer("line").set_weights([np.array([[5.0]]), np.array([2.0])])
    outputs = linear.serving_model(model)(np.array([[0.0], [0.5], [-2.0]], np.float32))
    assert list(outputs) == [tensor.name for tensor in CONTRACTS["linear"].outputs]
    assert outputs["y"].numpy().tolist() == [2.0, 4.5, -8.0]


def test_every_profile_has_its_numbers() -> None:
    steps = [config.epochs * config.steps for config in linear.CONFIGS[STANDARD].values()]
    assert list(linear.CONFIGS[STANDARD]) == ["smoke", "default", "full"]
    assert steps == sorted(steps)
