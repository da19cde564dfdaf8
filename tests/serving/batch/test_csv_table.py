from pathlib import Path

import pytest

from bookserve.serving.batch.csv_table import CsvTable
from bookserve.serving.batch.records import InputError, Place


def table(path: Path, content: bytes, most: int = 100) -> CsvTable:
    path.write_bytes(content)
    return CsvTable(path, max_row_bytes=most)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in.csv"


def test_a_first_line_of_numbers_is_a_row(path: Path) -> None:
    assert table(path, b"1,2\n3,4\n").columns == ()
    assert [one.line for one, _ in table(path, b"1,2\n3,4\n").read(Place())] == [1, 2]
    named = table(path, "\ufeffa, b\n3,4\n".encode())
    assert named.columns == ("a", "b")
    assert [(one.line, one.value) for one, _ in named.read(Place())] == [(2, ["3", "4"])]


def test_reading_goes_on_behind_every_place(path: Path) -> None:
    source = table(path, b'a,b\n1,"x\ny"\n\n2,\xff\n3,"q"z\n4,"' + b"w" * 200 + b'"\n5,"""r"""\n')
    found = list(source.read(Place()))
    assert [one.line for one, _ in found] == [2, 5, 6, 7, 8]
    assert found[0][0].value == ["1", "x\ny"]
    assert "UTF-8" in found[1][0].reason
    assert "expected after" in found[2][0].reason
    assert "more than 100 bytes" in found[3][0].reason
    assert found[4][0].value == ["5", '"r"']
    for number, (_, place) in enumerate(found, 1):
        assert list(source.read(place)) == found[number:]


@pytest.mark.parametrize(("length", "fits"), [(46, True), (47, True), (48, False)])
def test_a_row_of_several_lines_may_have_so_many_bytes(path: Path, length: int, fits: bool) -> None:
    """Two lines with their ends and quotes: 2 * length + 8 bytes, of which one row may have 100 and an end of two."""
    row = b"1," + b'"' + b"x" * length + b"\n" + b"y" * length + b'",1\n'
    assert len(row) == 2 * length + 8
    source = table(path, b"a,b,c\n" + row + b"1,2,3\n")
    found = [one for one, _ in source.read(Place())]
    assert hasattr(found[0], "value") is fits
    if fits:
        assert [one.line for one in found] == [2, 4]
    else:
        assert "more than 100 bytes (--max-row-bytes)" in found[0].reason


def test_a_quote_that_is_not_closed_ends_at_the_limit_and_no_later(path: Path) -> None:
    source = table(path, b"a,b\n1,2\n" + b'3,"4\n' + b"5,6\n" * 100)
    found = [one for one, _ in source.read(Place())]
    bad = [one for one in found if not hasattr(one, "value")]
    assert len(bad) == 1
    assert "is a quote not closed?" in bad[0].reason
    assert found[-1].line == 103
    assert len(found) > 70


def test_a_first_line_that_is_none(path: Path) -> None:
    with pytest.raises(InputError, match=r"the first line of .*in\.csv is no line of a CSV file"):
        table(path, b"x" * 500 + b"\n1,2\n")


def test_an_empty_file_has_no_rows(path: Path) -> None:
    assert list(table(path, b"").read(Place())) == []
