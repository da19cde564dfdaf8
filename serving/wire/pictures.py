"""From a picture that a person has to the tensor that a picture model takes, as its contract's preprocessing says.

The clients, the gateway and the model server run this, so that one picture has one answer everywhere.

A digit photographed, scanned or drawn in a paint program looks nothing like the fields of a data set of scans. The rule
"centred" does to it what NIST and the authors of such a set did (http://yann.lecun.com/exdb/mnist/): the digit is
fitted into 20 of 28 parts of the field with its aspect ratio kept and grey levels from the anti-aliasing, then placed
so that its centre of mass is the field's centre. "crop" takes the central part of the field's form, small.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from bookserve.serving.wire.picture_file import (
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    MEDIA_TYPES,
    SUFFIXES,
    PictureDamaged,
    PictureError,
    PictureFormatError,
    PictureTooLarge,
    check_pixels,
    decoded,
)

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MEDIA_TYPES",
    "SUFFIXES",
    "Picture",
    "PictureDamaged",
    "PictureEmpty",
    "PictureError",
    "PictureFormatError",
    "PictureRule",
    "PictureTooLarge",
    "Pixels",
    "file_of",
    "levels",
    "preview",
    "preview_and_levels",
    "tensor",
]

Pixels = npt.NDArray[np.uint8]
# A picture file's path or its bytes, or pixels: grey [height,width], or [height,width,3 or 4] with alpha as the fourth.
Picture = str | os.PathLike[str] | bytes | Pixels
_Grey = npt.NDArray[np.float32]  # (height, width), grey levels 0..255, or ink 0..1

FILLED = 20 / 28  # of the field's shorter side, what the longer side of a centred sign is fitted to
WORKING_SIDE = 1600  # pixels; larger pictures are shrunk to this before the digit is looked for

_BLACK = 10  # grey levels; a field's border is black but for the few digits that reach into it
_MIN_CONTRAST = 12.0  # grey levels; a picture whose ink differs less from its background is empty
_MIN_OVER_NOISE = 6.0  # times the background's own roughness
_INK = 0.25  # of full ink; darker pixels than this span the digit's bounding box


@dataclass(frozen=True)
class PictureRule:
    """How a picture becomes a row of the input `input`: the fields of `export.contracts.Preprocessing` for an image."""

    input: str
    size: tuple[int, int]  # height, width
    colour: str  # "grey" or "rgb"
    resize: str  # "crop", "stretch" or "centred"
    layout: str = ""
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()


class PictureEmpty(PictureError):
    """A picture without ink: nothing in it stands out from the background."""


def levels(picture: Picture, rule: PictureRule) -> Pixels:
    """Turns a picture into the levels that `rule` asks for: uint8 [height,width], or [height,width,3] for "rgb".

    `picture` is a file of one of FORMATS, its path or its bytes, or a uint8 array of pixels. It is turned by its EXIF
    orientation, and transparency is laid over white. "centred" is for one sign, such as a digit: dark signs on light
    grounds (told by the border) are inverted, uneven and grey grounds removed, contrast is stretched; a picture that
    has the size and a black border already comes back unchanged, and so does its negative, inverted. "crop" cuts out
    the central part, so that nothing is squeezed, "stretch" takes all; both scale with a filter that averages, and keep
    the pixels of a picture that has the size.

    Raises PictureFormatError, PictureTooLarge, PictureDamaged or PictureEmpty; OSError when a file cannot be read.
    """
    with _image(picture) as image:
        return _levels(image, rule)


def _levels(image: Image.Image, rule: PictureRule) -> Pixels:
    height, width = rule.size
    if rule.resize == "centred":
        return _centred(image, height, width)
    plain = _eight_bit(_over(image, 255)).convert("RGB" if rule.colour == "rgb" else "L")
    if rule.resize == "stretch":
        plain = plain.resize((width, height), Image.Resampling.LANCZOS)
    else:
        plain = ImageOps.fit(plain, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(plain, np.uint8).copy()


def tensor(many: Pixels, rule: PictureRule, dtype: np.dtype[Any], rank: int) -> npt.NDArray[Any]:
    """Levels of several pictures, uint8 [n,height,width] or [n,height,width,3], as an input of that type and rank."""
    array: npt.NDArray[Any] = many
    if rule.scale != 1.0 or rule.mean or rule.deviation or dtype.kind == "f":
        array = many.astype(np.float32) * np.float32(rule.scale)
        if rule.mean:
            array = array - np.array(rule.mean, np.float32)
        if rule.deviation:
            array = array / np.array(rule.deviation, np.float32)
    if array.ndim < rank:
        array = array[..., None]
    if rule.layout == "channels-first":
        array = array.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(array.astype(dtype))


def preview(picture: Picture, side: int) -> bytes:
    """A picture as a PNG of at most `side` pixels in width and height, over white. Raises as `levels`."""
    with _image(picture) as image:
        small = _small(image, side)
    return _png(small)


def preview_and_levels(picture: Picture, side: int, rule: PictureRule) -> tuple[bytes, Pixels | None]:
    """What `preview` and `levels` give, of a picture that is decoded once; no levels of an empty one."""
    with _image(picture) as image:
        small = _small(image, side)
        try:
            found = _levels(image, rule)
        except PictureEmpty:
            found = None
    return _png(small), found


def _small(image: Image.Image, side: int) -> Image.Image:
    small = _eight_bit(_over(image, 255)).convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _png(image: Image.Image) -> bytes:
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


def _centred(image: Image.Image, height: int, width: int) -> Pixels:
    if image.size == (width, height):
        field = np.asarray(_over(image, 255).convert("L"))
        for candidate in (field, 255 - field):
            if _is_field(candidate):
                return candidate.copy()
    image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX)
    try:
        ink = _ink(_grey(_over(image, 255)))
    except PictureEmpty:
        if not image.has_transparency_data:
            raise
        ink = _ink(_grey(_over(image, 0)))  # white on transparent
    return _place(_fit(_crop(ink), round(FILLED * min(height, width))), height, width)


def file_of(picture: Picture) -> bytes:
    """The bytes of a picture's file, as a server takes them; pixels become a PNG.

    Raises PictureFormatError or PictureTooLarge for pixels that make no picture, TypeError for what is no picture,
    OSError when a file cannot be read.
    """
    if isinstance(picture, np.ndarray):
        png = io.BytesIO()
        with _image(picture) as image:
            image.save(png, "PNG")
        return png.getvalue()
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str | os.PathLike):
        with Path(picture).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    raise TypeError(f"a picture is a path, a file's bytes or a uint8 array of pixels, not {type(picture).__name__}")


@contextlib.contextmanager
def _image(picture: Picture) -> Iterator[Image.Image]:
    if not isinstance(picture, np.ndarray):
        with decoded(file_of(picture)) as image:
            yield image
        return
    shape = list(picture.shape)
    if picture.dtype != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in ([], [3], [4]) or 0 in shape:
        raise PictureFormatError(
            "an array of pixels is uint8 (levels from 0 to 255) of shape [height,width], [height,width,3] or"
            f" [height,width,4], this one is {picture.dtype} {shape}"
        )
    check_pixels(shape[1], shape[0])
    yield Image.fromarray(picture)


def _over(image: Image.Image, ground: int) -> Image.Image:
    """The picture without transparency, laid over a ground of this grey level."""
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (ground, ground, ground, 255)), layer)


def _grey(image: Image.Image) -> _Grey:
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel, which convert("L") would clip
        return np.asarray(image, dtype=np.float32) / np.float32(257.0)
    return np.asarray(image.convert("L"), dtype=np.float32)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(np.clip(_grey(image), 0, 255).astype(np.uint8))
    return image


def _is_field(field: Pixels) -> bool:
    border = np.concatenate([field[0], field[-1], field[:, 0], field[:, -1]])
    corners = field[[0, 0, -1, -1], [0, -1, 0, -1]]
    return bool(corners.max() <= _BLACK and np.mean(border <= _BLACK) >= 0.9 and field.max() >= 128)


def _ink(grey: _Grey) -> _Grey:
    """How much each pixel is ink: 0 on the background, 1 on full strokes. PictureEmpty when there is none."""
    difference = grey - _background(grey)
    border = difference[_border_mask(difference.shape)]
    roughness = 1.4826 * float(np.median(np.abs(border - np.median(border))))
    darker, lighter = np.clip(-difference, 0, None), np.clip(difference, 0, None)
    # Squares, so that a few strokes outweigh a wide faint shade.
    ink = darker if float(np.square(darker).sum()) >= float(np.square(lighter).sum()) else lighter
    peak = float(ink.max())
    if peak < max(_MIN_CONTRAST, _MIN_OVER_NOISE * roughness):
        raise PictureEmpty("the picture is empty: draw or photograph one digit that stands out from the background")
    full = float(np.percentile(ink[ink > 0.5 * peak], 75))
    floor = min(max(3.0 * roughness, 0.04 * full), 0.5 * full)
    stretched: _Grey = np.clip((ink - floor) / (full - floor), 0.0, 1.0).astype(np.float32)
    return stretched


def _border_mask(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """True on a ring along the edges, a fiftieth of the shorter side wide, at least one pixel."""
    width = max(1, min(shape) // 50)
    mask = np.ones(shape, dtype=np.bool_)
    mask[width:-width, width:-width] = False
    return mask


def _background(grey: _Grey) -> Any:
    """The ground's grey level at every pixel: a plane through the border, so that light from one side does no harm."""
    rows, columns = np.nonzero(_border_mask(grey.shape))
    levels = grey[rows, columns]
    terms = np.stack([np.ones(len(rows)), rows / grey.shape[0], columns / grey.shape[1]], axis=1)
    keep = np.abs(levels - np.median(levels)) <= max(8.0, 3.0 * float(np.median(np.abs(levels - np.median(levels)))))
    plane = np.linalg.lstsq(terms[keep], levels[keep], rcond=None)[0].astype(np.float32)
    down = np.arange(grey.shape[0], dtype=np.float32)[:, None] / grey.shape[0]
    across = np.arange(grey.shape[1], dtype=np.float32)[None, :] / grey.shape[1]
    return plane[0] + plane[1] * down + plane[2] * across


