"""What `bookserve train` makes of a user's own data, from the command line to the run folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from own_pictures import write_folder

from bookserve.clients.command_line import main
from bookserve.export import card, run_reader
from bookserve.training.datasets import own_data
from bookserve.training.datasets.own_data import Corpus, MoleculeTable, PictureFolder, PointTable
from bookserve.training.models import MODELS, OWN_DATA
from bookserve.training.run import book_model


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def flats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prices of flats that are nearly linear in their area and age; some flats stand there twice."""
    random = np.random.default_rng(0)
    area, age = random.uniform(20, 200, 150), random.uniform(0, 90, 150)
    price = 1_900 * area - 700 * age + 40_000 + random.normal(0, 5_000, 150)
    rows = [f"{a:.1f};{b:.0f};{c:.0f}" for a, b, c in zip(area, age, price, strict=True)]
    path = tmp_path_factory.mktemp("data") / "flats.csv"
    path.write_text("\n".join(["area m2;age;price", *rows, *rows[:60]]) + "\n")
    return path


def test_a_table_is_trained_with_its_columns_its_card_and_its_name(flats: Path, tmp_path: Path) -> None:
    table = ["--data-file", flats, "--x", "area m2,age", "--y", "price"]
    trained = invoke("train", "linear", *table, "--seed=3", "--runs-dir", tmp_path)
    assert trained.exit_code == 0, trained.output
    assert trained.output.endswith("publish it with: bookserve export flats\n")
    run = run_reader.read(run_reader.latest(tmp_path, "flats"), "flats")
    assert run.contract.columns == ("area m2", "age")
    assert run.contract.inputs[0].shape == (None, 2)
    assert run.contract.model == "flats"
    assert run.metrics["test"]["r2"] > 0.98
    assert run.metrics["parameters"]["area m2"] == pytest.approx(1_900, rel=0.03)
    assert run.data.source == "own"
    assert run.data_card is not None
    assert run.data_card.rows == {"train": 168, "valid": 21, "test": 21}
    assert run.data_card.duplicates["test in train"] > 0
    assert run.own_data is not None
    again = own_data.from_json(run.own_data)
    assert again == PointTable(flats, ("area m2", "age"), "price")
    card.write(tmp_path / "card.md", run, {"y": 0.0})
    text = (tmp_path / "card.md").read_text()
    assert "| | train | valid | test |\n|---|---|---|---|\n| rows | 168 | 21 | 21 |\n" in text
    assert "Splits: 80, 10 and 10 percent, drawn by seed 3." in text
    assert f"SHA-256 `{run.data.sha256}`" in text
    assert "bookserve predict flats" in text


@pytest.mark.parametrize(
    "own",
    [
        PictureFolder(Path("/data/pictures")),
        PointTable(Path("/data/a.csv"), ("x", "y"), "z"),
        MoleculeTable(Path("/data/b.csv"), "smiles", ("a", "b")),
        Corpus(Path("/data/c.txt"), None, None, 500),
        Corpus(Path("/data/c.txt"), Path("/data/d.txt"), Path("/data/e.txt"), 500),
    ],
)
def test_what_a_run_keeps_of_its_data_leads_back_to_it(own: own_data.OwnData) -> None:
    assert own_data.from_json(json.loads(json.dumps(own_data.to_json(own)))) == own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["linear", "--data-file=a.csv"], "--x, --y is missing: it takes --data-file, --x, --y"),
        (["linear", "--x=a"], "--data-file, --y is missing"),
        (["linear", "--text=a.txt"], "--text is not for linear: it takes --data-file, --x, --y"),
        (["mnist", "--data-file=a.csv"], "--data-file is not for mnist: it takes --data-dir with a folder of pictures"),
        (["tictactoe", "--text=a.txt"], "--text is not for tictactoe: it learns from no data"),
        (["tox21", "--data-file=a.csv", "--labels=a"], "--smiles-column is missing: it takes --data-file, --smiles"),
        (["ptb", "--vocabulary=50"], "--vocabulary needs --text: it takes --text, --valid-text, --test-text"),
        (["ptb", "--text=a", "--valid-text=b"], "--valid-text and --test-text go together"),
        (["linear", "--data-file=a.csv", "--x=a,,b", "--y=c"], "--x 'a,,b' has an empty name: give names of columns"),
        (["linear", "--data-file=a.csv", "--x=a,b,a", "--y=c"], "--x 'a,b,a' has 'a' twice"),
        (["linear", "--data-file=my flats.csv", "--x=a", "--y=c"], "'my flats' is no name for a model: give one of"),
        (["linear", "--data-file=mnist.csv", "--x=a", "--y=c"], "'mnist' is a model of the book: give yours another"),
        (["linear", "--data-file=a.csv", "--x=a", "--y=c", "--name=../b"], "'../b' is no name for a model"),
        (["linear", "--name=mnist"], "'mnist' is a model of the book"),
        (["linear", "--data-file=a.csv", "--x=a", "--y=c", "--name=m"], "a.csv does not exist: give a CSV file"),
        (["linear", "--data-file=.", "--x=a", "--y=c", "--name=m"], ". is a folder: give a CSV file"),
    ],
)
def test_what_does_not_fit_together_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = invoke("train", *arguments, "--runs-dir", tmp_path / "runs")
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert message in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_vocabulary_has_its_bounds(tmp_path: Path) -> None:
    for size, code in (("19", 2), ("20", 1), ("200000", 1), ("200001", 2)):
        options = [f"--text={tmp_path}", f"--vocabulary={size}", "--name=x"]
        result = invoke("train", "ptb", *options, "--runs-dir", tmp_path)
        assert result.exit_code == code, size


@pytest.mark.parametrize("given", ["typed", "in the environment"])
def test_an_empty_folder_is_an_error_only_where_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("bookserve.training.run.train_model", lambda *arguments: asked.append(arguments[1]) or 1 / 0)
    (tmp_path / "empty").mkdir()
    if given == "typed":
        invoke("train", "mnist", "--data-dir", tmp_path / "empty", "--runs-dir", tmp_path)
    else:
        monkeypatch.setenv("DATA_DIR", str(tmp_path / "empty"))
        invoke("train", "mnist", "--runs-dir", tmp_path)
    assert [request.own for request in asked] == ([PictureFolder(tmp_path / "empty")] if given == "typed" else [None])


def test_a_folder_with_the_books_files_is_the_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("bookserve.training.run.train_model", lambda *arguments: asked.append(arguments[1]) or 1 / 0)
    write_folder(tmp_path / "pictures", each=1)
    arguments = ["train", "cifar10", "--data-dir", tmp_path / "pictures", "--name=squares", "--runs-dir", tmp_path]
    invoke(*arguments)
    invoke(*arguments, "--data=sample")
    (tmp_path / "pictures" / "cifar-10-batches-bin").mkdir()
    invoke(*arguments)
    assert [request.own for request in asked] == [PictureFolder(tmp_path / "pictures"), None, None]


def test_unreadable_pictures_are_one_message(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", each=2)
    result = invoke("train", "cifar10", "--data-dir", tmp_path / "pictures", "--runs-dir", tmp_path)
    assert result.exit_code == 1
    assert "a class needs 3 pictures at least" in result.output
    assert "cross (2), ring (2), square (2)" in result.output
    assert "Traceback" not in result.output


def test_every_kind_of_data_has_a_model_that_adapts_to_it() -> None:
    adaptable = {name for name in MODELS if hasattr(book_model(name), "on_own_data")}
    assert adaptable == set(OWN_DATA) == set(MODELS) - {"tictactoe"}
