"""Digits drawn from the fonts that matplotlib ships and from pen strokes: MNIST's stand-in on a closed network.

Every digit is drawn large, bent, turned, sheared and thickened at random, then shrunk into a 20 x 20 box and centred by
its mass in 28 x 28 pixels, exactly as MNIST's own digits were. The figures reached on it say nothing about MNIST.
"""

import math
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

SIDE = 28  # pixels of a finished digit
BOX = 20  # its larger side, before it is centred
CANVAS = 96  # pixels of the sheet that a digit is drawn on
STROKE_FRACTION = 0.75  # drawn with the pen; the rest is set in type
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralItalic.ttf",
    "STIXGeneralBol.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)

# The ways people write each digit. A stroke is a list of points (x to the right, y down, in percent of the digit's
# square) joined by a smooth curve, a point given twice in a row makes a corner, and "/" parts the strokes.
STROKES: tuple[tuple[str, ...], ...] = (
    (  # 0
        "55,0 20,12 8,50 25,93 55,100 85,80 92,40 75,6 50,0",
        "70,8 40,2 10,35 12,80 45,100 82,75 88,30 60,5 42,12",
    ),
    (  # 1
        "50,0 50,100",
        "60,0 42,100",
        "30,25 55,0 55,0 52,100",
        "30,20 52,0 52,0 52,100 / 25,100 80,100",
    ),
    (  # 2
        "10,25 35,0 75,5 85,32 50,68 10,100 10,100 95,97",
        "12,18 45,0 80,18 70,50 35,85 10,95 12,78 40,82 90,100",
        "5,10 50,0 75,20 62,55 5,100 5,100 50,90 98,85",
    ),
    (  # 3
        "12,12 45,0 80,15 75,38 40,48 40,48 80,58 85,85 50,100 10,90",
        "10,5 80,5 80,5 42,42 42,42 82,60 75,92 40,100 10,88",
        "20,8 60,0 75,20 55,42 35,46 62,50 80,72 55,97 8,96",
    ),
    (  # 4
        "20,0 10,50 10,50 85,50 / 75,0 70,100",
        "70,0 5,65 5,65 95,65 / 70,0 70,100",
        "12,5 10,40 35,52 80,42 / 85,0 75,50 68,100",
        "25,5 8,45 30,58 75,50 95,48 / 72,10 65,60 60,100",
    ),
    (  # 5
        "85,0 25,0 25,0 18,42 18,42 55,38 85,62 65,95 10,95",
        "25,5 20,45 20,45 65,45 78,75 50,100 8,90 / 25,5 92,0",
        "90,2 40,5 28,35 60,52 68,80 40,100 5,92",
    ),
    (  # 6
        "70,0 30,30 12,70 40,100 80,85 75,55 45,50 15,75",
        "55,0 25,40 18,80 45,100 75,80 60,58 30,70 22,88",
        "85,5 40,12 12,55 25,95 65,97 80,70 50,52 16,65",
    ),
    (  # 7
        "10,5 90,5 90,5 40,100",
        "8,15 10,5 10,5 85,2 85,2 55,50 45,100",
        "10,5 88,5 88,5 42,100 / 35,50 85,48",
        "5,20 35,8 75,10 82,20 60,60 50,100",
    ),
    (  # 8
        "75,15 45,0 20,20 45,45 80,72 50,100 18,78 50,47 78,20 70,10",
        "50,0 25,20 50,45 75,20 50,0 / 50,45 18,75 50,100 82,75 50,45",
        "85,10 50,2 30,22 55,50 62,82 38,100 25,80 50,50 85,12",
    ),
    (  # 9
        "80,20 50,0 18,20 35,48 70,40 80,15 80,15 75,100",
        "80,15 45,0 20,25 45,45 78,22 78,22 70,70 35,100",
        "75,12 35,5 15,32 40,48 75,25 68,55 50,100",
        "70,25 50,2 20,28 40,50 72,28 75,60 60,95 20,95",
    ),
)


def draw(rows: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """`rows` digits: images uint8 [rows, 28, 28], white on black, and labels int64 [rows], every digit equally often.

    The same `rows` and `seed` give the same pixels.
    """
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(rows, dtype=np.int64) % 10)
    images = np.stack([_draw_one(int(label), generator) for label in labels]) if rows else np.zeros((0, SIDE, SIDE))
    return images.astype(np.uint8), labels


