"""What the libraries of boosted trees share: an input of columns; classes with their scores, or a value."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bookserve.export import column_values, engines, parity
from bookserve.export.contracts import Contract, Tensor
from bookserve.export.converters.source import ONNX, Converted, Rows

if TYPE_CHECKING:
    import onnx

INPUT = "x"


def converted(
    graph: "onnx.ModelProto",
    folder: Path,
    model: str,
    columns: tuple[str, ...],
    width: int,
    classes: int,
    predict: Callable[[npt.NDArray[Any]], Any],
    made_with: tuple[str, ...],
    tolerance: float = parity.TOLERANCE,
) -> Converted:
    """Write the ONNX graph of a booster into the version folder, and describe it.

    `width` is the number of columns, `classes` that of the classes, 0 for a regression. `predict` is the booster's own:
    x (rows, columns) -> (rows,) values or probabilities of the second of two classes, or (rows, classes).
    """
    names = [output.name for output in graph.graph.output]
    target = folder / ONNX
    target.write_bytes(graph.SerializeToString())

    def reference(rows: Rows) -> dict[str, Any]:
        answer = np.asarray(predict(rows[INPUT]), np.float32)
        if not classes:
            return {names[0]: answer.reshape(len(answer), -1)}
        scores = answer if answer.ndim == 2 else np.stack([1 - answer, answer], axis=1)
        return {names[0]: scores.argmax(axis=1).astype(np.int64), names[1]: scores}

    outputs: tuple[Tensor, ...] = (Tensor(names[0], "float32", (None, 1)),)
    if classes:
        outputs = (
            Tensor(names[0], "int64", (None,), ranks=names[1]),
            Tensor(names[1], "float32", (None, classes), unit="probability"),
        )
    return Converted(
        contract=Contract(
            model,
            1,
            (Tensor(INPUT, "float32", (None, width)),),
            outputs,
            labels=tuple(str(number) for number in range(classes)),
            task="tabular" if classes else "regression",
            columns=columns,
        ),
        reference=reference,
        graphs={ONNX: engines.onnx_graph(target)},
        columns=column_values.of(graph),
        made_with=made_with,
        tolerance=tolerance,
    )
