"""`bookserve batch` as its user runs it: every kind of INPUT and OUTPUT, bad rows, resumes and refusals."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet
import pytest
import small_networks
from click.testing import Result
from PIL import Image

from batch_models import DIGITS, FLATS, describe
from bookserve.serving.batch import run
from bookserve.serving.batch.parts import FORM, Parts

Batch = Callable[..., Result]


def ndjson(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def errors(output: Path) -> list[dict[str, Any]]:
    return ndjson(output.with_name(f"{output.name}.errors.ndjson"))


def write_pictures(path: Path, count: int, seed: int = 5) -> np.ndarray:
    """Rows of the model `digits` as NDJSON, named p0, p1 and so on."""
    images, _ = small_networks.pictures(count, seed)
    with path.open("w") as stream:
        for place, image in enumerate(images):
            stream.write(json.dumps({"id": f"p{place}", "images": image.tolist()}) + "\n")
    return images


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def expected(store: Path, images: np.ndarray) -> np.ndarray:
    graph = str(store / "digits/1/assets.extra/model.onnx")
    found: np.ndarray = onnxruntime.InferenceSession(graph).run(None, {"images": images})[0]
    return found


def test_ndjson_has_the_answers_of_onnx_runtime_in_order(store: Path, batch: Batch, tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "in.ndjson", 1000)
    done = batch("digits", tmp_path / "in.ndjson", tmp_path / "out.ndjson", "--batch-size", 32)
    assert done.exit_code == 0, done.output
    rows = ndjson(tmp_path / "out.ndjson")
    assert [(row["line"], row["id"]) for row in rows] == [(place + 1, f"p{place}") for place in range(1000)]
    wanted = expected(store, images)
    assert [row["class"] for row in rows] == [DIGITS.labels[place] for place in wanted.argmax(axis=1)]
    found = np.array([list(row["probabilities"].values()) for row in rows])
    assert np.abs(found - wanted).max() < 2e-6
    assert "32 rows a run" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.ndjson", "out.ndjson"]


def test_csv_by_columns_in_any_order(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('id,rooms,area,remark\na,2,50,"quiet, \nsmall"\nb,3,80,\n')
    assert batch("flats", tmp_path / "in.csv", tmp_path / "out.csv").exit_code == 0
    assert table(tmp_path / "out.csv") == [
        {"line": "2", "id": "a", "price": "51000.0"},
        {"line": "4", "id": "b", "price": "81500.0"},
    ]


def test_csv_without_names_and_a_picture_as_cells(store: Path, batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("50,2\n80,3\n")
    assert batch("flats", tmp_path / "in.csv", tmp_path / "out.csv").exit_code == 0
    assert [row["price"] for row in table(tmp_path / "out.csv")] == ["51000.0", "81500.0"]
    images, _ = small_networks.pictures(20, 3)
    (tmp_path / "pixels.csv").write_text("\n".join(",".join(map(str, image.ravel())) for image in images) + "\n")
    assert batch("digits", tmp_path / "pixels.csv", tmp_path / "pixels_out.csv").exit_code == 0
    wanted = [DIGITS.labels[place] for place in expected(store, images).argmax(axis=1)]
    assert [row["class"] for row in table(tmp_path / "pixels_out.csv")] == wanted


def test_parquet_in_and_out(batch: Batch, tmp_path: Path) -> None:
    rows = 1000
    areas = np.arange(rows, dtype=np.float64)
    content = pa.table({"area": areas, "id": [f"flat {place}" for place in range(rows)], "rooms": [2] * rows})
    pyarrow.parquet.write_table(content, tmp_path / "in.parquet", row_group_size=300)
    assert batch("flats", tmp_path / "in.parquet", tmp_path / "out.parquet").exit_code == 0
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert found.schema.names == ["line", "id", "price"]
    assert found.schema.field("price").type == pa.float32()
    assert found["price"].to_pylist() == [1000 * area + 1000 for area in areas]
    assert found["id"].to_pylist()[-1] == "flat 999"


def test_smiles_lines_and_columns(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "in.smi").write_text("CCO ethanol\nc1ccccc1O\tphenol\nnonsense no molecule\nCC\n")
    done = batch("toxic", tmp_path / "in.smi", tmp_path / "out.ndjson")
    assert done.exit_code == 3
    rows = ndjson(tmp_path / "out.ndjson")
    assert [(row["line"], row["id"], row["smiles"]) for row in rows] == [
        (1, "ethanol", "CCO"),
        (2, "phenol", "c1ccccc1O"),
        (4, None, "CC"),
    ]
    assert set(rows[0]["probabilities"]) == {"no", "yes"}
    (error,) = errors(tmp_path / "out.ndjson")
    assert (error["line"], error["id"]) == (3, "no molecule")
    assert "no SMILES" in error["reason"]
    (tmp_path / "in.csv").write_text("name,structure\nethanol,CCO\nethane,CC\n")
    told = batch("toxic", tmp_path / "in.csv", tmp_path / "out.csv")
    assert told.exit_code == 1
    assert "INPUT has no column 'smiles', which the model needs; it has name, structure" in told.output
    options = ("--column", "structure", "--id-column", "name")
    assert batch("toxic", tmp_path / "in.csv", tmp_path / "out.csv", *options).exit_code == 0
    found = table(tmp_path / "out.csv")
    assert [row["id"] for row in found] == ["ethanol", "ethane"]
    assert float(found[0]["probabilities.yes"]) == rows[0]["probabilities"]["yes"]


def test_texts_of_several_lengths(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("the\nthe stock\n\nthe unheard stock market\n" * 30)
    done = batch("next", tmp_path / "in.txt", tmp_path / "out.ndjson", "--top-k", 2)
    assert done.exit_code == 0, done.output
    rows = ndjson(tmp_path / "out.ndjson")
    assert len(rows) == 90
    assert [row["words"][0] for row in rows[:3]] == [
        {"word": "stock", "probability": 1.0},
        {"word": "market", "probability": 1.0},
        {"word": "rose", "probability": 1.0},
    ]
    assert rows[2]["line"] == 4
    assert rows[2]["unknown"] == ["unheard"]
    assert len(rows[0]["words"]) == 2
    assert batch("next", tmp_path / "in.txt", tmp_path / "out.parquet").exit_code == 0
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert found[2]["unknown"] == ["unheard"]
    assert found[0]["words"][0]["word"] == "stock"


def test_boards_and_tensors(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("X.O/.X./...\nXXX/OO./...\n")
    assert batch("noughts", tmp_path / "in.txt", tmp_path / "out.ndjson").exit_code == 3
    (row,) = ndjson(tmp_path / "out.ndjson")
    assert (row["player"], row["line"]) == ("O", 1)
    assert "X has won" in errors(tmp_path / "out.ndjson")[0]["reason"]
    (tmp_path / "in.ndjson").write_text(
        '{"a": [1.5, 2.5], "b": [1]}\n{"a": [1], "b": 2}\n{"a": [1, 2]}\n{"a": ["x"], "b": [1]}\n'
        '{"a": [7, 8], "b": [0]}'
    )
    assert batch("pair", tmp_path / "in.ndjson", tmp_path / "pairs.ndjson").exit_code == 3
    assert [(row["line"], row["sum"]) for row in ndjson(tmp_path / "pairs.ndjson")] == [
        (1, [2.5, 3.5]),
        (2, [3.0]),
        (5, [7.0, 8.0]),
    ]
    reasons = {row["line"]: row["reason"] for row in errors(tmp_path / "pairs.ndjson")}
    assert "the model takes a, b" in reasons[3]
    assert "'a' is no float32" in reasons[4]


def test_pictures_of_a_folder_and_an_archive(store: Path, batch: Batch, tmp_path: Path) -> None:
    images, _ = small_networks.pictures(30, 11)
    names = [f"{'ab'[place % 2]}/{place:02}.png" for place in range(30)]
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, image in zip(names, images, strict=True):
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_bytes(png(image))
            archive.writestr(name, png(image))
        archive.writestr("__MACOSX/a/._00.png", b"")
        archive.writestr("b/notes.txt", b"no picture")
    (tmp_path / "in/b/notes.txt").write_text("no picture")
    (tmp_path / "in/.DS_Store").write_text("")
    os.mkfifo(tmp_path / "in/pipe.png")
    wanted = dict(zip(names, expected(store, images).argmax(axis=1), strict=True))
    for place, (source, bad) in enumerate((("in", {"b/notes.txt", "pipe.png"}), ("in.zip", {"b/notes.txt"}))):
        output = tmp_path / f"{place}.ndjson"
        assert batch("digits", tmp_path / source, output).exit_code == 3
        found = {row["id"]: row["class"] for row in ndjson(output)}
        assert found == {name: DIGITS.labels[number] for name, number in wanted.items()}
        assert list(found) == sorted(names)
        assert {row["id"] for row in errors(output)} == bad


def test_a_model_whose_rows_depend_on_each_other_is_asked_one_by_one(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "in.ndjson").write_text("[1, 2]\n[3, 4]\n[5, 6]\n")
    done = batch("mean", tmp_path / "in.ndjson", tmp_path / "out.ndjson")
    assert "one row a run" in done.output
    assert [row["y"] for row in ndjson(tmp_path / "out.ndjson")] == [[0.0, 0.0]] * 3
    done = batch("mean", tmp_path / "in.ndjson", tmp_path / "told.ndjson", "--rows-independent")
    assert "4096 rows a run" in done.output
    assert [row["y"] for row in ndjson(tmp_path / "told.ndjson")] == [[-2.0, -2.0], [0.0, 0.0], [2.0, 2.0]]


def test_bad_rows_have_their_line_and_reason(batch: Batch, tmp_path: Path) -> None:
    long = "9" * 200
    (tmp_path / "in.csv").write_bytes(
        b"area,rooms\n50,2\n50\nfifty,2\n1e300,2\nnan,2\n\xff,2\n" + f"{long},2\n".encode() + b'"50,2\n80,3\n'
    )
    done = batch("flats", tmp_path / "in.csv", tmp_path / "out.csv", "--max-row-bytes", 100)
    assert done.exit_code == 3
    assert "1 rows" in done.output
    assert "7 bad rows are in" in done.output
    assert [row["price"] for row in table(tmp_path / "out.csv")] == ["51000.0"]
    found = {row["line"]: row["reason"] for row in errors(tmp_path / "out.csv")}
    assert list(found) == [3, 4, 5, 6, 7, 8, 9]
    assert "1 cells, the first line 2" in found[3]
    assert "'fifty' is no number" in found[4]
    assert "not finite" in found[5]
    assert "not finite" in found[6]
    assert "UTF-8" in found[7]
    assert "more than 100 bytes (--max-row-bytes)" in found[8]
    assert "is a quote not closed?" in found[9]


def test_too_many_bad_rows_stop_the_run(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("area,rooms\n50,2\nx,2\ny,2\n60,2\n")
    assert batch("flats", tmp_path / "in.csv", tmp_path / "2.csv", "--max-errors", 2).exit_code == 3
    done = batch("flats", tmp_path / "in.csv", tmp_path / "1.csv", "--max-errors", 1)
    assert done.exit_code == 1
    assert "more than 1 rows are bad (--max-errors); the last, line 4" in done.output
    assert not (tmp_path / "1.csv").exists()
    done = batch("flats", tmp_path / "in.csv", tmp_path / "1.csv", "--max-errors", 2)
    assert done.exit_code == 3


def test_all_rows_may_be_bad(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("area,rooms,id\nx,2,a\n")
    for suffix in ("csv", "parquet", "ndjson"):
        assert batch("flats", tmp_path / "in.csv", tmp_path / f"out.{suffix}").exit_code == 3
    assert (tmp_path / "out.csv").read_text() == "line,id\n"
    assert (tmp_path / "out.ndjson").read_text() == ""
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").num_rows == 0
    (tmp_path / "empty.ndjson").write_text("")
    assert batch("flats", tmp_path / "empty.ndjson", tmp_path / "empty.csv").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("flats", "in.csv", "out.json"), "OUTPUT has to end in one of"),
        (("flats", "missing.csv", "out.csv"), "there is no file or folder"),
        (("flats", "in.dat", "out.csv"), "does not tell what it holds"),
        (("flats", "in.zip", "out.csv"), "no ZIP archive"),
        (("flats", "in.parquet", "out.csv"), "cannot be read as a Parquet file"),
        (("nobody", "in.csv", "out.csv"), "holds no model 'nobody'"),
        (("flats", "in.csv", "out.csv", "--version", 9), "flats has no version 9"),
        (("flats", "in.csv", "out.csv", "--label", "best"), "flats has no label 'best'"),
        (("flats", "in.csv", "out.csv", "--version", 1, "--label", "best"), "one of --version and --label"),
        (("flats", "folder", "out.csv"), "INPUT is pictures, and flats takes x: float32 [batch, 2]"),
        (("flats", "folder", "out.csv", "--format", "csv"), "is a folder"),
        (("digits", "in.csv", "out.csv", "--format", "text"), "INPUT is lines of text, and digits takes"),
        (("flats", "in.csv", "out.csv", "--column", "area"), "--column names where"),
        (("flats", "in.csv", "out.csv", "--id-column", "x"), "INPUT has no column 'x' (--id-column)"),
        (("flats", "in.csv", "no/folder/out.csv"), "No such file or directory"),
        (("flats", "other.csv", "out.csv"), "INPUT has no column 'rooms', which the model needs; it has area, price"),
    ],
)
def test_what_cannot_be_done_is_said(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("area,rooms\n50,2\n")
    (tmp_path / "other.csv").write_text("area,price\n50,2\n")
    for name in ("in.dat", "in.zip", "in.parquet"):
        (tmp_path / name).write_text("area,rooms\n50,2\n")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    done = batch(*arguments)
    assert done.exit_code in (1, 2)
    assert words in done.output
    assert sorted(tmp_path.iterdir()) == before


def test_output_is_not_written_over(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("area,rooms\n50,2\n")
    (tmp_path / "out.csv").write_text("dear")
    done = batch("flats", tmp_path / "in.csv", tmp_path / "out.csv")
    assert done.exit_code == 1
    assert "is there already" in done.output
    assert (tmp_path / "out.csv").read_text() == "dear"
    assert batch("flats", tmp_path / "in.csv", tmp_path / "out.csv", "--restart").exit_code == 0
    assert "51000" in (tmp_path / "out.csv").read_text()


@pytest.fixture
def stopped(batch: Batch, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of its own, whose run of flats was stopped after some parts; beside it in.csv and out.csv."""
    shutil.copytree(store / "flats", tmp_path / "models/flats")
    monkeypatch.setattr(run, "_PART_ROWS", 64)
    lines = [f"{place},2\n" for place in range(1000)]
    (tmp_path / "in.csv").write_text("area,rooms\n" + "".join(lines) + "x,1\ny,1\n")
    done = batch(
        "flats",
        tmp_path / "in.csv",
        tmp_path / "out.csv",
        "--max-errors",
        0,
        "--batch-size",
        64,
        models_dir=tmp_path / "models",
    )
    assert done.exit_code == 1
    assert len(list((tmp_path / "out.csv.parts").glob("*.part"))) > 5
    return tmp_path