def _draw_one(digit: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    while True:
        sheet = _pen(digit, generator) if generator.random() < STROKE_FRACTION else _type(digit, generator)
        image = _centre(sheet)
        if image is not None:
            return image


def _pen(digit: int, generator: np.random.Generator) -> Image.Image:
    """A digit drawn with a pen: every point of the strokes is moved, and the whole is bent, sheared and turned."""
    variants = STROKES[digit]
    strokes = variants[generator.integers(len(variants))].split("/")
    matrix = _transform(generator)
    bend = generator.normal(0, 0.06, size=(2, 2))
    phase = generator.uniform(0, 2 * math.pi, size=(2, 2))
    sheet = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(sheet)
    width = float(generator.uniform(3.5, 10.5))
    offset = generator.normal(0, 0.02, size=(len(strokes), 2))
    for number, stroke in enumerate(strokes):
        points = np.array([point.split(",") for point in stroke.split()], dtype=np.float64) / 100 - 0.5
        points = points + generator.normal(0, 0.035, size=points.shape) * _corner_mask(points)
        curve = _smooth(points) + offset[number]
        waves = np.sin(2 * math.pi * curve[:, ::-1, None] * 0.8 + phase[None]) * bend[None]
        curve = (curve + waves.sum(axis=2)) @ matrix.T * 62 + CANVAS / 2
        path = [(float(x), float(y)) for x, y in curve]
        pen.line(path, fill=255, width=round(width), joint="curve")
        radius = width / 2
        for x, y in (path[0], path[-1]):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return sheet


def _type(digit: int, generator: np.random.Generator) -> Image.Image:
    """A digit set in one of the fonts, sheared, turned and thickened."""
    font = _font(FONTS[generator.integers(len(FONTS))])
    sheet = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(sheet).text(
        (CANVAS / 2, CANVAS / 2),
        str(digit),
        fill=255,
        font=font,
        anchor="mm",
        stroke_width=int(generator.integers(0, 3)),
        stroke_fill=255,
    )
    (a, b), (c, d) = np.linalg.inv(_transform(generator))
    half = CANVAS / 2
    data = (a, b, half - a * half - b * half, c, d, half - c * half - d * half)
    return sheet.transform(sheet.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def _transform(generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Turn (sigma 8 degrees), shear and unequal scale as one 2 x 2 matrix."""
    angle = generator.normal(0, math.radians(8))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shear = np.array([[1.0, generator.normal(-0.1, 0.2)], [0.0, 1.0]])
    scale = np.diag([generator.uniform(0.6, 1.05), generator.uniform(0.85, 1.05)])
    matrix: npt.NDArray[np.float64] = turn @ shear @ scale
    return matrix


def _corner_mask(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 for points that may be moved, 0 for the doubled points that hold a corner together: [n, 1]."""
    same = (points[1:] == points[:-1]).all(axis=1)
    doubled = np.append(same, False) | np.insert(same, 0, False)
    mask: npt.NDArray[np.float64] = (~doubled).astype(np.float64)[:, None]
    return mask


def _smooth(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A Catmull-Rom curve through the points: [10 (n - 1) + 1, 2]."""
    padded = np.concatenate([points[:1], points, points[-1:]])
    t = np.arange(10)[:, None] / 10
    pieces = []
    for p0, p1, p2, p3 in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
    return np.concatenate([*pieces, points[-1:]])


def _centre(sheet: Image.Image) -> npt.NDArray[np.uint8] | None:
    """Shrink the ink into the box and put its centre of mass into the middle, as MNIST did; None where no ink is."""
    bounds = sheet.getbbox()
    if bounds is None:
        return None
    ink = sheet.crop(bounds)
    scale = BOX / max(ink.size)
    size = (max(1, round(ink.width * scale)), max(1, round(ink.height * scale)))
    small = np.asarray(ink.resize(size, Image.Resampling.BOX), dtype=np.float64)
    mass = small.sum()
    if mass == 0:
        return None
    row = float((small.sum(axis=1) @ np.arange(small.shape[0])) / mass)
    column = float((small.sum(axis=0) @ np.arange(small.shape[1])) / mass)
    top = min(max(round(SIDE / 2 - 0.5 - row), 0), SIDE - small.shape[0])
    left = min(max(round(SIDE / 2 - 0.5 - column), 0), SIDE - small.shape[1])
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[top : top + small.shape[0], left : left + small.shape[1]] = small.round()
    return image


@cache
def _font(name: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size=64)
