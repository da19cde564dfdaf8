import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner, Result

from bookserve.clients.command_line import main
from bookserve.training import rate_finder
from bookserve.training.datasets.files import DataRequest
from bookserve.training.errors import TrainingError
from bookserve.training.models import MODELS, logistic


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.usefixtures("drawn")
def test_the_command_prints_and_draws_the_curve_of_a_user_s_own_table(tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    rows = np.random.default_rng(0).normal(size=(300, 2)) * (1, 1000)
    lines = [f"{a:.4f},{b:.1f},{'yes' if a + b / 1000 > 0 else 'no'}" for a, b in rows]
    table.write_text("\n".join(["a,b,c", *lines]) + "\n")
    options = (f"--data-file={table}", "--x=a,b", "--y=c", f"--runs-dir={tmp_path / 'runs'}")
    found = invoke("train", "logistic", "--find-rate", "--name=mine", *options)
    assert found.exit_code == 0, found.output
    assert [path.name for path in (tmp_path / "runs/mine").iterdir()] == ["learning_rate.png"]
    assert (tmp_path / "runs/mine/learning_rate.png").read_bytes().startswith(b"\x89PNG")
    curve = [float(loss) for loss in re.findall(r"^ +\d\.\de[-+]\d\d  (\d+\.\d{4})$", found.output, re.M)]
    assert len(curve) >= 5
    assert min(curve) < 0.5 * curve[0]
    assert re.search(r"^mine: the loss is lowest at \S+; the curve is in .*/learning_rate.png$", found.output, re.M)
    assert re.search(r"^train with a tenth of it: --set learning_rate=\S+$", found.output, re.M)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_mnist")
def test_the_rate_that_is_suggested_trains_better_than_others(tmp_path: Path) -> None:
    options = ("--profile=smoke", "--data=sample", f"--runs-dir={tmp_path}")
    found = invoke("train", "mnist", "--find-rate", *options)
    assert found.exit_code == 0, found.output
    (suggested,) = re.findall(r"--set learning_rate=(\S+)$", found.output, re.M)
    losses = {}
    for rate in (suggested, "1e-6", "1"):
        trained = invoke("train", "mnist", f"--set=learning_rate={rate}", *options)
        losses[rate] = float("inf")
        if trained.exit_code == 0:
            losses[rate] = float(re.findall(r"val_loss (\S+)", trained.output)[-1])
    assert min(losses, key=lambda rate: losses[rate]) == suggested


def test_a_parabola_has_its_lowest_loss_where_steps_begin_to_be_too_long() -> None:
    rates = np.geomspace(1e-6, 10, 200)
    losses = 1.0 + np.log10(rates / 0.1) ** 2
    curve = rate_finder.Curve(rates, losses)
    assert curve.lowest == pytest.approx(0.1, rel=0.1)
    assert curve.suggested == pytest.approx(0.01, rel=0.1)
    assert len(curve.rows) in range(18, 24)


@pytest.mark.parametrize("last", [50.0, float("nan")])
@pytest.mark.parametrize("mean", [True, False])
def test_the_training_ends_where_the_loss_rises_or_is_no_number(mean: bool, last: float) -> None:
    losses = [1.0] * 20 + [last] * 80
    told = [float(np.mean(losses[: step + 1])) for step in range(100)] if mean else losses
    sweep = rate_finder.Sweep("made")
    sweep.set_params({"loss_is_mean": mean})
    sweep.on_epoch_begin(0)

    def train() -> None:
        for step, loss in enumerate(told):
            sweep.on_train_batch_end(step, {"loss": loss})

    with pytest.raises(rate_finder._DoneError):
        train()
    assert sweep.losses[:20] == pytest.approx([1.0] * 20)
    assert 20 <= len(sweep.losses) < 30


def test_the_rate_of_a_step_is_the_schedule_s() -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.Adam(0.3), loss="mse")
    sweep = rate_finder.Sweep("made")
    sweep.set_model(model)
    sweep.on_train_begin()
    rates = []
    for step in (0, 100, rate_finder.STEPS - 1):
        model.optimizer.iterations.assign(step)
        rates.append(float(model.optimizer.learning_rate))
    assert rates == pytest.approx([1e-6, 1e-6 * 1e7 ** (100 / 199), 10.0], rel=1e-3)


def test_a_loss_that_never_falls_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(model: Any, data: Any, config: Any, seed: int, callbacks: list[Any], checkpoint: Any) -> None:
        callbacks[0].set_params({})
        for step in range(100):
            callbacks[0].on_train_batch_end(step, {"loss": 1.0 + step})

    monkeypatch.setattr(logistic, "train", train)
    with pytest.raises(TrainingError, match="logistic: the loss fell at no learning rate from 1e-06 on"):
        rate_finder.find("logistic", DataRequest("sample"), logistic.Config(epochs=1), {})


@pytest.mark.slow
def test_a_model_with_an_optimizer_of_its_own_is_refused(tmp_path: Path) -> None:
    refused = invoke("train", "tictactoe", "--find-rate", "--profile=smoke", f"--runs-dir={tmp_path}")
    assert refused.exit_code == 1
    assert "tictactoe is not trained by an optimizer of Keras" in refused.output


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(MODELS.keys() - {"tictactoe", "mnist"}))
def test_every_other_model_has_a_rate(model: str, tmp_path: Path) -> None:
    found = invoke("train", model, "--find-rate", "--profile=smoke", "--data=sample", f"--runs-dir={tmp_path}")
    assert found.exit_code == 0, found.output
    assert re.search(r"^train with a tenth of it: --set learning_rate=\S+$", found.output, re.M)
