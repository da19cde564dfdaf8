"""A user's own pictures, one folder a class, from files of any size and colour to splits.

Pictures become what a served model of them is given, by the same code and within the same bounds: turned by their EXIF
orientation, transparency over white, the central part scaled to the size. Formats of phones (TIFF, AVIF, HEIC) are
decoded in a process each, two at a time.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bookserve.clients.inputs import pictures
from bookserve.clients.inputs.pictures import MAX_BYTES, Pixels
from bookserve.training.datasets.files import DataError, Origin
from bookserve.training.datasets.own_data import PictureFolder
from bookserve.training.datasets.splits import ImageSplits, LabelledImages, divide

logger = logging.getLogger(__name__)

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".heic",
    ".heif",
    ".avif",
)  # are meant so
MAX_PICTURES = 200_000  # of a folder: they are kept in memory
MAX_CLASSES = 1_000
LEAST_PICTURES = 3  # of a class: one for each split
THREADS = 4  # that decode
TOLD = 10  # files that a message names


@dataclass(frozen=True)
class _Picture:
    path: Path
    label: int
    sha256: str = ""
    pixels: Pixels | None = None
    reason: str = ""  # why it is left out


def holds_pictures(folder: Path) -> bool:
    """Whether a picture lies in the folder or in a folder of it, by the files' names."""
    return any(Path(name).suffix.lower() in SUFFIXES for name in _names(folder))


def read(own: PictureFolder, size: tuple[int, int], colour: str, seed: int, train_rows: int | None) -> ImageSplits:
    """The splits, 80, 10 and 10 percent of each class, drawn by the seed; `train_rows` of the training rows are kept.

    Images are uint8 [n, height, width] for "grey", [n, height, width, 3] for "rgb"; `size` is (height, width). What
    cannot be read is left out and said; so are copies of a file.

    Raises:
        DataError: there is no such folder, it has no class folders or one only, a class has less than three pictures,
            there are too many classes or files, or a class's name is not UTF-8.
    """
    folder = own.folder
    classes = _class_folders(folder)
    labels = tuple(path.name for path in classes)
    found = [_Picture(path, label) for label, each in enumerate(classes) for path in _files(each)]
    if len(found) > MAX_PICTURES:
        raise DataError(
            f"{folder} has {len(found):,} files; at most {MAX_PICTURES:,} are read: train on a part of them"
        )
    with ThreadPoolExecutor(THREADS) as pool:
        read_in = list(pool.map(lambda each: _decoded(each, size, colour), found))
    known = _without_copies(read_in, folder)
    used = [each for each in known if each.pixels is not None]
    left_out = tuple(f"{_shown_path(each.path, folder)}: {each.reason}" for each in known if each.reason)
    _tell(folder, left_out, len(known))
    _check(folder, labels, used, left_out)
    targets = np.array([each.label for each in used], np.int64)
    images = np.stack([each.pixels for each in used if each.pixels is not None])
    parts = divide(len(used), seed, targets)
    train, valid, test = (LabelledImages(images[part], targets[part]) for part in (parts[0][:train_rows], *parts[1:]))
    lines = sorted(f"{each.sha256}  {each.path.relative_to(folder).as_posix()}\n" for each in used)
    digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    division = f"80, 10 and 10 percent of each class, drawn by seed {seed}; of equal files one is kept"
    return ImageSplits(
        train, valid, test, Origin("own", own.name, digest), labels=labels, left_out=left_out, division=division
    )


