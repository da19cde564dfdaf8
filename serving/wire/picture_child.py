"""A process that decodes one TIFF, AVIF or HEIC picture for `picture_file.py`, and ends.

The file comes on standard input; on standard output go mode, width, height and the pixels, or why there are none. It
limits its own memory and time, and can write no file. A decoder that a file takes over has nothing but this process.
"""

import contextlib
import resource
import signal
import sys

from PIL import Image

from bookserve.serving.wire import picture_file

_DEEP = ("I;16", "I;16B", "I;16L", "I;16N")  # grey of 16 bits
_PLAIN = {"1": "L", "LA": "RGBA", "La": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "RGBX": "RGB"}


def main() -> None:
    """Answers with the picture, or with the name of the error and its message."""
    _limit()
    content = sys.stdin.buffer.read(picture_file.MAX_BYTES + 1)
    try:
        image = _plain(_open(content))
        head = picture_file.HEAD.pack(image.mode.encode(), *image.size)
        pixels = image.tobytes()
    except picture_file.PictureError as error:
        head, pixels = f"{type(error).__name__}\n".encode(), str(error).encode()
    except MemoryError:
        return  # the other side says what was allowed
    sys.stdout.buffer.write(head)
    sys.stdout.buffer.write(pixels)
    sys.stdout.buffer.flush()


def _open(content: bytes) -> Image.Image:
    try:
        return picture_file.open_here(content, _formats())
    except picture_file.PictureFormatError as error:  # its first bytes are those of one
        raise picture_file.PictureDamaged(
            "the file begins as a TIFF, AVIF or HEIC, and cannot be read: it is cut off, damaged or of another kind"
        ) from error


def _limit() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.setitimer(signal.ITIMER_REAL, 2 * picture_file.SECONDS)  # where the parent is gone
    for kind, most in (
        (resource.RLIMIT_AS, picture_file.MEMORY),  # macOS has no such limit
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def _formats() -> tuple[str, ...]:
    """Pillow's formats, with one thread each: threads cost address space."""
    if "HEIC" in picture_file.FORMATS:
        import pi_heif

        pi_heif.register_heif_opener(thumbnails=False, decode_threads=1)
    if "AVIF" in picture_file.FORMATS:
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    return tuple(name for name in picture_file.CHILD_FORMATS if name != "HEIF" or "HEIC" in picture_file.FORMATS)


def _plain(image: Image.Image) -> Image.Image:
    """The picture in a mode that the other side knows. Raises PictureFormatError for one that has no levels."""
    if image.mode in _DEEP:
        return image if image.mode == "I;16" else image.convert("I").convert("I;16")
    if image.mode in ("I", "F"):
        raise picture_file.PictureFormatError(
            "the picture has numbers of 32 bits in place of grey levels: save it with 8 or 16 bits"
        )
    if image.mode in picture_file.MODES:
        return image
    try:
        wanted = "RGBA" if image.has_transparency_data else _PLAIN.get(image.mode, "RGB")
        return image.convert(wanted)
    except ValueError as error:  # such as LAB
        raise picture_file.PictureFormatError(f"the picture's colours are {image.mode}: save it as RGB") from error


if __name__ == "__main__":
    main()
