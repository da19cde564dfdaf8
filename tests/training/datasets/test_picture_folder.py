import io
import logging
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from own_pictures import picture, write_folder
from PIL import Image

from bookserve.clients.inputs import pictures
from bookserve.export.contracts import Preprocessing
from bookserve.training.datasets import picture_folder
from bookserve.training.datasets.files import DataError
from bookserve.training.datasets.own_data import PictureFolder
from bookserve.training.datasets.splits import ImageSplits
from photos import FORMATS, file_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "pictures", each=10)
    return tmp_path / "pictures"


def read(folder: Path, seed: int = 0) -> ImageSplits:
    return picture_folder.read(PictureFolder(folder), (32, 32), "rgb", seed, None)


def test_each_class_is_in_each_split_and_no_picture_in_two(folder: Path) -> None:
    data = read(folder)
    assert data.labels == ("cross", "ring", "square")
    card = data.card(data.labels)
    assert card.rows == {"train": 24, "valid": 3, "test": 3}
    assert card.classes["test"] == {"cross": 1, "ring": 1, "square": 1}
    assert set(card.duplicates.values()) == {0}
    assert data.train.images.shape == (24, 32, 32, 3)
    assert data.origin.source == "own"
    assert data.origin.name == "pictures"


def test_the_seed_draws_the_splits_and_nothing_else(folder: Path) -> None:
    first, again, other = read(folder), read(folder), read(folder, seed=1)
    assert np.array_equal(first.test.images, again.test.images)
    assert not np.array_equal(first.test.images, other.test.images)
    assert first.origin == other.origin
    (folder / "ring" / "0000.png").rename(folder / "ring" / "first.png")
    assert read(folder).origin.sha256 != first.origin.sha256


@pytest.mark.parametrize(("colour", "size"), [("rgb", (32, 32)), ("grey", (28, 28)), ("rgb", (20, 40))])
@pytest.mark.parametrize("kind", ["RGB", "L", "RGBA", "P", "I;16", "CMYK", "turned"])
def test_pixels_are_those_that_a_served_model_gets(
    tmp_path: Path, colour: str, size: tuple[int, int], kind: str
) -> None:
    image = picture("cross", np.random.default_rng(3))
    exif = Image.Exif()
    if kind == "turned":
        exif[0x0112] = 6
    elif kind == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif kind == "RGBA":
        image.putalpha(image.convert("L"))
    else:
        image = image.convert(kind)
    for label in ("a", "b"):
        for number in range(3):
            (tmp_path / label).mkdir(exist_ok=True)
            path = tmp_path / label / f"{number}.{'jpg' if kind == 'CMYK' else 'png'}"
            image.crop((number, 0, *image.size)).save(path, exif=exif)
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    data = picture_folder.read(PictureFolder(tmp_path), size, colour, 0, None)
    served = [
        pictures.levels(path, Preprocessing("images", size=size, colour=colour, resize="crop"))
        for path in sorted(tmp_path.rglob("*.*g"))
    ]
    everything = [*data.train.images, *data.valid.images, *data.test.images]
    assert {image.tobytes() for image in everything} == {image.tobytes() for image in served}


def test_every_format_that_the_page_takes_is_learned_from(tmp_path: Path) -> None:
    (tmp_path / "house").mkdir()
    for name in FORMATS:
        (tmp_path / "house" / f"IMG.{name.lower()}").write_bytes(file_of(name))
    write_folder(tmp_path, each=3, shapes=("ring",))
    data = read(tmp_path)
    assert not data.left_out
    splits = (data.train, data.valid, data.test)
    ours = {image.tobytes() for split in splits for image in split.images[split.targets == 0]}
    assert ours == {pictures.levels(file_of(name), pictures.PHOTO).tobytes() for name in FORMATS}