def _crop(ink: _Grey) -> _Grey:
    rows = np.flatnonzero((ink > _INK).any(axis=1))
    columns = np.flatnonzero((ink > _INK).any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _fit(ink: _Grey, side: int) -> _Grey:
    """Scales the digit so that its longer side is `side` pixels, with its strokes at full ink."""
    height, width = ink.shape
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.clip(np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC)), 0.0, 1.0)
    # A stroke thinner than a pixel of the field fades in scaling; a pen's strokes are full ink in scans.
    strokes: _Grey = np.clip(small / max(float(np.percentile(small[small > 0.05], 90)), 0.05), 0.0, 1.0)
    return strokes


def _place(ink: _Grey, rows: int, columns: int) -> Pixels:
    """Puts the digit into the field with its centre of mass at the centre, moved by whole pixels."""
    height, width = ink.shape
    total = float(ink.sum())
    row = float((ink.sum(axis=1) * np.arange(height)).sum()) / total
    column = float((ink.sum(axis=0) * np.arange(width)).sum()) / total
    top = min(max(round(rows / 2 - row), 0), rows - height)
    left = min(max(round(columns / 2 - column), 0), columns - width)
    field = np.zeros((rows, columns), dtype=np.uint8)
    field[top : top + height, left : left + width] = np.rint(ink * 255.0)
    return field
