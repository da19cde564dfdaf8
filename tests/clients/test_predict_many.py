"""`bookserve predict` with many inputs, of every kind, in every form of output."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import photos
from book_contracts import CONTRACTS, write_manifest, write_manifests
from bookserve.clients import predict
from stand_in_models import OTHERS, WORDS, FakeServer, serve


@pytest.fixture(scope="module")
def server():
    fake = FakeServer(models=(*CONTRACTS, *OTHERS))
    started = serve(fake)
    yield fake
    started.stop(None).wait()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    root = write_manifests(tmp_path_factory.mktemp("many") / "store")
    for contract in OTHERS.values():
        write_manifest(root, contract, 3)
    assets = root / "ptb" / "3" / "assets"
    assets.mkdir(parents=True)
    (assets / "vocabulary.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return str(root)


@pytest.fixture
def ask(server, store):
    def run(*arguments: str, standard_input: str | bytes | None = None):
        way = ("--grpc", server.target, "--models-dir", store)
        return CliRunner().invoke(predict.main, [*arguments, *way], input=standard_input)

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """40 digits whose mean level, and so their class, is their number modulo 10, and a file that is none."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for number in range(40):
        pixels = np.zeros((28, 28), np.uint8)
        pixels[10:18, 12:16] = 245  # a mean of 10
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_a_folder_of_pictures_goes_in_few_requests(ask, server, pictures) -> None:
    before = server.running
    done = ask("mnist", str(pictures), "--output", "csv")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(io.StringIO(done.output)))
    assert [Path(row["input"]).name for row in rows] == [f"{number:02}.png" for number in range(40)]
    assert {(row["class"], row["probabilities.0"], row["version"], row["error"]) for row in rows} == {
        ("0", "1.0", "3", "")
    }
    assert server.running - before == 2


def test_a_folder_of_photographs_of_every_format(ask, tmp_path) -> None:
    for name in photos.FORMATS:
        (tmp_path / f"IMG_1.{name.lower()}").write_bytes(photos.file_of(name))
    (tmp_path / "IMG_2.HEIC").write_bytes(photos.file_of("HEIC")[:2000])  # as cameras write it, and cut off
    done = ask("cifar10", str(tmp_path), "--output", "json")
    assert done.exit_code == 1
    told = json.loads(done.output)["predictions"]
    good = [item for item in told if "error" not in item]
    assert [Path(item["input"]).suffix for item in good] == sorted(f".{name.lower()}" for name in photos.FORMATS)
    assert all(item["version"] == 3 for item in good)
    (cut,) = (item for item in told if "error" in item)
    assert cut["input"].endswith("IMG_2.HEIC")
    assert "cut off" in cut["error"]


def test_one_bad_input_among_many_has_its_error_and_gives_status_1(ask, pictures) -> None:
    bad = pictures / "bad.png"
    bad.write_text("no picture")
    done = ask("mnist", str(pictures / "00.png"), str(bad), str(pictures / "none.png"), "--output", "json")
    assert done.exit_code == 1
    first, second, third = json.loads(done.output)["predictions"]
    assert (first["class"], first["version"]) == ("0", 3)
    assert set(second) == {"input", "error"}
    assert "PNG, JPEG, WebP, BMP" in second["error"]
    assert third["error"] == "cannot be read: No such file or directory"


def test_a_table_has_a_line_an_input_of_at_most_80_columns(ask, pictures) -> None:
    done = ask("mnist", *(str(path) for path in sorted(pictures.glob("0*.png"))))
    lines = done.output.splitlines()
    assert lines[0] == "mnist version 3"
    assert len(lines) == 11
    assert max(map(len, lines)) <= 80
    assert all("class 0" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("model", "text", "column", "expected"),
    [
        ("linear", "1.5\n-2\n\n0\n", "y", ["9.5", "-8.0", "2.0"]),
        ("logistic", "-0.2,0.8\n1,-3\n", "class", ["1", "0"]),
        ("wine", "age,acid,sugar\n1,2,3\n1,-2,3\n", "class", ["good", "bad"]),
        ("tox21", "CCO\nc1ccccc1O\n", "smiles", ["CCO", "c1ccccc1O"]),
        ("ptb", "the stock\nthe market rose\n", "text", ["the stock", "the market rose"]),
        ("tictactoe", "X.O/.X./...\nX../.../...\n", "move", ["8", "8"]),
        ("double", "[[1, 2], [3, 4]]", "y", ["[2.0, 4.0]", "[6.0, 8.0]"]),
        ("double", "a,b\n1,2\n", "y", ["[2.0, 4.0]"]),
    ],
)
def test_standard_input_has_an_input_a_line(ask, model, text, column, expected) -> None:
    done = ask(model, "-", "--output", "csv", standard_input=text)
    assert done.exit_code == 0, done.output
    assert [row[column] for row in csv.DictReader(io.StringIO(done.output))] == expected


