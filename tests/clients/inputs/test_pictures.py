import gzip
import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bookserve.clients.inputs import pictures


def _encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _seven(size=(400, 300), ground=255, ink=0, mode="L", at=(60, 40), scale=200, width=22) -> Image.Image:
    """A seven with thick strokes, somewhere on a canvas."""
    image = Image.new(mode, size, ground)
    points = [(0.05, 0.05), (0.75, 0.05), (0.3, 0.95)]
    line = [(at[0] + x * scale, at[1] + y * scale) for x, y in points]
    draw = ImageDraw.Draw(image)
    draw.line(line, fill=ink, width=width, joint="curve")
    for x, y in line:
        draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=ink)
    return image


REFERENCE = pictures.digit(_encode(_seven()))


def _distance(field: np.ndarray) -> float:
    """Mean difference to the reference, relative to its ink; a shift by one pixel, as rounding gives it, is none."""
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    apart = [np.abs(np.roll(field, shift, (0, 1)).astype(float) - REFERENCE).sum() for shift in shifts]
    return float(min(apart) / REFERENCE.sum(dtype=float))


def _check_form(field: np.ndarray) -> None:
    """MNIST's form: 20 pixels on the longer side, centre of mass at the centre, full ink."""
    assert field.dtype == np.uint8
    assert field.shape == (28, 28)
    rows, columns = np.nonzero(field.max(axis=1))[0], np.nonzero(field.max(axis=0))[0]
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    weights = field / field.sum(dtype=float)
    assert abs((weights.sum(axis=1) * np.arange(28)).sum() - 14) <= 0.51
    assert abs((weights.sum(axis=0) * np.arange(28)).sum() - 14) <= 0.51
    assert field.max() == 255


def test_a_digit_on_white_paper_takes_mnists_form() -> None:
    _check_form(REFERENCE)
    assert 15 < REFERENCE.mean() < 60  # MNIST's own mean is 33
    assert len(np.unique(REFERENCE)) > 20  # anti-aliased


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (_seven(ground=0, ink=255), "PNG"),
        (_seven(ground=150, ink=110), "PNG"),
        (_seven(ground=90, ink=140), "PNG"),
        (_seven(mode="RGB", ground=(230, 225, 210), ink=(20, 30, 120)), "JPEG"),
        (_seven(mode="RGB"), "WEBP"),
        (_seven(mode="RGB"), "BMP"),
        (_seven(mode="1", ground=1, ink=0), "PNG"),
        (_seven(mode="CMYK", ground=(0, 0, 0, 0), ink=(0, 0, 0, 255)), "JPEG"),
        (_seven().convert("P"), "PNG"),
        (_seven(mode="LA", ground=(255, 0), ink=(0, 255)), "PNG"),
        (_seven(mode="RGBA", ground=(0, 0, 0, 0), ink=(0, 0, 0, 255)), "PNG"),
        (_seven(mode="RGBA", ground=(0, 0, 0, 0), ink=(255, 255, 255, 255)), "PNG"),
        (_seven(at=(190, 90)), "PNG"),
        (_seven(size=(1600, 1200), at=(240, 160), scale=800, width=88), "PNG"),
        (_seven(size=(3000, 2400), at=(600, 320), scale=1800, width=198), "JPEG"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.mode}-{value.size[0]}",
)
def test_every_form_of_the_same_digit_gives_the_same_field(image, kind) -> None:
    field = pictures.digit(_encode(image, kind))
    _check_form(field)
    assert _distance(field) < 0.12


def test_16_bit_grey_is_not_clipped() -> None:
    wide = np.asarray(_seven(ground=200, ink=40), dtype=np.uint16) * 257
    field = pictures.digit(_encode(Image.fromarray(wide)))
    _check_form(field)
    assert _distance(field) < 0.05


def test_light_from_one_side_and_noise_are_no_ink() -> None:
    rng = np.random.default_rng(0)
    ink = 1 - np.asarray(_seven(), dtype=np.float32) / 255
    light = np.linspace(230, 120, 400, dtype=np.float32)[None, :] * (1 - 0.7 * ink)
    photo = np.clip(light + rng.normal(0, 4, light.shape), 0, 255).astype(np.uint8)
    field = pictures.digit(_encode(Image.fromarray(photo), "JPEG", quality=80))
    _check_form(field)
    assert _distance(field) < 0.25


def test_the_exif_orientation_is_obeyed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned = _seven().transpose(Image.Transpose.ROTATE_90)
    assert _distance(pictures.digit(_encode(turned, "JPEG", exif=exif))) < 0.12
    assert _distance(pictures.digit(_encode(turned, "JPEG"))) > 0.5


