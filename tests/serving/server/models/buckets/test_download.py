"""One version from its bucket: what is fetched is what the manifest and the listing say, or nothing is."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bookserve.serving.server.models.buckets import download
from bookserve.serving.server.models.buckets.download import Download, listed
from bookserve.serving.server.types.errors import ServingError, exhausted
from bookserve.serving.wire.bucket import BucketFolder, BucketRefused, Object, parse
from bookserve.serving.wire.version_folder import MANIFEST
from bucket_servers import S3Server, environment, lying_server

GRAPH = b"graph" * 1000


def manifest(**files: bytes) -> bytes:
    names = {"model.onnx" if name == "graph" else name: content for name, content in files.items()}
    return json.dumps({"files": {n: hashlib.sha256(content).hexdigest() for n, content in names.items()}}).encode()


def fetch(model: str, target: Path) -> dict[str, bytes]:
    folder = BucketFolder(parse(f"s3://models/{model}"))
    target.mkdir()
    Download(folder, "1", None).fetch(target, lambda size: None)
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PAUSES_SECONDS", (0.05, 0.1, 0.2))


def test_a_version_is_fetched_with_all_its_files(bucket: S3Server, tmp_path: Path) -> None:
    bucket.put("whole/1/model.onnx", GRAPH)
    bucket.put("whole/1/assets/", b"")
    bucket.put("whole/1/assets.extra/report/card.md", b"card")
    bucket.put("whole/10/model.onnx", b"another version")
    text = manifest(graph=GRAPH)
    bucket.put(f"whole/1/{MANIFEST}", text)
    expected = {"model.onnx": GRAPH, "assets.extra/report/card.md": b"card", MANIFEST: text}
    assert fetch("whole", tmp_path / "v") == expected


def test_a_file_that_is_not_the_manifests_is_refused(bucket: S3Server, tmp_path: Path) -> None:
    bucket.put("wrong/1/model.onnx", GRAPH[:-1] + b"!")
    bucket.put(f"wrong/1/{MANIFEST}", manifest(graph=GRAPH))
    with pytest.raises(ServingError, match=r"s3://models/wrong/1 is refused: model.onnx is not the file"):
        fetch("wrong", tmp_path / "v")


def test_a_version_counts_when_all_that_its_manifest_lists_has_come(bucket: S3Server, tmp_path: Path) -> None:
    bucket.put(f"coming/1/{MANIFEST}", manifest(graph=GRAPH, vocabulary=b"words"))

    def go_on() -> None:
        time.sleep(0.3)
        bucket.put("coming/1/model.onnx", GRAPH)
        time.sleep(0.3)
        bucket.put("coming/1/vocabulary", b"words")

    writer = threading.Thread(target=go_on)
    writer.start()
    assert fetch("coming", tmp_path / "v").keys() == {MANIFEST, "model.onnx", "vocabulary"}
    writer.join()


def test_a_version_that_does_not_become_whole_is_told_so(bucket: S3Server, tmp_path: Path) -> None:
    bucket.put(f"half/1/{MANIFEST}", manifest(graph=GRAPH, vocabulary=b"words"))
    bucket.put("half/1/model.onnx", GRAPH)
    with pytest.raises(ServingError, match="UNAVAILABLE: s3://models/half/1 lacks vocabulary yet"):
        fetch("half", tmp_path / "v")
    bucket.put("none/1/readme.md", b"no model")
    with pytest.raises(ServingError, match="UNAVAILABLE: s3://models/none/1 holds no model yet"):
        fetch("none", tmp_path / "w")


def test_a_version_that_changes_meanwhile_is_fetched_as_it_is_then(
    bucket: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("moving/1/model.onnx", GRAPH)
    bucket.put("moving/1/old", b"old")
    honest, changes = BucketFolder.chunks, [True]

    def chunks(self: BucketFolder, item: Object, name: str = "") -> Iterator[bytes]:
        if changes and item.name == "old":
            changes.clear()
            bucket.put("moving/1/model.onnx", b"new graph")
            bucket.request("DELETE", "models/moving/1/old")
        return honest(self, item, name)

    monkeypatch.setattr(BucketFolder, "chunks", chunks)
    assert fetch("moving", tmp_path / "v") == {"model.onnx": b"new graph"}


def test_a_server_that_is_away_for_a_moment_is_asked_again(
    bucket: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("away/1/model.onnx", GRAPH)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing listens there
    folder = BucketFolder(parse("s3://models/away"))
    (tmp_path / "v").mkdir()
    with pytest.raises(ServingError, match="UNAVAILABLE: s3://models/away/1 cannot be reached"):
        Download(folder, "1", None).fetch(tmp_path / "v", lambda size: None)


@pytest.mark.parametrize("key", ["a\\b", "a\x01b", "x/" + "n" * 256, "a\x7f"])
def test_names_that_are_no_paths_of_files_are_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    with lying_server({f"m/1/{key}": 1, "m/1/model.onnx": 1}, {}) as url:
        for name, value in environment(url).items():
            monkeypatch.setenv(name, value)
        with pytest.raises((ServingError, BucketRefused), match=r"is no path inside a version|whose name is no path"):
            listed(BucketFolder(parse("s3://models/m")), "1")


def test_an_object_below_another_is_refused(bucket: S3Server) -> None:
    bucket.put("twice/1/model.onnx", GRAPH)
    bucket.put("twice/1/model.onnx/weights", b"x")
    with pytest.raises(ServingError, match=r"model.onnx/weights lies below another object"):
        listed(BucketFolder(parse("s3://models/twice")), "1")


def test_nothing_is_fetched_where_there_is_no_room(bucket: S3Server, tmp_path: Path) -> None:
    bucket.put("large/1/model.onnx", GRAPH)

    def reserve(size: int) -> None:
        raise exhausted(f"{size} bytes")

    folder = BucketFolder(parse("s3://models/large"))
    with pytest.raises(ServingError, match="5000 bytes"):
        Download(folder, "1", None).fetch(tmp_path, reserve)
    assert not list(tmp_path.iterdir())