def test_standard_input_may_be_a_picture(ask, pictures) -> None:
    done = ask("mnist", "-", "--json", standard_input=(pictures / "03.png").read_bytes())
    assert json.loads(done.output)["predictions"][0]["class"] == "0"


@pytest.mark.parametrize(
    ("model", "name", "content", "column", "expected"),
    [
        ("wine", "rows.csv", "sugar,age,acid\n5,5,2\n5,5,-2\n", "class", ["good", "bad"]),
        ("wine", "rows.csv", "2,5,5\n-2,5,5\n", "class", ["good", "bad"]),
        ("tox21", "pills.csv", "name,SMILES\nethanol,CCO\nphenol,c1ccccc1O\n", "smiles", ["CCO", "c1ccccc1O"]),
        ("tox21", "pills.txt", "CCO\n\nc1ccccc1O\n", "smiles", ["CCO", "c1ccccc1O"]),
        ("ptb", "texts.csv", 'text\n"the stock, rose"\n', "text", ["the stock, rose"]),
    ],
)
def test_a_file_has_many_inputs(ask, tmp_path, model, name, content, column, expected) -> None:
    path = tmp_path / name
    path.write_text(content)
    done = ask(model, str(path), "--output", "csv")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(io.StringIO(done.output)))
    assert [row[column] for row in rows] == expected
    assert all(row["input"].startswith(f"{path} ") for row in rows)


def test_a_table_without_the_column_says_which_it_has(ask, tmp_path) -> None:
    path = tmp_path / "pills.csv"
    path.write_text("name,formula\nethanol,C2H6O\n")
    done = ask("tox21", str(path))
    assert done.exit_code == 1
    assert "has no column 'smiles'; its columns are name, formula" in done.output


def test_a_folder_without_inputs_says_what_it_should_hold(ask, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    done = ask("mnist", str(tmp_path / "empty"))
    assert done.exit_code == 1
    assert "holds no file that ends in .png, .jpg" in done.output


def test_many_go_through_the_gateway_and_one_version_answers_all(http_fake) -> None:
    from bookserve.export.contracts import to_json

    manifest = {"contract": to_json(CONTRACTS["linear"])}
    http_fake.answer("GET", "/api/v1/models/linear", {"version": 3, "versions": [{"version": 3, "manifest": manifest}]})
    first = {"model": "linear", "version": 3, "predictions": [{"y": 1.0}] * 1024}
    http_fake.answer("POST", "/api/v1/linear", first)
    rest = {"model": "linear", "version": 3, "predictions": [{"y": 2.0}] * 6}
    http_fake.answer("POST", "/api/v1/linear?version=3", rest)
    lines = "".join(f"{number}\n" for number in range(1030))
    done = CliRunner().invoke(predict.main, ["linear", "-", "--gateway", http_fake.url, "--output", "csv"], input=lines)
    assert done.exit_code == 0, done.output
    answers = [row["y"] for row in csv.DictReader(io.StringIO(done.output))]
    assert answers == ["1.0"] * 1024 + ["2.0"] * 6
    assert [len(json.loads(body)["x"]) for method, _, _, body in http_fake.received if method == "POST"] == [1024, 6]


def test_contradictory_outputs_are_refused(ask) -> None:
    done = ask("linear", "1", "--json", "--output", "csv")
    assert done.exit_code == 2
    assert "--json and --output csv exclude each other" in done.output
