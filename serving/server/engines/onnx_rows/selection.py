"""Rules of operations that pick, place, sort or pad."""

import numpy as np

from bookserve.serving.server.engines.onnx_rows import sizes, values
from bookserve.serving.server.engines.onnx_rows.arithmetic import Inputs, Rule, filled
from bookserve.serving.server.engines.onnx_rows.graph import Node
from bookserve.serving.server.engines.onnx_rows.movement import data, numbers, parameter
from bookserve.serving.server.engines.onnx_rows.sizes import Dim, Size
from bookserve.serving.server.engines.onnx_rows.values import Mixed, Rows, Value

_FAR = 10**9  # an end that is beyond every axis: tf2onnx writes this, PyTorch 2**63 - 1


def take_slice(node: Node, inputs: Inputs) -> list[Value]:
    """Slice."""
    value = data(inputs)
    if value.shape is None:
        return [Value(None)]
    present = [one for one in inputs[1:] if one is not None]
    if any(one.rows is not None for one in present):
        raise Mixed("where it cuts depends on values of the rows")
    axes = numbers(parameter(node, inputs, 3, "axes"), "axes")
    starts, ends = (_bounds(node, inputs, place, name) for place, name in ((1, "starts"), (2, "ends")))
    steps = _bounds(node, inputs, 4, "steps")
    count = next((len(one) for one in (starts, ends, axes) if one is not None), None)
    if axes is None:
        if count is None:
            if value.rows is not None:
                raise Mixed("its axes do not follow from the graph")
            return [Value(tuple(sizes.fresh() for _ in value.known_shape))]
        axes = list(range(count))
    dims = list(value.known_shape)
    cuts: list[slice] = [slice(None)] * value.rank
    plain = value.content is not None
    for place, number in enumerate(axes):
        axis = value.axis(number)
        start = starts[place] if starts is not None else None
        end = ends[place] if ends is not None else None
        step = steps[place] if steps is not None else (None if len(inputs) > 4 and inputs[4] is not None else 1)
        if value.rows is not None and value.rows.axis == axis:
            if not (start == 0 and step == 1 and (end == dims[axis] or _is_far(end))):
                raise Mixed(f"it cuts axis {axis}, where the rows are")
            continue
        if (
            isinstance(start, int)
            and isinstance(end, int)
            and isinstance(step, int)
            and step
            and isinstance(dims[axis], int)
        ):
            cuts[axis] = _python_slice(start, end, step)
            dims[axis] = len(range(dims[axis])[cuts[axis]])
        else:
            plain = False
            dims[axis] = _length(dims[axis], start, end, step)
    if plain and value.content is not None:
        return [values.of_content(value.content[tuple(cuts)], value.data_type)]
    values.as_data([value])
    if any(sizes.mentions_rows(size) for axis, size in enumerate(dims) if not value.rows or axis != value.rows.axis):
        raise Mixed("where it cuts depends on the number of rows")
    return [Value(tuple(dims), value.rows)]


def _bounds(node: Node, inputs: Inputs, place: int, name: str) -> list[Dim] | None:
    """The content of a parameter; None where it is not known, or left out."""
    if place < len(inputs) and (value := inputs[place]) is not None:
        return None if value.content is None else list(value.content.flat)
    found = node.attribute(name)
    return list(found) if isinstance(found, list) else None


def _is_far(end: Dim) -> bool:
    return isinstance(end, int) and end >= _FAR


def _python_slice(start: int, end: int, step: int) -> slice:
    """ONNX's bounds as Python's: an end below the first place is None when it goes backwards."""
    return slice(start, None if step < 0 and end <= -_FAR else end, step)


def _length(whole: Dim, start: Dim, end: Dim, step: Dim) -> Dim:
    if step == 1 and start == 0:
        if _is_far(end) or end == whole:
            return whole
        if isinstance(end, int) and end < 0:
            return whole + end if not isinstance(whole, Size) else sizes.fresh()
        if isinstance(whole, int) and whole > 0 and sizes.is_plain(end):
            return sizes.least(whole, end)
    if any(map(sizes.mentions_rows, (start, end, step))):
        return sizes.ROWS
    return sizes.fresh()