def test_a_stopped_run_goes_on(batch: Batch, stopped: Path) -> None:
    done = batch("flats", stopped / "in.csv", stopped / "out.csv", models_dir=stopped / "models")
    assert done.exit_code == 3
    assert "goes on behind 960 rows" in done.output
    assert [(row["line"], row["price"]) for row in table(stopped / "out.csv")] == [
        (str(place + 2), f"{1000.0 * place + 1000}") for place in range(1000)
    ]
    assert [row["line"] for row in errors(stopped / "out.csv")] == [1002, 1003]
    assert not (stopped / "out.csv.parts").exists()


def test_a_resume_refuses_what_differs_and_says_what(batch: Batch, stopped: Path) -> None:
    arguments = ("flats", stopped / "in.csv", stopped / "out.csv")

    def told(*options: object) -> str:
        done = batch(*arguments, *options, models_dir=stopped / "models")
        assert done.exit_code == 1
        assert "is left of an interrupted run of something else" in done.output
        assert "give --restart to drop it" in done.output
        return done.output

    assert "--max-row-bytes was 16777216 and is 1000" in told("--max-row-bytes", 1000)
    plan = stopped / "out.csv.parts/plan.json"  # as the release before left it
    now = plan.read_text()
    plan.write_text(
        json.dumps({key: value for key, value in json.loads(now).items() if "form of its parts" not in key})
    )
    assert f"the form of its parts was nothing and is {FORM}" in told()
    plan.write_text(now)
    (stopped / "in.csv").write_text((stopped / "in.csv").read_text().replace("\n7,2\n", "\n8,2\n"))
    assert "the content of INPUT was" in told()
    (stopped / "in.csv").write_text((stopped / "in.csv").read_text().replace("\n8,2\n", "\n7,2\n", 1))
    shutil.copytree(stopped / "models/flats/1", stopped / "models/flats/2")
    assert "the version was 1 and is 2" in told()
    done = batch(*arguments, "--version", 1, models_dir=stopped / "models")
    assert done.exit_code == 3, done.output


