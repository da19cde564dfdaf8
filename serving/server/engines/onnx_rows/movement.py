"""Rules of operations that read shapes, make them, and move values without computing."""

from collections.abc import Sequence

import numpy as np

from bookserve.serving.server.engines.onnx_rows import sizes, values
from bookserve.serving.server.engines.onnx_rows.arithmetic import Inputs, filled
from bookserve.serving.server.engines.onnx_rows.graph import Node, constant
from bookserve.serving.server.engines.onnx_rows.sizes import Dim, Size
from bookserve.serving.server.engines.onnx_rows.values import INT64, Content, Mixed, Rows, Value


def parameter(node: Node, inputs: Inputs, place: int, name: str) -> list[Dim] | None:
    """A small vector that is an input since some version, and was an attribute before; None where it is left out.

    Raises Mixed where its content does not follow from the graph.
    """
    if place < len(inputs) and (value := inputs[place]) is not None:
        if value.content is None:
            raise Mixed(f"its {name} do not follow from the graph")
        return list(value.content.flat)
    found = node.attribute(name)
    if found is None:
        return None
    return list(found) if isinstance(found, list) else [found]


def numbers(sizes_: Sequence[Dim] | None, name: str) -> list[int] | None:
    """The same as plain numbers. Raises Mixed where one is an expression."""
    if sizes_ is None:
        return None
    if any(isinstance(size, Size) for size in sizes_):
        raise Mixed(f"its {name} do not follow from the graph")
    return [int(size) for size in sizes_]


def data(inputs: Inputs, place: int = 0) -> Value:
    """An input that has to be there. Raises Mixed."""
    if place >= len(inputs) or (value := inputs[place]) is None:
        raise Mixed(f"it has no input {place}")
    return value


def identity(node: Node, inputs: Inputs) -> list[Value]:
    """Identity."""
    return [data(inputs)]


def constant_value(node: Node, inputs: Inputs) -> list[Value]:
    """Constant."""
    if (tensor := node.attribute("value")) is not None:
        return [constant(tensor)]
    for name, data_type in (("value_int", INT64), ("value_ints", INT64), ("value_float", 1), ("value_floats", 1)):
        if (found := node.attribute(name)) is not None:
            shape = (len(found),) if isinstance(found, list) else ()
            return [values.of_content(filled(found if shape else [found], shape), data_type)]
    return [Value(None)]


def shape(node: Node, inputs: Inputs) -> list[Value]:
    """Shape."""
    dims = data(inputs).known_shape
    dims = dims[node.attribute("start", 0) : node.attribute("end", len(dims))]
    return [values.of_content(filled(dims, (len(dims),)), INT64)]


def size(node: Node, inputs: Inputs) -> list[Value]:
    """Size."""
    return [values.of_content(filled([sizes.product(data(inputs).known_shape)], ()), INT64)]


def reshape(node: Node, inputs: Inputs) -> list[Value]:
    """Reshape."""
    value = data(inputs)
    target = parameter(node, inputs, 1, "shape")
    if target is None:
        raise Mixed("it has no shape")
    if value.rows is None and value.shape is None:
        return [Value(None)]
    dims = value.known_shape
    if not node.attribute("allowzero", 0):
        if any(size == 0 and axis >= len(dims) for axis, size in enumerate(target)):
            raise Mixed("it copies a dimension that there is not")
        target = [dims[axis] if size == 0 else size for axis, size in enumerate(target)]
    return [reshaped(value, target)]


def reshaped(value: Value, target: Sequence[Dim]) -> Value:
    """The value in that shape, of which one size may be -1. Raises Mixed where its rows are torn apart."""
    total = sizes.product(value.known_shape)
    if -1 in target:
        missing = sizes.exact_quotient(total, sizes.product(size for size in target if size != -1))
        if missing is None:  # a row has a size here of which no more is known; the rows are looked for below
            missing = sizes.fresh()
        target = [missing if size == -1 else size for size in target]
    if value.content is not None and not any(isinstance(size, Size) for size in target):
        return values.of_content(value.content.reshape([int(size) for size in target]), value.data_type)
    if value.rows is None:
        if any(map(sizes.mentions_rows, target)):
            raise Mixed("it gives a shape with the number of rows to what has none")
        return Value(tuple(target))
    return Value(tuple(target), _rows_in(value, target))


def _rows_in(value: Value, target: Sequence[Dim]) -> Rows:
    """Where the rows are after a reshape: the places before them and their own keep their order."""
    assert value.rows is not None
    before = sizes.product(value.known_shape[: value.rows.axis]) * value.rows.outer
    found = [axis for axis, size in enumerate(target) if sizes.mentions_rows(size)]
    if len(found) == 1:
        axis = found[0]
        outer = sizes.exact_quotient(before, sizes.product(target[:axis]))
        if outer is not None:
            inner = sizes.exact_quotient(target[axis], outer * sizes.ROWS)
            # What comes after follows, as both shapes have the same number of places.
            if inner is not None and not sizes.mentions_rows(inner):
                return Rows(axis, outer, inner)
    shown = ", ".join(map(str, target))
    raise Mixed(f"its shape ({shown}) does not keep the rows together")


