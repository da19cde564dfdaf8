"""Files of a user's rows: tables with words, gaps and right answers, and arrays."""

from pathlib import Path

import numpy as np
import pytest

from bookserve.export import data_file
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.errors import ExportError

ROWS = 24
SCORES = (
    Tensor("label", "int64", (None,), ranks="probabilities"),
    Tensor("probabilities", "float32", (None, 2), unit="probability"),
)
COLUMNS = Contract(
    "churn",
    1,
    (Tensor("city", "object", (None, 1)), Tensor("age", "float32", (None, 1))),
    SCORES,
    labels=("leaves", "stays"),
    task="tabular",
)
MATRIX = Contract("churn", 1, (Tensor("x", "float32", (None, 2)),), SCORES, columns=("age", "price"), task="tabular")
PRICES = Contract(
    "flats", 1, (Tensor("x", "float32", (None, 2)),), (Tensor("y", "float32", (None, 1)),), task="regression"
)


def table(folder: Path, head: str, *lines: str) -> Path:
    path = folder / "rows.csv"
    body = [lines[number % len(lines)] for number in range(ROWS)]
    path.write_text("\n".join([head, *body]) + "\n", encoding="utf-8")
    return path


def test_columns_are_found_by_name_and_labels_become_their_numbers(tmp_path: Path) -> None:
    path = table(tmp_path, "note,age,label,city", "a,22.5,stays,Zürich", '"b, c",,leaves,', "d,41,stays,Bern")
    rows, targets = data_file.read(path, COLUMNS, None)
    assert rows["city"][:3].tolist() == [["Zürich".encode()], [b""], [b"Bern"]]
    np.testing.assert_array_equal(rows["age"][:3], np.float32([[22.5], [np.nan], [41]]))
    assert targets is not None
    assert targets.dtype == np.int64
    assert targets[:3].tolist() == [1, 0, 1]


def test_a_column_of_another_name_is_named(tmp_path: Path) -> None:
    path = table(tmp_path, "price,outcome,age", "2e5,1,22", "1e5,0,63")
    rows, targets = data_file.read(path, MATRIX, "outcome")
    np.testing.assert_array_equal(rows["x"][:2], np.float32([[22, 2e5], [63, 1e5]]))
    assert targets is not None
    assert targets[:2].tolist() == [1, 0]
    rows, targets = data_file.read(path, MATRIX, None)
    assert targets is None


def test_values_of_a_regression_stay_values_even_where_they_are_whole(tmp_path: Path) -> None:
    rows, targets = data_file.read(table(tmp_path, "a,b,target", "1,2,3", "2,4,6"), PRICES, None)
    np.testing.assert_array_equal(rows["x"][:2], np.float32([[1, 2], [2, 4]]))
    assert targets is not None
    assert targets.dtype == np.float64


def test_texts_of_an_array_are_labels_too(tmp_path: Path) -> None:
    words = np.array(["Zürich", "Bern"] * (ROWS // 2))[:, np.newaxis]
    ages = np.full((ROWS, 1), 30, np.float32)
    np.savez(tmp_path / "rows.npz", city=words, age=ages, labels=np.array(["stays", "leaves"] * (ROWS // 2)))
    rows, targets = data_file.read(tmp_path / "rows.npz", COLUMNS, None)
    assert rows["city"][0, 0] == "Zürich".encode()
    assert targets is not None
    assert targets[:2].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("head", "line", "name", "said"),
    [
        ("city,age,label", "Bern,22,moves", None, "the right answer 'moves' is none of leaves, stays"),
        ("city,years,label", "Bern,22,stays", None, "does not fit the model: it has no column 'age'"),
        ("city,age,label", "Bern,old,stays", None, "does not fit the model: could not convert string to float: 'old'"),
        ("city,age", "Bern,22", "outcome", "has no column 'outcome' but city, age"),
        ("city,age,label", "Bern,22", None, "line 2 has 2 columns, the first 3"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(
    tmp_path: Path, head: str, line: str, name: str | None, said: str
) -> None:
    with pytest.raises(ExportError) as refused:
        data_file.read(table(tmp_path, head, line), COLUMNS, name)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00city", "cannot be read as a table"),
        (b"", "does not fit the model: it has no column 'city'"),
        (b"city,age,label\nBern,22,stays\n", "has 1 rows: at least 20 are needed"),
    ],
)
def test_a_file_that_is_no_table_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(ExportError, match=said):
        data_file.read(tmp_path / "rows.csv", COLUMNS, None)
    with pytest.raises(ExportError, match="cannot be read as a table"):
        data_file.read(tmp_path / "none.csv", COLUMNS, None)
