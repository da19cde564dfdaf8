"""Which versions a bucket has, asked over and over: of a bucket that hangs or goes away, too."""

import asyncio
import time
from pathlib import Path

import pytest

from bookserve.serving.server.models.buckets import listing
from bookserve.serving.server.models.buckets.cache import Cache
from bookserve.serving.server.models.buckets.root import BucketRoot
from bookserve.serving.server.models.buckets.source import Buckets
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire.bucket import BucketError, BucketNotFound, parse
from bucket_servers import S3Server
from model_servers import free_port


def test_versions_have_their_place_in_the_cache(bucket: S3Server, tmp_path: Path) -> None:
    for name in ("1", "02", "2.tmp", "notes", ".hidden"):
        bucket.put(f"digits/{name}/model.onnx", b"x")
    buckets = Buckets(Cache(tmp_path, 100))
    found = asyncio.run(buckets.versions(parse("s3://models/digits")))
    assert [(number, path.parent.name, path.name) for number, path in found.items()] == [
        (2, "digits", "2"),
        (1, "digits", "1"),
    ]
    hold = buckets.obtain(found[2])
    assert hold is not None
    assert (found[2] / "model.onnx").read_bytes() == b"x"
    hold.close()
    assert buckets.obtain(tmp_path) is None  # a local version
    with pytest.raises(BucketNotFound, match="s3://models/nothing is not there"):
        asyncio.run(buckets.versions(parse("s3://models/nothing")))


def test_a_bucket_that_hangs_holds_nobody_up_and_answers_again(
    bucket: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_NEXT_WAIT_SECONDS", 0.05)
    bucket.put("hangs/1/model.onnx", b"x")
    buckets, address = Buckets(Cache(tmp_path, 100)), parse("s3://models/hangs")

    async def body() -> None:
        assert list(await buckets.versions(address)) == [1]
        bucket.put("hangs/2/model.onnx", b"x")
        bucket.pause()
        began = time.monotonic()
        for _ in range(5):
            assert list(await buckets.versions(address)) == [1]
        assert time.monotonic() - began < 2
        bucket.go_on()
        async with asyncio.timeout(20):
            while list(await buckets.versions(address)) != [1, 2]:
                await asyncio.sleep(0.05)

    try:
        asyncio.run(body())
    finally:
        bucket.go_on()


def test_a_bucket_that_fails_is_left_alone_for_longer_each_time(
    bucket: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(listing, "_FIRST_PAUSE_SECONDS", 0.1)
    watched = listing.Listing(parse("s3://models/away"))
    asked: list[float] = []

    async def body() -> None:
        honest = watched.folder.names

        async def names() -> listing.Names:
            asked.append(time.monotonic())
            return await honest()

        monkeypatch.setattr(watched.folder, "names", names)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            with pytest.raises(BucketError, match="cannot be reached"):
                await watched.names()
            await asyncio.sleep(0.01)

    asyncio.run(body())
    assert 2 <= len(asked) <= 5, asked


def test_the_models_of_a_root_are_its_folders_with_versions(bucket: S3Server, tmp_path: Path) -> None:
    bucket.put("root/digits/1/model.onnx", b"x")
    bucket.put("root/notes/readme.md", b"x")
    root = BucketRoot(Buckets(Cache(tmp_path, 100)), parse("s3://models/root"))

    async def names() -> list[str]:
        return [f"{setting.name} {setting.base_path} {setting.labels}" for setting in await root.settings()]

    async def body() -> None:
        assert await names() == ["digits s3://models/root/digits {}"]
        bucket.put("root/words/3/model.onnx", b"x")
        config = 'model_config_list { config { name: "words" base_path: "/w" model_platform: "tensorflow" %s } }'
        bucket.put("root/models.config", (config % 'version_labels { key: "stable" value: 3 }').encode())
        assert await names() == ["digits s3://models/root/digits {}", "words s3://models/root/words {'stable': 3}"]
        bucket.put("root/models.config", b"model_config_list {")
        with pytest.raises(ServingError, match=r"Invalid protobuf file: 's3://models/root/models.config'"):
            await names()
        bucket.request("DELETE", "models/root/models.config")
        assert await names() == ["digits s3://models/root/digits {}", "words s3://models/root/words {}"]

    asyncio.run(body())
