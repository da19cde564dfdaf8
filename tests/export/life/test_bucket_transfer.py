"""`bookserve models push` and `pull` of a bucket behind a server of Amazon's protocol."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from bookserve.export.manifest import Manifest
from bookserve.export.store import ModelStore
from bookserve.serving.wire.bucket import BucketError, BucketFolder, parse
from bucket_servers import S3Server, s3_server

Invoke = Callable[..., Result]
GRAPH = "assets.extra/model.onnx"
MANIFEST = "assets.extra/manifest.json"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def other(tmp_path: Path) -> ModelStore:
    """Another, empty store."""
    return ModelStore(tmp_path / "other")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def objects(address: str) -> list[str]:
    return sorted(item.name for item in BucketFolder(parse(address)).objects())


def test_a_version_moves_through_a_bucket_as_it_is(
    store: ModelStore, other: ModelStore, invoke: Invoke, bucket: S3Server
) -> None:
    pushed = invoke("models", "push", "score/1", "s3://models/moves", "--models-dir", store.root)
    assert pushed.exit_code == 0, pushed.output
    assert pushed.output.splitlines()[-3:] == [
        "score version 1 is in s3://models/moves",
        "  bookserve model-server --model_root=s3://models/moves --port=8500 --rest_api_port=8501",
        "  bookserve models pull s3://models/moves/score/1",
    ]
    assert objects("s3://models/moves/score/1") == sorted(content(store.path("score", 1)))
    invoke("models", "push", "score", "s3://models/moves", "--models-dir", store.root)
    again = invoke("models", "push", "score", "s3://models/moves", "--models-dir", store.root)
    assert again.output.startswith("score version 2 is in s3://models/moves already\n")
    pulled = invoke("models", "pull", "s3://models/moves/score", "--models-dir", other.root)
    assert pulled.exit_code == 0, pulled.output
    assert f"score version 2 is published as {other.root}/score/2\n" in pulled.output
    assert content(other.path("score", 2)) == content(store.path("score", 2))
    assert "score" in (other.root / "models.config").read_text()
    there = invoke("models", "pull", "s3://models/moves/score/2", "--models-dir", other.root)
    assert there.output == f"score version 2 is in {other.root} already\n"
    renamed = invoke("models", "pull", "s3://models/moves/score/1", "points", "--models-dir", other.root)
    assert f"points version 1 is published as {other.root}/points/1\n" in renamed.output


def test_another_version_of_the_bucket_is_never_replaced(
    store: ModelStore, other: ModelStore, publish: Callable[..., Manifest], invoke: Invoke, bucket: S3Server
) -> None:
    assert invoke("models", "push", "score/1", "s3://models/kept", "--models-dir", store.root).exit_code == 0
    publish(other, bias=5.0)
    refused = invoke("models", "push", "score/1", "s3://models/kept", "--models-dir", other.root)
    assert refused.exit_code == 1
    assert "s3://models/kept/score/1 is another version: nothing is replaced" in refused.output
    bucket.put("kept/score/2/saved_model.pb", b"made by hand")
    by_hand = invoke("models", "push", "score/2", "s3://models/kept", "--models-dir", store.root)
    assert "has another version, without a manifest: saved_model.pb" in by_hand.output
    assert objects("s3://models/kept/score/2") == ["saved_model.pb"]


def test_a_push_that_was_cut_off_goes_on(
    store: ModelStore, invoke: Invoke, bucket: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, written = BucketFolder.write, []

    def write(self: BucketFolder, name: str, content: Path | bytes, *, new: bool = False) -> None:
        if len(written) == 1:
            raise BucketError("the bucket went away")
        written.append(name)
        honest(self, name, content, new=new)

    monkeypatch.setattr(BucketFolder, "write", write)
    cut = invoke("models", "push", "score/1", "s3://models/cut", "--models-dir", store.root)
    assert (cut.exit_code, "the bucket went away" in cut.output) == (1, True)
    assert objects("s3://models/cut/score/1") == written
    monkeypatch.undo()
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    assert invoke("models", "push", "score/1", "s3://models/cut", "--models-dir", store.root).exit_code == 0
    assert objects("s3://models/cut/score/1") == sorted(content(store.path("score", 1)))


def upload(bucket: S3Server, store: ModelStore, key: str, **replaced: bytes | None) -> None:
    """Version 1 as the folder `key`/score/1, with other content for some of its files, and without others."""
    names = {"graph": GRAPH, "manifest": MANIFEST}
    changed = {names.get(name, name): text for name, text in replaced.items()}
    for name, text in (content(store.path("score", 1)) | changed).items():
        if text is not None:
            bucket.put(f"{key}/score/1/{name}", text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graph": b"another graph"}, "assets.extra/model.onnx is not the file that the manifest lists"),
        ({"graph": None}, "lacks assets.extra/model.onnx, which its manifest lists"),
        ({"manifest": None}, "has no manifest"),
        ({"manifest": b"{"}, "cannot be read"),
        ({"manifest": b"[" * 100_000}, "cannot be read"),
        ({"files": ("../../evil", "0" * 64)}, "'../../evil' is no path inside a version"),
        ({"files": ("/etc/passwd", "0" * 64)}, "'/etc/passwd' is no path inside a version"),
        ({"version": 0}, "is of version 0, which is no version"),
        ({"model": "../evil"}, "cannot be the name of a model"),
    ],
)
def test_what_is_no_version_is_not_published(
    store: ModelStore,
    other: ModelStore,
    invoke: Invoke,
    bucket: S3Server,
    changes: dict[str, object],
    message: str,
    request: pytest.FixtureRequest,
) -> None:
    key = f"wrong{abs(hash(request.node.name))}"
    replaced: dict[str, bytes | None] = {}
    for name, value in changes.items():
        if value is None or isinstance(value, bytes):
            replaced[name] = value
            continue
        text = json.loads((store.path("score", 1) / MANIFEST).read_bytes())
        text[name] = {**text["files"], value[0]: value[1]} if isinstance(value, tuple) else value
        replaced["manifest"] = json.dumps(text).encode()
    upload(bucket, store, key, **replaced)
    result = invoke("models", "pull", f"s3://models/{key}/score/1", "--models-dir", other.root)
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert other.models() == []
    assert not [path for path in other.root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert not (other.root.parent / "evil").exists()


@pytest.mark.parametrize("room", [0, 1])
def test_a_version_larger_than_allowed_is_not_fetched(
    store: ModelStore, other: ModelStore, invoke: Invoke, bucket: S3Server, room: int
) -> None:
    invoke("models", "push", "score/1", "s3://models/large", "--models-dir", store.root)
    files = content(store.path("score", 1))
    size = sum(len(text) for name, text in files.items() if name != MANIFEST)
    limit = size - 1 + room
    arguments = ("s3://models/large/score/1", "--max-bytes", limit, "--models-dir", other.root)
    result = invoke("models", "pull", *arguments)
    assert result.exit_code == (0 if room else 1)
    assert room or f"holds {size} bytes: --max-bytes allows {limit}" in result.output


def test_a_damaged_version_is_not_pushed(
    store: ModelStore, other: ModelStore, invoke: Invoke, bucket: S3Server
) -> None:
    shutil.copytree(store.root, other.root)
    (other.path("score", 1) / GRAPH).write_bytes(b"damaged")
    result = invoke("models", "push", "score/1", "s3://models/damaged", "--models-dir", other.root)
    assert "is not as published" in result.output
    assert objects("s3://models/damaged/score/1") == []
