import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from book_contracts import CONTRACTS
from bookserve.export import manifest as manifests
from bookserve.export.contracts import Contract, Example, from_json
from bookserve.export.errors import StoreError
from bookserve.export.manifest import Manifest

SCHEMA = Draft202012Validator(json.loads((Path(manifests.__file__).parent / "manifest.schema.json").read_text()))
# As bookserve 0.1.0 wrote it.
OLD = {
    "model": "mnist",
    "version": 4,
    "created": "2026-11-26T10:00:00+00:00",
    "contract": "mnist/1",
    "data": {"source": "real", "name": "mnist", "sha256": "0" * 64},
    "profile": "default",
    "seed": 0,
    "metrics": {"test": {"accuracy": 0.9944, "loss": 0.02, "rows": 10000.0}},
    "parity": {"probabilities": 2e-7, "classes": 0.0},
    "files": {"saved_model.pb": "0" * 64},
    "made_with": {"tensorflow": "2.21.0"},
    "configuration": "standard",
}


def write(folder: Path, content: Any) -> Path:
    path = folder / manifests.LOCATION
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_a_manifest_survives_the_disk(tmp_path: Path, manifest: Manifest) -> None:
    assert manifests.read(write(tmp_path, manifest.to_json())) == manifest


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_what_is_written_keeps_the_schema(manifest: Manifest, contract: Contract) -> None:
    example = Example({"x": [[1.0]]}, {"y": [2.0]})
    whole = replace(manifest, contract=replace(contract, example=example), rows_independent=True)
    content = json.loads(whole.to_json())
    assert list(SCHEMA.iter_errors(content)) == []
    assert from_json(content["contract"]) == whole.contract
    assert (content["rows_independent"], content["contract"]["task"]) == (True, contract.task)
    content["contract"]["outputs"][0]["shape"] = ["batch"]
    assert list(SCHEMA.iter_errors(content))


def test_a_manifest_with_only_the_name_of_its_contract_is_read(tmp_path: Path) -> None:
    assert list(SCHEMA.iter_errors(OLD)) == []
    found = manifests.read(write(tmp_path, OLD))
    assert (found.contract.id, found.contract.whole, found.schema) == ("mnist/1", False, 1)
    assert found.metrics["test"]["accuracy"] == 0.9944


def test_a_manifest_of_a_later_schema_says_so(tmp_path: Path, manifest: Manifest) -> None:
    content = json.loads(manifest.to_json()) | {"schema": 3}
    with pytest.raises(StoreError, match="reads 1 to 2: update it"):
        manifests.read(write(tmp_path, content))


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
