"""LightGBM's own model files: text that begins with "tree"."""

from pathlib import Path

import numpy as np

from bookserve.export import parity
from bookserve.export.converters import boosted_trees
from bookserve.export.converters.source import Converted, Wishes
from bookserve.export.errors import ExportError

FORMAT = "LightGBM"
EXTRA = "convert"


def recognises(path: Path) -> bool:
    """A file that begins with "tree" and a version."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(64).replace(b"\r", b"").startswith(b"tree\nversion=")


def convert(path: Path, folder: Path, wishes: Wishes) -> Converted:
    """See `Converter.convert`."""
    import lightgbm
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    try:
        booster = lightgbm.Booster(model_file=str(path))
    except lightgbm.basic.LightGBMError as error:
        raise ExportError(f"LightGBM does not load {path}: {error}") from error
    width, columns = booster.num_feature(), tuple(booster.feature_name())
    types = [(boosted_trees.INPUT, FloatTensorType([None, width]))]
    try:
        graph = convert_lightgbm(booster, initial_types=types, target_opset=15, zipmap=False)
    except Exception as error:  # the converter raises many kinds for what it cannot convert
        raise ExportError(f"{path} has no ONNX form: {str(error).strip().splitlines()[0]}") from error
    classes = max(2, booster.num_model_per_iteration()) if len(graph.graph.output) > 1 else 0
    return boosted_trees.converted(
        graph,
        folder,
        wishes.model,
        columns,
        width,
        classes,
        lambda rows: booster.predict(rows.astype(np.float64)),
        ("lightgbm", "onnxmltools", "onnx", "onnxruntime"),
        parity.DOUBLE_SOURCE,
    )