def gather(node: Node, inputs: Inputs) -> list[Value]:
    """Gather."""
    value, places = data(inputs), data(inputs, 1)
    axis = value.axis(node.attribute("axis", 0)) if value.shape is not None else node.attribute("axis", 0)
    known = places.content is not None and not any(isinstance(one, Size) for one in places.content.flat)
    if value.content is not None and known and places.content is not None:
        picked = np.take(value.content, places.content.astype(np.int64), axis)
        return [
            values.of_content(
                filled(list(np.asarray(picked, np.object_).flat), _taken(value, places, axis)), value.data_type
            )
        ]
    values.as_data([value, places])
    if value.shape is None or places.shape is None:
        return [values.broadcast([value, places])] if value.rows or places.rows else [Value(None)]
    dims = _taken(value, places, axis)
    if value.rows is None and places.rows is None:
        return [Value(dims)]
    if value.rows is not None and places.rows is not None:
        raise Mixed("it picks by an index of each row from all rows")
    if value.rows is not None:
        values.not_along_rows(value, axis)
        return [Value(dims, value.rows.on(value.rows.axis + (places.rank - 1 if value.rows.axis > axis else 0)))]
    assert places.rows is not None
    return [Value(dims, places.rows.on(axis + places.rows.axis))]


def _taken(value: Value, places: Value, axis: int) -> tuple[Dim, ...]:
    return (*value.known_shape[:axis], *places.known_shape, *value.known_shape[axis + 1 :])


def gather_elements(node: Node, inputs: Inputs) -> list[Value]:
    """GatherElements, which picks along one axis and keeps the others apart."""
    value, places = values.as_data(inputs)
    if value.rows is None and places.rows is None:
        return [Value(places.shape)]
    if value.rows != places.rows:
        raise Mixed("its data and its indices do not both have rows, on the same axis")
    values.not_along_rows(value, value.axis(node.attribute("axis", 0)))
    return [Value(places.shape, places.rows)]


def scatter_elements(node: Node, inputs: Inputs) -> list[Value]:
    """ScatterElements, the same for writing."""
    value, places, updates = values.as_data(inputs)
    if value.rows is None and places.rows is None and updates.rows is None:
        return [Value(value.shape)]
    if value.rows is None or value.rows != places.rows or value.rows != updates.rows:
        raise Mixed("its data, indices and updates do not all have rows, on the same axis")
    values.not_along_rows(value, value.axis(node.attribute("axis", 0)))
    return [Value(value.shape, value.rows)]


def gather_nd(node: Node, inputs: Inputs) -> list[Value]:
    """GatherND."""
    value, places = values.as_data(inputs)
    if value.rows is None and places.rows is None and (value.shape is None or places.shape is None):
        return [Value(None)]
    together = node.attribute("batch_dims", 0)
    depth = places.known_shape[-1] if places.rank else 0
    if isinstance(depth, Size):
        raise Mixed("the length of its indices does not follow from the graph")
    dims = (*places.known_shape[:-1], *value.known_shape[together + depth :])
    if value.rows is None:
        rows = places.rows
        if rows is not None and (rows.axis == places.rank - 1 or rows.axis < together):
            raise Mixed("its indices have their rows where it reads an index, or a batch that its data do not have")
        return [Value(dims, rows)]
    if places.rows is not None:
        if value.rows != places.rows or value.rows.axis >= together:
            raise Mixed("it picks by an index of each row from all rows")
        return [Value(dims, value.rows)]
    if value.rows.axis < together + depth:
        raise Mixed(f"it picks along axis {value.rows.axis}, where the rows are")
    return [Value(dims, value.rows.on(value.rows.axis - together - depth + places.rank - 1))]


def scatter_nd(node: Node, inputs: Inputs) -> list[Value]:
    """ScatterND, where it writes whole rows' parts at places that are the same for all."""
    value, places, updates = values.as_data(inputs)
    if all(one.rows is None for one in (value, places, updates)):
        return [Value(value.shape)]
    depth = places.known_shape[-1] if places.rank else 0
    if places.rows is not None or value.rows is None or isinstance(depth, Size):
        raise Mixed("where it writes depends on the rows, or it writes rows into what has none")
    if value.rows.axis < depth:
        raise Mixed(f"it picks along axis {value.rows.axis}, where the rows are")
    wanted = value.rows.on(value.rows.axis - depth + places.rank - 1)
    if updates.rows != wanted:
        raise Mixed("its data and its updates do not both have rows, on the same axis")
    return [Value(value.shape, value.rows)]


