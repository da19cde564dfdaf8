from pathlib import Path

import pytest

from bookserve.serving.batch.records import BadRow, Place, Record
from bookserve.serving.batch.text_lines import TextLines

BEGIN = Place()


def read(path: Path, kind: str = "lines", *, names: bool = False, most: int = 100, start: Place = BEGIN):
    return list(TextLines(path, kind, names=names, max_row_bytes=most).read(start))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize(("length", "fits"), [(99, True), (100, True), (101, False), (5_000_000, False)])
def test_a_line_may_have_so_many_bytes(tmp_path: Path, length: int, fits: bool, end: bytes) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"first\n" + b"x" * length + end)
    (_, _), (found, place) = read(path)
    assert place == Place(2, path.stat().st_size)
    if fits:
        assert found == Record(2, None, "x" * length)
    else:
        assert found == BadRow(2, None, "the row has more than 100 bytes (--max-row-bytes)")


def test_reading_goes_on_behind_every_place(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes("\ufefferste\r\n\n  zweite \n".encode() + b"\xff\n" + b"y" * 300 + b"\nlast")
    found = read(path)
    assert [one.line for one, _ in found] == [1, 3, 4, 5, 6]
    assert found[0][0] == Record(1, None, "erste")
    assert found[1][0] == Record(3, None, "zweite")
    assert "no UTF-8" in found[2][0].reason
    for number, (_, place) in enumerate(found, 1):
        assert read(path, start=place) == found[number:]


def test_names_follow_the_first_word(tmp_path: Path) -> None:
    path = tmp_path / "in.smi"
    path.write_text("CCO ethyl alcohol\nCC\tethane\nC\n")
    assert [(one.value, one.name) for one, _ in read(path, names=True)] == [
        ("CCO", "ethyl alcohol"),
        ("CC", "ethane"),
        ("C", None),
    ]


def test_ndjson_stays_bytes_and_a_change_changes_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "in.ndjson"
    path.write_text("[1]\n")
    assert read(path, "ndjson") == [(Record(1, None, b"[1]"), Place(1, 4))]
    before = TextLines(path, "ndjson", names=False, max_row_bytes=1).digest()
    path.write_text("[2]\n")
    assert TextLines(path, "ndjson", names=False, max_row_bytes=1).digest() != before
