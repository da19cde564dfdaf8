import zipfile
from pathlib import Path

import pytest

from bookserve.serving.batch.picture_files import PictureArchive, PictureFolder
from bookserve.serving.batch.records import BadRow, Place, Record


@pytest.mark.parametrize(("length", "fits"), [(99, True), (100, True), (101, False), (3_000_000, False)])
def test_a_file_may_have_so_many_bytes(tmp_path: Path, length: int, fits: bool) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"x" * length)
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"x" * length)  # of zeros and the like an archive is small
    for source in (
        PictureFolder(tmp_path / "in", max_row_bytes=100),
        PictureArchive(tmp_path / "in.zip", max_row_bytes=100),
    ):
        ((found, place),) = source.read(Place())
        assert place == Place(1, 1)
        if fits:
            assert found == Record(1, "a.png", b"x" * length)
        else:
            assert found == BadRow(1, "a.png", "the file has more than 100 bytes (--max-row-bytes)")


def test_reading_goes_on_behind_every_place(tmp_path: Path) -> None:
    for name in ("c.png", "a.png", "b/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    source = PictureFolder(tmp_path, max_row_bytes=100)
    found = list(source.read(Place()))
    assert [one.name for one, _ in found] == ["a.png", "b/d.png", "c.png"]
    for number, (_, place) in enumerate(found, 1):
        assert list(source.read(place)) == found[number:]


def test_a_file_that_goes_meanwhile_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("a")
    (tmp_path / "b.png").write_text("b")
    source = PictureFolder(tmp_path, max_row_bytes=100)
    (tmp_path / "a.png").unlink()
    first, second = (found for found, _ in source.read(Place()))
    assert first == BadRow(1, "a.png", "the file cannot be read: No such file or directory")
    assert second == Record(2, "b.png", b"b")


def test_a_changed_file_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("a")
    before = PictureFolder(tmp_path, max_row_bytes=100).digest()
    assert PictureFolder(tmp_path, max_row_bytes=100).digest() == before
    (tmp_path / "a.png").write_text("ab")
    assert PictureFolder(tmp_path, max_row_bytes=100).digest() != before


def test_a_damaged_entry_of_an_archive_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"first picture")
        archive.writestr("b.png", b"second picture")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"first picture", b"worst picture", 1))
    first, second = (found for found, _ in PictureArchive(path, max_row_bytes=100).read(Place()))
    assert isinstance(first, BadRow)
    assert "CRC" in first.reason
    assert second == Record(2, "b.png", b"second picture")
