"""Folders of buckets over Google's and Azure's protocols. Amazon's is in test_bucket.py."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from bookserve.serving.wire.bucket import BucketDenied, BucketError, BucketFolder, BucketNotFound, ObjectTaken, parse
from cloud_emulators import CLOUDS, cloud


@pytest.fixture(scope="module", params=CLOUDS)
def scheme(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with cloud(request.param, tmp_path_factory.mktemp("cloud")):
        yield request.param


def test_what_is_there_is_listed_and_read(scheme: str) -> None:
    root = BucketFolder(parse(f"{scheme}://models"))
    root.write("digits/1/model.onnx", b"w" * 3_000_000)
    root.write("digits/1/assets/a b.txt", b"hello")
    for version in range(2, 10):
        root.write(f"digits/{version}/model.onnx", b"x")
    place = BucketFolder(parse(f"{scheme}://models/digits"))
    assert sorted(asyncio.run(place.names())[0]) == [str(version) for version in range(1, 10)]
    found = {item.name: item for item in place.objects("1")}
    assert {name: item.size for name, item in found.items()} == {"model.onnx": 3_000_000, "assets/a b.txt": 5}
    assert b"".join(place.chunks(found["model.onnx"], "1")) == b"w" * 3_000_000
    assert (place.read("1/assets/a b.txt", 5), place.read("nothing", 5)) == (b"hello", None)
    assert asyncio.run(BucketFolder(parse(f"{scheme}://models/nothing")).names()) == ([], [])


def test_a_large_file_is_sent_in_parts(scheme: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 80_000  # 20 MB, more than one part
    (tmp_path / "large").write_bytes(content)
    place = BucketFolder(parse(f"{scheme}://models/parts"))
    place.write("large", tmp_path / "large")
    (item,) = place.objects()
    assert b"".join(place.chunks(item)) == content


def test_what_is_replaced_is_noticed(scheme: str) -> None:
    place = BucketFolder(parse(f"{scheme}://models/changed"))
    place.write("a", b"first", new=True)
    with pytest.raises(ObjectTaken, match=f"{scheme}://models/changed/a is there already"):
        place.write("a", b"other", new=True)
    (item,) = place.objects()
    place.write("a", b"again")
    with pytest.raises(BucketError, match="was replaced while it was read"):
        list(place.chunks(item))
    with pytest.raises(BucketNotFound, match=f"{scheme}://nobody/a is not there: 404 Not Found: "):
        asyncio.run(BucketFolder(parse(f"{scheme}://nobody/a")).names())


def test_google_refuses_who_has_no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with cloud("gs", tmp_path):
        monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
        message = "gs://models may not be read or written: 401 Unauthorized: AuthenticationRequired"
        with pytest.raises(BucketDenied, match=message):
            BucketFolder(parse("gs://models")).objects()
