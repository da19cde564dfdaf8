"""Picture files of every format: as phones store them, cut off, as bombs, with decoders that are taken over or hang."""

import concurrent.futures
import io
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import photos
from bookserve.serving.wire import picture_file, pictures
from model_servers import wait_until

RULE = pictures.PictureRule("x", (32, 32), "rgb", "crop")


@pytest.mark.parametrize("name", photos.FORMATS)
def test_a_photograph_is_the_same_in_every_format_and_upright(name: str) -> None:
    made = picture_file.decode(photos.file_of(name))
    assert made.size == photos.SIZE
    difference = np.abs(np.asarray(made.convert("RGB")).astype(float) - photos.levels())
    assert difference.mean() < 6
    assert pictures.levels(photos.file_of(name), RULE).shape == (32, 32, 3)


@pytest.mark.parametrize("name", photos.FORMATS)
def test_a_file_that_is_cut_off_is_refused(name: str) -> None:
    content = photos.file_of(name)
    for length in (len(content) // 2, len(content) - 100):
        with pytest.raises(pictures.PictureError, match=r"truncated|no readable|cut off"):
            picture_file.decode(content[:length])


@pytest.mark.parametrize(
    "name",
    ["GIF", "TIFF", "AVIF", "HEIC", *(pytest.param(name, marks=pytest.mark.slow) for name in ("PNG", "JPEG", "WebP"))],
)
def test_a_bomb_is_refused_from_its_header(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = photos.bomb(name)
    assert len(content) < 800_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(pictures.PictureTooLarge, match="at most 50 million"):
        picture_file.decode(content)


def test_a_picture_of_another_size_than_it_says_is_bounded() -> None:
    with pytest.raises(pictures.PictureDamaged):
        picture_file.decode(photos.declare(photos.file_of("HEIC"), 64, 64))
    made = picture_file.decode(photos.declare(photos.file_of("AVIF"), 64, 64))  # libavif scales it
    assert made.size == (64, 64)


@pytest.mark.parametrize(
    ("image", "options", "mode"),
    [
        (Image.fromarray(np.full((40, 50), 100 * 257, np.uint16)), {}, "I;16"),
        (photos.photo().convert("CMYK"), {}, "RGB"),
        *(
            pytest.param(image, options, mode, marks=pytest.mark.slow)
            for image, options, mode in (
                (photos.photo().convert("LAB"), {}, "RGB"),
                (photos.photo().convert("P"), {}, "RGB"),
                (photos.photo().convert("RGBA"), {}, "RGBA"),
                (photos.photo().convert("1"), {"compression": "group4"}, "L"),
                (photos.photo(), {"compression": "jpeg"}, "RGB"),
                (photos.photo(), {"compression": "tiff_lzw", "big_tiff": True}, "RGB"),
            )
        ),
    ],
    ids=["16 bits", "CMYK", "LAB", "palette", "alpha", "fax", "JPEG", "BigTIFF"],
)
def test_tiff_of_every_kind(image: Image.Image, options: dict[str, object], mode: str) -> None:
    made = picture_file.decode(photos.encode(image, "TIFF", **options))
    assert (made.mode, made.size) == (mode, image.size)


def test_numbers_that_are_no_levels_are_refused() -> None:
    with pytest.raises(pictures.PictureFormatError, match="32 bits"):
        picture_file.decode(photos.encode(photos.photo().convert("F"), "TIFF"))


@pytest.mark.parametrize("name", ["GIF", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_taken(name: str) -> None:
    file = io.BytesIO()
    options = {"speed": 9} if name == "AVIF" else {}
    others = [Image.new("RGB", photos.SIZE, "black")] * 3
    photos.photo().save(file, name, save_all=True, append_images=others, **options)
    made = np.asarray(picture_file.decode(file.getvalue()).convert("RGB")).astype(float)
    assert np.abs(made - photos.levels()).mean() < 12


def test_a_film_is_no_picture() -> None:
    with pytest.raises(pictures.PictureDamaged, match="another kind"):
        picture_file.decode(b"\0\0\0\x20ftypmp42" + bytes(1000))


def test_without_its_package_heic_is_refused_and_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_file, "FORMATS", ("PNG", "JPEG"))
    with pytest.raises(
        pictures.PictureFormatError, match="HEIC pictures need the package pi-heif here: give one of PNG"
    ):
        picture_file.decode(photos.file_of("HEIC"))


PNG_HEAD = picture_file.HEAD.pack(b"RGB", 2, 1)


@pytest.mark.parametrize(
    ("says", "error"),
    [
        (b"", pictures.PictureDamaged),
        (PNG_HEAD + bytes(5), pictures.PictureDamaged),
        (PNG_HEAD + bytes(7), pictures.PictureDamaged),
        (picture_file.HEAD.pack(b"CMYK", 2, 1) + bytes(8), pictures.PictureDamaged),
        (picture_file.HEAD.pack(b"L", 0, 1), pictures.PictureDamaged),
        (picture_file.HEAD.pack(b"L", 1 << 31, 1 << 31), pictures.PictureTooLarge),
        (b"PictureTooLarge\nby far", pictures.PictureTooLarge),
        (b"SystemExit\nbye", pictures.PictureDamaged),
    ],
)
def test_what_a_decoder_says_that_was_taken_over_is_not_trusted(
    says: bytes, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _instead(tmp_path, monkeypatch, f"import sys; sys.stdin.buffer.read(); sys.stdout.buffer.write({says!r})")
    with pytest.raises(error):
        picture_file.decode(photos.file_of("TIFF"))


@pytest.mark.parametrize(
    "program", ["while True: pass", "import sys\nwhile True: sys.stdout.buffer.write(bytes(1 << 20))"]
)
def test_a_decoder_that_hangs_or_never_ends_is_killed(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_file, "SECONDS", 1.0)
    monkeypatch.setattr(picture_file, "MAX_PIXELS", 1_000_000)
    _instead(tmp_path, monkeypatch, program)
    started = time.monotonic()
    with pytest.raises(pictures.PictureError):
        picture_file.decode(photos.file_of("TIFF"))
    assert time.monotonic() - started < 5


def test_the_process_keeps_to_its_memory_and_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("this system has no such limits")
    program = """
import resource, sys
from bookserve.serving.wire import picture_child
picture_child._limit()
sys.stdin.buffer.read()
try:
    bytes(2 << 30)
except MemoryError:
    sys.stdout.write("PictureFormatError\\nmemory")
try:
    with open(sys.argv[0] + ".out", "w") as file:
        file.write("x")
except OSError:
    sys.stdout.write(" and files")
"""
    _instead(tmp_path, monkeypatch, "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)" + program)
    with pytest.raises(pictures.PictureFormatError, match="memory and files"):
        picture_file.decode(photos.file_of("TIFF"))


def _instead(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Another program in place of the decoder's."""
    (folder / "decoder_instead.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(picture_file, "_CHILD", "decoder_instead")


@pytest.mark.slow
def test_random_bytes_behind_a_known_beginning_are_refused_cleanly() -> None:
    rng = np.random.default_rng(0)
    for start in (b"II*\0", struct.pack(">I4s4s", 32, b"ftyp", b"avif"), struct.pack(">I4s4s", 32, b"ftyp", b"heic")):
        for _ in range(2):
            with pytest.raises(pictures.PictureError):
                picture_file.decode(start + rng.bytes(5000))


def test_a_photograph_of_24_million_pixels_is_taken() -> None:
    """As phones make them."""
    rng = np.random.default_rng(0)
    scene = Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).resize((6000, 4000), Image.Resampling.BILINEAR)
    made = pictures.levels(photos.encode(scene, "JPEG"), pictures.PictureRule("x", (32, 32), "rgb", "crop"))
    expected = pictures.levels(np.asarray(scene), pictures.PictureRule("x", (32, 32), "rgb", "crop"))
    assert np.abs(made.astype(int) - expected).max() <= 4


def test_no_more_pixels_are_held_at_once_than_one_picture_may_have() -> None:
    held = picture_file._Pixels(100)
    entered: list[int] = []

    def take(count: int) -> None:
        with held.take(count):
            entered.append(count)

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        with held.take(60):
            second = threads.submit(take, 50)
            wait_until(held._turn.locked, "the second waits")
            third = threads.submit(take, 10)  # has room, and waits for its turn
            assert concurrent.futures.wait([second, third], 0.2).done == set()
        second.result(10)
        third.result(10)
    assert sorted(entered) == [10, 50]
    with held.take(100):
        assert held._left == 0