def test_the_aspect_ratio_is_kept() -> None:
    image = Image.new("L", (300, 300), 255)
    ImageDraw.Draw(image).line([(40, 30), (40, 270)], fill=0, width=24)
    field = pictures.digit(_encode(image))
    assert np.ptp(np.nonzero(field.max(axis=0))[0]) + 1 == 2
    assert np.ptp(np.nonzero(field.max(axis=1))[0]) + 1 == 20


def test_a_thin_pen_keeps_full_ink() -> None:
    field = pictures.digit(_encode(_seven(width=1)))
    assert field.max() == 255
    assert 5 < field.mean() < 40


def test_mnists_own_form_passes_unchanged_and_its_negative_inverted() -> None:
    for kind in ("PNG", "BMP"):
        np.testing.assert_array_equal(pictures.digit(_encode(Image.fromarray(REFERENCE), kind)), REFERENCE)
    np.testing.assert_array_equal(pictures.digit(_encode(Image.fromarray(255 - REFERENCE))), REFERENCE)
    colour = Image.fromarray(REFERENCE).convert("RGBA")
    np.testing.assert_array_equal(pictures.digit(_encode(colour)), REFERENCE)


def test_a_picture_is_a_path_bytes_or_pixels(tmp_path: Path) -> None:
    path = tmp_path / "seven.png"
    path.write_bytes(_encode(_seven()))
    levels = np.asarray(_seven().convert("L"))
    for picture in (path, str(path), path.read_bytes(), levels, np.stack([levels] * 3, axis=2)):
        np.testing.assert_array_equal(pictures.digit(picture), REFERENCE)
        sent = pictures.file_of(picture)
        np.testing.assert_array_equal(pictures.digit(sent), REFERENCE)
    assert pictures.photo(str(path)).shape == (32, 32, 3)
    for missing in (tmp_path / "none.png", str(tmp_path / "none.png")):
        with pytest.raises(FileNotFoundError, match=r"none\.png"):
            pictures.digit(missing)


@pytest.mark.parametrize(
    ("pixels", "given"),
    [
        (np.zeros((28, 28), np.float32), r"float32 \[28, 28\]"),
        (np.zeros((1, 28, 28), np.uint8), r"uint8 \[1, 28, 28\]"),
        (np.zeros((28,), np.uint8), r"uint8 \[28\]"),
        (np.zeros((0, 28), np.uint8), r"uint8 \[0, 28\]"),
        (np.zeros((28, 28, 2), np.uint8), r"uint8 \[28, 28, 2\]"),
    ],
)
def test_an_array_that_makes_no_picture_says_what_would(pixels: np.ndarray, given: str) -> None:
    for take in (pictures.digit, pictures.photo, pictures.file_of):
        with pytest.raises(pictures.PictureFormatError, match=rf"\[height,width,3\].*this one is {given}"):
            take(pixels)


def test_what_is_no_picture_at_all_is_named() -> None:
    with pytest.raises(TypeError, match=r"a path, a file's bytes or a uint8 array of pixels, not list"):
        pictures.digit([[0, 255], [255, 0]])
    with pytest.raises(pictures.PictureTooLarge, match="8000 x 8000"):
        pictures.photo(np.broadcast_to(np.uint8(9), (8000, 8000)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (28, 28), (300, 400)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_picture_without_ink_is_refused(shape, level) -> None:
    with pytest.raises(pictures.PictureEmpty, match="empty"):
        pictures.digit(_encode(Image.fromarray(np.full(shape, level, np.uint8))))


def test_noise_alone_is_no_ink() -> None:
    noise = np.random.default_rng(0).normal(200, 3, (200, 200)).clip(0, 255).astype(np.uint8)
    with pytest.raises(pictures.PictureEmpty):
        pictures.digit(_encode(Image.fromarray(noise)))


def test_a_fully_transparent_picture_is_empty() -> None:
    with pytest.raises(pictures.PictureEmpty):
        pictures.digit(_encode(Image.new("RGBA", (50, 50), (0, 0, 0, 0))))


@pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "PCX"])
def test_other_formats_are_refused_whatever_they_are_called(kind) -> None:
    with pytest.raises(pictures.PictureFormatError, match="PNG, JPEG, WebP, BMP"):
        pictures.digit(_encode(_seven(size=(64, 64)), kind))


