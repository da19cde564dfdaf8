"""The LiteRT file of a version, made of its SavedModel by TensorFlow's own converter.

For `bookserve export --formats tflite`, and for the trial of every SavedModel that is written here: the converter may
lose weights without an error.
"""

import re
from pathlib import Path

import tensorflow as tf

from bookserve.export import engines
from bookserve.export.errors import ExportError
from bookserve.export.silence_tensorflow import silence_tensorflow

LOCATION = "assets.extra/model.tflite"  # inside the version folder
_LACKING = (
    re.compile(r"(?:TF Select|Flex|Custom) ops: ([A-Za-z0-9_, ]+)"),
    re.compile(r"'tf\.([A-Za-z0-9_]+)' op "),
)


class TfliteError(ExportError):
    """A SavedModel has no LiteRT form, or nothing here runs it; the message says which operation is lacking."""


def convert(folder: Path, signature: str, path: Path) -> engines.Run:
    """Write the signature of the SavedModel in `folder` as a LiteRT file of LiteRT's own operations, and load it.

    Raises:
        TfliteError: LiteRT lacks an operation, refuses the file, or is not installed.
    """
    made: bytes | Exception
    with silence_tensorflow():  # the compiler's own messages
        try:
            made = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[signature]).convert()
        except Exception as error:  # the converter's and the compiler's errors share no base class
            made = error
    if isinstance(made, Exception):
        raise TfliteError(_obstacle(str(made))) from made
    path.write_bytes(made)
    try:
        return engines.tflite(path, signature)
    except ModuleNotFoundError as error:
        raise TfliteError("LiteRT is not installed: pip install 'bookserve[tflite]'") from error
    except (RuntimeError, ValueError) as error:
        raise TfliteError(f"LiteRT does not load it: {error}") from error


def _obstacle(text: str) -> str:
    found = [name.strip() for pattern in _LACKING for names in pattern.findall(text) for name in names.split(",")]
    if found:
        return f"LiteRT lacks TensorFlow's operation {', '.join(dict.fromkeys(found))}, as this model has it"
    lines = [line for line in text.splitlines() if line.strip()]
    return f"TensorFlow's converter fails: {lines[0][:300] if lines else 'without a reason'}"
