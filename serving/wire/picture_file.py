"""From the bytes of a picture file to its pixels, within bounds: bytes, pixels, one frame, and time and memory.

The formats of cameras and phones beside JPEG (TIFF, AVIF, HEIC) are read by large decoders in C and C++ that a hostile
file may take over. `picture_child.py` runs them, in a process that reads one picture and ends. PNG, JPEG, WebP, BMP and
GIF are decoded here, as they are small or in every browser, and cost no process.
"""

import contextlib
import importlib.util
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator

from PIL import Image, ImageOps

MAX_BYTES = 16 << 20
MAX_PIXELS = 50_000_000  # phones take 24 and 48 million

_HERE = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # Pillow's names
CHILD_FORMATS = ("TIFF", "AVIF", "HEIF")
_CHILD = "bookserve.serving.wire.picture_child"
SECONDS = 10.0  # for a picture in a process of its own
MEMORY = 1 << 30  # bytes of address space of such a process
_AT_ONCE = threading.BoundedSemaphore(2)  # such processes of this one
_CHILD_PIXELS = MAX_PIXELS // 2  # what such a picture counts as
HEAD = struct.Struct("<8sII")  # mode, width and height, which go before the pixels
MODES = {"L": 1, "RGB": 3, "RGBA": 4, "I;16": 2}  # bytes of a pixel

# Media types and endings of each format that is taken here, by its name for a person.
_KNOWN = {
    "PNG": (("image/png",), (".png",)),
    "JPEG": (("image/jpeg",), (".jpg", ".jpeg")),
    "WebP": (("image/webp",), (".webp",)),
    "BMP": (("image/bmp",), (".bmp",)),
    "GIF": (("image/gif",), (".gif",)),
    "TIFF": (("image/tiff",), (".tif", ".tiff")),
    "AVIF": (("image/avif",), (".avif",)),
    "HEIC": (("image/heic", "image/heif"), (".heic", ".heif")),
}
_NEEDS = {"AVIF": "PIL._avif", "HEIC": "pi_heif"}  # modules that not every machine has
FORMATS = tuple(name for name in _KNOWN if name not in _NEEDS or importlib.util.find_spec(_NEEDS[name]))
MEDIA_TYPES = tuple(media_type for name in FORMATS for media_type in _KNOWN[name][0])
SUFFIXES = tuple(suffix for name in FORMATS for suffix in _KNOWN[name][1])

# A warning of the decoder (a decompression bomb, damaged metadata) is a reason to refuse the picture. The filter is
# process-wide and set once, because warnings.catch_warnings is not safe between threads.
warnings.filterwarnings("error", module=r"PIL(\.|$)")

# What Pillow's decoders raise on damaged files.
_DECODER_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError, KeyError, OverflowError, NotImplementedError),
    *(RuntimeError, struct.error, zlib.error, Warning),
)


class PictureError(ValueError):
    """A picture that cannot be used; the message says why and what would do."""


class PictureFormatError(PictureError):
    """No picture, or one of a format that is not allowed."""


class PictureTooLarge(PictureError):
    """More bytes or pixels than allowed; nothing was decoded."""


class PictureDamaged(PictureError):
    """A picture whose file is truncated or broken."""


ERRORS = {kind.__name__: kind for kind in (PictureFormatError, PictureTooLarge, PictureDamaged)}


class _Pixels:
    """How many pixels are held at once, decoded; who comes later waits, in turn."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._changed = threading.Condition()
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def take(self, count: int) -> Iterator[None]:
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._left >= count)
            self._left -= count
        try:
            yield
        finally:
            with self._changed:
                self._left += count
                self._changed.notify_all()


_DECODED = _Pixels(MAX_PIXELS)


@contextlib.contextmanager
def decoded(content: bytes) -> Iterator[Image.Image]:
    """The picture in a file, as `decode` makes it, to be scaled down within this context.

    All contexts of this process have at most MAX_PIXELS together. Raises as `decode`.
    """
    with _DECODED.take(_declared_pixels(content)):
        yield decode(content)


def _declared_pixels(content: bytes) -> int:
    if _is_tiff(content) or content[4:8] == b"ftyp":
        return _CHILD_PIXELS
    try:
        with Image.open(io.BytesIO(content), formats=_HERE) as image:  # reads the header alone
            return min(image.width * image.height, MAX_PIXELS)
    except (*_DECODER_ERRORS, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return 0  # it is refused next


def decode(content: bytes) -> Image.Image:
    """The picture in a file, turned by its EXIF orientation; of several frames the first.

    Raises PictureFormatError, PictureTooLarge or PictureDamaged.
    """
    if len(content) > MAX_BYTES:
        raise PictureTooLarge(f"the picture has more than {MAX_BYTES >> 20} MiB: save it smaller")
    if not content:
        raise PictureFormatError("the picture has no bytes")
    if _is_tiff(content):
        return _in_child(content)
    if content[4:8] == b"ftyp":
        name = "AVIF" if content[8:12] in (b"avif", b"avis") else "HEIC"
        if name not in FORMATS:
            package = "pi-heif" if name == "HEIC" else "Pillow with libavif"
            raise PictureFormatError(f"{name} pictures need the package {package} here: give one of {listed()}")
        return _in_child(content)
    return open_here(content, _HERE)


def listed() -> str:
    """The formats for a message."""
    return ", ".join(FORMATS)


def open_here(content: bytes, formats: tuple[str, ...]) -> Image.Image:
    """The same in this process, for these formats of Pillow. Raises as `decode`."""
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureTooLarge(f"the picture has more than {MAX_PIXELS // 1_000_000} million pixels") from error
    except _DECODER_ERRORS as error:
        raise PictureFormatError(f"this is no readable picture: give one of {listed()}") from error
    check_pixels(*image.size)
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except _DECODER_ERRORS as error:
        raise PictureDamaged(f"the {image.format} picture is truncated or damaged: save it again") from error


def check_pixels(width: int, height: int) -> None:
    """Raises PictureTooLarge for more pixels than are taken."""
    if width * height > MAX_PIXELS:
        raise PictureTooLarge(
            f"the picture has {width} x {height} pixels, at most {MAX_PIXELS // 1_000_000} million are taken:"
            " save it smaller"
        )


def _is_tiff(content: bytes) -> bool:
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _in_child(content: bytes) -> Image.Image:
    """What a process of its own makes of a picture; nothing that it says is trusted."""
    answer = _ask_child(content)
    kind, _, message = answer.partition(b"\n")
    if kind.decode("ascii", "replace") in ERRORS:
        raise ERRORS[kind.decode()](message[:500].decode("utf-8", "replace"))
    damaged = PictureDamaged(
        f"the picture is damaged, or needs more than {SECONDS:g} s or {MEMORY >> 20} MiB to be read: save it as JPEG"
    )
    if len(answer) < HEAD.size:
        raise damaged
    padded, width, height = HEAD.unpack_from(answer)
    mode = padded.rstrip(b"\0").decode("ascii", "replace")
    check_pixels(width, height)
    if mode not in MODES or not width * height or len(answer) != HEAD.size + width * height * MODES[mode]:
        raise damaged
    return Image.frombytes(mode, (width, height), answer[HEAD.size :])


def _ask_child(content: bytes) -> bytes:
    most = HEAD.size + MAX_PIXELS * max(MODES.values())
    with _AT_ONCE:
        process = subprocess.Popen(
            [sys.executable, "-m", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        try:
            try:
                process.stdin.write(content)
                process.stdin.close()
            except BrokenPipeError:
                return b""
            return process.stdout.read(most + 1)
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
