"""Rules of operations along axes: reductions, softmax, normalisation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from bookserve.serving.server.engines.onnx_rows import sizes, values
from bookserve.serving.server.engines.onnx_rows.arithmetic import Inputs, Rule, filled
from bookserve.serving.server.engines.onnx_rows.graph import Node
from bookserve.serving.server.engines.onnx_rows.movement import data, numbers, parameter
from bookserve.serving.server.engines.onnx_rows.sizes import Dim
from bookserve.serving.server.engines.onnx_rows.values import Mixed, Value


def reduced(compute: Callable[[Dim, Dim], Any] | None = None) -> Rule:
    """ReduceSum and its like; `compute` joins two numbers of a content that shapes are made of."""

    def rule(node: Node, inputs: Inputs) -> list[Value]:
        value = data(inputs)
        axes = numbers(parameter(node, inputs, 1, "axes"), "axes")
        if not axes and node.attribute("noop_with_empty_axes", 0):
            return [value]
        if compute is not None and value.content is not None and value.content.ndim == 1 and value.content.size:
            total = functools.reduce(compute, value.content.flat)
            kept = (1,) if node.attribute("keepdims", 1) else ()
            return [values.of_content(filled([total], kept), value.data_type)]
        values.as_data([value])
        if value.shape is None:
            return [Value(None)]
        return [_without(value, axes or list(range(value.rank)), keep=bool(node.attribute("keepdims", 1)))]

    return rule


def best_of_axis(node: Node, inputs: Inputs) -> list[Value]:
    """ArgMax and ArgMin."""
    value = values.only_first(inputs)
    if value.shape is None:
        return [Value(None)]
    return [_without(value, [node.attribute("axis", 0)], keep=bool(node.attribute("keepdims", 1)))]


def _without(value: Value, axes: Sequence[int], *, keep: bool) -> Value:
    gone = {value.axis(axis) for axis in axes}
    if value.rows is not None and value.rows.axis in gone:
        raise Mixed(f"it reduces axis {value.rows.axis}, where the rows are")
    dims = value.known_shape
    if keep:
        return Value(tuple(1 if axis in gone else size for axis, size in enumerate(dims)), value.rows)
    left = [axis for axis in range(value.rank) if axis not in gone]
    rows = None if value.rows is None else value.rows.on(left.index(value.rows.axis))
    return Value(tuple(dims[axis] for axis in left), rows)


def softmax(node: Node, inputs: Inputs) -> list[Value]:
    """Softmax, LogSoftmax and Hardmax: before version 13 over all axes from the named one on."""
    value = values.only_first(inputs)
    if value.rows is not None:
        if node.opset < 13:
            values.rows_before(value, value.axis(node.attribute("axis", 1)))
        else:
            values.not_along_rows(value, value.axis(node.attribute("axis", -1)))
    return [value.without_content()]


def batch_normalised(node: Node, inputs: Inputs) -> list[Value]:
    """BatchNormalization with the statistics of the training."""
    value = values.only_first(inputs)
    if node.attribute("training_mode", 0) or len(list(filter(None, node.outputs))) > 1:
        raise Mixed("it computes the mean of its rows (training mode)")
    if node.opset < 7 and not node.attribute("is_test", 0):
        raise Mixed("it computes the mean of its rows (is_test is 0)")
    values.not_along_rows(value, 1)
    if node.opset < 9 and not node.attribute("spatial", 1):
        raise Mixed("it is not spatial")
    return [value.without_content()]


def fourier(node: Node, inputs: Inputs) -> list[Value]:
    """DFT along one axis; the last one has real and imaginary parts."""
    value = values.only_first(inputs)
    if value.shape is None:
        return [Value(None)]
    named = numbers(parameter(node, inputs, 2, "axis"), "axis")
    axis = value.axis(named[0] if named else -2 if node.opset >= 20 else 1)
    values.not_along_rows(value, axis)
    values.not_along_rows(value, value.rank - 1)
    dims = list(value.known_shape)
    dims[axis], dims[-1] = sizes.fresh(), sizes.fresh()
    return [Value(tuple(dims), value.rows)]


def short_fourier(node: Node, inputs: Inputs) -> list[Value]:
    """STFT of signals (rows, places) or (rows, places, parts): (rows, frames, frequencies, 2)."""
    value = values.only_first(inputs)
    values.rows_before(value, 1)
    return [Value((value.known_shape[0], sizes.fresh(), sizes.fresh(), 2), value.rows)]


def each_instance(node: Node, inputs: Inputs) -> list[Value]:
    """Operations on the axes after the first two, or on channels: the rows are on axis 0."""
    value = values.only_first(inputs)
    values.rows_before(value, 1)
    return [value.without_content() for _ in node.outputs]


def layer_normalised(node: Node, inputs: Inputs) -> list[Value]:
    """LayerNormalization over all axes from the named one on; its statistics are further outputs."""
    value = values.only_first(inputs)
    if value.shape is None:
        return [Value(None) for _ in node.outputs]
    axis = value.axis(node.attribute("axis", -1))
    values.rows_before(value, axis)
    whole = values.broadcast([value, *(one for one in inputs[1:] if one is not None)]) if value.rows else value
    statistics = Value((*value.known_shape[:axis], *[1] * (value.rank - axis)), value.rows)
    return [whole.without_content(), *[statistics] * (len(node.outputs) - 1)]


def skip_layer_normalised(node: Node, inputs: Inputs) -> list[Value]:
    """SkipLayerNormalization of com.microsoft: the first two inputs have rows, the last axis is normalised."""
    present = values.as_data(inputs)
    first, second = present[0], present[1]
    if any(value.rows is not None for value in present[2:]):
        raise Mixed("an input that has to be the same for all rows depends on them")
    together = values.broadcast([first, second])
    if together.rows is not None:
        values.rows_before(together, together.rank - 1)
    return [together for _ in node.outputs]


def mean_variance_normalised(node: Node, inputs: Inputs) -> list[Value]:
    """MeanVarianceNormalization."""
    value = values.only_first(inputs)
    if value.rows is not None:
        for axis in node.attribute("axes", [0, 2, 3]):
            values.not_along_rows(value, value.axis(axis))
    return [value.without_content()]


def summed(one: Dim, other: Dim) -> Dim:
    """ReduceSum of a content."""
    return one + other


def multiplied(one: Dim, other: Dim) -> Dim:
    """ReduceProd of a content."""
    return one * other
