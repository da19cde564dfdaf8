"""A photograph-like picture in every format that is taken: as its camera stores it, whole, cut off, and as a bomb."""

import io
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

SIZE = (360, 240)
ORIENTATION = 0x0112
TURNED = 6  # stored so that it has to be turned by 90 degrees clockwise, as by a phone that is held upright
# Made once of `photo()` with pillow-heif 1.8.1 (x265): an encoder of HEIC comes with no package of the project.
HEIC = Path(__file__).parent / "turned.heic"
FORMATS = ("PNG", "JPEG", "WebP", "BMP", "GIF", "TIFF", "AVIF", "HEIC")
ORIENTED = ("JPEG", "WebP", "TIFF", "AVIF", "HEIC")  # whose files say how they are turned


@cache
def photo() -> Image.Image:
    """Sky, sun, a house and grass, with grain, as a person sees it: 360 by 240 pixels."""
    width, height = SIZE
    down = np.linspace(0, 1, height)[:, None] * np.ones((1, width))
    sky = np.stack([120 + 90 * down, 170 + 60 * down, np.full_like(down, 235)], axis=-1)
    image = Image.fromarray(sky.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse([270, 25, 310, 65], fill=(255, 240, 170))
    draw.rectangle([0, 165, width, height], fill=(40, 80, 35))
    draw.rectangle([70, 105, 170, 185], fill=(150, 60, 50))
    draw.polygon([(60, 105), (120, 60), (180, 105)], fill=(70, 45, 45))
    image = image.filter(ImageFilter.GaussianBlur(1.2))
    grain = np.random.default_rng(7).normal(0, 5, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def levels() -> npt.NDArray[Any]:
    """The same as float [height, width, 3]."""
    return np.asarray(photo()).astype(float)


@cache
def file_of(name: str) -> bytes:
    """The photograph in a format; where that can say so, turned."""
    if name == "HEIC":
        return HEIC.read_bytes()
    if name not in ORIENTED:
        return encode(photo(), name)
    return encode(photo().transpose(Image.Transpose.ROTATE_90), name, exif=oriented())


def oriented() -> Image.Exif:
    """What says that a picture is turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    return exif


def encode(image: Image.Image, name: str, **options: Any) -> bytes:
    """A picture in a format that Pillow writes."""
    quality = {"JPEG": {"quality": 90}, "WebP": {"quality": 90}, "AVIF": {"quality": 90, "speed": 9}}.get(name, {})
    compressed = {"compression": "tiff_adobe_deflate"} if name == "TIFF" else {}
    file = io.BytesIO()
    image.save(file, name.upper(), **{**quality, **compressed, **options})
    return file.getvalue()


@cache
def bomb(name: str) -> bytes:
    """A small file of 60 million pixels: a real one, or of AVIF and HEIC one that says so."""
    if name in ("AVIF", "HEIC"):
        return declare(file_of(name), 10_000, 6000)
    return encode(Image.new("L", (10_000, 6000)), name)


def declare(content: bytes, width: int, height: int) -> bytes:
    """An AVIF or HEIC file that says that its picture has this size (in the box `ispe` of ISO/IEC 23008-12)."""
    parts = content.split(b"ispe")
    assert len(parts) > 1
    return b"ispe".join([parts[0], *(part[:4] + struct.pack(">II", width, height) + part[12:] for part in parts[1:])])
