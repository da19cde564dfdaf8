"""What the libraries of boosted trees share: columns in; sums of leaves, or of weighted columns; an objective's link.

The sums are called margins, as in XGBoost, and the link is what the objective makes of them.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bookserve.export import column_values, engines, parity
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.converters import tree_ensemble
from bookserve.export.converters.source import ONNX, Converted, Rows

if TYPE_CHECKING:
    import onnx

INPUT, LABEL, PROBABILITIES, VALUE = "x", "label", "probabilities", "variable"
_MARGINS, _LINKED, _ZERO, _ONE = "margins", "linked", "zero", "one"
_OPSET = {"": 18, "ai.onnx.ml": 3}
_TRIED = 64  # values of a column that is weighted
_LEAST = 1e-30  # of weights: smaller ones would take values to try out of float32


class Link(Enum):
    """What becomes of a margin; the value names the operations of ONNX."""

    IDENTITY = ("Identity",)
    SIGMOID = ("Sigmoid",)
    EXPONENTIAL = ("Exp",)
    SOFTPLUS = ("Softplus",)  # log(1 + exp(margin))
    SIGNED_SQUARE = ("Abs", "Mul")
    SIGN = ("Greater", "Cast")  # 1 above 0, else 0
    SOFTMAX = ("Softmax",)


class Answer(Enum):
    """What a model gives: values, or classes with their probabilities; the names of the outputs."""

    VALUES = (VALUE,)
    CLASSES = (LABEL, PROBABILITIES)


class Objective(NamedTuple):
    """What the objective of a model does to the margins, and what they are then."""

    link: Link
    answer: Answer = Answer.VALUES


class Margins(NamedTuple):
    """Operations that make (rows, outputs) float32 of the input, with their constants.

    `columns` are values to try for each column; none where the trees say which.
    """

    nodes: "tuple[onnx.NodeProto, ...]"
    constants: "tuple[onnx.TensorProto, ...]"
    outputs: int
    columns: column_values.Columns = ()


def of_trees(trees: Sequence[tree_ensemble.Tree], base: Sequence[float]) -> Margins:
    """The sums of the trees' leaves; `base` has what is added to each output."""
    some: Sequence[tree_ensemble.Tree] = trees or [[tree_ensemble.Leaf(((0, 0.0),))]]
    return Margins((tree_ensemble.node(some, base, INPUT, _MARGINS),), (), len(base))


def of_weights(weights: npt.NDArray[Any], base: npt.NDArray[Any]) -> Margins:
    """Sums of the columns times weights (columns, outputs), with `base` (outputs,) added; missing numbers count as 0.

    Values to try are such that each column counts alike.
    """
    from onnx import helper, numpy_helper

    nodes = (
        helper.make_node("IsNaN", [INPUT], ["missing"]),
        helper.make_node("Where", ["missing", "nothing", INPUT], ["present"]),
        helper.make_node("Gemm", ["present", "weights", "base"], [_MARGINS]),
    )
    constants = {"nothing": np.zeros(()), "weights": weights, "base": base}
    sizes = np.abs(weights).max(axis=1)
    normal = np.random.default_rng(0).standard_normal(_TRIED)
    return Margins(
        nodes,
        tuple(numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()),
        weights.shape[1],
        tuple((normal / size if size > _LEAST else normal).astype(np.float32) for size in sizes),
    )


