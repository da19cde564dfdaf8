"""Rules of ai.onnx.ml, as skl2onnx and its like write them: tables with a row for each line."""

from typing import Any

from bookserve.serving.server.engines.onnx_rows import sizes, values
from bookserve.serving.server.engines.onnx_rows.arithmetic import Inputs, Rule
from bookserve.serving.server.engines.onnx_rows.graph import Node
from bookserve.serving.server.engines.onnx_rows.movement import data
from bookserve.serving.server.engines.onnx_rows.sizes import Dim
from bookserve.serving.server.engines.onnx_rows.values import Mixed, Rows, Value


def each_line(*widths: str | int) -> Rule:
    """Models whose input is a table; each result has the lines, and is as wide as a number or an attribute says.

    "" is a vector of the lines alone; "labels" are the names of the classes.
    """

    def rule(node: Node, inputs: Inputs) -> list[Value]:
        value = _table(values.only_first(inputs))
        lines = value.known_shape[0]
        results = []
        for _, width in zip(node.outputs, widths, strict=False):
            dims: tuple[Dim, ...] = (lines,) if width == "" else (lines, _width(node, width))
            results.append(Value(dims, value.rows))
        return results

    return rule


def _width(node: Node, width: str | int) -> Dim:
    if isinstance(width, int):
        return width
    if width != "labels":
        return node.attribute(width, 1)
    names = ("classlabels_int64s", "classlabels_ints", "classlabels_strings")
    labels: list[Any] = next((found for name in names if (found := node.attribute(name))), [])
    return len(labels) if len(labels) > 1 else sizes.fresh()


def same_table(node: Node, inputs: Inputs) -> list[Value]:
    """Scaler, Imputer, Normalizer: a table of the same size."""
    value = _table(values.only_first(inputs))
    return [value.without_content()]


def _table(value: Value) -> Value:
    if value.rows is None:
        raise Mixed("its table has no rows")
    if value.rank != 2 or value.rows.axis != 0:
        raise Mixed("its input is no table with the rows on axis 0")  # a vector is one line there
    return value


def picked_features(node: Node, inputs: Inputs) -> list[Value]:
    """ArrayFeatureExtractor, which picks along the last axis: columns, or for each row places of what all rows share.

    The places are flattened, and what is picked from a vector gets a first axis of size 1.
    """
    value, places = values.as_data(inputs)
    before = value.known_shape[:-1] if value.rank > 1 else (1,)
    count = sizes.product(places.known_shape)
    if places.rows is None:
        if value.rows is None or value.rank < 2:
            raise Mixed("its input is no table")
        values.rows_before(value, value.rank - 1)
        return [Value((*before, count), value.rows)]
    if value.rows is not None:
        raise Mixed("it picks by an index of each row from all rows")
    if places.rows.axis != 0:
        raise Mixed("its places do not have the rows on axis 0")
    inner = places.rows.inner * sizes.product(places.known_shape[1:])
    return [Value((*before, count), Rows(len(before), places.rows.outer, inner))]


def one_hot(node: Node, inputs: Inputs) -> list[Value]:
    """OneHotEncoder, which adds an axis at the end."""
    value = values.only_first(inputs)
    names = node.attribute("cats_int64s") or node.attribute("cats_strings") or []
    return [Value((*value.known_shape, len(names)), value.rows)]


def joined_features(node: Node, inputs: Inputs) -> list[Value]:
    """FeatureVectorizer, which puts tables side by side."""
    present = [_table(value) for value in values.as_data(inputs)]
    if len({value.rows for value in present}) > 1:
        raise Mixed("its tables have other rows")
    width = sum((value.known_shape[1] for value in present[1:]), present[0].known_shape[1])
    return [Value((present[0].known_shape[0], width), present[0].rows)]


def word_counts(node: Node, inputs: Inputs) -> list[Value]:
    """TfIdfVectorizer of a table of words."""
    value = _table(values.only_first(inputs))
    return [Value((value.known_shape[0], sizes.fresh()), value.rows)]


def distances(node: Node, inputs: Inputs) -> list[Value]:
    """CDist of com.microsoft: from each line to the same points for all."""
    value, points = values.as_data(inputs)
    if points.rows is not None:
        raise Mixed("it pairs every row with every other")
    _table(value)
    return [Value((value.known_shape[0], points.known_shape[0]), value.rows)]


def from_map(node: Node, inputs: Inputs) -> list[Value]:
    """ZipMap, whose maps are served as the table that they were made of."""
    return [_table(data(inputs)).without_content()]
