"""Text protobuf files, in which TensorFlow Serving keeps every setting that is more than a flag."""

from pathlib import Path
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message

from bookserve.serving.server.types.errors import ServingError, invalid_argument

Config = TypeVar("Config", bound=Message)


def read(path: Path, into: Config) -> Config:
    """Reads the file into a message, and answers it.

    Raises ServingError (INVALID_ARGUMENT) that names the file when it cannot be read, and the line and the reason as
    protobuf's C++ library words them when it cannot be parsed.
    """
    return parse(text(path), path, into)


def parse(content: str, path: object, into: Config) -> Config:
    """Reads a text into a message, and answers it. Raises as `read`, with `path` for the file."""
    try:
        return text_format.Parse(content, into)
    except text_format.ParseError as error:
        reason = str(error).replace(" : ", ": ", 1)
        raise _invalid(path, f"Error parsing text-format {into.DESCRIPTOR.full_name}: {reason}") from error


def text(path: Path) -> str:
    """What is in the file. Raises ServingError (INVALID_ARGUMENT) that names it when it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, error) from error


def _invalid(path: object, reason: object) -> ServingError:
    return invalid_argument(f"Invalid protobuf file: '{path}': {reason}")
