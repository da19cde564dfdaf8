"""Rules of the layers of networks: convolution, pooling, recurrence, resizing, embedding."""

from collections.abc import Sequence

from bookserve.serving.server.engines.onnx_rows import sizes, values
from bookserve.serving.server.engines.onnx_rows.arithmetic import Inputs, Rule
from bookserve.serving.server.engines.onnx_rows.graph import Node
from bookserve.serving.server.engines.onnx_rows.movement import data
from bookserve.serving.server.engines.onnx_rows.sizes import Dim, Size
from bookserve.serving.server.engines.onnx_rows.values import Mixed, Rows, Value


def convolution(weights: int = 1) -> Rule:
    """Conv and its kind: pictures on axis 0; the weights are that input, and the same for all rows."""

    def rule(node: Node, inputs: Inputs) -> list[Value]:
        value = values.only_first(inputs)
        values.rows_before(value, 1)
        if value.shape is None:
            return [Value(None)]
        kernel = data(inputs, weights).known_shape
        if value.rank < 3 or len(kernel) != value.rank:
            raise Mixed("it has no picture for each row")
        return [Value((value.known_shape[0], kernel[0], *_swept(node, value.known_shape[2:], kernel[2:])), value.rows)]

    return rule


def transposed_convolution(node: Node, inputs: Inputs) -> list[Value]:
    """ConvTranspose."""
    value = values.only_first(inputs)
    values.rows_before(value, 1)
    if value.shape is None:
        return [Value(None)]
    kernel = data(inputs, 1).known_shape
    if value.rank < 3 or len(kernel) != value.rank:
        raise Mixed("it has no picture for each row")
    axes = len(kernel) - 2
    dims: list[Dim] = [sizes.fresh() for _ in range(axes)]
    if node.attribute("auto_pad", "NOTSET") == "NOTSET" and node.attribute("output_shape") is None:
        strides, spread = (node.attribute(name, [1] * axes) for name in ("strides", "dilations"))
        pads, more = node.attribute("pads", [0] * 2 * axes), node.attribute("output_padding", [0] * axes)
        dims = [
            strides[axis] * (size - 1)
            + more[axis]
            + (kernel[axis + 2] - 1) * spread[axis]
            + 1
            - pads[axis]
            - pads[axis + axes]
            for axis, size in enumerate(value.known_shape[2:])
        ]
    return [Value((value.known_shape[0], kernel[1] * node.attribute("group", 1), *dims), value.rows)]


def pooling(node: Node, inputs: Inputs) -> list[Value]:
    """MaxPool, AveragePool, LpPool: pictures on axis 0."""
    value = values.only_first(inputs)
    values.rows_before(value, 1)
    if value.shape is None:
        return [Value(None) for _ in node.outputs]
    if value.rank < 3:
        raise Mixed("it has no picture for each row")
    if len(list(filter(None, node.outputs))) > 1:
        raise Mixed("it answers places counted over all rows")
    if node.attribute("channels_last", 0):
        return [Value((value.known_shape[0], *[sizes.fresh()] * (value.rank - 2), value.known_shape[-1]), value.rows)]
    swept = _swept(node, value.known_shape[2:], node.attribute("kernel_shape", []))
    return [Value((*value.known_shape[:2], *swept), value.rows)]


def global_pooling(node: Node, inputs: Inputs) -> list[Value]:
    """GlobalAveragePool, GlobalMaxPool: pictures on axis 0."""
    value = values.only_first(inputs)
    values.rows_before(value, 1)
    if value.shape is None:
        return [Value(None)]
    if value.rank < 3:
        raise Mixed("it has no picture for each row")
    if node.attribute("channels_last", 0):
        return [Value((value.known_shape[0], *[1] * (value.rank - 2), value.known_shape[-1]), value.rows)]
    return [Value((*value.known_shape[:2], *[1] * (value.rank - 2)), value.rows)]


