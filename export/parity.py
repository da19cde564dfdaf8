"""The proof that both graphs of a version compute the same: SavedModel against ONNX graph on real rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import tensorflow as tf

from bookserve.export import onnx_graph
from bookserve.export.contracts import SIGNATURE, Contract, Tensor
from bookserve.export.errors import ExportError

TOLERANCE = 1e-4  # largest accepted difference of a float output
Rows = Mapping[str, npt.NDArray[Any]]


def check(folder: Path, contract: Contract, rows: Rows) -> dict[str, float]:
    """Output -> largest absolute difference over all rows: asked as one batch, the first row once more alone, and
    where the contract leaves more than the batch free, cut to a single step and to half of them.

    For an output of class numbers the value is the fraction of rows whose numbers differ, which is accepted only where
    the output that the numbers point into is tied within TOLERANCE.

    Raises:
        ExportError: a difference is above TOLERANCE, or the engines give other shapes or types.
    """
    signature = tf.saved_model.load(str(folder)).signatures[SIGNATURE]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(folder / onnx_graph.LOCATION), options, providers=["CPUExecutionProvider"]
    )
    differences = dict.fromkeys((tensor.name for tensor in contract.outputs), 0.0)
    for batch in _batches(contract, rows):
        expected = {k: v.numpy() for k, v in signature(**{k: tf.constant(v) for k, v in batch.items()}).items()}
        names = [tensor.name for tensor in contract.outputs]
        actual = dict(zip(names, session.run(names, dict(batch)), strict=True))
        for tensor in contract.outputs:
            difference = _difference(tensor, expected, actual)
            differences[tensor.name] = max(differences[tensor.name], difference)
    return differences


def _batches(contract: Contract, rows: Rows) -> list[Rows]:
    """The batches that `check` asks for."""
    batches = [rows, {name: array[:1] for name, array in rows.items()}]
    if any(None in tensor.shape[1:] for tensor in contract.inputs):
        for fraction in (0.0, 0.5):
            batches.append({tensor.name: _cut(rows[tensor.name], tensor, fraction) for tensor in contract.inputs})
    return batches


def _cut(array: npt.NDArray[Any], tensor: Tensor, fraction: float) -> npt.NDArray[Any]:
    """The array with each free dimension but the batch cut to `fraction` of its size, at least to one."""
    for axis, size in enumerate(tensor.shape):
        if axis and size is None:
            array = array.take(range(max(1, int(array.shape[axis] * fraction))), axis)
    return array


def _difference(tensor: Tensor, expected: Rows, actual: Rows) -> float:
    """The difference of one output as `check` defines it."""
    left, right = expected[tensor.name], actual[tensor.name]
    for engine, array in (("SavedModel", left), ("ONNX graph", right)):
        if array.dtype.name != tensor.dtype:
            raise ExportError(f"'{tensor.name}' of the {engine} is {array.dtype.name}, not {tensor.dtype}")
    if left.shape != right.shape:
        raise ExportError(f"'{tensor.name}' is {left.shape} from the SavedModel, {right.shape} from the ONNX graph")
    if np.issubdtype(left.dtype, np.floating):
        difference = float(np.max(np.abs(left.astype(np.float64) - right), initial=0.0))
        if not difference <= TOLERANCE:
            raise ExportError(
                f"SavedModel and ONNX graph differ in '{tensor.name}' by {difference:g}, more than {TOLERANCE:g}: the "
                "version is not published"
            )
        return difference
    differs = left != right
    if not differs.any():
        return 0.0
    if tensor.ranks:
        gaps = np.abs(_values_at(expected[tensor.ranks], left) - _values_at(expected[tensor.ranks], right))
        if gaps.max() <= TOLERANCE:
            return float(differs.mean())
    raise ExportError(
        f"SavedModel and ONNX graph differ in '{tensor.name}' for {int(differs.sum())} of {differs.size} values: the "
        "version is not published"
    )


def _values_at(scores: npt.NDArray[Any], numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The scores [n, classes] that class numbers [n] or [n, k] point at; scores [n] are those of class 1 of two."""
    if scores.ndim == 1:
        scores = np.stack([1 - scores, scores], axis=1)
    picked = np.take_along_axis(scores, numbers.reshape(len(numbers), -1).astype(np.int64), axis=1)
    return picked.astype(np.float64)
