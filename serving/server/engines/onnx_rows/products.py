"""Rules of matrix products, and of attention, which is made of them."""

from collections.abc import Sequence

from bookserve.serving.server.engines.onnx_rows import sizes, values
from bookserve.serving.server.engines.onnx_rows.arithmetic import Inputs, Rule
from bookserve.serving.server.engines.onnx_rows.graph import Node
from bookserve.serving.server.engines.onnx_rows.sizes import Dim
from bookserve.serving.server.engines.onnx_rows.values import Mixed, Rows, Value


def matrix_product(node: Node, inputs: Inputs) -> list[Value]:
    """MatMul of the first two inputs; further ones (scales, zero points) are the same for all rows."""
    one, other, *others = values.as_data(inputs)
    _same_for_all(others)
    return [product_of(one, other)]


def quantised_product(places: tuple[int, int], parameters: Sequence[int]) -> Rule:
    """Products whose factors are at other places among the inputs, with scales and zero points of one number each."""

    def rule(node: Node, inputs: Inputs) -> list[Value]:
        values.as_data(inputs)
        one, other = (inputs[place] for place in places)
        if one is None or other is None:
            raise Mixed("an input is left out")
        others = [value for place, value in enumerate(inputs) if place not in places and value is not None]
        _same_for_all(others)
        if other.rows is not None:
            _one_number(inputs, [place for place in range(len(inputs)) if place not in places])
        elif one.rows is not None:
            _one_number(inputs, parameters)
        return [product_of(one, other)]

    return rule


def integer_product(node: Node, inputs: Inputs) -> list[Value]:
    """MatMulInteger and com.microsoft's MatMulIntegerToFloat."""
    return quantised_product((0, 1), (2,) if node.op == "MatMulInteger" else (2, 4))(node, inputs)


def fused_product(node: Node, inputs: Inputs) -> list[Value]:
    """FusedMatMul of com.microsoft, without the transposition of batches."""
    one, other = values.as_data(inputs)
    if node.attribute("transBatchA", 0) or node.attribute("transBatchB", 0):
        raise Mixed("it transposes batches")
    if node.attribute("transA", 0):
        one = _transposed(one)
    if node.attribute("transB", 0):
        other = _transposed(other)
    return [product_of(one, other)]


def _transposed(value: Value) -> Value:
    if value.rank < 2:
        return value
    *before, rows, columns = value.known_shape
    place = value.rows
    if place is not None and place.axis >= value.rank - 2:
        place = place.on(2 * value.rank - 3 - place.axis)
    return Value((*before, columns, rows), place)


def _same_for_all(others: Sequence[Value]) -> None:
    if any(value.rows is not None for value in others):
        raise Mixed("an input that has to be the same for all rows depends on them")


def _one_number(inputs: Inputs, places: Sequence[int]) -> None:
    for place in places:
        if place < len(inputs) and (value := inputs[place]) is not None and sizes.product(value.known_shape) != 1:
            raise Mixed("it has a scale or a zero point for each row")


def product_of(one: Value, other: Value) -> Value:
    """The shape and rows of `one @ other`. Raises Mixed where the product sums over rows, or pairs them."""
    if one.rows is None and other.rows is None and (one.shape is None or other.shape is None):
        return Value(None)
    left, right = one.rank, other.rank
    if not left or not right:
        raise Mixed("a factor has no dimension")
    summed = {"left": left - 1, "right": max(0, right - 2)}
    if one.rows is not None and one.rows.axis == summed["left"]:
        raise Mixed("it sums over the rows")
    if other.rows is not None and other.rows.axis == summed["right"]:
        raise Mixed("it sums over the rows")
    batches = max(left - 2, right - 2, 0)
    stacks = values.broadcast([_stack(one), _stack(other)])  # where rows have to agree
    shape = list(stacks.known_shape) if batches else []
    rows = stacks.rows
    if left > 1:
        shape.append(one.known_shape[-2])
        rows = _only(rows, one.rows, one.rows is not None and one.rows.axis == left - 2, len(shape) - 1)
    if right > 1:
        shape.append(other.known_shape[-1])
        rows = _only(rows, other.rows, other.rows is not None and other.rows.axis == right - 1, len(shape) - 1)
    return Value(tuple(shape), rows)


def _stack(value: Value) -> Value:
    """The axes before the matrix."""
    count = max(0, value.rank - 2)
    rows = value.rows if value.rows is not None and value.rows.axis < count else None
    return Value(value.known_shape[:count], rows)


def _only(rows: Rows | None, found: Rows | None, here: bool, axis: int) -> Rows | None:
    if not here or found is None:
        return rows
    if rows is not None:
        raise Mixed("it pairs every row with every other")
    return found.on(axis)


