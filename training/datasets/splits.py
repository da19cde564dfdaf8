"""The three splits of a data set, whatever its rows are, and how labelled images are split."""

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from bookserve.training.datasets.files import Origin


class Rows(Protocol):
    """The rows of one split."""

    @property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """What a model takes of them, as its contract names it."""


R = TypeVar("R", bound=Rows)


@dataclass(frozen=True)
class Splits(Generic[R]):
    """The three splits and where they came from."""

    train: R
    valid: R
    test: R
    origin: Origin

    @property
    def examples(self) -> dict[str, npt.NDArray[Any]]:
        """Test rows as the contract's inputs."""
        return self.test.inputs


@dataclass(frozen=True)
class LabelledImages:
    """`images` uint8 [n, height, width], or [n, height, width, 3] in colour, and the classes `labels` int64 [n]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    @property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """The images."""
        return {"images": self.images}


ImageSplits = Splits[LabelledImages]


def hold_out(
    pool: LabelledImages, test: LabelledImages, origin: Origin, seed: int, valid_rows: int, train_rows: int | None
) -> ImageSplits:
    """Draw `valid_rows` of the pool, or a sixth of a small one, to validate; `train_rows` of the rest train."""
    order = np.random.default_rng(seed).permutation(len(pool.labels))
    valid_rows = min(valid_rows, len(order) // 6)
    valid, train = order[:valid_rows], order[valid_rows:][:train_rows]
    return ImageSplits(
        train=LabelledImages(pool.images[train], pool.labels[train]),
        valid=LabelledImages(pool.images[valid], pool.labels[valid]),
        test=test,
        origin=origin,
    )
