"""`bookserve models push` and `pull` of a registry: Debian's docker-registry, and one that lies."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from bookserve.export.errors import StoreError
from bookserve.export.life import archive, registry
from bookserve.export.life.registry import Reference
from bookserve.export.life.registry_transfer import LAYER
from bookserve.export.manifest import Manifest
from bookserve.export.store import ModelStore
from registry_servers import docker_registry, lying_registry

Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def other(tmp_path: Path) -> ModelStore:
    """Another, empty store."""
    return ModelStore(tmp_path / "other")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_version_moves_through_a_registry_as_it_is(
    store: ModelStore, other: ModelStore, publish: Callable[..., Manifest], invoke: Invoke, host: str
) -> None:
    address = f"oci://{host}/team/score:1"
    pushed = invoke("models", "push", "score/1", address, "--models-dir", store.root)
    assert pushed.exit_code == 0, pushed.output
    assert pushed.output.endswith(f"score version 1 is in {address}\n  bookserve models pull {address}\n")
    again = invoke("models", "push", "score/1", address, "--models-dir", store.root)
    assert again.output.startswith(f"score version 1 is in {address} already\n")
    another = invoke("models", "push", "score/2", address, "--models-dir", store.root)
    assert (another.exit_code, f"{address} is another artifact: nothing is replaced" in another.output) == (1, True)
    pulled = invoke("models", "pull", address, "--models-dir", other.root)
    assert pulled.exit_code == 0, pulled.output
    assert f"score version 1 is published as {other.root}/score/1\n" in pulled.output
    assert content(other.path("score", 1)) == content(store.path("score", 1))
    there = invoke("models", "pull", address, "--models-dir", other.root)
    assert there.output.endswith(f"score version 1 is in {other.root} already\n")
    missing = invoke("models", "pull", f"oci://{host}/team/score:2", "--models-dir", other.root)
    assert f"oci://{host}/team/score:2 is not there" in missing.output


def test_labels_are_tags_of_the_same_artifact(
    store: ModelStore, other: ModelStore, publish: Callable[..., Manifest], invoke: Invoke, host: str
) -> None:
    repository = f"oci://{host}/team/labelled"
    for version in (1, 2):
        store.label("score", "stable", version)
        address = f"{repository}:{version}"
        if version == 2:  # the version is there before its label is
            assert invoke("models", "push", "score/2", address, "--models-dir", store.root).exit_code == 0
        pushed = invoke("models", "push", f"score/{version}", address, "--labels", "--models-dir", store.root)
        assert pushed.exit_code == 0, pushed.output
        assert f"stable is {repository}:stable\n" in pushed.output
        with registry.Registry(registry.parse(f"{repository}:stable")) as labelled:
            stable = labelled.manifest()
        with registry.Registry(registry.parse(address)) as numbered:
            assert stable == numbered.manifest()
    assert invoke("models", "pull", f"{repository}:stable", "--models-dir", other.root).exit_code == 0
    assert other.versions("score") == [2]
    bucket = invoke("models", "push", "score/1", "s3://models", "--labels", "--models-dir", store.root)
    assert "--labels is for registries" in bucket.output


def artifact(blob: bytes, **changes: Any) -> bytes:
    layer = {"mediaType": LAYER, "digest": f"sha256:{hashlib.sha256(blob).hexdigest()}", "size": len(blob)}
    return json.dumps({"schemaVersion": 2, "layers": [layer | changes]}).encode()


def test_an_honest_answer_of_the_stand_in_is_published(
    store: ModelStore, other: ModelStore, invoke: Invoke, tmp_path: Path
) -> None:
    archive.pack(store, "score", 1, tmp_path / "score.tar.gz")
    blob = (tmp_path / "score.tar.gz").read_bytes()
    with lying_registry(artifact(blob), blob) as host:
        arguments = ("models", "pull", f"oci://{host}/score:1", "--models-dir", other.root, "--max-bytes")
        assert invoke(*arguments, len(blob) - 1).exit_code == 1
        assert invoke(*arguments, 1 << 30).exit_code == 0
    assert other.versions("score") == [1]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (artifact(b"blob", digest="sha256:" + "0" * 64), "what the registry answers is not sha256:0000"),
        (artifact(b"blob", size=3), "has more than the 3 bytes"),
        (artifact(b"blob", size=5), "what the registry answers is not"),
        (artifact(b"blob", digest="sha256:../../etc"), "no version that 'bookserve models push' made"),
        (artifact(b"blob", size=-1), "no version that 'bookserve models push' made"),
        (artifact(b"blob", mediaType="application/octet-stream"), "no version that 'bookserve models push' made"),
        (b'{"layers": []}', "no version that 'bookserve models push' made"),
        (b"[" * 100_000, "no version that 'bookserve models push' made"),
        (b" " * ((4 << 20) + 1), "has a manifest of more than 4194304 bytes"),
        (artifact(b"blob"), "is damaged, or no archive of a version"),
    ],
)
def test_an_answer_that_does_not_hold_is_not_published(
    other: ModelStore, invoke: Invoke, manifest: bytes, message: str
) -> None:
    with lying_registry(manifest, b"blob") as host:
        result = invoke("models", "pull", f"oci://{host}/score:1", "--models-dir", other.root)
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert other.models() == []


def test_a_registry_that_does_not_answer_is_told(other: ModelStore, invoke: Invoke) -> None:
    result = invoke("models", "pull", "oci://127.0.0.1:9/score:1", "--models-dir", other.root)
    assert "oci://127.0.0.1:9/score:1: the registry does not answer" in result.output


def test_without_the_library_the_message_has_the_line_that_installs_it(
    other: ModelStore, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "oras.provider", None)
    result = invoke("models", "pull", "oci://127.0.0.1:9/score:1", "--models-dir", other.root)
    assert "pip install 'bookserve[oci]'" in result.output


def test_a_reference_has_a_host_a_repository_and_a_tag() -> None:
    assert registry.parse("oci://ghcr.io/team/score:v1.2") == Reference("ghcr.io", "team/score", "v1.2")
    for text in (
        "oci://ghcr.io/score",
        "oci://score:1",
        "oci://h/../x:1",
        "oci://h/a b:1",
        "oci://h/s:1@x",
        "oci://h/S:1",
    ):
        with pytest.raises(StoreError, match="is no reference"):
            registry.parse(text)