def converted(
    margins: Margins,
    objective: Objective,
    folder: Path,
    model: str,
    columns: tuple[str, ...],
    width: int,
    predict: Callable[[npt.NDArray[Any]], Any],
    made_with: tuple[str, ...],
    tolerance: float = parity.TOLERANCE,
    notes: tuple[str, ...] = (),
) -> Converted:
    """Write the ONNX graph of a booster into the version folder, and describe it.

    `width` is the number of columns. `predict` is the booster's own: x (rows, columns) -> (rows,) or (rows, outputs) of
    values; or probabilities (rows, classes), or (rows,) of the second of two classes.
    """
    graph = _graph(margins, objective, width)
    target = folder / ONNX
    target.write_bytes(graph.SerializeToString())
    run = engines.onnx_graph(target)
    classes = max(2, margins.outputs) if objective.answer is Answer.CLASSES else 0
    contract = Contract(
        model,
        1,
        (Tensor(INPUT, "float32", (None, width)),),
        _outputs(margins.outputs, classes),
        labels=tuple(str(number) for number in range(classes)),
        task="tabular" if classes else "regression",
        columns=columns,
    )

    def reference(rows: Rows) -> dict[str, Any]:
        answer = np.asarray(predict(rows[INPUT]), np.float32)
        if not classes:
            return {VALUE: answer.reshape(len(answer), -1)}
        scores = answer if answer.ndim == 2 else np.stack([1 - answer, answer], axis=1)
        return {LABEL: scores.argmax(axis=1).astype(np.int64), PROBABILITIES: scores}

    drawn = {INPUT: margins.columns} if margins.columns else column_values.of(graph)
    return Converted(
        contract=contract,
        reference=reference,
        graphs={ONNX: run},
        columns=drawn,
        notes=notes,
        made_with=made_with,
        tolerance=tolerance,
        missing=True,
    )


def _outputs(width: int, classes: int) -> tuple[Tensor, ...]:
    if not classes:
        return (Tensor(VALUE, "float32", (None, width)),)
    return (
        Tensor(LABEL, "int64", (None,), ranks=PROBABILITIES),
        Tensor(PROBABILITIES, "float32", (None, classes), unit="probability"),
    )


def operations(margins: Margins, objective: Objective) -> "tuple[list[onnx.NodeProto], list[onnx.TensorProto]]":
    """What makes the answers, with the names of the objective's `Answer`, of the input `INPUT`; and its constants."""
    from onnx import numpy_helper

    constants = (
        *margins.constants,
        numpy_helper.from_array(np.zeros((), np.float32), _ZERO),
        numpy_helper.from_array(np.ones((), np.float32), _ONE),
    )
    nodes = [*margins.nodes, *_link_nodes(objective.link), *_answer_nodes(objective.answer, margins.outputs)]
    used = {name for node in nodes for name in node.input}
    return nodes, [constant for constant in constants if constant.name in used]


def _graph(margins: Margins, objective: Objective, width: int) -> "onnx.ModelProto":
    from onnx import TensorProto, helper

    shapes: dict[str, list[str | int]] = {
        LABEL: ["rows"],
        PROBABILITIES: ["rows", max(2, margins.outputs)],
        VALUE: ["rows", margins.outputs],
    }
    types = {LABEL: TensorProto.INT64, PROBABILITIES: TensorProto.FLOAT, VALUE: TensorProto.FLOAT}
    nodes, constants = operations(margins, objective)
    made = helper.make_graph(
        nodes,
        "boosted",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info(name, types[name], shapes[name]) for name in objective.answer.value],
        constants,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSET.items()]
    return helper.make_model(made, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))


def _link_nodes(link: Link) -> "list[onnx.NodeProto]":
    from onnx import TensorProto, helper

    match link:
        case Link.SIGNED_SQUARE:
            return [
                helper.make_node("Abs", [_MARGINS], ["sizes"]),
                helper.make_node("Mul", [_MARGINS, "sizes"], [_LINKED]),
            ]
        case Link.SIGN:
            return [
                helper.make_node("Greater", [_MARGINS, _ZERO], ["positive"]),
                helper.make_node("Cast", ["positive"], [_LINKED], to=TensorProto.FLOAT),
            ]
        case _:
            return [helper.make_node(link.value[0], [_MARGINS], [_LINKED])]


def _answer_nodes(answer: Answer, outputs: int) -> "list[onnx.NodeProto]":
    from onnx import helper

    if answer is Answer.VALUES:
        return [helper.make_node("Identity", [_LINKED], [VALUE])]
    probabilities = [helper.make_node("Identity", [_LINKED], [PROBABILITIES])]
    if outputs == 1:
        probabilities = [
            helper.make_node("Sub", [_ONE, _LINKED], ["other"]),
            helper.make_node("Concat", ["other", _LINKED], [PROBABILITIES], axis=1),
        ]
    return [*probabilities, helper.make_node("ArgMax", [PROBABILITIES], [LABEL], axis=1, keepdims=0)]
