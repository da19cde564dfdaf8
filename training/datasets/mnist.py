"""MNIST: 60,000 + 10,000 handwritten digits, from the four official idx files to shuffled splits.

Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits"; chapter 6 of the book. The sample that stands
in for it on a closed network is drawn by `digit_sample`.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bookserve.training.datasets import digit_sample, files
from bookserve.training.datasets.files import (
    DataError,
    DataFile,
    DataRequest,
    Origin,
    combined_sha256,
    obtain,
    sha256_of_arrays,
)
from bookserve.training.datasets.splits import ImageSplits, LabelledImages, hold_out

SIDE = 28  # pixels
CLASSES = 10
VALID_ROWS = 5_000  # chapter 6 holds as many back, from the head; here they are drawn at random
SAMPLE_TRAIN_ROWS = 12_000
SAMPLE_TEST_ROWS = 2_000
SAMPLE_SEED = 6  # the sample is one fixed data set: the seed of a run only shuffles and splits it

HOME = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FILES = (
    DataFile(
        name="train-images-idx3-ubyte.gz",
        url=HOME + "train-images-idx3-ubyte.gz",
        size=9_912_422,
        sha256="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        plain_name="train-images-idx3-ubyte",
        plain_sha256="ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    DataFile(
        name="train-labels-idx1-ubyte.gz",
        url=HOME + "train-labels-idx1-ubyte.gz",
        size=28_881,
        sha256="3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        plain_name="train-labels-idx1-ubyte",
        plain_sha256="65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    DataFile(
        name="t10k-images-idx3-ubyte.gz",
        url=HOME + "t10k-images-idx3-ubyte.gz",
        size=1_648_877,
        sha256="8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        plain_name="t10k-images-idx3-ubyte",
        plain_sha256="0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    DataFile(
        name="t10k-labels-idx1-ubyte.gz",
        url=HOME + "t10k-labels-idx1-ubyte.gz",
        size=4_542,
        sha256="f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        plain_name="t10k-labels-idx1-ubyte",
        plain_sha256="ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

_IDX_MAGIC = {1: 0x00000801, 3: 0x00000803}  # rank -> unsigned bytes of that rank
_GZIP_MAGIC = b"\x1f\x8b"


def at_hand(data_dir: Path | None) -> Path | None:
    """The folder with the files of the data set, if a training would not have to download them."""
    return files.at_hand("mnist", FILES, data_dir)


def named_in(data_dir: Path) -> bool:
    """Whether a file of the data set lies in the folder, by its name."""
    names = [name for file in FILES for name in (file.name, file.plain_name)]
    return any((folder / name).exists() for folder in (data_dir, data_dir / "mnist") for name in names)


def load(request: DataRequest, seed: int, train_rows: int | None = None) -> ImageSplits:
    """The splits; the validation rows are drawn at random from the training rows, `train_rows` of the rest are kept.

    Raises:
        DataError: a file is damaged or foreign; the message names it.
        DataUnavailableError: the real data was asked for and cannot be had.
    """
    paths = obtain("mnist", FILES, request)
    if paths is None:
        pool, test, origin = _sample()
    else:
        images, labels, test_images, test_labels = paths
        pool = read_split(images, labels)
        test = read_split(test_images, test_labels)
        origin = Origin("real", "mnist", combined_sha256(FILES))
    return hold_out(pool, test, origin, seed, VALID_ROWS, train_rows)


def read_split(images_path: Path, labels_path: Path) -> LabelledImages:
    """One split from its two idx files, packed or not.

    Raises:
        DataError: a file is damaged, is no idx file of 28 x 28 images or of labels 0..9, or the two do not match.
    """
    images = read_idx(images_path, rank=3)
    labels = read_idx(labels_path, rank=1)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{images_path} holds images of {images.shape[1]} x {images.shape[2]} pixels, not 28 x 28")
    if len(images) != len(labels):
        raise DataError(f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} labels")
    if labels.size and labels.max() >= CLASSES:
        raise DataError(f"{labels_path} holds the label {labels.max()}; digits are 0 to 9")
    return LabelledImages(images, labels.astype(np.int64))


def read_idx(path: Path, rank: int) -> npt.NDArray[np.uint8]:
    """The array of an idx file of unsigned bytes, gzip-packed or not: uint8, of the shape that its head declares.

    Raises:
        DataError: damaged gzip stream, wrong magic number, or more or fewer bytes than the head declares.
    """
    content = path.read_bytes()
    if content.startswith(_GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path} is damaged: its gzip stream cannot be read ({error})") from error
    head = 4 + 4 * rank
    if len(content) < head:
        raise DataError(f"{path} is no idx file: {len(content)} bytes, the head alone has {head}")
    magic, *shape = np.frombuffer(content, ">u4", count=1 + rank).tolist()
    if magic != _IDX_MAGIC[rank]:
        raise DataError(
            f"{path} is no idx file of rank {rank}: magic number {magic:#010x}, not {_IDX_MAGIC[rank]:#010x}"
        )
    expected = int(np.prod(shape, dtype=object))
    if len(content) - head != expected:
        raise DataError(f"{path} is damaged: its head declares {expected} bytes of data, {len(content) - head} follow")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _sample() -> tuple[LabelledImages, LabelledImages, Origin]:
    train_images, train_labels = digit_sample.draw(SAMPLE_TRAIN_ROWS, seed=SAMPLE_SEED)
    test_images, test_labels = digit_sample.draw(SAMPLE_TEST_ROWS, seed=SAMPLE_SEED + 1)
    digest = sha256_of_arrays([train_images, train_labels, test_images, test_labels])
    return (
        LabelledImages(train_images, train_labels),
        LabelledImages(test_images, test_labels),
        Origin("sample", "drawn digits", digest),
    )
