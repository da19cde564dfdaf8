"""Pictures as a user has them: squares, rings and crosses in photographs of several sizes, colours and formats."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("cross", "ring", "square")


def picture(shape: str, random: np.random.Generator, grey: bool = False) -> Image.Image:
    """A photograph of one thing in the middle, on a ground of another brightness, with noise and uneven light."""
    width, height = (int(side) for side in random.integers(40, 220, 2))
    dark, light = random.uniform(10, 90, 3), random.uniform(165, 245, 3)
    thing, ground = (dark, light) if random.random() < 0.5 else (light, dark)
    image = Image.new("RGB", (width, height), tuple(int(level) for level in ground))
    pen, colour = ImageDraw.Draw(image), tuple(int(level) for level in thing)
    side = min(width, height)
    across, down = width / 2 + side * random.uniform(-0.06, 0.06), height / 2 + side * random.uniform(-0.06, 0.06)
    reach = side * random.uniform(0.28, 0.38)
    box = (across - reach, down - reach, across + reach, down + reach)
    if shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=max(3, round(reach * 0.4)))
    else:
        arm = reach * 0.25
        pen.rectangle((across - arm, box[1], across + arm, box[3]), fill=colour)
        pen.rectangle((box[0], down - arm, box[2], down + arm), fill=colour)
    light_falls = np.linspace(0.85, 1.1, width)[None, :, None]
    noisy = np.asarray(image, np.float32) * light_falls + random.normal(0, 9, (height, width, 3))
    made = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return made.convert("L") if grey else made


def write_folder(folder: Path, each: int, seed: int = 0, shapes: tuple[str, ...] = SHAPES) -> None:
    """`each` pictures of every shape in a folder of its own; every third is a PNG, the others are JPEG, some grey."""
    random = np.random.default_rng(seed)
    for shape in shapes:
        (folder / shape).mkdir(parents=True)
        for number in range(each):
            suffix = "png" if number % 3 == 0 else "JPG" if number % 3 == 1 else "jpeg"
            picture(shape, random, grey=number % 5 == 0).save(folder / shape / f"{number:04}.{suffix}")
