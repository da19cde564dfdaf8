from pathlib import Path

import pytest

from bookserve.training.datasets import table, text_file
from bookserve.training.datasets.files import DataError


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_cells_come_with_their_lines_whatever_parts_them(tmp_path: Path, separator: str) -> None:
    lines = [
        ["name", "weight kg", "note"],
        ["Ann", " 70.5 ", '"tall"'],
        [],
        ["Bob", "81", '"two\nlines"'],
        ["Eve", "", "x"],
    ]
    path = tmp_path / "people.csv"
    path.write_text("\ufeff" + "\r\n".join(separator.join(cells) for cells in lines) + "\r\n", encoding="utf-8")
    read = table.read(path, ("weight kg", "name"))
    assert read.rows == (("70.5", "Ann"), ("81", "Bob"), ("", "Eve"))
    assert read.lines == (2, 5, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: give a CSV file whose first line names its columns"),
        (b" \n\n", "is empty"),
        (b"a,b\n", "has a line of column names and no rows below it"),
        (b"a,b\n\n , \n", "has a line of column names and no rows below it"),
        (b"x,y\n1,2\n", "has no column 'a', 'b'; its first line names 'x', 'y'"),
        (b"1,2\n3,4\n", "has no column 'a', 'b'; its first line names '1', '2'"),
        (b"a,b,a\n1,2,3\n", "has the column 'a' twice: give one of them another name"),
        (b"a,b\n1,2\n1,2,3\n", ", line 3: 3 cells where the first line names 2 columns; a cell with a separator in it"),
        (b"a,b\n1\n", ", line 2: 1 cells where the first line names 2 columns"),
        (b'a,b\n1,"2\n3,4\n', ", line 3, cannot be read as CSV: unexpected end of data"),
        (b"a,b\n1,2\nM\xfcller,3\n", ", line 3: the byte 0xfc is no UTF-8; give a CSV file"),
        (
            "a,b\n1,2\n".encode("utf-16"),
            "is UTF-16; give a CSV file whose first line names its columns, saved as UTF-8",
        ),
        (b"PK\x03\x04\x00\x00", "is no text: byte 4 is zero; give a CSV file"),
        (b"a,b\n" + b"1" * 140_000 + b",2\n", "cannot be read as CSV: field larger than field limit (131072)"),
        (b"c" * 5_000 + b"\n1\n", "has no column 'a', 'b'; its first line names 'ccc"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        table.read(path, ("a", "b"))
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert len(str(error.value)) < 600


def test_a_file_that_is_none_and_one_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder: give a CSV file"):
        table.read(tmp_path, ("a",))
    with pytest.raises(DataError, match=r"none\.csv does not exist: give a CSV file"):
        table.read(tmp_path / "none.csv", ("a",))
    path = tmp_path / "text"
    path.write_bytes(b"12345")
    assert text_file.read(path, "a text", 5) == "12345"
    with pytest.raises(DataError, match="has more than 4 bytes, the most that is read: train on a part of it"):
        text_file.read(path, "a text", 4)
