"""The gateway over a store in a bucket: what it copies of it, and what it tells then."""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import batch_models
from bookserve.export.manifest import LOCATION
from bookserve.serving.gateway import bucket_store
from bookserve.serving.gateway.bucket_store import BucketStore
from bookserve.serving.gateway.store import Store
from bookserve.serving.wire.bucket import BucketAddress, BucketError, BucketFolder, parse
from cloud_emulators import cloud
from gateway_servers import start_gateway
from model_servers import free_port, wait_until

CONFIG = 'model_config_list { config { name: "next" base_path: "/m" version_labels { key: "stable" value: 1 } } }'


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store on disk: `next`, which has a vocabulary, with its card, and `flats`."""
    root = tmp_path_factory.mktemp("models")
    batch_models.write_all(root)
    for folder in root.iterdir():
        if folder.name not in ("next", "flats"):
            shutil.rmtree(folder)
    report = root / "next/1/assets.extra/report"
    report.mkdir()
    (report / "card.md").write_text("# next\n")
    (report / "curves.png").write_bytes(b"\x89PNG")
    batch_models.describe(root, batch_models.NEXT)
    (root / "next/1/variables").mkdir()
    (root / "next/1/variables/variables.data").write_bytes(b"w" * 1000)
    (root / "models.config").write_text(CONFIG)
    return root


@pytest.fixture(scope="module")
def _google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cloud("gs", tmp_path_factory.mktemp("cloud")):
        yield


@pytest.fixture
def address(request: pytest.FixtureRequest, models: Path, _google: None) -> BucketAddress:
    """The store, in a folder of a bucket that is this test's own."""
    place = parse("gs://models") / request.node.name
    put(models, place)
    return place


def put(folder: Path, place: BucketAddress) -> None:
    bucket = BucketFolder(place)
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.write(path.relative_to(folder).as_posix(), path)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_the_page_tells_is_copied_and_weights_are_not(
    address: BucketAddress, models: Path, tmp_path: Path
) -> None:
    BucketStore(address, tmp_path, 1).copy()
    assert names(tmp_path) == [name for name in names(models) if "variables" not in name]
    store = Store(tmp_path)
    assert store.contracts.of_model("next") == replace(batch_models.NEXT, example=None)
    assert store.labels("next") == {"stable": 1}
    assert store.card("next", 1) == "# next\n"
    assert store.report_images("next", 1) == ["curves.png"]
    assert list(store.vocabulary("next", 1, "vocabulary.txt").words) == list(batch_models.WORDS)
    graph = store.graph("next", 1)
    assert graph is not None
    assert graph["nodes"] == 2


def test_what_comes_and_goes_is_followed(address: BucketAddress, models: Path, tmp_path: Path) -> None:
    copy, bucket = BucketStore(address, tmp_path, 1), BucketFolder(address)
    copy.copy()
    manifest = json.loads((models / "flats/1" / LOCATION).read_text()) | {"version": 2}
    bucket.write("flats/2/model.onnx", models / "flats/1/model.onnx")
    copy.copy()
    store = Store(tmp_path)
    assert store.contracts.versions("flats") == [2, 1]
    assert store.manifest("flats", 2) is None  # it is being written
    bucket.write(f"flats/2/{LOCATION}", json.dumps(manifest).encode(), new=True)
    bucket.write("models.config", CONFIG.replace("stable", "tried").encode())
    copy.copy()
    assert store.manifest("flats", 2) is not None
    assert store.labels("next") == {"tried": 1}
    for name in [item.name for item in bucket.objects() if item.name.startswith("next/")]:
        remove(address, name)
    copy.copy()
    assert store.contracts.models() == ["flats"]


def remove(address: BucketAddress, name: str) -> None:
    import obstore

    obstore.delete(BucketFolder(address)._moves, (address / name).path)


def test_a_file_that_is_not_the_one_of_the_manifest_is_not_shown(
    address: BucketAddress, models: Path, tmp_path: Path
) -> None:
    BucketFolder(address).write("next/1/assets/vocabulary.txt", b"other words\n")
    with pytest.raises(BucketError, match=r"next/1/assets/vocabulary\.txt is not the file that the manifest lists"):
        BucketStore(address, tmp_path, 1).copy()
    store = Store(tmp_path)
    assert (store.contracts.models(), store.manifest("next", 1)) == (["flats"], None)


def test_large_files_are_left_out(
    address: BucketAddress, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_store, "_MAX_FILE_BYTES", 50)
    BucketStore(address, tmp_path, 1).copy()
    kept = [name for name in names(tmp_path) if name.startswith("next/")]
    assert "next/1/assets/vocabulary.txt" in kept
    assert not [name for name in kept if name.endswith(".onnx")]
    assert Store(tmp_path).manifest("next", 1) is not None


def test_a_gateway_tells_of_a_store_in_a_bucket_and_keeps_it_when_the_bucket_goes_away(
    models: Path, tmp_path: Path
) -> None:
    options = ["--bucket-poll-seconds=0.1", f"--model-server=127.0.0.1:{free_port()}"]
    with cloud("gs", tmp_path):
        put(models, parse("gs://models/kept"))
        gateway = start_gateway(tmp_path / "log", "--models-dir=gs://models/kept", *options, host="127.0.0.1")
    try:
        wait_until(lambda: "cannot be reached" in gateway.log.read_text(), "the log tells of it")
        with urllib.request.urlopen(f"{gateway.url}/api/v1/models/next", timeout=5) as answer:
            told = json.load(answer)
        assert (told["task"], told["versions"][0]["labels"]) == ("text", ["stable"])
        with urllib.request.urlopen(f"{gateway.url}{told['versions'][0]['card']}", timeout=5) as answer:
            assert answer.read() == b"# next\n"
        assert gateway.stop() == 0
    finally:
        gateway.process.kill()
        assert gateway.process.stdout is not None
        gateway.process.stdout.close()


@pytest.mark.slow
def test_a_gateway_whose_bucket_is_not_there_says_so(tmp_path: Path) -> None:
    with cloud("gs", tmp_path):
        options = ("--models-dir=gs://nobody/x", f"--model-server=127.0.0.1:{free_port()}")
        gateway = start_gateway(tmp_path / "log", *options, host="127.0.0.1")
        try:
            assert "gs://nobody/x is not there: 404 Not Found" in gateway.log.read_text()
            with pytest.raises(urllib.error.HTTPError) as unready:
                urllib.request.urlopen(f"{gateway.url}/readyz", timeout=5)
            assert "gs://nobody/x holds no version of a model yet" in unready.value.read().decode()
            unready.value.close()
            assert gateway.stop() == 0
        finally:
            gateway.process.kill()
            assert gateway.process.stdout is not None
            gateway.process.stdout.close()
