"""Which versions a base path has, and what is said of one that has none."""

from pathlib import Path

import pytest

from bookserve.serving.server.models.version_policy import why_none


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
