"""Pictures for the models whose contract says how to prepare one; `serving/wire/pictures.py` does it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export.contracts import Preprocessing, Tensor
from bookserve.serving.wire import pictures as rules
from bookserve.serving.wire.pictures import (
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    MEDIA_TYPES,
    SUFFIXES,
    Picture,
    PictureDamaged,
    PictureEmpty,
    PictureError,
    PictureFormatError,
    PictureRule,
    PictureTooLarge,
    Pixels,
    file_of,
    preview,
)

__all__ = [
    "DIGIT",
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MEDIA_TYPES",
    "PHOTO",
    "SUFFIXES",
    "Picture",
    "PictureDamaged",
    "PictureEmpty",
    "PictureError",
    "PictureFormatError",
    "PictureTooLarge",
    "Pixels",
    "digit",
    "file_of",
    "levels",
    "photo",
    "preview",
    "preview_and_levels",
    "tensor",
]

DIGIT = Preprocessing("", size=(28, 28), colour="grey", resize="centred")
PHOTO = Preprocessing("", size=(32, 32), colour="rgb", resize="crop")


def levels(picture: Picture, means: Preprocessing) -> Pixels:
    """Turns a picture into the levels that `means` asks for: uint8 [height,width], or [height,width,3] for "rgb".

    `picture`, what is done to it and what is raised are as with `serving.wire.pictures.levels`.
    """
    return rules.levels(picture, _rule(means))


def preview_and_levels(picture: Picture, side: int, means: Preprocessing) -> tuple[bytes, Pixels | None]:
    """A PNG of at most `side` pixels and the levels, decoded once; see `levels`."""
    return rules.preview_and_levels(picture, side, _rule(means))


def tensor(many: Pixels, means: Preprocessing, wanted: Tensor) -> npt.NDArray[Any]:
    """Levels of several pictures, uint8 [n,height,width] or [n,height,width,3], as the model's input."""
    return rules.tensor(many, _rule(means), np.dtype(wanted.dtype), len(wanted.shape))


def digit(picture: Picture) -> Pixels:
    """Turns the picture of one digit into uint8 [28,28], a white digit on black; see `levels`."""
    return levels(picture, DIGIT)


def photo(picture: Picture) -> Pixels:
    """Turns a colour picture into uint8 [32,32,3], red, green, blue, of its central square; see `levels`."""
    return levels(picture, PHOTO)


def _rule(means: Preprocessing) -> PictureRule:
    assert means.size is not None
    return PictureRule(
        means.input, means.size, means.colour, means.resize, means.layout, means.scale, means.mean, means.deviation
    )
