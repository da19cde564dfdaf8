"""CIFAR-10: 50,000 + 10,000 small colour images of ten kinds of things, from the official binary batches to splits.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009); chapter 9 of the book. The sample
that stands in for it on a closed network is drawn: coloured shapes and textures, one kind a class.
"""

import hashlib
import logging
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bookserve.training.datasets import files
from bookserve.training.datasets.files import (
    NOT_OFFICIAL,
    DataError,
    DataFile,
    DataRequest,
    Origin,
    obtain,
    sha256_of_arrays,
)
from bookserve.training.datasets.splits import ImageSplits, LabelledImages, hold_out

logger = logging.getLogger(__name__)

SIDE = 32  # pixels
CLASSES = 10
RECORD = 1 + 3 * SIDE * SIDE  # bytes: the label, then the red, green and blue plane
VALID_ROWS = 5_000  # drawn at random from the training rows
SAMPLE_TRAIN_ROWS = 6_000
SAMPLE_TEST_ROWS = 1_000
SAMPLE_SEED = 9  # the sample is one fixed data set: the seed of a run only shuffles and splits it

FOLDER = "cifar-10-batches-bin"
TRAIN_BATCHES = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
}  # name -> SHA-256
TEST_BATCH = "test_batch.bin"
TEST_SHA256 = "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"
ARCHIVE = DataFile(
    name="cifar-10-binary.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def at_hand(data_dir: Path | None) -> Path | None:
    """The folder with the files of the data set, if a training would not have to download them."""
    return _unpacked(DataRequest("real", data_dir)) or files.at_hand("cifar10", (ARCHIVE,), data_dir)


def named_in(data_dir: Path) -> bool:
    """Whether a file or a folder of the data set lies in the folder, by its name."""
    names = (ARCHIVE.name, FOLDER)
    return any((folder / name).exists() for folder in (data_dir, data_dir / "cifar10") for name in names)


def load(request: DataRequest, seed: int, train_rows: int | None = None) -> ImageSplits:
    """The splits; the validation rows are drawn at random from the training rows, `train_rows` of the rest are kept.

    The training batches must be the official ones. A folder whose test batch is another one is taken with a warning;
    its own checksum is then in `origin`.

    Raises:
        DataError: a batch is missing, damaged or foreign; the message names it.
        DataUnavailableError: the real data was asked for and cannot be had.
    """
    batches = _batches(request)
    if batches is None:
        pool, test = draw(SAMPLE_TRAIN_ROWS, SAMPLE_SEED), draw(SAMPLE_TEST_ROWS, SAMPLE_SEED + 1)
        digest = sha256_of_arrays([pool.images, pool.labels, test.images, test.labels])
        origin = Origin("sample", "drawn shapes and textures", digest)
    else:
        origin = _verify(batches)
        parts = [parse(batches[name], name) for name in TRAIN_BATCHES]
        pool = LabelledImages(
            np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts])
        )
        test = parse(batches[TEST_BATCH], TEST_BATCH)
    return hold_out(pool, test, origin, seed, VALID_ROWS, train_rows)


def parse(content: bytes, name: str) -> LabelledImages:
    """The rows of one batch: of each 3,073 bytes the first is the label, the others are the three colour planes.

    Raises:
        DataError: `content` is no whole number of rows, or a label is above 9; the message has `name`.
    """
    if not content or len(content) % RECORD:
        raise DataError(f"{name} is damaged: {len(content)} bytes are no whole number of rows of {RECORD} bytes")
    rows = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    labels = rows[:, 0].astype(np.int64)
    if labels.max() >= CLASSES:
        raise DataError(f"{name} holds the label {labels.max()}; CIFAR-10 has the classes 0 to 9")
    planes = rows[:, 1:].reshape(-1, 3, SIDE, SIDE)
    return LabelledImages(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)