def _class_folders(folder: Path) -> list[Path]:
    """The folders of the classes, by name.

    Raises:
        DataError: they are none, one or too many, or a name is not UTF-8.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give one that has a folder of pictures for each class")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and _shown(path.name))
    for path in classes:
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{folder} has a folder whose name is not UTF-8, {path.name!r}: rename it") from error
    if len(classes) < 2:
        flat = sum(path.suffix.lower() in SUFFIXES for path in folder.iterdir())
        there = f"only the folder {classes[0].name}" if classes else "no folder"
        there += f", and {flat} pictures that belong to no class" if flat else ""
        raise DataError(
            f"{folder} has {there}: put the pictures of each class into a folder of its own, two classes at least, "
            f"such as {folder / 'cat'} and {folder / 'dog'}"
        )
    if len(classes) > MAX_CLASSES:
        raise DataError(f"{folder} has {len(classes):,} folders; at most {MAX_CLASSES:,} classes can be trained")
    return classes


def _files(folder: Path) -> Iterator[Path]:
    """The files of a class, those in folders of it too, by name; hidden ones are passed over."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _shown(name))
        yield from (Path(parent) / name for name in sorted(names) if _shown(name))


def _names(folder: Path) -> Iterator[str]:
    """The names of the files in the folder and in its own folders."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                yield entry.name
            elif _shown(entry.name) and os.access(entry.path, os.R_OK | os.X_OK):
                with os.scandir(entry.path) as inner:
                    yield from (each.name for each in inner)


def _shown_path(path: Path, folder: Path) -> str:
    """The path inside the folder as a terminal and a JSON file may have it, whatever a file is called."""
    return "".join(sign if sign.isprintable() else "?" for sign in path.relative_to(folder).as_posix())


def _shown(name: str) -> bool:
    return not name.startswith((".", "__MACOSX")) and name not in ("Thumbs.db", "desktop.ini")


def _decoded(picture: _Picture, size: tuple[int, int], colour: str) -> _Picture:
    """The picture with its pixels, or with the reason why it has none."""
    path, label = picture.path, picture.label
    try:
        if not path.is_file():
            return _Picture(path, label, reason="is no file")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        return _Picture(path, label, reason=f"cannot be read: {error.strerror or error}")
    if len(content) > MAX_BYTES:
        return _Picture(path, label, reason=f"is larger than {MAX_BYTES >> 20} MiB")
    if not content:
        return _Picture(path, label, reason="is empty")
    try:
        pixels = pictures.levels(content, replace(pictures.PHOTO, size=size, colour=colour))
    except pictures.PictureError as error:
        return _Picture(path, label, reason=str(error))
    return _Picture(path, label, hashlib.sha256(content).hexdigest(), pixels)


def _without_copies(found: list[_Picture], folder: Path) -> list[_Picture]:
    """The same pictures; of equal files in one class the first is kept, of equal ones in two classes none."""
    first: dict[str, _Picture] = {}
    ambiguous = set()
    for each in found:
        known = first.setdefault(each.sha256, each)
        if each.sha256 and known.label != each.label:
            ambiguous.add(each.sha256)
    result = []
    for each in found:
        reason = ""
        if each.sha256 in ambiguous:
            reason = "stands in the folders of two classes"
        elif each.sha256 and first[each.sha256] is not each:
            reason = f"is a copy of {_shown_path(first[each.sha256].path, folder)}"
        result.append(_Picture(each.path, each.label, reason=reason) if reason else each)
    return result


def _tell(folder: Path, left_out: tuple[str, ...], files: int) -> None:
    if left_out:
        more = f"\n  and {len(left_out) - TOLD} more" if len(left_out) > TOLD else ""
        listed = "".join(f"\n  {line}" for line in left_out[:TOLD])
        logger.warning("%s: %d of %d files are left out:%s%s", folder, len(left_out), files, listed, more)


def _check(folder: Path, labels: tuple[str, ...], used: list[_Picture], left_out: tuple[str, ...]) -> None:
    counts = np.bincount([each.label for each in used], minlength=len(labels))
    small = [f"{label} ({count})" for label, count in zip(labels, counts, strict=True) if count < LEAST_PICTURES]
    if small:
        unusable = f"; {len(left_out)} files could not be used, such as {left_out[0]}" if left_out else ""
        raise DataError(
            f"{folder}: a class needs {LEAST_PICTURES} pictures at least, to train, validate and test; less have "
            f"{', '.join(small)}{unusable}. Add pictures ({', '.join(pictures.FORMATS)}), or remove these folders"
        )