def one_hot(node: Node, inputs: Inputs) -> list[Value]:
    """OneHot."""
    places, depth, pair = values.as_data(inputs)
    if depth.rows is not None or pair.rows is not None:
        raise Mixed("its depth or its values depend on the rows")
    if places.shape is None:
        return [Value(None)]
    axis = node.attribute("axis", -1)
    axis = axis + places.rank + 1 if axis < 0 else axis
    length = sizes.fresh() if depth.content is None else depth.content.flat[0]
    dims = (*places.known_shape[:axis], length, *places.known_shape[axis:])
    rows = places.rows
    return [Value(dims, None if rows is None else rows.on(rows.axis + (1 if rows.axis >= axis else 0)))]


def top_k(node: Node, inputs: Inputs) -> list[Value]:
    """TopK."""
    value = values.only_first(inputs)
    if value.shape is None:
        return [Value(None), Value(None)]
    axis = value.axis(node.attribute("axis", -1))
    values.not_along_rows(value, axis)
    found = _bounds(node, inputs, 1, "k") or ([node.attribute("k")] if node.attribute("k") else None)
    dims = list(value.known_shape)
    dims[axis] = found[0] if found else sizes.fresh()
    return [Value(tuple(dims), value.rows)] * 2


def padded(node: Node, inputs: Inputs) -> list[Value]:
    """Pad."""
    value = values.only_first(inputs)
    if value.shape is None:
        return [Value(None)]
    found = _bounds(node, inputs, 1, "pads" if node.opset >= 2 else "paddings")
    named = numbers(parameter(node, inputs, 3, "axes"), "axes")
    axes = [value.axis(axis) for axis in named] if named is not None else list(range(value.rank))
    dims = list(value.known_shape)
    if found is None:
        if value.rows is not None and value.rows.axis in axes:
            raise Mixed("its pads do not follow from the graph")
        dims = [sizes.fresh() if axis in axes else size for axis, size in enumerate(dims)]
        return [Value(tuple(dims), value.rows)]
    for place, axis in enumerate(axes):
        before, after = found[place], found[place + len(axes)]
        if value.rows is not None and value.rows.axis == axis:
            if before != 0 or after != 0:
                raise Mixed(f"it pads axis {axis}, where the rows are")
            continue
        dims[axis] = dims[axis] + before + after
    return [Value(tuple(dims), value.rows)]


def along(name: str, default: int) -> Rule:
    """Operations that work along one axis, which an attribute or the second input names, and keep its size."""

    def rule(node: Node, inputs: Inputs) -> list[Value]:
        value = values.only_first(inputs)
        if value.rows is None:
            return [Value(value.shape) for _ in node.outputs]
        axis = node.attribute(name, default)
        if len(inputs) > 1 and node.op == "CumSum":
            (axis,) = numbers(parameter(node, inputs, 1, name), name) or [default]
        values.not_along_rows(value, value.axis(axis))
        return [value.without_content() for _ in node.outputs]

    return rule


def triangle(node: Node, inputs: Inputs) -> list[Value]:
    """Trilu, in the last two axes."""
    value = values.only_first(inputs)
    if value.rows is not None:
        values.rows_before(value, value.rank - 2)
    return [value.without_content()]


def reversed_sequences(node: Node, inputs: Inputs) -> list[Value]:
    """ReverseSequence: the batch axis has the rows, and so do the lengths."""
    value, lengths = values.as_data(inputs)
    if value.rows is None and lengths.rows is None:
        return [Value(value.shape)]
    if value.rows is None:
        raise Mixed("its lengths have rows and its data have none")
    batch, time = value.axis(node.attribute("batch_axis", 1)), value.axis(node.attribute("time_axis", 0))
    values.not_along_rows(value, time)
    if value.rows.axis == batch and lengths.rows != Rows(0, value.rows.outer, value.rows.inner):
        raise Mixed("its lengths are not one for each row")
    if value.rows.axis != batch and lengths.rows is not None:
        raise Mixed("its lengths are not those of the axis of the rows")
    return [value.without_content()]
