import hashlib
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest

from bookserve.training.datasets import cifar10
from bookserve.training.datasets.files import DataError, DataFile, DataRequest


def batch(rows: int, first: int = 0) -> bytes:
    """Rows whose red plane is their number, green 100, blue 200."""
    content = b""
    for row in range(first, first + rows):
        content += bytes([row % 10]) + b"".join(bytes([value]) * 1024 for value in (row, 100, 200))
    return content


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small batches under the official names, 12 rows in each."""
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    digests = {}
    for number, name in enumerate(cifar10.TRAIN_BATCHES):
        content = batch(12, first=12 * number)
        (folder / name).write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    (folder / cifar10.TEST_BATCH).write_bytes(batch(12))
    monkeypatch.setattr(cifar10, "TRAIN_BATCHES", digests)
    monkeypatch.setattr(cifar10, "TEST_SHA256", hashlib.sha256(batch(12)).hexdigest())
    return tmp_path


def test_planes_become_pixels() -> None:
    split = cifar10.parse(batch(3), "rows")
    assert split.images.shape == (3, 32, 32, 3)
    assert split.images[2, 5, 7].tolist() == [2, 100, 200]
    assert split.labels.tolist() == [0, 1, 2]
    assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "0 bytes"), (batch(2)[:-1], "6145 bytes"), (b"\x0a" + batch(1)[1:], "the label 10")],
)
def test_a_damaged_batch_is_named(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"data_batch_1.bin .*{message}"):
        cifar10.parse(content, "data_batch_1.bin")


def test_a_folder_is_read_and_split_at_random(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = cifar10.load(DataRequest("real", data_dir), seed=0)
    train, valid = data.train.images[:, 0, 0, 0], data.valid.images[:, 0, 0, 0]
    assert (len(train), len(valid), len(data.test.labels)) == (50, 10, 12)
    assert set(train) | set(valid) == set(range(60))
    assert set(valid) != set(range(10))
    np.testing.assert_array_equal(data.train.labels, train % 10)
    assert (data.origin.source, data.origin.name) == ("real", "cifar10")
    assert not caplog.text
    other = cifar10.load(DataRequest("real", data_dir), seed=1, train_rows=20)
    assert len(other.train.labels) == 20
    assert set(other.valid.images[:, 0, 0, 0]) != set(valid)


def test_the_archive_gives_the_same_rows(
    data_dir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path_factory.mktemp("packed")
    path = packed / cifar10.ARCHIVE.name
    with tarfile.open(path, "w:gz") as archive:
        archive.add(data_dir / cifar10.FOLDER, cifar10.FOLDER)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(cifar10, "ARCHIVE", DataFile(path.name, cifar10.ARCHIVE.url, len(content), digest))
    from_folder, from_archive = (cifar10.load(DataRequest("real", folder), seed=0) for folder in (data_dir, packed))
    assert from_folder.origin == from_archive.origin
    np.testing.assert_array_equal(from_folder.train.images, from_archive.train.images)


def test_another_test_batch_is_taken_with_a_warning(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    official = cifar10.load(DataRequest("real", data_dir), seed=0)
    content = batch(6)
    (data_dir / cifar10.FOLDER / cifar10.TEST_BATCH).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        data = cifar10.load(DataRequest("real", data_dir), seed=0)
    assert "test_batch.bin is not the official one" in caplog.text
    assert hashlib.sha256(content).hexdigest() in data.origin.name
    assert data.origin.sha256 != official.origin.sha256


def test_another_training_batch_is_refused(data_dir: Path) -> None:
    (data_dir / cifar10.FOLDER / "data_batch_3.bin").write_bytes(batch(12))
    with pytest.raises(DataError, match=r"data_batch_3\.bin is damaged or another file"):
        cifar10.load(DataRequest("auto", data_dir), seed=0)


def test_a_missing_batch_is_named(data_dir: Path) -> None:
    (data_dir / cifar10.FOLDER / "data_batch_5.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_5\.bin: unpack cifar-10-binary"):
        cifar10.load(DataRequest("real", data_dir), seed=0)


def test_the_sample_has_ten_kinds_that_can_be_told_apart() -> None:
    split, again = (cifar10.draw(200, seed=3) for _ in range(2))
    np.testing.assert_array_equal(split.images, again.images)
    assert set(split.labels) == set(range(10))
    assert split.images.std(axis=(1, 2)).max(axis=1).min() > 10


def test_the_sample_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "SAMPLE_TRAIN_ROWS", 60)
    monkeypatch.setattr(cifar10, "SAMPLE_TEST_ROWS", 20)
    data = cifar10.load(DataRequest("sample"), seed=0)
    assert data.origin.source == "sample"
    assert data.examples["images"].shape == (20, 32, 32, 3)
