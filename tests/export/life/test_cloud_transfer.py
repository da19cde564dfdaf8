"""`bookserve models push` and `pull` of buckets behind servers of Google's and Azure's protocols."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from bookserve.export.manifest import Manifest
from bookserve.export.store import ModelStore
from bookserve.serving.wire.bucket import BucketFolder, parse
from cloud_emulators import CLOUDS, cloud

Invoke = Callable[..., Result]


@pytest.fixture(scope="module", params=CLOUDS)
def scheme(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with cloud(request.param, tmp_path_factory.mktemp("cloud")):
        yield request.param


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_version_moves_through_a_cloud_as_it_is(
    store: ModelStore, invoke: Invoke, scheme: str, tmp_path: Path
) -> None:
    other, address = ModelStore(tmp_path / "other"), f"{scheme}://models/moves"
    pushed = invoke("models", "push", "score", address, "--models-dir", store.root)
    assert pushed.exit_code == 0, pushed.output
    names = {item.name for item in BucketFolder(parse(f"{address}/score/2")).objects()}
    assert names == content(store.path("score", 2)).keys()
    again = invoke("models", "push", "score", address, "--models-dir", store.root)
    assert again.output.startswith(f"score version 2 is in {address} already\n")
    pulled = invoke("models", "pull", f"{address}/score", "--models-dir", other.root)
    assert pulled.exit_code == 0, pulled.output
    assert content(other.path("score", 2)) == content(store.path("score", 2))


def test_another_version_of_a_cloud_is_never_replaced(
    store: ModelStore, publish: Callable[..., Manifest], invoke: Invoke, scheme: str, tmp_path: Path
) -> None:
    other, address = ModelStore(tmp_path / "other"), f"{scheme}://models/kept"
    publish(other, bias=5.0)
    assert invoke("models", "push", "score/1", address, "--models-dir", store.root).exit_code == 0
    refused = invoke("models", "push", "score/1", address, "--models-dir", other.root)
    assert refused.exit_code == 1
    assert f"{address}/score/1 is another version: nothing is replaced" in refused.output


def test_a_damaged_file_of_a_cloud_is_not_published(
    store: ModelStore, invoke: Invoke, scheme: str, tmp_path: Path
) -> None:
    other, address = ModelStore(tmp_path / "other"), f"{scheme}://models/damaged"
    assert invoke("models", "push", "score/1", address, "--models-dir", store.root).exit_code == 0
    BucketFolder(parse(f"{address}/score/1")).write("assets.extra/model.onnx", b"another graph")
    result = invoke("models", "pull", f"{address}/score/1", "--models-dir", other.root)
    assert result.exit_code == 1
    assert "assets.extra/model.onnx is not the file that the manifest lists" in result.output
    assert other.models() == []


def test_a_bucket_that_is_not_there_is_one_line(store: ModelStore, invoke: Invoke, scheme: str) -> None:
    result = invoke("models", "push", "score/1", f"{scheme}://nobody/x", "--models-dir", store.root)
    assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output
    assert f"Error: {scheme}://nobody/x/score/1" in result.output