def test_a_version_that_was_made_anew_is_another(batch: Batch, stopped: Path) -> None:
    (stopped / "models/flats/1/note.txt").write_text("another")
    describe(stopped / "models", FLATS)
    done = batch("flats", stopped / "in.csv", stopped / "out.csv", models_dir=stopped / "models")
    assert "its manifest or graph was" in done.output


def test_a_restart_drops_what_is_left(batch: Batch, stopped: Path) -> None:
    options = ("--restart", "--max-row-bytes", 1000)
    done = batch("flats", stopped / "in.csv", stopped / "out.csv", *options, models_dir=stopped / "models")
    assert done.exit_code == 3
    assert "goes on" not in done.output
    assert len(table(stopped / "out.csv")) == 1000


def test_two_runs_do_not_write_one_output(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("area,rooms\n50,2\n")
    with Parts(tmp_path / "out.csv"):
        done = batch("flats", tmp_path / "in.csv", tmp_path / "out.csv")
    assert done.exit_code == 1
    assert "another 'bookserve batch' is writing" in done.output
    assert batch("flats", tmp_path / "in.csv", tmp_path / "out.csv").exit_code == 0


SLOWED = """
import sys, time
from bookserve.serving.batch import run
from bookserve.serving.batch.parts import Parts
from bookserve.clients.command_line import main
run._PART_ROWS = 200
main()
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own, with a trial of the version, and with small parts."""
    command = [sys.executable, "-c", SLOWED, "batch", *map(str, arguments), "--batch-size", "64"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def until_parts(output: Path, count: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while len(list(output.with_name(f"{output.name}.parts").glob("*.part"))) < count:
        assert time.monotonic() < end
        if process.poll() is not None:
            return
        time.sleep(0.01)


def test_sigterm_keeps_what_is_done(store: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in.ndjson", 6_000)
    arguments = ("digits", tmp_path / "in.ndjson", tmp_path / "out.ndjson", "--models-dir", store)
    process = start(*arguments)
    until_parts(tmp_path / "out.ndjson", 3, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "batch: stopped; what is done is kept; the same command goes on there" in said
    assert not (tmp_path / "out.ndjson").exists()
    again = start(*arguments)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "goes on behind" in said
    assert [row["line"] for row in ndjson(tmp_path / "out.ndjson")] == list(range(1, 6_001))


@pytest.mark.slow
def test_a_run_killed_at_random_instants_loses_and_doubles_nothing(store: Path, tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "in.ndjson", 20_000)
    output = tmp_path / "out.csv"
    chance = np.random.default_rng(4)
    kills, rounds = 0, 0
    while not output.exists() or (tmp_path / "out.csv.parts").exists():
        process = start("digits", tmp_path / "in.ndjson", output, "--models-dir", store)
        parts = len(list((tmp_path / "out.csv.parts").glob("*.part")))
        until_parts(output, parts + int(chance.integers(1, 15)), process)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        rounds += 1
        assert rounds < 100
    assert kills >= 5
    rows = table(output)
    assert [row["line"] for row in rows] == [str(place) for place in range(1, 20_001)]
    wanted = expected(store, images).argmax(axis=1)
    assert [row["class"] for row in rows] == [DIGITS.labels[place] for place in wanted]


def test_a_model_file_that_ends_its_engine_ends_a_child(tmp_path: Path) -> None:
    crashing = Path(__file__).parents[2] / "serving/server/models/crashing.tflite"
    (tmp_path / "models/bad/1").mkdir(parents=True)
    shutil.copy(crashing, tmp_path / "models/bad/1/model.tflite")
    (tmp_path / "in.ndjson").write_text("[1]\n")
    process = start("bad", tmp_path / "in.ndjson", tmp_path / "out.csv", "--models-dir", tmp_path / "models")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "Error: " in said
