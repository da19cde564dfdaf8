"""The text of a user's own file, with a message for whatever makes it none."""

from pathlib import Path

from bookserve.training.datasets.files import DataError


def read(path: Path, meant: str, most_bytes: int) -> str:
    """The UTF-8 text of a file, without its byte order mark; `meant` says in messages what to give and how to save it.

    Raises:
        DataError: it is missing, no file, cannot be read, larger than `most_bytes`, empty, or not UTF-8.
    """
    try:
        if not path.is_file():
            there = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
            raise DataError(f"{path} {there}: give {meant}")
        with path.open("rb") as stream:
            content = stream.read(most_bytes + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > most_bytes:
        raise DataError(f"{path} has more than {most_bytes:,} bytes, the most that is read: train on a part of it")
    if not content.strip():
        raise DataError(f"{path} is empty: give {meant}")
    if b"\0" in content:
        known = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        told = "is UTF-16" if known else f"is no text: byte {content.index(0):,} is zero"
        raise DataError(f"{path} {told}; give {meant}, saved as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: the byte {content[error.start]:#04x} is no UTF-8; give {meant}, saved as UTF-8"
        ) from error
