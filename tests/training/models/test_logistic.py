from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from book_contracts import CONTRACTS
from bookserve.training import run
from bookserve.training.datasets.files import DataRequest
from bookserve.training.models import STANDARD, logistic


@pytest.mark.parametrize("profile", ["smoke", pytest.param("default", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("drawn")
def test_the_clouds_are_parted_without_an_error(profile: str, tmp_path: Path) -> None:
    result = run.train_model("logistic", DataRequest("sample"), tmp_path, Console(quiet=True), profile=profile)
    assert [result.metrics[split]["accuracy"] for split in ("train", "valid", "test")] == [1.0, 1.0, 1.0]
    assert result.metrics["test"]["loss"] < 0.02
    assert result.metrics["parameters"]["degrees_off"] < 15
    pictures = {"curves.png", "clouds.png", "reliability.png"}
    assert {path.name for path in (result.folder / "report").iterdir()} == {*pictures, "evaluation.json"}


def with_weights(w1: float, w2: float, b: float) -> keras.Model:
    model = logistic.build_model(logistic.CONFIGS[STANDARD]["smoke"])
    model.get_layer("line").set_weights([np.array([[w1], [w2]]), np.array([b])])
    return model


def test_the_figures_are_those_of_the_weights(tmp_path: Path) -> None:
    data = logistic.load_data(logistic.CONFIGS[STANDARD]["smoke"], DataRequest("sample"), 0)
    right = logistic.evaluate(with_weights(3.0, 3.0, 0.0), data, tmp_path)
    assert right["parameters"]["degrees_off"] == pytest.approx(0, abs=0.1)
    assert right["test"]["accuracy"] == 1
    wrong = logistic.evaluate(with_weights(-3.0, -3.0, 0.0), data, tmp_path)
    assert wrong["parameters"]["degrees_off"] == pytest.approx(180, abs=0.1)
    assert wrong["test"]["accuracy"] == 0
    blind = logistic.evaluate(with_weights(0.0, 0.0, 1.0), data, tmp_path)
    assert blind["test"]["accuracy"] == 0.5
    assert blind["test"]["loss"] == pytest.approx((np.log1p(np.exp(-1)) + np.log1p(np.exp(1))) / 2)


def test_the_serving_model_keeps_the_contract() -> None:
    points = np.array([[1, 1], [-1, -1], [0.5, 0]], np.float32)
    outputs = logistic.serving_model(with_weights(2.0, 1.0, -0.5))(points)
    assert set(outputs) == {tensor.name for tensor in CONTRACTS["logistic"].outputs}
    expected = 1 / (1 + np.exp(-np.array([2.5, -3.5, 0.5])))
    np.testing.assert_allclose(outputs["probability"].numpy(), expected, rtol=1e-6)
    assert outputs["class"].numpy().tolist() == [1, 0, 1]
    assert outputs["class"].numpy().dtype == np.int64


def test_every_profile_has_its_numbers() -> None:
    assert list(logistic.CONFIGS[STANDARD]) == ["smoke", "default", "full"]
    smoke, default, full = logistic.CONFIGS[STANDARD].values()
    assert smoke.epochs < default.epochs < full.epochs
