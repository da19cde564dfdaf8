"""Folders of buckets over Amazon's protocol: addresses, what is read, and what a bucket makes nobody believe."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bookserve.serving.wire import bucket as buckets
from bookserve.serving.wire.bucket import (
    BucketAddress,
    BucketDenied,
    BucketError,
    BucketFolder,
    BucketNotFound,
    BucketRefused,
    ObjectTaken,
    is_address,
    parse,
)
from bucket_servers import S3Server, environment, lying_server, s3_server
from model_servers import free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)


def folder(path: str = "") -> BucketFolder:
    return BucketFolder(parse(f"s3://models/{path}"))


def test_an_address_has_a_name_a_parent_and_what_is_below() -> None:
    address = parse("s3://models/team/digits/")
    assert address == BucketAddress("s3", "models", "team/digits")
    assert (str(address / "3"), address.name, str(address.parent)) == (
        "s3://models/team/digits/3",
        "digits",
        "s3://models/team",
    )
    whole = parse("gs://models")
    assert (str(whole), whole.name, whole.parent, str(whole / "a")) == ("gs://models", "models", whole, "gs://models/a")
    assert (address / "3").is_relative_to(address)
    assert address.is_relative_to(parse("s3://models"))
    assert not parse("s3://models/team/digits2").is_relative_to(address)
    assert not parse("gs://models/team/digits").is_relative_to(address)
    assert [is_address(text) for text in ("s3://a/b", "http://a", "file:/a", "/models/a", "models", "a:b")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("http://models/a", "s3://", "s3:///a", "s3:/models", "s3://mod els/a", "s3://models/../a", "hdfs://a/b"),
        *("s3://models/a\nb", "s3://models/a\\b", "s3://models/./a", "s3://user:word@host/a", "s3://models/a//b"),
    ],
)
def test_what_is_no_address_of_a_bucket_is_refused(text: str) -> None:
    with pytest.raises(BucketRefused, match="is no address"):
        parse(text)


@pytest.mark.parametrize(
    ("scheme", "variables", "expected"),
    [
        ("s3", {"AWS_ENDPOINT_URL": "http://a:1", "S3_ENDPOINT": "b"}, "http://a:1"),
        ("s3", {"AWS_ENDPOINT_URL": "http://a:1", "AWS_ENDPOINT_URL_S3": "https://c"}, "https://c"),
        ("s3", {"S3_ENDPOINT": "minio:9000", "S3_USE_HTTPS": "0"}, "http://minio:9000"),
        ("s3", {"S3_ENDPOINT": "minio:9000"}, "https://minio:9000"),
        ("s3", {}, ""),
        ("gs", {"STORAGE_EMULATOR_HOST": "localhost:4443"}, "http://localhost:4443"),
        (
            "az",
            {"AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:10000/devstoreaccount1"},
            "http://127.0.0.1:10000/devstoreaccount1",
        ),
    ],
)
def test_the_endpoint_is_the_one_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, scheme: str, variables: dict[str, str], expected: str
) -> None:
    for name in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "S3_ENDPOINT", "S3_USE_HTTPS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert buckets.endpoint(scheme) == expected


def test_without_the_library_the_message_has_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(BucketRefused, match=r"needs the package 'obstore': pip install 'bookserve\[buckets\]'"):
        folder("a")


def test_what_was_written_is_listed_and_read(monkeypatch: pytest.MonkeyPatch, server: S3Server, tmp_path: Path) -> None:
    use(monkeypatch, server.url)
    (tmp_path / "weights").write_bytes(b"w" * 3_000_000)
    place = folder("read")
    place.write("1/model.onnx", tmp_path / "weights")
    place.write("1/assets.extra/a b.json", b"{}")
    place.write("2/model.onnx", b"")
    place.write("models.config", b"config")
    names, objects = asyncio.run(place.names())
    assert (sorted(names), [(item.name, item.size) for item in objects]) == (["1", "2"], [("models.config", 6)])
    found = {item.name: item for item in place.objects("1")}
    assert {name: item.size for name, item in found.items()} == {"model.onnx": 3_000_000, "assets.extra/a b.json": 2}
    assert b"".join(place.chunks(found["model.onnx"], "1")) == b"w" * 3_000_000
    assert [(item.name, item.size) for item in place.objects("2")] == [("model.onnx", 0)]
    assert (place.read("models.config", 6), place.read("nothing", 6)) == (b"config", None)
    with pytest.raises(BucketRefused, match="has more than 5 bytes"):
        place.read("models.config", 5)


def test_an_object_that_shall_be_new_replaces_nothing(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> None:
    use(monkeypatch, server.url)
    folder("new").write("manifest.json", b"first", new=True)
    with pytest.raises(ObjectTaken, match=r"s3://models/new/manifest.json is there already"):
        folder("new").write("manifest.json", b"second", new=True)
    assert folder("new").read("manifest.json", 100) == b"first"


def test_objects_that_stand_for_folders_are_no_files(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> None:
    use(monkeypatch, server.url)
    for key in ("1/", "1/assets/", "1/variables/", "1/variables/index", "1/saved_model.pb", "1/empty"):
        server.put(f"marked/{key}", b"" if key.endswith(("/", "empty")) else b"x")
    assert sorted(item.name for item in folder("marked").objects("1")) == ["empty", "saved_model.pb", "variables/index"]


def test_what_was_replaced_since_it_was_listed_is_not_read(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> None:
    use(monkeypatch, server.url)
    folder("changed").write("a", b"old")
    (item,) = folder("changed").objects()
    folder("changed").write("a", b"new")
    with pytest.raises(BucketError, match="was replaced while it was read"):
        list(folder("changed").chunks(item))


def test_what_a_bucket_lacks_is_named(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> None:
    use(monkeypatch, server.url)
    with pytest.raises(BucketNotFound, match="s3://nobody/a is not there: 404 Not Found: NoSuchBucket"):
        asyncio.run(BucketFolder(parse("s3://nobody/a")).names())
    assert asyncio.run(folder("nothing").names()) == ([], [])


def test_a_bucket_that_is_not_reached_has_the_same_reason_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, f"http://127.0.0.1:{free_port()}")
    told = set()
    for _ in range(2):
        with pytest.raises(BucketError) as caught:
            asyncio.run(folder("a").names())
        told.add(str(caught.value))
    (reason,) = told
    assert reason.startswith("s3://models/a cannot be reached at http://127.0.0.1:")


def test_without_credentials_the_message_names_the_variables(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> None:
    use(monkeypatch, server.url)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://169.254.169.254.invalid:{free_port()}")
    with pytest.raises(BucketDenied, match=r"no credentials in the environment.*AWS_ACCESS_KEY_ID"):
        asyncio.run(folder("a").names())


@pytest.mark.parametrize("key", ["bad/1/..", "bad/1//etc", "bad/1/./x", "bad/../x"])
def test_a_key_that_is_no_path_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    with lying_server({key: 1}, {}) as url:
        use(monkeypatch, url)
        with pytest.raises(BucketRefused, match="holds an object whose name is no path"):
            folder("bad").objects("1")


@pytest.mark.parametrize(("said", "message"), [(2, "has 5 bytes, and 2 in the listing"), (9, "5 bytes, and 9")])
def test_an_object_of_another_size_than_listed_is_refused(
    monkeypatch: pytest.MonkeyPatch, said: int, message: str
) -> None:
    with lying_server({"a/x": said}, {"a/x": b"12345"}) as url:
        use(monkeypatch, url)
        (item,) = folder("a").objects()
        with pytest.raises(BucketError, match=message):
            list(folder("a").chunks(item))


@pytest.mark.parametrize("limit", [3, 4])
def test_more_objects_than_a_version_may_have_are_refused(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(buckets, "MAX_OBJECTS", limit)
    with lying_server({f"a/{number}": 1 for number in range(4)}, {}) as url:
        use(monkeypatch, url)
        if limit == 4:
            assert len(folder("a").objects()) == 4
            return
        with pytest.raises(BucketRefused, match="s3://models/a has more than 3 objects"):
            folder("a").objects()


def test_a_listing_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "_LISTING_SECONDS", 0.3)
    with lying_server({f"a/{number}": 1 for number in range(500)}, {}, endless=True) as url:
        use(monkeypatch, url)
        with pytest.raises(BucketError, match=r"s3://models/a was not listed within 0.3 s"):
            asyncio.run(folder("a").names())
        with pytest.raises(BucketRefused, match="has more than 10000 objects"):
            folder("a").objects()