def _swept(node: Node, dims: Sequence[Dim], kernel: Sequence[Dim]) -> list[Dim]:
    """How often a kernel fits into each dimension."""
    axes = len(dims)
    kernel = node.attribute("kernel_shape") or kernel
    strides, spread = node.attribute("strides") or [1] * axes, node.attribute("dilations") or [1] * axes
    pads, same = node.attribute("pads") or [0] * 2 * axes, node.attribute("auto_pad", "NOTSET")
    if len(kernel) != axes:
        return [sizes.fresh() for _ in dims]
    result: list[Dim] = []
    for axis, size in enumerate(dims):
        if isinstance(size, Size) or isinstance(kernel[axis], Size):
            keeps = same.startswith("SAME") or (
                same == "NOTSET" and pads[axis] + pads[axis + axes] == (kernel[axis] - 1) * spread[axis]
            )
            result.append(size if strides[axis] == 1 and keeps else sizes.fresh())
        elif same.startswith("SAME"):
            result.append(-(-size // strides[axis]))
        else:
            padding = 0 if same == "VALID" else pads[axis] + pads[axis + axes]
            room = size + padding - (kernel[axis] - 1) * spread[axis] - 1
            if node.attribute("ceil_mode", 0):
                result.append(sizes.fresh() if room % strides[axis] else room // strides[axis] + 1)
            else:
                result.append(room // strides[axis] + 1)
    return result


def recurrence(node: Node, inputs: Inputs) -> list[Value]:
    """LSTM, GRU and RNN: rows are on the batch axis, which `layout` names, also of lengths and initial states."""
    values.as_data(inputs)
    value = data(inputs)
    if all(one is None or one.rows is None for one in inputs):
        return [Value(None) for _ in node.outputs]
    if value.rows is None or value.rank != 3:
        raise Mixed("its sequences have no rows")
    batch_first = bool(node.attribute("layout", 0))
    if value.rows.axis != (0 if batch_first else 1):
        raise Mixed(f"it runs along axis {value.rows.axis}, where the rows are")
    state = value.rows.on(0 if batch_first else 1)
    expected = {4: value.rows.on(0), 5: state, 6: state}
    for place, one in enumerate(inputs):
        if place and one is not None and one.rows != expected.get(place):
            raise Mixed(f"its input {place} does not have its rows where those of the sequences ask for them")
    directions = 2 if node.attribute("direction", "forward") == "bidirectional" else 1
    hidden = node.attribute("hidden_size")
    hidden = sizes.fresh() if hidden is None else hidden
    steps = value.known_shape[1 if batch_first else 0]
    batch = value.rows.size
    if batch_first:
        whole = Value((batch, steps, directions, hidden), value.rows.on(0))
        last = Value((batch, directions, hidden), value.rows.on(0))
    else:
        whole = Value((steps, directions, batch, hidden), value.rows.on(2))
        last = Value((directions, batch, hidden), value.rows.on(1))
    return [whole, last, last][: len(node.outputs)]


def resized(node: Node, inputs: Inputs) -> list[Value]:
    """Resize and Upsample: the rows' axis keeps its size."""
    value = values.only_first(inputs[:1])
    if value.rows is None:
        values.as_data(inputs)
        return [Value(None if value.shape is None else tuple(sizes.fresh() for _ in value.known_shape))]
    if node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Mixed("its scale follows from all sizes together")
    if node.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise Mixed("it cuts before it resizes")
    named = node.attribute("axes")
    axes = [value.axis(axis) for axis in named] if named is not None else list(range(value.rank))
    dims = list(value.known_shape)
    scales, wanted = _resize_parameters(node, inputs)
    if value.rows.axis in axes:
        place = axes.index(value.rows.axis)
        kept = wanted[place] == dims[value.rows.axis] if wanted else bool(scales) and scales[place] == 1
        if not kept:
            raise Mixed("that it keeps the axis of the rows does not follow from the graph")
    for place, axis in enumerate(axes):
        if axis != value.rows.axis:
            dims[axis] = wanted[place] if wanted else _scaled(dims[axis], scales[place] if scales else None)
    return [Value(tuple(dims), value.rows)]


def _resize_parameters(node: Node, inputs: Inputs) -> tuple[list[Dim], list[Dim]]:
    """Scales and sizes, each empty where it is not given, or not known."""
    place = 2 if node.op == "Resize" and node.opset >= 11 else 1
    given = [inputs[index] if index < len(inputs) else None for index in (place, place + 1)]
    if any(one is not None and one.rows is not None for one in given):
        raise Mixed("its size depends on values of the rows")
    scales, wanted = ([] if one is None or one.content is None else list(one.content.flat) for one in given)
    return scales or node.attribute("scales") or [], wanted


def _scaled(size: Dim, scale: Dim | None) -> Dim:
    if scale is None or isinstance(scale, Size):
        return sizes.fresh()
    if float(scale).is_integer():
        return size * int(scale)
    return sizes.fresh()


def depth_and_space(factor: int) -> Rule:
    """DepthToSpace and SpaceToDepth, which trade channels for places: pictures on axis 0."""

    def rule(node: Node, inputs: Inputs) -> list[Value]:
        value = values.only_first(inputs)
        values.rows_before(value, 1)
        if value.shape is None:
            return [Value(None)]
        block = node.attribute("blocksize", 1)
        batch, channels, *places = value.known_shape
        if factor > 0:
            fewer = sizes.exact_quotient(channels, block * block)
            dims = [batch, sizes.fresh() if fewer is None else fewer, *(size * block for size in places)]
        else:
            smaller = [sizes.exact_quotient(size, block) for size in places]
            dims = [batch, channels * block * block, *(sizes.fresh() if one is None else one for one in smaller)]
        return [Value(tuple(dims), value.rows)]

    return rule


def sampled(node: Node, inputs: Inputs) -> list[Value]:
    """GridSample: pictures and grids both have their rows on axis 0."""
    value, grid = values.as_data(inputs)
    if value.rows is None and grid.rows is None:
        return [Value(None)]
    if value.rows is None or value.rows != grid.rows:
        raise Mixed("its pictures and its grids do not both have rows on axis 0")
    values.rows_before(value, 1)
    return [Value((value.known_shape[0], value.known_shape[1], *grid.known_shape[1:-1]), value.rows)]


def embedded_words(node: Node, inputs: Inputs) -> list[Value]:
    """EmbedLayerNormalization of com.microsoft: words, segments and masks have rows, the tables have none."""
    values.as_data(inputs)
    words = data(inputs)
    if words.rows is None:
        raise Mixed("its words have no rows")
    values.rows_before(words, 1)
    for place, one in enumerate(inputs):
        per_row = place in (0, 1, 7, 8)
        if one is not None and one.rows not in (
            (words.rows, None) if place == 8 else (words.rows,) if per_row else (None,)
        ):
            raise Mixed(f"its input {place} does not have its rows where the words have them")
    width = data(inputs, 2).known_shape[-1]
    whole = Value((*words.known_shape, width), words.rows)
    index = Value((words.known_shape[0],), Rows(0, words.rows.outer, words.rows.inner))
    return [whole, index, whole][: len(node.outputs)]
