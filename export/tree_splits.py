"""Inputs for trees: values on both sides of every split, so that two forms of a model are compared in all leaves.

Random numbers around 0 would take the same way through a tree whose columns are prices or seconds. The splits are read
from the operations TreeEnsembleClassifier, TreeEnsembleRegressor and TreeEnsemble of an ONNX graph
(https://onnx.ai/onnx/operators/index_mlai.html).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

ROWS = 1024
_TREES = ("TreeEnsembleClassifier", "TreeEnsembleRegressor", "TreeEnsemble")
_BESIDE = 1e-3  # how far from a split, as a part of the way to the next one
_ROUNDING = 8.0  # spacings of float32 that a value must have to its split: forms may round that in their own way

Columns = tuple[npt.NDArray[Any], ...]  # for each column the values to choose from; none where nothing splits


def of(graph: "onnx.ModelProto") -> Mapping[str, Columns]:  # type: ignore[name-defined]  # noqa: F821
    """Input (rows, columns) of float32 that trees read directly -> values of each column, beside and between splits."""
    import onnx

    widths = {
        info.name: info.type.tensor_type.shape.dim[1].dim_value
        for info in graph.graph.input
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and len(info.type.tensor_type.shape.dim) == 2
    }
    splits: dict[str, dict[int, list[npt.NDArray[Any]]]] = {}
    for node in graph.graph.node:
        if node.op_type in _TREES and node.input[0] in widths:
            columns, values = _splits(node)
            of_input = splits.setdefault(node.input[0], {})
            for column in np.unique(columns):
                of_input.setdefault(int(column), []).append(values[columns == column])
    return {
        name: tuple(
            _beside(np.concatenate(of_input[column])) if column in of_input else np.zeros(0, np.float32)
            for column in range(widths[name])
        )
        for name, of_input in splits.items()
    }


def draw(columns: Columns, chance: np.random.Generator) -> npt.NDArray[Any]:
    """Rows (ROWS, columns) of float32: in each column all of its values, or as many as there are rows, in any order;
    normal ones where nothing splits.
    """
    drawn = [
        np.resize(chance.permutation(values), ROWS) if values.size else chance.standard_normal(ROWS).astype(np.float32)
        for values in columns
    ]
    return np.stack([chance.permutation(column) for column in drawn], axis=1)


def _splits(node: "onnx.NodeProto") -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:  # type: ignore[name-defined]  # noqa: F821
    """The column and the value of every node that is no leaf."""
    import onnx

    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    columns = np.array(attributes["nodes_featureids"], np.int64)
    if node.op_type == "TreeEnsemble":
        return columns, onnx.numpy_helper.to_array(attributes["nodes_splits"])
    wide = attributes.get("nodes_values_as_tensor")
    values = onnx.numpy_helper.to_array(wide) if wide is not None else np.array(attributes["nodes_values"], np.float64)
    inner = np.array(attributes["nodes_modes"]) != b"LEAF"
    return columns[inner], values[inner]


def _beside(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Close below and close above every split, and half way to its neighbours, without what rounding takes across."""
    splits = np.unique(values.astype(np.float64))
    gaps = np.diff(splits) if splits.size > 1 else np.array([max(1.0, abs(float(splits[0])))])
    before, after = np.r_[gaps[:1], gaps], np.r_[gaps, gaps[-1:]]
    candidates = np.concatenate(
        [splits - before * _BESIDE, splits + after * _BESIDE, splits - before / 2, splits + after / 2]
    ).astype(np.float32)
    places = np.searchsorted(splits, candidates.astype(np.float64))
    below, above = splits[np.maximum(places - 1, 0)], splits[np.minimum(places, splits.size - 1)]
    nearest = np.minimum(np.abs(candidates - below), np.abs(candidates - above))
    kept = np.unique(candidates[nearest > _ROUNDING * np.abs(np.spacing(candidates))])
    return kept if kept.size else np.unique(candidates)