def flatten(node: Node, inputs: Inputs) -> list[Value]:
    """Flatten."""
    value = data(inputs)
    axis = node.attribute("axis", 1)
    axis = axis + value.rank if axis < 0 else axis
    dims = value.known_shape
    return [reshaped(value, [sizes.product(dims[:axis]), sizes.product(dims[axis:])])]


def squeeze(node: Node, inputs: Inputs) -> list[Value]:
    """Squeeze."""
    value = data(inputs)
    found = numbers(parameter(node, inputs, 1, "axes"), "axes")
    if value.rows is None and value.shape is None:
        return [Value(None)]
    if found is None:
        if value.rows is not None or any(isinstance(size, Size) for size in value.known_shape):
            raise Mixed("it drops the axis of the rows where there is one row: give its axes")
        found = [axis for axis, size in enumerate(value.known_shape) if size == 1]
    axes = {value.axis(axis) for axis in found}
    if value.rows is not None and value.rows.axis in axes:
        raise Mixed("it drops the axis of the rows")
    kept = [axis for axis in range(value.rank) if axis not in axes]
    return [_with_axes(value, kept)]


def unsqueeze(node: Node, inputs: Inputs) -> list[Value]:
    """Unsqueeze."""
    value = data(inputs)
    added = numbers(parameter(node, inputs, 1, "axes"), "axes")
    if added is None:
        raise Mixed("it has no axes")
    if value.shape is None:
        return [Value(None)]
    rank = value.rank + len(added)
    new = {axis % rank for axis in added}
    old = iter(range(value.rank))
    return [_with_axes(value, [None if axis in new else next(old) for axis in range(rank)])]


def transpose(node: Node, inputs: Inputs) -> list[Value]:
    """Transpose."""
    value = data(inputs)
    if value.shape is None:
        return [Value(None)]
    return [_with_axes(value, node.attribute("perm") or list(reversed(range(value.rank))))]


def _with_axes(value: Value, axes: Sequence[int | None]) -> Value:
    """The value with these of its axes, None for a new one of size 1; those left out have size 1."""
    dims = [1 if axis is None else value.known_shape[axis] for axis in axes]
    rows = None if value.rows is None else value.rows.on(list(axes).index(value.rows.axis))
    if value.content is None:
        return Value(tuple(dims), rows)
    order = [axis for axis in axes if axis is not None]
    left_out = [axis for axis in range(value.rank) if axis not in order]
    content = value.content.transpose(order + left_out).reshape(dims)
    return values.of_content(content, value.data_type)


def expand(node: Node, inputs: Inputs) -> list[Value]:
    """Expand."""
    value = data(inputs)
    target = parameter(node, inputs, 1, "shape")
    assert target is not None
    rank = max(value.rank, len(target))
    dims = [1] * (rank - value.rank) + list(value.known_shape)
    target = [1] * (rank - len(target)) + list(target)
    rows = None if value.rows is None else value.rows.on(value.rows.axis + rank - value.rank)
    result = []
    for axis, (size, wanted) in enumerate(zip(dims, target, strict=True)):
        if rows is not None and axis == rows.axis:
            if wanted not in (1, size):
                raise Mixed("it gives the axis of the rows another size")
            result.append(size)
        elif sizes.mentions_rows(wanted) and size != 1:
            raise Mixed("it repeats along the number of rows what is not known to have one place there")
        else:
            both = [Value((size,)), Value((wanted,))]
            result.append(wanted if size == 1 else size if wanted == 1 else values.broadcast(both).known_shape[0])
    small = None if value.content is None else _small(result)
    content = None if small is None or value.content is None else np.broadcast_to(value.content, small)
    return [_repeated(value, result, rows, content)]


def tile(node: Node, inputs: Inputs) -> list[Value]:
    """Tile."""
    value = data(inputs)
    repeats = parameter(node, inputs, 1, "repeats")
    assert repeats is not None
    if len(repeats) != value.rank:
        raise Mixed("its repeats are not one for each axis")
    if value.rows is not None and repeats[value.rows.axis] != 1:
        raise Mixed("it repeats the axis of the rows")
    dims = [size * times for size, times in zip(value.known_shape, repeats, strict=True)]
    content = None
    if value.content is not None and _small(dims) is not None and not any(isinstance(one, Size) for one in repeats):
        content = np.tile(value.content, [int(one) for one in repeats])
    return [_repeated(value, dims, value.rows, content)]


