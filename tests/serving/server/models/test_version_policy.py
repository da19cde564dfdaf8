"""Which versions a base path has, and what is said of one that has none."""

from pathlib import Path

import pytest

from bookserve.serving.server.models.version_policy import versions_on_disk, why_none


@pytest.mark.parametrize(
    ("file", "base_path", "message"),
    [
        ("digits.onnx", "digits.onnx", "is a file, and a base path is the folder of a model's versions"),
        ("digits/3/model.onnx", "digits/3", "is a version itself: give the folder above it"),
        ("digits/model.onnx", "digits", "holds a model itself: move its files to"),
        ("digits/readme.md", "digits", ""),
        ("digits/2/saved_model.pb", "digits", ""),
    ],
)
def test_a_base_path_without_versions_says_what_to_do(tmp_path: Path, file: str, base_path: str, message: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"x")
    said = why_none(tmp_path / base_path)
    assert message in said
    assert bool(message) == bool(said)


def test_a_base_path_that_may_not_be_read_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refused)
    assert why_none(tmp_path) == ""


def test_what_is_no_version_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bookserve")
    for name in ("1", "02", "2", "10.tmp", "backup", ".publishing-7", "9223372036854775808", "-3"):
        (tmp_path / name).mkdir()
    (tmp_path / "card.md").write_text("a file is left alone")

    def listed() -> list[str]:
        caplog.clear()
        assert versions_on_disk(tmp_path) == {1: tmp_path / "1", 2: tmp_path / "2"}
        return [f"{record.levelname} {Path(record.message.split()[0]).name}" for record in caplog.records]

    assert listed() == ["INFO -3", "INFO 10.tmp", "WARNING 02", "INFO 9223372036854775808", "INFO backup"]
    assert listed() == []
    (tmp_path / "old").mkdir()
    assert listed() == ["INFO old"]
    assert [listed(), listed()] == [[], []]
