"""The converter for a file or folder, by its name and first bytes."""

from pathlib import Path
from typing import cast

from bookserve.export.converters import (
    hugging_face_folder,
    keras_file,
    lightgbm_model,
    mlflow_folder,
    onnx_file,
    pickled_estimator,
    saved_model,
    tflite_file,
    torch_program,
    xgboost_model,
)
from bookserve.export.converters.source import Converter
from bookserve.export.errors import ExportError

CONVERTERS = tuple(
    cast(Converter, module)
    for module in (
        saved_model,
        mlflow_folder,
        hugging_face_folder,
        onnx_file,
        tflite_file,
        keras_file,
        torch_program,
        pickled_estimator,
        xgboost_model,
        lightgbm_model,
    )
)


def converter(path: Path) -> Converter:
    """The converter that recognises the file or folder.

    Raises:
        ExportError: there is nothing at `path`, or no converter knows it; the message lists the formats.
    """
    if not path.exists():
        raise ExportError(f"there is no {path}")
    for candidate in CONVERTERS:
        if candidate.recognises(path):
            return candidate
    known = ", ".join(candidate.FORMAT for candidate in CONVERTERS)
    raise ExportError(f"{path} is of no known format; known are: {known}")
