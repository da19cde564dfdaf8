import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from bookserve.training.datasets import mnist
from bookserve.training.datasets.files import DataError, DataFile, DataRequest


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    head = struct.pack(f">{1 + array.ndim}I", magic or 0x800 + array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 10


def test_idx_files_are_read_packed_and_plain(tmp_path: Path) -> None:
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (tmp_path / "labels").write_bytes(idx(LABELS))
    split = mnist.read_split(tmp_path / "images.gz", tmp_path / "labels")
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int64
    np.testing.assert_array_equal(split.images, IMAGES)
    np.testing.assert_array_equal(split.labels, LABELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(idx(IMAGES))[:-300], "damaged: its gzip stream"),
        (b"\x1f\x8b" + b"nonsense" * 9, "damaged: its gzip stream"),
        (gzip.compress(idx(IMAGES))[:-8] + b"\0" * 8, "damaged: its gzip stream"),
        (b"", "no idx file: 0 bytes"),
        (idx(IMAGES)[:15], "no idx file: 15 bytes"),
        (b"<html>not found</html>", "no idx file of rank 3: magic number 0x3c68746d"),
        (idx(LABELS) + b"\0" * 20, "no idx file of rank 3: magic number 0x00000801"),
        (idx(IMAGES)[:-1], "declares 9408 bytes of data, 9407 follow"),
        (idx(IMAGES) + b"\0", "declares 9408 bytes of data, 9409 follow"),
        (struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1), "0 follow"),
    ],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        mnist.read_idx(path, rank=3)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:, :27], LABELS, "27 x 28 pixels"),
        (IMAGES, LABELS[:-1], "12 images, .* 11 labels"),
        (IMAGES, LABELS + 5, "the label 14"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    (tmp_path / "images").write_bytes(idx(images))
    (tmp_path / "labels").write_bytes(idx(labels))
    with pytest.raises(DataError, match=message):
        mnist.read_split(tmp_path / "images", tmp_path / "labels")


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data set under the official names, whose image at place i is filled with i."""
    labels = np.arange(240) % 10
    images = np.repeat(np.arange(240), 28 * 28).reshape(240, 28, 28)
    contents = [idx(images), idx(labels), idx(images[:40]), idx(labels[:40])]
    files = []
    for file, content in zip(mnist.FILES, contents, strict=True):
        (tmp_path / file.plain_name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        files.append(DataFile(file.name, file.url, file.size, file.sha256, file.plain_name, digest))
    monkeypatch.setattr(mnist, "FILES", tuple(files))
    return tmp_path


def test_the_validation_rows_are_drawn_at_random_and_are_no_training_rows(data_dir: Path) -> None:
    data = mnist.load(DataRequest("real", data_dir), seed=0)
    train, valid = data.train.images[:, 0, 0], data.valid.images[:, 0, 0]
    assert data.origin.source == "real"
    assert len(valid) == 40
    assert set(valid) | set(train) == set(range(240))
    assert not set(valid) & set(train)
    assert set(valid) != set(range(40))
    assert not (np.diff(train.astype(int)) > 0).all()
    np.testing.assert_array_equal(data.train.labels, train % 10)


def test_the_seed_decides_the_split_and_train_rows_its_size(data_dir: Path) -> None:
    request = DataRequest("real", data_dir)
    first, same, other = (mnist.load(request, seed, train_rows=50) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.train.images, same.train.images)
    assert (first.valid.images != other.valid.images).any()
    assert len(first.train.labels) == 50
    np.testing.assert_array_equal(first.test.images, other.test.images)


def test_the_sample_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "SAMPLE_TRAIN_ROWS", 60)
    monkeypatch.setattr(mnist, "SAMPLE_TEST_ROWS", 20)
    data = mnist.load(DataRequest("sample"), seed=0)
    assert data.origin.source == "sample"
    assert len(data.origin.sha256) == 64
    assert len(data.test.labels) == 20
    assert data.examples["images"].shape == (20, 28, 28)
