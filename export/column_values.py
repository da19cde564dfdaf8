"""Inputs for models of tables: in the columns' own scales, and on both sides of every split of trees.

Random numbers around 0 would take the same way through a tree whose columns are prices or seconds, and all be the same
to a model that scales them first. Scales and splits are read from the operations Scaler, TreeEnsembleClassifier,
TreeEnsembleRegressor and TreeEnsemble of an ONNX graph (https://onnx.ai/onnx/operators/index_mlai.html), behind what
joins, chooses and scales columns.
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


class _Column(NamedTuple):
    """What a column of a tensor holds: (value - offset) * factor of a column of an input."""

    input: str
    place: int
    offset: float = 0.0
    factor: float = 1.0


_Known = list[_Column | None]  # the columns of a tensor (rows, columns); None of those that are made otherwise


def of(graph: "onnx.ModelProto") -> Mapping[str, Columns]:  # type: ignore[name-defined]  # noqa: F821
    """Input (rows, columns) of float32 that is scaled or split by trees -> values of each column.

    Nothing where the graph contradicts itself, or has no operation of tables.
    """
    if not any(node.domain == "ai.onnx.ml" for node in graph.graph.node):
        return {}
    return _Graph(graph).values()


class _Graph:
    """The columns of inputs, followed through a graph to the trees that split them."""

    def __init__(self, graph: "onnx.ModelProto") -> None:  # type: ignore[name-defined]  # noqa: F821
        import onnx

        inferred = onnx.shape_inference.infer_shapes(graph).graph
        self._nodes = inferred.node
        self._widths = {
            info.name: info.type.tensor_type.shape.dim[1].dim_value
            for info in (*inferred.value_info, *inferred.input)
            if len(info.type.tensor_type.shape.dim) == 2
        }
        self._constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in inferred.initializer}
        self._known: dict[str, _Known] = {
            info.name: [_Column(info.name, place) for place in range(self._widths[info.name])]
            for info in inferred.input
            if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and self._widths.get(info.name)
        }
        self._inputs = {name: len(columns) for name, columns in self._known.items()}
        self._scaled: dict[tuple[str, int], _Column] = {}
        self._splits: dict[tuple[str, int], list[npt.NDArray[Any]]] = {}
        self._seen: set[str] = set()  # inputs that are scaled or split

    def values(self) -> Mapping[str, Columns]:
        for node in self._nodes:
            if not any(name in self._known for name in node.input):
                continue
            if node.op_type in _TREES:
                if not self._split(node):
                    return {}
            else:
                found = self._made(node)
                if found is not None:
                    self._known[node.output[0]] = found
        return {
            name: tuple(self._of_column(name, place) for place in range(width))
            for name, width in self._inputs.items()
            if name in self._seen
        }

    def _of_column(self, name: str, place: int) -> npt.NDArray[Any]:
        if (name, place) in self._splits:
            return _beside(np.concatenate(self._splits[name, place]))
        column = self._scaled.get((name, place))
        if column is None:
            return np.zeros(0, np.float32)
        normal = np.random.default_rng(0).standard_normal(_SCALED)
        return (column.offset + normal / column.factor).astype(np.float32)

    def _split(self, node: "onnx.NodeProto") -> bool:  # type: ignore[name-defined]  # noqa: F821
        """Note the splits of trees; returns whether they are of columns that are there."""
        columns = self._known[node.input[0]]
        places, values = _splits(node)
        if np.isnan(values).any() or places.max(initial=0) >= len(columns):
            return False
        self._seen |= {column.input for column in columns if column is not None}
        finite = np.isfinite(values)  # a split at infinity parts numbers from missing ones
        places, values = places[finite], values[finite]
        for place in np.unique(places):
            column = columns[place]
            if column is not None:
                splits = values[places == place] / column.factor + column.offset
                self._splits.setdefault((column.input, column.place), []).append(splits)
        return True

    def _made(self, node: "onnx.NodeProto") -> _Known | None:  # type: ignore[name-defined]  # noqa: F821
        """The columns of what an operation makes; None where they cannot be told."""
        match node.op_type:
            case "Identity" | "Cast" | "Imputer":
                return self._known[node.input[0]]
            case "Concat":
                return self._joined(node)
            case "Gather" | "ArrayFeatureExtractor":
                return self._chosen(node)
            case "Scaler":
                attributes = _attributes(node)
                offset, factor = attributes.get("offset") or [0.0], attributes.get("scale") or [1.0]
                return self._moved(node.input[0], np.array(offset), np.array(factor))
            case "Mul" | "Div" | "Add" | "Sub" if node.input[1] in self._constants:
                return self._moved(node.input[0], *_affine(node.op_type, self._constants[node.input[1]]))
            case _:
                return None

    def _joined(self, node: "onnx.NodeProto") -> _Known | None:  # type: ignore[name-defined]  # noqa: F821
        if _attributes(node).get("axis") not in (1, -1):
            return None
        found: _Known = []
        for name in node.input:
            width = self._widths.get(name, 0)
            if name not in self._known and not width:
                return None
            found += self._known.get(name) or [None] * width
        return found

    def _chosen(self, node: "onnx.NodeProto") -> _Known | None:  # type: ignore[name-defined]  # noqa: F821
        places = self._constants.get(node.input[1])
        axis = 1 if node.op_type == "ArrayFeatureExtractor" else _attributes(node).get("axis", 0)
        columns = self._known.get(node.input[0])
        if columns is None or places is None or axis not in (1, -1) or np.abs(places).max(initial=0) >= len(columns):
            return None
        return [columns[place] for place in places.astype(np.int64).ravel()]

    def _moved(self, name: str, offset: npt.NDArray[Any], factor: npt.NDArray[Any]) -> _Known | None:
        """The columns of (tensor - offset) * factor; None where the sizes do not fit."""
        columns = self._known.get(name)
        if columns is None or not {offset.size, factor.size} <= {1, len(columns)}:
            return None
        factor = np.where((factor == 0) | ~np.isfinite(factor), 1.0, factor)
        found: _Known = []
        shifts, times_of = np.broadcast_to(offset, len(columns)), np.broadcast_to(factor, len(columns))
        for column, shift, times in zip(columns, shifts, times_of, strict=True):
            if column is None:
                found.append(None)
                continue
            made = column._replace(
                offset=column.offset + float(shift) / column.factor, factor=column.factor * float(times)
            )
            self._scaled[column.input, column.place] = made
            self._seen.add(column.input)
            found.append(made)
        return found


def _affine(kind: str, constant: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The offset and the factor of an operation with a constant."""
    number = constant.astype(np.float64).ravel()
    match kind:
        case "Mul":
            return np.zeros(1), number
        case "Div":
            with np.errstate(divide="ignore"):
                return np.zeros(1), 1 / number
        case "Add":
            return -number, np.ones(1)
        case _:
            return number, np.ones(1)


def _attributes(node: "onnx.NodeProto") -> dict[str, Any]:  # type: ignore[name-defined]  # noqa: F821
    import onnx

    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


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

    attributes = _attributes(node)
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
