import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bookserve.export import manifest as manifests
from bookserve.export.errors import StoreError
from bookserve.export.manifest import Manifest


def write(folder: Path, content: Any) -> Path:
    path = folder / manifests.LOCATION
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_a_manifest_survives_the_disk(tmp_path: Path, manifest: Manifest) -> None:
    assert manifests.read(write(tmp_path, manifest.to_json())) == manifest


def test_unknown_fields_are_left_to_newer_versions(tmp_path: Path, manifest: Manifest) -> None:
    content = json.loads(manifest.to_json()) | {"licence": "CC0"}
    assert manifests.read(write(tmp_path, content)) == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "1"}, "'version' is \"1\""),
        ({"version": True}, "'version' is true"),
        ({"metrics": []}, "'metrics' is \\[\\]"),
        ({"data": None}, "'data' is null"),
        ({"data": {"source": "real"}}, "'name' is missing"),
        ({"files": {"a": 1}}, "'files' holds a value that is no text"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, manifest: Manifest, change: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        manifests.read(write(tmp_path, json.loads(manifest.to_json()) | change))


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(StoreError, match=r"manifest\.json"):
        manifests.read(write(tmp_path, content))


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no manifest"):
        manifests.read(tmp_path)


def test_changed_lost_and_added_files_are_found(tmp_path: Path, manifest: Manifest) -> None:
    for name in ("kept", "changed", "lost"):
        (tmp_path / name).write_text(name)
    whole = replace(manifest, files=manifests.digests(tmp_path))
    write(tmp_path, whole.to_json())
    assert manifests.changed_files(tmp_path, whole) == []
    (tmp_path / "changed").write_text("x")
    (tmp_path / "lost").unlink()
    (tmp_path / "added").write_text("x")
    assert manifests.changed_files(tmp_path, whole) == ["added", "changed", "lost"]


def test_a_manifest_from_before_there_were_configurations_is_read(tmp_path: Path, manifest: Manifest) -> None:
    content = json.loads(manifest.to_json())
    del content["configuration"]
    write(tmp_path, json.dumps(content))
    assert manifests.read(tmp_path) == manifest
