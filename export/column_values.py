"""Inputs for models of tables: in the columns' own scales, and on both sides of every split of trees.

Random numbers around 0 would take the same way through a tree whose columns are prices or seconds, and all be the same
to a model that scales them first. Scales and splits are read from the operations Scaler, TreeEnsembleClassifier,
TreeEnsembleRegressor and TreeEnsemble of an ONNX graph (https://onnx.ai/onnx/operators/index_mlai.html).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

ROWS = 1024
_TREES = ("TreeEnsembleClassifier", "TreeEnsembleRegressor", "TreeEnsemble")
_SCALED = 64  # values of a column that is scaled and not split
_BESIDE = 1e-3  # how far from a split, as a part of the way to the next one
_ROUNDING = 8.0  # spacings of float32 that a value must have to its split: forms may round that in their own way

Columns = tuple[npt.NDArray[Any], ...]  # for each column the values to choose from; none where any will do


class _Scale(NamedTuple):
    """(x - offset) * factor, by column."""

    offset: npt.NDArray[np.float64]
    factor: npt.NDArray[np.float64]


def of(graph: "onnx.ModelProto") -> Mapping[str, Columns]:  # type: ignore[name-defined]  # noqa: F821
    """Input (rows, columns) of float32 that is scaled or split by trees -> values of each column.

    Nothing where the graph says too little of its columns, or contradicts itself.
    """
    import onnx

    scales = {
        info.name: _Scale(np.zeros(width), np.ones(width))
        for info in graph.graph.input
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and len(info.type.tensor_type.shape.dim) == 2
        for width in [info.type.tensor_type.shape.dim[1].dim_value]
        if width
    }
    origins = {name: name for name in scales}
    columns: dict[str, dict[int, list[npt.NDArray[Any]]]] = {}
    for node in graph.graph.node:
        if not node.input or node.input[0] not in scales:
            continue
        name, scale = node.input[0], scales[node.input[0]]
        if node.op_type == "Scaler":
            scaled = _scaled(node, scale)
            if scaled is None:
                return {}
            scales[node.output[0]], origins[node.output[0]] = scaled, origins[name]
            columns.setdefault(origins[name], {})
        elif node.op_type in _TREES:
            places, values = _splits(node)
            of_input = columns.setdefault(origins[name], {})
            if np.isnan(values).any() or places.max(initial=0) >= scale.factor.size:
                return {}
            finite = np.isfinite(values)  # a split at infinity parts numbers from missing ones
            places, values = places[finite], values[finite]
            for column in np.unique(places):
                splits = values[places == column] / scale.factor[column] + scale.offset[column]
                of_input.setdefault(int(column), []).append(splits)
    last = {origins[name]: scale for name, scale in scales.items()}
    return {name: _values(of_input, last[name]) for name, of_input in columns.items()}


def _values(splits: Mapping[int, list[npt.NDArray[Any]]], scale: _Scale) -> Columns:
    normal = np.random.default_rng(0).standard_normal(_SCALED)
    found = []
    for column, (offset, factor) in enumerate(zip(*scale, strict=True)):
        if column in splits:
            found.append(_beside(np.concatenate(splits[column])))
        elif (offset, factor) != (0.0, 1.0):
            found.append((offset + normal / factor).astype(np.float32))
        else:
            found.append(np.zeros(0, np.float32))
    return tuple(found)


def _scaled(node: "onnx.NodeProto", scale: _Scale) -> _Scale | None:  # type: ignore[name-defined]  # noqa: F821
    """What a Scaler makes of columns that are scaled already; none where the sizes do not fit."""
    import onnx

    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    offset = np.array(attributes.get("offset") or [0.0], np.float64)
    factor = np.array(attributes.get("scale") or [1.0], np.float64)
    if offset.size not in (1, scale.offset.size) or factor.size not in (1, scale.offset.size):
        return None
    factor = np.where(factor == 0, 1.0, factor)
    return _Scale(scale.offset + offset / scale.factor, scale.factor * factor)


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