def _repeated(value: Value, dims: Sequence[Dim], rows: Rows | None, content: Content | None) -> Value:
    """What became of a value that was repeated to these sizes, maybe along a new axis of rows."""
    if rows is None:
        if content is not None:
            return values.of_content(content, value.data_type)
        values.as_data([value])
        return values.of_shape(dims)
    if any(sizes.mentions_rows(size) for axis, size in enumerate(dims) if axis != rows.axis):
        raise Mixed("its result has the number of rows in more than one dimension")
    return Value(tuple(dims), rows)


def _small(dims: Sequence[Dim]) -> list[int] | None:
    """The sizes of a content that is small enough to be kept; None for another."""
    if any(isinstance(size, Size) for size in dims) or sizes.product(dims) > values.MAX_CONTENT:
        return None
    return [int(size) for size in dims]


def concatenate(node: Node, inputs: Inputs) -> list[Value]:
    """Concat."""
    present = [value for value in inputs if value is not None]
    if not present or any(value.shape is None for value in present):
        values.as_data(present)
        return [values.broadcast(present)]
    axis = present[0].axis(node.attribute("axis", 1))
    if all(value.content is not None for value in present):
        joined = np.concatenate([value.content for value in present if value.content is not None], axis)
        if joined.size <= values.MAX_CONTENT:
            return [values.of_content(joined, present[0].data_type)]
    present = values.as_data(present)
    places = {value.rows for value in present}
    if len(places) > 1:
        raise Mixed("some of its inputs have rows, or have them elsewhere than others")
    rows = places.pop()
    if rows is not None and rows.axis == axis:
        raise Mixed(f"it joins along axis {axis}, where the rows are")
    dims = list(present[0].known_shape)
    dims[axis] = sum((value.known_shape[axis] for value in present[1:]), dims[axis])
    return [Value(tuple(dims), rows)]


def quantised_concatenate(node: Node, inputs: Inputs) -> list[Value]:
    """QLinearConcat of com.microsoft: scale and zero point of the result, then three inputs for each part."""
    values.as_data(inputs)
    for place, value in enumerate(inputs):
        if (place < 2 or place % 3 != 2) and value is not None and sizes.product(value.known_shape) != 1:
            raise Mixed("it has a scale or a zero point for each row")
    return concatenate(node, inputs[2::3])


def split(node: Node, inputs: Inputs) -> list[Value]:
    """Split."""
    value = data(inputs)
    axis = value.axis(node.attribute("axis", 0))
    values.not_along_rows(value, axis)
    lengths = parameter(node, inputs, 1, "split")
    count = len(node.outputs)
    if lengths is None:
        whole = value.known_shape[axis]
        if not isinstance(whole, Size):
            each = -(-whole // count)
            lengths = [min(each, whole - each * place) for place in range(count)]
        else:
            part = sizes.exact_quotient(whole, count)
            lengths = [sizes.fresh() for _ in range(count)] if part is None else [part] * count
    if len(lengths) != count:
        raise Mixed("it has another number of results than of sizes")
    results = []
    start = 0
    for length in lengths:
        known = value.content is not None and not isinstance(length, Size)
        if known and value.content is not None:
            part = value.content.take(range(start, start + length), axis)
            results.append(values.of_content(part, value.data_type))
            start += length
        else:
            values.as_data([value])
            dims = list(value.known_shape)
            dims[axis] = length
            results.append(Value(tuple(dims), value.rows))
    return results


def constant_of_shape(node: Node, inputs: Inputs) -> list[Value]:
    """ConstantOfShape."""
    value = data(inputs)
    if value.content is None:
        if value.rows is not None:
            raise Mixed("the shape of its result depends on values of the rows")
        return [Value(None)]
    dims = list(value.content.flat)
    tensor = node.attribute("value")
    if not any(isinstance(size, Size) for size in dims) and sizes.product(dims) <= values.MAX_CONTENT:
        one = None if tensor is None else constant(tensor)
        if one is None or one.content is not None:
            element = 0.0 if one is None or one.content is None else one.content.flat[0]
            content = filled([element] * int(sizes.product(dims)), tuple(int(size) for size in dims))
            return [values.of_content(content, 1 if tensor is None else tensor.data_type)]
    return [values.of_shape(dims)]


def counting(node: Node, inputs: Inputs) -> list[Value]:
    """Range."""
    present = [data(inputs, place) for place in range(3)]
    if any(value.rows is not None for value in present):
        raise Mixed("the length of its result depends on values of the rows")
    if any(value.counts_rows for value in present):
        raise Mixed("it numbers the rows")
    if any(value.content is None for value in present):
        return [Value((sizes.fresh(),))]
    start, limit, step = (value.content.flat[0] for value in present if value.content is not None)
    if any(isinstance(one, Size) for one in (start, limit, step)):
        return [Value((limit,) if start == 0 and step == 1 else (sizes.fresh(),))]
    places = [] if not step else list(np.arange(start, limit, step).tolist()[: values.MAX_CONTENT + 1])
    if len(places) > values.MAX_CONTENT:
        return [Value((len(np.arange(start, limit, step)),))]
    return [values.of_content(filled(places, (len(places),)), present[0].data_type)]