@pytest.mark.parametrize("content", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(content) -> None:
    with pytest.raises(pictures.PictureFormatError):
        pictures.digit(content)


def _png_of(width: int, height: int) -> bytes:
    """A PNG of one grey whose compressed rows are real, so that only the header's check stands before the memory."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [7072, 13_000, 20_000])
def test_too_many_pixels_are_refused_from_the_header(side, monkeypatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(pictures.PictureTooLarge, match="pixels"):
        pictures.digit(_png_of(side, side))


def test_a_decompression_bomb_is_refused_without_pytests_warning_filters() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(pictures.PictureTooLarge):
            pictures.digit(_png_of(13_000, 13_000))


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(pictures.PictureTooLarge, match="16 MiB"):
        pictures.digit(_encode(_seven()) + bytes(pictures.MAX_BYTES))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_truncated_and_damaged_files_are_refused_cleanly(kind) -> None:
    content = _encode(_seven(size=(120, 90), at=(10, 5), scale=80, width=9).convert("RGB"), kind)
    for length in range(0, len(content) - 20, max(1, len(content) // 40)):
        with pytest.raises(pictures.PictureError):
            pictures.digit(content[:length])
    rng = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(content)
        for place in rng.integers(0, len(content), 6):
            broken[place] = rng.integers(0, 256)
        try:
            assert pictures.digit(bytes(broken)).shape == (28, 28)
        except pictures.PictureError:
            continue


@pytest.mark.slow
def test_real_digits_in_other_forms_stay_what_they_are() -> None:
    source = Path(os.environ.get("DATA_DIR", ""), "mnist", "t10k-images-idx3-ubyte.gz")
    if not source.is_file():
        pytest.skip("set DATA_DIR to a folder with mnist/t10k-images-idx3-ubyte.gz")
    digits = np.frombuffer(gzip.decompress(source.read_bytes())[16:], np.uint8).reshape(-1, 28, 28)
    rng = np.random.default_rng(0)
    distances = []
    for index, pixels in enumerate(digits):
        np.testing.assert_array_equal(pictures.digit(_encode(Image.fromarray(pixels))), pixels)
        np.testing.assert_array_equal(pictures.digit(_encode(Image.fromarray(255 - pixels))), pixels)
        if index < 1000:
            canvas = Image.new("RGB", (400, 300), (160, 160, 160))
            enlarged = Image.fromarray(pixels).resize((280, 280), Image.Resampling.BICUBIC)
            at = (int(rng.integers(0, 121)), int(rng.integers(0, 21)))
            canvas.paste(Image.new("RGB", (280, 280), (60, 60, 60)), at, enlarged)
            field = pictures.digit(_encode(canvas, "JPEG"))
            distances.append(np.abs(field.astype(float) - pixels).mean())
    assert np.mean(distances) < 10


def test_a_photo_keeps_its_central_square() -> None:
    image = Image.new("RGB", (96, 32), (0, 0, 255))
    image.paste((255, 0, 0), (32, 0, 64, 32))
    photo = pictures.photo(_encode(image))
    assert (photo.dtype, photo.shape) == (np.uint8, (32, 32, 3))
    np.testing.assert_array_equal(photo, np.full((32, 32, 3), (255, 0, 0), np.uint8))


def test_a_photo_of_cifars_size_is_left_alone(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    path = tmp_path / "photo.png"
    path.write_bytes(_encode(Image.fromarray(pixels)))
    np.testing.assert_array_equal(pictures.photo(path), pixels)


def test_a_photo_is_averaged_not_sampled() -> None:
    stripes = np.zeros((640, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(pictures.photo(_encode(Image.fromarray(stripes))).astype(int) - 127).max() <= 3


def test_a_photo_is_turned_by_its_exif_orientation() -> None:
    image = Image.new("RGB", (64, 64), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 64, 32))  # light above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: light at the right
    photo = pictures.photo(_encode(image, "JPEG", exif=exif.tobytes(), quality=95))
    assert photo[:, 20:].mean() > 240
    assert photo[:, :12].mean() < 15


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("RGBA", (40, 40), (200, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (40, 40), (200, 0, 0, 255)), (200, 0, 0)),
        (Image.new("L", (40, 40), 99), (99, 99, 99)),
        (Image.new("I;16", (40, 40), 40 * 257), (40, 40, 40)),
        (Image.new("P", (40, 40), 0), (0, 0, 0)),
    ],
    ids=["transparent", "opaque", "grey", "16 bits", "palette"],
)
def test_a_photo_of_any_mode_becomes_colour(image, colour) -> None:
    np.testing.assert_array_equal(pictures.photo(_encode(image)), np.full((32, 32, 3), colour, np.uint8))


def test_a_photo_has_the_limits_of_every_picture() -> None:
    with pytest.raises(pictures.PictureTooLarge):
        pictures.photo(_encode(Image.new("1", (7100, 7100))))
    with pytest.raises(pictures.PictureFormatError):
        pictures.photo(_encode(Image.new("L", (9, 9)), "PPM"))
    with pytest.raises(pictures.PictureDamaged):
        pictures.photo(_encode(Image.new("RGB", (99, 99)))[:-40])
