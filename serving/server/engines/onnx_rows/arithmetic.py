"""Rules of operations place by place, and the arithmetic of small contents that shapes are made of."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bookserve.serving.server.engines.onnx_rows import sizes, values
from bookserve.serving.server.engines.onnx_rows.graph import Node
from bookserve.serving.server.engines.onnx_rows.sizes import Dim, Size
from bookserve.serving.server.engines.onnx_rows.values import BOOL, FLOAT, FLOATS, INT32, INT64, Content, Mixed, Value

Inputs = Sequence[Value | None]
Rule = Callable[[Node, Inputs], list[Value]]
Compute = Callable[..., Any]

_FLOATS_OF_SIZES = (FLOAT, 11)  # float and double: they hold every size that there is


def each_place(node: Node, inputs: Inputs) -> list[Value]:
    """Operations whose result at a place depends on that place of their inputs alone; they broadcast."""
    return [values.broadcast(values.as_data(inputs))]


def each_place_first(node: Node, inputs: Inputs) -> list[Value]:
    """The same for the first input; the others are one number, or of its last axes, for all rows."""
    first = values.only_first(inputs)
    return [values.broadcast([first, *values.as_data(inputs[1:])])] if first.rows else [Value(first.shape)]


def typed_like(node: Node, inputs: Inputs) -> list[Value]:
    """CastLike, which reads the type of its second input alone."""
    return [values.as_data(inputs)[0].without_content()]


def quantised(node: Node, inputs: Inputs) -> list[Value]:
    """QuantizeLinear and DequantizeLinear, with one scale for all or one for each place of another axis."""
    first = values.only_first(inputs)
    if first.rows is not None:
        axis = first.axis(node.attribute("axis", 1)) if first.rank > 1 else 0
        for one in values.as_data(inputs[1:]):
            if sizes.product(one.known_shape) != 1 and (one.rank != 1 or axis == first.rows.axis):
                raise Mixed("it has a scale or a zero point for each row")
    return [first.without_content()]


def quantised_pair(node: Node, inputs: Inputs) -> list[Value]:
    """QLinearAdd and QLinearMul of com.microsoft: a, its scale and zero point, those of b, those of the result."""
    values.as_data(inputs)
    if any(
        value is not None and place not in (0, 3) and (value.rows is not None or sizes.product(value.known_shape) != 1)
        for place, value in enumerate(inputs)
    ):
        raise Mixed("it has a scale or a zero point for each row")
    return [values.broadcast(values.as_data([inputs[0], inputs[3]]))]


def dropped_out(node: Node, inputs: Inputs) -> list[Value]:
    """Dropout outside training."""
    value = inputs[0]
    training = inputs[2] if len(inputs) > 2 else None
    if value is None or (training is not None and (training.content is None or training.content.flat[0] is not False)):
        raise Mixed("it drops values at random (training mode)")
    return [value, value.without_content()]


def mixes(why: str) -> Rule:
    """An operation that is never proved."""

    def rule(node: Node, inputs: Inputs) -> list[Value]:
        raise Mixed(why)

    return rule


def computed(compute: Compute, *, to_bool: bool = False) -> Rule:
    """Operations place by place that are also computed where the contents are known."""

    def rule(node: Node, inputs: Inputs) -> list[Value]:
        present = [value for value in inputs if value is not None]
        content = _combined(compute, present)
        if content is not None:
            data_type = present[-1].data_type if node.op == "Where" else present[0].data_type
            return [values.of_content(content, BOOL if to_bool else data_type)]
        return each_place(node, inputs)

    return rule


def _combined(compute: Compute, inputs: Sequence[Value]) -> Content | None:
    contents = [value.content for value in inputs if value.content is not None]
    if len(contents) != len(inputs):
        return None
    floats = any(value.data_type in FLOATS for value in inputs)
    single = any(value.data_type == FLOAT for value in inputs)
    try:
        together = np.broadcast(*contents) if len(contents) > 1 else contents[0]
        if together.size > values.MAX_CONTENT:
            return None
        shape = together.shape
        spread = [np.broadcast_to(content, shape).reshape(-1) for content in contents]
        results = [compute(floats, *places) for places in zip(*spread, strict=True)]
    except (ValueError, ArithmeticError, TypeError):
        return None
    if single:  # rounds as the engine does
        results = [float(np.float32(one)) if isinstance(one, float) else one for one in results]
    return filled(results, shape)


def filled(results: Sequence[Any], shape: tuple[int, ...]) -> Content:
    """An array of any objects in that shape."""
    array: Content = np.empty(len(results), np.object_)
    array[:] = results
    return array.reshape(shape)


def plus(_: bool, *terms: Dim) -> Dim:
    """Add and Sum."""
    return sum(terms[1:], terms[0])


def minus(_: bool, one: Dim, other: Dim) -> Dim:
    """Sub."""
    return one - other


def times(_: bool, one: Dim, other: Dim) -> Dim:
    """Mul."""
    return one * other


def divided(floats: bool, one: Dim, other: Dim) -> Dim:
    """Div, which rounds whole numbers towards zero."""
    return sizes.quotient(one, other, whole=not floats)


def remainder(_: bool, one: Dim, other: Dim) -> Dim:
    """Mod."""
    if isinstance(one, Size) or isinstance(other, Size):
        return 0 if sizes.exact_quotient(one, other) is not None else sizes.opaque("mod", one, other)
    return one % other


def negative(_: bool, one: Dim) -> Dim:
    """Neg."""
    return -one


def rounded(function: Callable[[float], float]) -> Compute:
    """Floor, Ceil and Round."""

    def compute(_: bool, one: Dim) -> Dim:
        if not isinstance(one, Size):
            return function(one)
        opaque = any("(" in atom.name for atoms, _ in one.terms for atom in atoms)
        return sizes.opaque(function.__name__, one) if opaque else one

    return compute


def chosen(larger: bool) -> Compute:
    """Max and Min."""

    def compute(_: bool, *terms: Dim) -> Dim:
        result = terms[0]
        for term in terms[1:]:
            above = sizes.greater(term, result)
            if above is None:
                result = result if term == result else sizes.opaque("max" if larger else "min", result, term)
            elif above is larger and term != result:
                result = term
        return result

    return compute


def compared(decide: Callable[[Dim, Dim], bool | None], name: str) -> Compute:
    """Equal, Greater, Less and theirs."""

    def compute(_: bool, one: Dim, other: Dim) -> Dim:
        decided = decide(one, other)
        return sizes.opaque(name, one, other) if decided is None else decided

    return compute


def opposite(_: bool, one: Dim) -> Dim:
    """Not."""
    return sizes.opaque("not", one) if isinstance(one, Size) else not one


def both(_: bool, one: Dim, other: Dim) -> Dim:
    """And."""
    if isinstance(one, Size) or isinstance(other, Size):
        return sizes.opaque("and", one, other)
    return bool(one and other)


def either(_: bool, one: Dim, other: Dim) -> Dim:
    """Or."""
    if isinstance(one, Size) or isinstance(other, Size):
        return sizes.opaque("or", one, other)
    return bool(one or other)


def where(_: bool, condition: Dim, one: Dim, other: Dim) -> Dim:
    """Where."""
    if isinstance(condition, Size):
        return one if one == other else sizes.opaque("where", condition, one, other)
    return one if condition else other


def power(_: bool, one: Dim, other: Dim) -> Dim:
    """Pow."""
    if isinstance(one, Size) or isinstance(other, Size):
        return sizes.opaque("pow", one, other)
    return one**other


def root(_: bool, one: Dim) -> Dim:
    """Sqrt."""
    return sizes.opaque("sqrt", one) if isinstance(one, Size) else math.sqrt(one)


def cast(node: Node, inputs: Inputs) -> list[Value]:
    """Cast; of a size, only between numbers that hold it."""
    (value,) = (one for one in inputs if one is not None)
    target = node.attribute("to", 0)
    if value.content is None:
        return [value.without_content()]
    if target in (*_FLOATS_OF_SIZES, INT32, INT64):
        whole = target not in FLOATS
        results = [int(one) if whole and not isinstance(one, Size) else one for one in value.content.flat]
        if whole and value.data_type in FLOATS:
            results = [rounded(math.trunc)(False, one) for one in results]
        return [values.of_content(filled(results, value.content.shape), target)]
    if target == BOOL and not any(isinstance(one, Size) for one in value.content.flat):
        return [values.of_content(filled([bool(one) for one in value.content.flat], value.content.shape), BOOL)]
    if value.counts_rows:
        raise Mixed("it computes with the number of rows")
    return [value.without_content()]
