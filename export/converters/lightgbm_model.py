"""LightGBM's own model files: text that begins with "tree"."""

from pathlib import Path
from typing import Any

import numpy as np

from bookserve.export import engines, parity
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.converters.source import ONNX, Converted, Rows, Wishes
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
    try:
        graph = convert_lightgbm(
            booster, initial_types=[("x", FloatTensorType([None, width]))], target_opset=15, zipmap=False
        )
    except Exception as error:  # the converter raises many kinds for what it cannot convert
        raise ExportError(f"{path} has no ONNX form: {str(error).strip().splitlines()[0]}") from error
    names = [output.name for output in graph.graph.output]
    classes = len(names) > 1
    target = folder / ONNX
    target.write_bytes(graph.SerializeToString())

    def reference(rows: Rows) -> dict[str, Any]:
        answer = np.asarray(booster.predict(rows["x"].astype(np.float64)), np.float32)
        if not classes:
            return {names[0]: answer.reshape(len(answer), -1)}
        scores = answer if answer.ndim == 2 else np.stack([1 - answer, answer], axis=1)
        return {names[0]: scores.argmax(axis=1).astype(np.int64), names[1]: scores}

    count = max(2, booster.num_model_per_iteration()) if classes else 0
    outputs = (
        (
            Tensor(names[0], "int64", (None,), ranks=names[1]),
            Tensor(names[1], "float32", (None, count), unit="probability"),
        )
        if classes
        else (Tensor(names[0], "float32", (None, 1)),)
    )
    return Converted(
        contract=Contract(
            wishes.model,
            1,
            (Tensor("x", "float32", (None, width)),),
            outputs,
            labels=tuple(str(number) for number in range(count)),
            task="tabular" if classes else "regression",
            columns=columns,
        ),
        reference=reference,
        graphs={ONNX: engines.onnx_graph(target)},
        tolerance=parity.DOUBLE_SOURCE,
        made_with=("lightgbm", "onnxmltools", "onnx", "onnxruntime"),
    )
