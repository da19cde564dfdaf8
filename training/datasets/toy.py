"""The two toy data sets of chapter 3, drawn from the run's seed: points around a line, and two clouds of points.

The book draws 100 points and trains and judges on the same ones. Here those 100 are the training split, and as many
again are drawn for validation and for the test. Nothing is downloaded: these draws are the book's own data.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.training.datasets.files import Origin, sha256_of_arrays
from bookserve.training.datasets.splits import Splits

ROWS = 100  # a split (chapter 3)
SLOPE = 5.0  # of the line (chapter 3)
INTERCEPT = 2.0  # of the line (chapter 3)
NOISE = 0.1  # standard deviation around the line (chapter 3)
CENTRES = ((-1.0, -1.0), (1.0, 1.0))  # of the clouds of class 0 and of class 1 (chapter 3)
VARIANCE = 0.1  # of a cloud, in each direction (chapter 3)


@dataclass(frozen=True)
class Split:
    """Rows of one split: points `x` float32 [n, d] and `y` float32 [n], heights or the classes 0 and 1."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]

    @property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """The points."""
        return {"x": self.x}

    @property
    def targets(self) -> npt.NDArray[Any]:
        """Heights or classes."""
        return self.y


Points = Splits[Split]


def line(seed: int) -> Points:
    """Points y = 5 x + 2 + noise, with x uniform in [0, 1): `x` is [100, 1] in each split."""
    random = np.random.default_rng(seed)

    def draw() -> Split:
        x = random.random((ROWS, 1))
        y = SLOPE * x[:, 0] + INTERCEPT + random.normal(scale=NOISE, size=ROWS)
        return Split(x.astype(np.float32), y.astype(np.float32))

    return _points("points around a line, generated as in chapter 3", draw(), draw(), draw())


def clouds(seed: int) -> Points:
    """Two Gaussian clouds of 50 points each, in random order: `x` is [100, 2] in each split."""
    random = np.random.default_rng(seed)

    def draw() -> Split:
        y = random.permutation(np.arange(ROWS) % 2)
        x = np.array(CENTRES)[y] + random.multivariate_normal(np.zeros(2), VARIANCE * np.eye(2), size=ROWS)
        return Split(x.astype(np.float32), y.astype(np.float32))

    return _points("two clouds of points, generated as in chapter 3", draw(), draw(), draw())


def _points(name: str, train: Split, valid: Split, test: Split) -> Points:
    arrays = [array for split in (train, valid, test) for array in (split.x, split.y)]
    origin = Origin("real", name, sha256_of_arrays(arrays))
    return Points(train, valid, test, origin, division="each split drawn anew from the seed")
