"""The three splits of a data set, whatever its rows are, and how labelled images are split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from bookserve.training.datasets.data_card import LEFT_OUT_SHOWN, DataCard, duplicates, row_bytes, spread
from bookserve.training.datasets.files import Origin

VALID_FRACTION = 0.1  # of a user's own rows
TEST_FRACTION = 0.1


class Rows(Protocol):
    """The rows of one split."""

    @property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """What a model takes of them, as its contract names it."""

    @property
    def targets(self) -> npt.NDArray[Any]:
        """What it shall say of them: classes int [n], numbers float [n], or 1, 0 and NaN float [n, labels]."""


R = TypeVar("R", bound=Rows)


@dataclass(frozen=True)
class Splits(Generic[R]):
    """The three splits and where they came from.

    `labels` are the classes of a user's own data, or its labels, and `columns` those of its table. `left_out` says of
    everything that could not be used why, and `division` how the splits were made.
    """

    train: R
    valid: R
    test: R
    origin: Origin
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    division: str = ""

    @property
    def examples(self) -> dict[str, npt.NDArray[Any]]:
        """Test rows as the contract's inputs."""
        return self.test.inputs

    def card(self, labels: Sequence[str]) -> DataCard:
        """The data card; `labels` name the classes, or the columns of the targets, or nothing if they are numbers."""
        parts: dict[str, R] = {"train": self.train, "valid": self.valid, "test": self.test}
        classes, missing = {}, {}
        for name, part in parts.items():
            targets = part.targets
            if targets.ndim == 2:
                measured = ~np.isnan(targets)
                classes[name] = dict(zip(labels, (targets == 1).sum(axis=0).tolist(), strict=True))
                missing[name] = dict(zip(labels, (~measured).sum(axis=0).tolist(), strict=True))
            elif labels:
                counts = np.bincount(targets.astype(np.int64), minlength=len(labels))
                classes[name] = dict(zip(labels, counts.tolist(), strict=True))
        return DataCard(
            rows={name: len(part.targets) for name, part in parts.items()},
            classes=classes,
            missing=missing,
            ranges={} if labels else {"the value to predict": spread(self.train.targets)},
            duplicates=duplicates({name: row_bytes(part.inputs) for name, part in parts.items()}),
            division=self.division,
            left_out=len(self.left_out),
            left_out_first=list(self.left_out[:LEFT_OUT_SHOWN]),
        )


@dataclass(frozen=True)
class LabelledImages:
    """`images` uint8 [n, height, width], or [n, height, width, 3] in colour, and the classes `labels` int64 [n]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    @property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """The images."""
        return {"images": self.images}

    @property
    def targets(self) -> npt.NDArray[Any]:
        """The classes."""
        return self.labels


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
        division=f"{valid_rows} of the {len(order)} training rows drawn by seed {seed} to validate; the test rows are "
        "the data set's own",
    )


def divide(
    rows: int, seed: int, classes: npt.NDArray[np.int64] | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers of the training, validation and test rows of own data: 80, 10 and 10 percent, drawn by the seed.

    With `classes` int64 [rows], of each class by itself, at least one row in each split; a class needs three rows.
    """
    random = np.random.default_rng(seed)
    groups = [np.arange(rows)] if classes is None else [np.flatnonzero(classes == each) for each in np.unique(classes)]
    parts: tuple[list[npt.NDArray[np.int64]], ...] = ([], [], [])
    for group in groups:
        order = random.permutation(group)
        valid = max(1, round(len(order) * VALID_FRACTION))
        test = max(1, round(len(order) * TEST_FRACTION))
        drawn = np.split(order, [len(order) - valid - test, len(order) - test])
        for part, chosen in zip(parts, drawn, strict=True):
            part.append(chosen)
    train, valid_rows, test_rows = (random.permutation(np.concatenate(part)) for part in parts)
    return train, valid_rows, test_rows