def draw(rows: int, seed: int) -> LabelledImages:
    """Images of ten kinds: disc, square, triangle, cross, ring, and stripes across, upright, slanting, checks, rays.

    Place, size, turn and colours are random, with noise over all. The figures reached on them say nothing of CIFAR-10.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    line = np.arange(SIDE) - (SIDE - 1) / 2
    images = np.empty((rows, SIDE, SIDE, 3), np.uint8)
    for row, label in enumerate(labels):
        down, right = np.meshgrid(line - rng.uniform(-5, 5), line - rng.uniform(-5, 5), indexing="ij")
        mask = _shape(int(label), down, right, rng.uniform(6, 10), rng.uniform(0, 2 * np.pi))[..., None]
        front, back = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
        while np.abs(front - back).sum() < 150:
            front = rng.uniform(0, 255, 3)
        image = np.where(mask, front, back) + rng.normal(0, 12, (SIDE, SIDE, 3))
        images[row] = image.clip(0, 255)
    return LabelledImages(images, labels)


def _shape(
    label: int, down: npt.NDArray[np.float64], right: npt.NDArray[np.float64], size: float, phase: float
) -> npt.NDArray[np.bool_]:
    """Where the figure of a class lies, bool [32, 32], from the pixels' distances to its centre."""
    radius = np.hypot(down, right)
    upright, across = np.abs(down), np.abs(right)
    match label:
        case 0:
            mask = radius < size
        case 1:
            mask = np.maximum(upright, across) < size * 0.9
        case 2:
            mask = (down < size) & (down > 2 * across - size)
        case 3:
            mask = (np.minimum(upright, across) < size / 4) & (np.maximum(upright, across) < size)
        case 4:
            mask = (radius < size) & (radius > size * 0.6)
        case 5:
            mask = np.sin(down * 6 / size + phase) > 0
        case 6:
            mask = np.sin(right * 6 / size + phase) > 0
        case 7:
            mask = np.sin((down + right) * 5 / size + phase) > 0
        case 8:
            mask = (np.sin(down * 5 / size + phase) > 0) ^ (np.sin(right * 5 / size + phase) > 0)
        case _:
            mask = np.sin(6 * np.arctan2(down, right) + phase) > 0
    return np.asarray(mask, np.bool_)


def _batches(request: DataRequest) -> Mapping[str, bytes] | None:
    """Name -> bytes of all six batches, or None: then the sample is drawn."""
    names = [*TRAIN_BATCHES, TEST_BATCH]
    folder = _unpacked(request)
    if folder is not None:
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise DataError(f"{folder} lacks {', '.join(missing)}: unpack {ARCHIVE.name} there once more")
        return {name: (folder / name).read_bytes() for name in names}
    paths = obtain("cifar10", (ARCHIVE,), request)
    if paths is None:
        return None
    batches = {}
    try:
        with tarfile.open(paths[0]) as archive:
            for name in names:
                member = archive.extractfile(f"{FOLDER}/{name}")
                if member is None:
                    raise DataError(f"{paths[0]}: {FOLDER}/{name} is no file")
                batches[name] = member.read()
    except (tarfile.TarError, KeyError, EOFError, zlib.error) as error:
        raise DataError(f"{paths[0]} is damaged: {error}") from error
    return batches


def _unpacked(request: DataRequest) -> Path | None:
    """The folder of batches in DATA_DIR, if it is there."""
    if request.choice == "sample" or request.data_dir is None:
        return None
    candidates = (request.data_dir / FOLDER, request.data_dir / "cifar10" / FOLDER)
    return next((folder for folder in candidates if folder.is_dir()), None)


def _verify(batches: Mapping[str, bytes]) -> Origin:
    """The origin of batches whose training rows are the official ones."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in batches.items()}
    for name, expected in TRAIN_BATCHES.items():
        if digests[name] != expected:
            raise DataError(
                f"{name} is damaged or another file of that name: its SHA-256 is {digests[name]}, the official one has "
                f"{expected}. Replace it, or leave DATA_DIR unset to download it."
            )
    combined = hashlib.sha256("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()).hexdigest()
    if digests[TEST_BATCH] == TEST_SHA256:
        return Origin("real", "cifar10", combined)
    logger.warning(
        "%s is not the official one: its SHA-256 is %s, the official one has %s. The training rows are official; the "
        "test figures are those of this file.",
        TEST_BATCH,
        digests[TEST_BATCH],
        TEST_SHA256,
    )
    return Origin("real", f"cifar10, test batch {digests[TEST_BATCH]} {NOT_OFFICIAL}", combined)
