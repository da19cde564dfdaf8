"""Folders of buckets over Google's and Azure's protocols, against their emulators. Amazon's is in test_bucket.py."""

import asyncio
from collections.abc import Iterator

import pytest

from bookserve.serving.wire.bucket import BucketError, BucketFolder, BucketNotFound, ObjectTaken, parse
from cloud_emulators import azure, google, put_google

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    start = google if request.param == "gs" else azure
    with start(tmp_path_factory.mktemp("emulator")) as environment:
        yield environment


def use(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def put(environment: dict[str, str], key: str, content: bytes) -> None:
    """By the protocol itself where the emulator takes nothing from obstore."""
    if "STORAGE_EMULATOR_HOST" in environment:
        put_google(environment, key, content)
    else:
        BucketFolder(parse("az://models")).write(key, content)


def scheme(environment: dict[str, str]) -> str:
    return "gs" if "STORAGE_EMULATOR_HOST" in environment else "az"


@pytest.mark.parametrize("cloud", ["gs", "az"], indirect=True)
def test_what_is_there_is_listed_and_read(cloud: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, cloud)
    put(cloud, "digits/1/model.onnx", b"w" * 3_000_000)
    put(cloud, "digits/1/assets/a b.txt", b"hello")
    put(cloud, "digits/2/model.onnx", b"x")
    place = BucketFolder(parse(f"{scheme(cloud)}://models/digits"))
    assert sorted(asyncio.run(place.names())[0]) == ["1", "2"]
    found = {item.name: item for item in place.objects("1")}
    assert {name: item.size for name, item in found.items()} == {"model.onnx": 3_000_000, "assets/a b.txt": 5}
    assert b"".join(place.chunks(found["model.onnx"], "1")) == b"w" * 3_000_000
    assert (place.read("1/assets/a b.txt", 5), place.read("nothing", 5)) == (b"hello", None)
    assert asyncio.run(BucketFolder(parse(f"{scheme(cloud)}://models/nothing")).names()) == ([], [])


@pytest.mark.parametrize("cloud", ["az"], indirect=True)
def test_what_is_replaced_is_noticed(cloud: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, cloud)
    place = BucketFolder(parse("az://models/changed"))
    place.write("a", b"first", new=True)
    with pytest.raises(ObjectTaken, match="az://models/changed/a is there already"):
        place.write("a", b"other", new=True)
    (item,) = place.objects()
    place.write("a", b"again")
    with pytest.raises(BucketError, match="was replaced while it was read"):
        list(place.chunks(item))
    with pytest.raises(BucketNotFound, match="az://nobody/a is not there: 404 Not Found: ContainerNotFound"):
        asyncio.run(BucketFolder(parse("az://nobody/a")).names())
