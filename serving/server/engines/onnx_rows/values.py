"""What the proof knows of one value of a graph: its shape, where its rows are, and small contents that make shapes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from bookserve.serving.server.engines.onnx_rows import sizes
from bookserve.serving.server.engines.onnx_rows.sizes import ROWS, Dim, Size

Content = np.ndarray[Any, np.dtype[Any]]  # of int, float, bool and Size
MAX_CONTENT = 4096  # values of a constant that are looked at

FLOATS = frozenset((1, 10, 11, 16))  # TensorProto.DataType: float, float16, double, bfloat16
FLOAT, INT32, INT64, BOOL = 1, 6, 7, 9


class Mixed(Exception):
    """An operation that mixes rows, or of which that is not known: why, and in which node once that is known."""

    def __init__(self, why: str, node: str = "") -> None:
        super().__init__(f"{node}: {why}" if node else why)
        self.node = node


@dataclass(frozen=True)
class Rows:
    """Where the rows of a value are: its axis has `outer` times the number of rows times `inner` places, in that order.

    `outer` and `inner` do not depend on the number of rows.
    """

    axis: int
    outer: Dim = 1
    inner: Dim = 1

    @property
    def size(self) -> Dim:
        """Of the axis."""
        return self.outer * ROWS * self.inner

    def on(self, axis: int) -> "Rows":
        """The same rows on another axis."""
        return Rows(axis, self.outer, self.inner)


@dataclass(frozen=True, eq=False)
class Value:
    """One value. Without `rows` it is the same whatever the rows of the request are.

    A content that holds the number of rows is no data: it may make shapes, and nothing else.
    """

    shape: tuple[Dim, ...] | None  # None: not known, never with rows
    rows: Rows | None = None
    content: Content | None = field(default=None, repr=False)
    data_type: int = 0  # TensorProto.DataType, where there is a content

    @cached_property
    def counts_rows(self) -> bool:
        """Whether the number of rows is in its content."""
        return self.content is not None and any(map(sizes.mentions_rows, self.content.flat))

    @property
    def known_shape(self) -> tuple[Dim, ...]:
        """Its shape. Raises Mixed where that is not known."""
        if self.shape is None:
            raise Mixed("the shape of one of its inputs does not follow from the graph")
        return self.shape

    @property
    def rank(self) -> int:
        """How many dimensions it has. Raises Mixed where that is not known."""
        return len(self.known_shape)

    def axis(self, number: int) -> int:
        """An axis that may be counted from the end. Raises Mixed for one that there is not."""
        if not -self.rank <= number < self.rank:
            raise Mixed(f"it has no axis {number}")
        return number % self.rank

    def without_content(self) -> "Value":
        """The same shape and rows."""
        return Value(self.shape, self.rows)


def of_content(content: Content, data_type: int) -> Value:
    """A value that is known."""
    return Value(content.shape, None, content, data_type)


def of_shape(dims: Sequence[Dim]) -> Value:
    """A value whose rows, if any, are all made alike, such as zeros: where the number of rows is in a dimension.

    Raises Mixed where that is more than one, or no multiple of the number of rows.
    """
    found = [axis for axis, size in enumerate(dims) if sizes.mentions_rows(size)]
    if not found:
        return Value(tuple(dims))
    if len(found) > 1:
        raise Mixed("its result has the number of rows in more than one dimension")
    inner = sizes.exact_quotient(dims[found[0]], ROWS)
    if inner is None or sizes.mentions_rows(inner):
        raise Mixed("its result has a dimension that is no multiple of the number of rows")
    return Value(tuple(dims), Rows(found[0], 1, inner))


def as_data(values: Sequence[Value | None]) -> list[Value]:
    """Those that are there, none of which may hold the number of rows. Raises Mixed for one that does."""
    present = [value for value in values if value is not None]
    if any(value.counts_rows for value in present):
        raise Mixed("it computes with the number of rows")
    return present


def broadcast(values: Sequence[Value]) -> Value:
    """The shape and rows of values that are combined place by place, as numpy does it. Raises Mixed."""
    with_rows = [value for value in values if value.rows is not None]
    if not with_rows:
        if any(value.shape is None for value in values):
            return Value(None)
        rows, rank = None, max(value.rank for value in values)
    else:
        rank = max(value.rank for value in values)
        places = {value.rows.on(value.rows.axis + rank - value.rank) for value in with_rows if value.rows}
        if len(places) > 1:
            raise Mixed("its inputs have their rows on different axes")
        rows = places.pop()
        for value in values:
            place = rows.axis - (rank - value.rank)
            if value.rows is None and place >= 0 and value.known_shape[place] != 1:
                raise Mixed("an input that is the same for all rows has places of its own on the axis of the rows")
    shape = [_broadcast_dims([value.known_shape for value in values], rank, axis) for axis in range(rank)]
    if rows is not None:
        shape[rows.axis] = rows.size
    return Value(tuple(shape), rows)


def _broadcast_dims(shapes: Sequence[tuple[Dim, ...]], rank: int, axis: int) -> Dim:
    result: Dim = 1
    for shape in shapes:
        place = axis - (rank - len(shape))
        size = shape[place] if place >= 0 else 1
        if size == result or size == 1 or sizes.is_least_with(size, result):
            continue  # the first places of a table, such as positions: as many as `result`, or one, or it fails
        if result == 1 or sizes.is_least_with(result, size):
            result = size
        elif isinstance(result, Size):
            # One of them is 1, or they are the same; a number above 1 tells which.
            result = size if not isinstance(size, Size) else sizes.opaque("broadcast", *sorted((result, size), key=str))
    return result


def only_first(values: Sequence[Value | None]) -> Value:
    """The first of them, the only one that may have rows. Raises Mixed."""
    first, *others = as_data(values)
    if any(value.rows is not None for value in others):
        raise Mixed("an input that has to be the same for all rows depends on them")
    return first


def rows_before(value: Value, axis: int) -> None:
    """Raises Mixed where the rows of a value are not on an axis before that one."""
    if value.rows is not None and value.rows.axis >= axis:
        raise Mixed(f"it works across axis {value.rows.axis}, where the rows are")


def not_along_rows(value: Value, axis: int) -> None:
    """Raises Mixed where the rows of a value are on that axis."""
    if value.rows is not None and value.rows.axis == axis:
        raise Mixed(f"it works along axis {axis}, where the rows are")