def gemm(node: Node, inputs: Inputs) -> list[Value]:
    """Gemm."""
    one, other, *others = values.as_data(inputs)
    if one.rows is None and other.rows is None and (one.shape is None or other.shape is None):
        return [Value(None)]
    if node.attribute("transA", 0):
        one = _transposed(one)
    if node.attribute("transB", 0):
        other = _transposed(other)
    result = product_of(one, other)
    return [values.broadcast([result, *others]) if others else result]


def quantised_linear(node: Node, inputs: Inputs) -> list[Value]:
    """QGemm of com.microsoft: a, its scale and zero point, then those of b, then c, and of the result."""
    values.as_data(inputs)
    first, second = inputs[0], inputs[3]
    if first is None or second is None:
        raise Mixed("an input is left out")
    _same_for_all([value for place, value in enumerate(inputs) if place and value is not None])
    if node.attribute("transA", 0):
        first = _transposed(first)
    if node.attribute("transB", 0):
        second = _transposed(second)
    if first.rows is not None:
        _one_number(inputs, (1, 2, 7, 8))
    bias = [inputs[6]] if len(inputs) > 6 and inputs[6] is not None else []
    result = product_of(first, second)
    return [values.broadcast([result, *bias]) if bias else result]


def einsum(node: Node, inputs: Inputs) -> list[Value]:
    """Einsum: the letter of the rows is in every input that has them, in no other, and in the result."""
    present = values.as_data(inputs)
    terms, arrow, result = node.attribute("equation", "").replace(" ", "").partition("->")
    letters = terms.split(",")
    if all(value.rows is None for value in present):
        return [Value(None)] if "..." in terms or not arrow else [_einsum_result(letters, present, result, None)]
    if "..." in terms or not arrow or any(len(set(term)) < len(term) for term in letters):
        raise Mixed("its equation is not one that is followed")
    found = {
        (term[value.rows.axis], value.rows.on(0))
        for term, value in zip(letters, present, strict=True)
        if value.rows is not None
    }
    if len(found) > 1:
        raise Mixed("its inputs have their rows under different letters")
    ((letter, rows),) = found
    if any(value.rows is None and letter in term for term, value in zip(letters, present, strict=True)):
        raise Mixed("an input without rows shares their letter")
    if any(term.count(letter) != 1 for term, value in zip(letters, present, strict=True) if value.rows is not None):
        raise Mixed("its inputs have their rows under different letters")
    if letter not in result:
        raise Mixed("it sums over the rows")
    return [_einsum_result(letters, present, result, rows.on(result.index(letter)))]


def _einsum_result(letters: Sequence[str], present: Sequence[Value], result: str, rows: Rows | None) -> Value:
    if any(value.shape is None for value in present):
        return Value(None)
    dims: dict[str, Dim] = {}
    for term, value in zip(letters, present, strict=True):
        for letter, size in zip(term, value.known_shape, strict=True):
            if dims.get(letter, 1) == 1:
                dims[letter] = size
    return Value(tuple(dims[letter] for letter in result), rows)


# com.microsoft's inputs that are the same for all rows: weights, bias, scales, zero points.
_ATTENTION_PARAMETERS = {"Attention": (1, 2), "QAttention": (1, 2, 3, 4, 6, 7), "MultiHeadAttention": (3,)}


def _fits_all(node: Node, place: int, value: Value) -> bool:
    if node.domain and place in _ATTENTION_PARAMETERS.get(node.op, ()):
        return True
    if not node.domain and place == 3 and value.rank < 4:  # a mask of heads, questions and keys
        return True
    return value.rank == 4 and value.known_shape[0] == 1


def attention(node: Node, inputs: Inputs) -> list[Value]:
    """Attention of the standard and of com.microsoft, and their kind: every input with rows has them on axis 0.

    Weights and biases are the same for all rows; what is left out is. All results have their rows on axis 0 but
    com.microsoft's joined cache, which has keys and values on axis 0.
    """
    present = values.as_data(inputs)
    first = present[0]
    if all(value.rows is None for value in present):
        return [Value(None) for _ in node.outputs]
    if first.rows is None or any(value.rows not in (None, first.rows) for value in present):
        raise Mixed("its inputs do not have their rows on the same axis")
    values.rows_before(first, 1)
    if len(list(filter(None, node.outputs))) > 1:
        raise Mixed("it answers its cache")
    for place, value in enumerate(inputs):
        if place and value is not None and value.rows is None and not _fits_all(node, place, value):
            raise Mixed(f"its input {place} has to have rows, or one place on their axis")
    dims = list(first.known_shape)
    wide = node.domain == "com.microsoft" and node.op in ("Attention", "QAttention")
    weights = present[1].known_shape if wide else ()
    if wide and len(weights) == 2:
        third = sizes.exact_quotient(weights[1], 3)
        dims[-1] = third if third is not None and not node.attribute("qkv_hidden_sizes") else sizes.fresh()
    elif not wide:
        dims[-1] = sizes.fresh()
    return [Value(tuple(dims), first.rows)]
