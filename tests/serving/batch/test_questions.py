"""What a record may be, beyond what the tests of the command show."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from batch_models import DIGITS, FLATS, PAIR
from book_contracts import CONTRACTS
from bookserve.export.contracts import Contract, Tensor
from bookserve.serving.batch import input_file
from bookserve.serving.batch.model import rows_of_a_run
from bookserve.serving.batch.questions import Columns, Questions, Row
from bookserve.serving.batch.records import BadRow, Place, Record

FIXED = Contract("fixed", 1, (Tensor("x", "float32", (4, 2)),), (Tensor("y", "float32", (4, 1)),))
TEXTS = Contract("texts", 1, (Tensor("text", "object", (None, 1)),), (Tensor("n", "int64", (None,)),))
COUNTS = Contract("counts", 1, (Tensor("x", "int64", (None, 2)),), (Tensor("y", "int64", (None,)),))


def rows(contract: Contract, path: Path, columns: Columns = Columns()) -> list[Row | BadRow]:  # noqa: B008
    source = input_file.open_source(path, None, 1 << 20)
    questions = Questions(contract, 1, source, columns, None, 1)
    found = [one for one, _ in source.read(Place())]
    records = iter(questions.rows([one for one in found if isinstance(one, Record)]))
    return [next(records) if isinstance(one, Record) else one for one in found]


def written(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def values(found: list[Row | BadRow], name: str = "x") -> list[Any]:
    return [row.tensors[name].tolist() if isinstance(row, Row) else row.reason for row in found]


@pytest.mark.parametrize(
    "value", [[1, 2], {"x": [1, 2]}, {"x": [[1, 2]]}, {"rooms": 2, "area": 1}, {"x": [1, 2], "z": 3}]
)
def test_a_row_of_json_has_many_forms(tmp_path: Path, value: Any) -> None:
    assert values(rows(FLATS, written(tmp_path / "in.ndjson", value))) == [[[1.0, 2.0]]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"y": [1, 2]}, "the row has the fields y; the model takes area, rooms"),
        ([1, 2, 3], "'x' is [3]; the model takes [any, 2]"),
        ([[1, 2], [3, 4]], "it holds 2 rows: give one a line"),
        (["a", "b"], "'x' is no float32"),
        ([1, None], "a number of it is missing, not finite"),
        ([1e300, 1], "a number of it is missing, not finite"),
    ],
)
def test_a_bad_row_says_what_is_wrong(tmp_path: Path, value: Any, reason: str) -> None:
    good, bad = rows(FLATS, written(tmp_path / "in.ndjson", [1, 2], value))
    assert isinstance(good, Row)
    assert isinstance(bad, BadRow)
    assert reason in bad.reason
    assert bad.line == 2


def test_what_is_no_json_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "in.ndjson").write_text('[1, 2\n{"x": NaN}\n' + "[" * 5000 + "\n")
    found = values(rows(FLATS, tmp_path / "in.ndjson"))
    assert all("the line is no JSON" in reason for reason in found)


def test_a_model_of_a_fixed_number_of_rows_takes_all_of_them(tmp_path: Path) -> None:
    good, bad = rows(FIXED, written(tmp_path / "in.ndjson", [[1, 2]] * 4, [1, 2]))
    assert isinstance(good, Row)
    assert good.tensors["x"].shape == (4, 2)
    assert "the model takes [4, 2]" in bad.reason  # type: ignore[union-attr]
    source = input_file.open_source(tmp_path / "in.ndjson", None, 100)
    questions = Questions(FIXED, 1, source, Columns(), None, 1)
    assert questions.answers([good], {"y": np.ones((4, 1), np.float32)}) == [{"y": [[1.0]] * 4}]


def test_texts_are_cells_and_lines(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\nna\u00efve\n")
    (tmp_path / "in.txt").write_text("na\u00efve\n")
    for name in ("in.csv", "in.txt"):
        assert values(rows(TEXTS, tmp_path / name), "text") == [[["na\u00efve".encode()]]]


def test_a_molecule_may_be_given_by_the_name_of_a_common_compound(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("smiles\nEthanol\nCCO\n")
    named, plain = rows(CONTRACTS["tox21"], tmp_path / "in.csv")
    assert isinstance(named, Row)
    assert isinstance(plain, Row)
    assert named.told == plain.told == "CCO"
    assert all((named.tensors[name] == plain.tensors[name]).all() for name in plain.tensors)


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(f"a,b\n{2**62 + 1},2\n3.0,4\n1.5,2\n1e30,2\n")
    found = values(rows(COUNTS, tmp_path / "in.csv"))
    assert found[:2] == [[[2**62 + 1, 2]], [[3, 4]]]
    assert all("no whole one" in reason for reason in found[2:])


def test_parquet_has_lists_columns_and_pictures(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pa.table({"b": [[7], [8]], "a": [[1.0, 2.0], [3.0]]}), path)
    found = rows(PAIR, path)
    assert values(found, "a") == [[[1.0, 2.0]], [[3.0]]]
    assert values(found, "b") == [[[7]], [[8]]]
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    pyarrow.parquet.write_table(pa.table({"image": [stream.getvalue()], "id": ["one"]}), path)
    (row,) = rows(DIGITS, path)
    assert isinstance(row, Row)
    assert row.name == "one"
    assert (row.tensors["images"][0] == pixels).all()
    as_hugging_face_has_it = pa.table({"picture": [{"bytes": stream.getvalue(), "path": "a.png"}]})
    pyarrow.parquet.write_table(as_hugging_face_has_it, path)
    (row,) = rows(DIGITS, path, Columns("picture"))
    assert isinstance(row, Row)
    for one_picture in (pixels.ravel().tolist(), pixels.tolist()):
        pyarrow.parquet.write_table(pa.table({"images": [one_picture]}), path)
        (row,) = rows(DIGITS, path)
        assert isinstance(row, Row)
        assert (row.tensors["images"][0] == pixels).all()


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((None, 1), 4096), ((None, 20), 4096), ((None, 21), 3900), ((None, 1280), 64), ((None, 224, 224, 3), 64)],
)
def test_small_rows_share_larger_runs(shape: tuple[int | None, ...], rows: int) -> None:
    assert rows_of_a_run(Contract("m", 1, (Tensor("x", "float32", shape),), ())) == rows