def test_what_cannot_be_read_is_left_out_and_listed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    ring = folder / "ring"
    whole = (ring / "0000.png").read_bytes()
    (ring / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (ring / "text.jpg").write_text("no picture")
    (ring / "empty.png").touch()
    (ring / "notes.txt").write_text("taken in May")
    os.mkfifo(ring / "pipe.png")
    (ring / "broken link.png").symlink_to(ring / "nowhere.png")
    shutil.copy(ring / "0000.png", ring / "copy.png")
    shutil.copy(ring / "0003.png", folder / "cross" / "also a ring.png")
    (ring / "secret\x1b[2J.png").write_bytes(b"hidden")
    (ring / ".DS_Store").write_bytes(b"\0")
    (ring / "cut.avif").write_bytes(file_of("AVIF")[:2000])
    with caplog.at_level(logging.WARNING):
        data = read(folder)
    formats = f"this is no readable picture: give one of {', '.join(pictures.FORMATS)}"
    assert set(data.left_out) == {
        "cross/also a ring.png: stands in the folders of two classes",
        "ring/0003.png: stands in the folders of two classes",
        "ring/broken link.png: is no file",
        "ring/copy.png: is a copy of ring/0000.png",
        "ring/cut.avif: the file begins as a TIFF, AVIF or HEIC, and cannot be read: "
        "it is cut off, damaged or of another kind",
        "ring/empty.png: is empty",
        "ring/notes.txt: " + formats,
        "ring/pipe.png: is no file",
        "ring/secret?[2J.png: " + formats,
        "ring/text.jpg: " + formats,
        "ring/truncated.png: the PNG picture is truncated or damaged: save it again",
    }
    assert "11 of 40 files are left out" in caplog.text
    assert "and 1 more" in caplog.text
    assert data.card(data.labels).left_out == 11
    assert sum(data.card(data.labels).rows.values()) == 29


def png_that_declares(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (2, 2)).save(content, "PNG")
    head = content.getvalue()
    chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + head[24:29]
    return head[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + head[33:]


def test_hostile_pictures_are_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ring" / "bomb.png").write_bytes(png_that_declares(30_000, 30_000))
    (folder / "ring" / "large.png").write_bytes(png_that_declares(10_001, 5_000))
    monkeypatch.setattr(picture_folder, "MAX_BYTES", 200_000)
    (folder / "ring" / "long.png").write_bytes((folder / "ring" / "0000.png").read_bytes() + bytes(200_001))
    assert set(read(folder).left_out) == {
        "ring/bomb.png: the picture has more than 50 million pixels",
        "ring/large.png: the picture has 10001 x 5000 pixels, at most 50 million are taken: save it smaller",
        "ring/long.png: is larger than 0 MiB",
    }


def test_thousands_of_pictures_in_nested_folders_are_read(tmp_path: Path) -> None:
    for number in range(3_000):
        parent = tmp_path / ("even" if number % 2 == 0 else "odd") / f"{number // 100}"
        parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([[number % 256, number // 256]], np.uint8)).save(parent / f"{number}.bmp")
    data = read(tmp_path)
    assert data.card(data.labels).rows == {"train": 2_400, "valid": 300, "test": 300}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "pictures has no folder: put the pictures of each class into a folder of its own, two classes at least"),
        (["a.png", "b.jpg"], "has no folder, and 2 pictures that belong to no class: put"),
        (["cat/a.png"], "has only the folder cat: put"),
        (
            ["cat/", "dog/"],
            "a class needs 3 pictures at least, to train, validate and test; less have cat (0), dog (0)",
        ),
        (
            ["cat/a.txt", "dog/"],
            "cat (0), dog (0); 1 files could not be used, such as cat/a.txt: this is no readable picture: give one",
        ),
    ],
)
def test_a_folder_that_is_no_data_set_says_what_to_do(tmp_path: Path, made: list[str], message: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in made:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(exist_ok=True)
        if not name.endswith("/"):
            path.write_text("text")
    with pytest.raises(DataError) as error:
        read(folder)
    assert message in str(error.value)


@pytest.mark.parametrize(("left", "refused"), [(2, True), (3, False), (4, False)])
def test_a_class_needs_three_pictures(folder: Path, left: int, refused: bool) -> None:
    for path in sorted((folder / "ring").iterdir())[left:]:
        path.unlink()
    if refused:
        with pytest.raises(DataError, match=r"less have ring \(2\)"):
            read(folder)
    else:
        assert read(folder).card(("cross", "ring", "square")).classes["train"]["ring"] == left - 2


def test_a_missing_folder_and_a_name_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder: give one that has a folder of pictures"):
        read(tmp_path / "nowhere")
    for name in (b"cat", b"d\xf6g"):
        (tmp_path / os.fsdecode(name)).mkdir()
    with pytest.raises(DataError, match="has a folder whose name is not UTF-8"):
        read(tmp_path)


def test_too_many_files_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_folder, "MAX_PICTURES", 30)
    assert read(folder).labels
    monkeypatch.setattr(picture_folder, "MAX_PICTURES", 29)
    with pytest.raises(DataError, match="has 30 files; at most 29 are read: train on a part of them"):
        read(folder)


def test_a_folder_of_pictures_is_told_by_their_names(folder: Path, tmp_path: Path) -> None:
    assert picture_folder.holds_pictures(folder)
    assert picture_folder.holds_pictures(folder / "ring")
    assert not picture_folder.holds_pictures(tmp_path)
