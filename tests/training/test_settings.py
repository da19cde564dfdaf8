import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bookserve.clients.command_line import main
from bookserve.training.errors import TrainingError
from bookserve.training.models import MODELS, linear, mnist
from bookserve.training.models.tox21 import model as tox21
from bookserve.training.run import book_model
from bookserve.training.settings import changed, grid

DIGITS = mnist.CONFIGS["standard"]["default"]
MOLECULES = tox21.CONFIGS["standard"]["default"]


@pytest.mark.parametrize(
    ("config", "text", "value"),
    [
        (DIGITS, "epochs=3", 3),
        (DIGITS, "dropout=0", 0.0),
        (DIGITS, "learning_rate=1e-3", 0.001),
        (DIGITS, "train_rows=null", None),
        (DIGITS, "train_rows=1", 1),
        (MOLECULES, "hidden=64", (64,)),
        (MOLECULES, "hidden=[64, 32]", (64, 32)),
        (MOLECULES, "hidden=64,32", (64, 32)),
        (MOLECULES, "together=false", False),
        (MOLECULES, "split=scaffold", "scaffold"),
        (linear.CONFIGS["standard"]["default"], "optimizer=adam", "adam"),
    ],
)
def test_a_value_has_the_type_of_its_field(config: Any, text: str, value: Any) -> None:
    found = changed(config, [text])
    assert found == {text.partition("=")[0]: value}
    assert [type(each) for each in found.values()] == [type(value)]


@pytest.mark.parametrize(
    ("config", "texts", "message"),
    [
        (DIGITS, ["epochs"], "--set 'epochs' has no '='; give name=value, with one of epochs, train_rows, batch,"),
        (DIGITS, ["lr=1"], "names no number of this model's: 'lr'; give name=value, with one of epochs"),
        (DIGITS, ["classes=3"], "names no number of this model's: 'classes'"),
        (DIGITS, ["epochs=2", "epochs=3"], "--set gives 'epochs' twice"),
        (DIGITS, ["epochs=2.5"], "--set epochs=2.5: a whole number is expected, such as 5"),
        (DIGITS, ["epochs=true"], "a whole number is expected"),
        (DIGITS, ["epochs="], "a whole number is expected"),
        (DIGITS, ["epochs=0"], "--set epochs=0: it must be at least 1"),
        (DIGITS, ["dropout=1"], "--set dropout=1.0: it is a fraction, and must be below 1"),
        (DIGITS, ["dropout=-0.1"], "it must be at least 0"),
        (DIGITS, ["learning_rate=nan"], "a number is expected, such as 0.002"),
        (DIGITS, ["learning_rate=fast"], "a number is expected"),
        (MOLECULES, ["hidden=64,x"], "a whole number, or several with commas, is expected, such as 512,256"),
        (MOLECULES, ["hidden="], "a whole number, or several with commas, is expected"),
        (MOLECULES, ["hidden=64,0"], "--set hidden=64,0: it must be at least 1"),
        (MOLECULES, ["split=time"], "one of random, scaffold is expected, such as random"),
        (MOLECULES, ["together=maybe"], "true or false is expected, such as true"),
    ],
)
def test_what_cannot_be_set_says_what_can(config: Any, texts: list[str], message: str) -> None:
    with pytest.raises(TrainingError) as error:
        changed(config, texts)
    assert message in str(error.value)


@pytest.mark.parametrize("model", MODELS)
def test_every_plain_number_of_every_model_can_be_set_to_what_it_is(model: str) -> None:
    for config in (config for profiles in book_model(model).CONFIGS.values() for config in profiles.values()):
        with pytest.raises(TrainingError) as error:
            changed(config, ["nothing"])
        names = str(error.value).partition(" with one of ")[2].split(", ")
        assert "epochs" in names
        for name in names:
            value = getattr(config, name)
            assert changed(config, [f"{name}={json.dumps(value)}"]) == {name: value}


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        ([], None),
        (["dropout=0,0.5", "members=1,2"], {"dropout": (0.0, 0.5), "members": (1, 2)}),
        (["hidden=64,128"], {"hidden": ((64,), (128,))}),
        (["hidden=[64],[64,32]"], {"hidden": ((64,), (64, 32))}),
        (["split=random,scaffold"], {"split": ("random", "scaffold")}),
        (["dropout=0.5"], {"dropout": (0.5,)}),
    ],
)
def test_a_grid_has_the_values_of_each_number(texts: list[str], values: Any) -> None:
    assert grid(MOLECULES, texts) == values


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["dropout=0,0.5", "dropout=0.7"], "gives 'dropout' or a value of it twice"),
        (["dropout=0,0.0"], "gives 'dropout' or a value of it twice"),
        (["dropout=0,1"], "it is a fraction, and must be below 1"),
        (["dropout="], "a number is expected"),
        (["depth=1,2"], "names no number of this model's: 'depth'"),
        (["dropout"], "has no '='"),
    ],
)
def test_a_grid_that_cannot_be_says_why(texts: list[str], message: str) -> None:
    with pytest.raises(TrainingError) as error:
        grid(MOLECULES, texts)
    assert message in str(error.value)


def test_what_was_set_trains_and_stays_with_the_run(tmp_path: Path) -> None:
    arguments = ["train", "linear", "--set", "epochs=2", "--set", "learning_rate=0.25", f"--runs-dir={tmp_path}"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.glob("linear/*/config.json")
    content = json.loads(path.read_text())
    assert content["settings"] == {"epochs": 2, "learning_rate": 0.25}
    assert content["config"]["epochs"] == 2
    assert len((path.parent / "history.csv").read_text().splitlines()) == 3


@pytest.mark.usefixtures("tiny_mnist")
def test_a_step_of_more_rows_than_there_are_is_refused(tmp_path: Path) -> None:
    arguments = ["train", "mnist", "--data=sample", "--profile=smoke", "--set=batch=251", f"--runs-dir={tmp_path}"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert "a step of 251 rows needs as many, and mnist has 250 training rows: --set batch=N" in done.output
