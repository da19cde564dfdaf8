"""The ONNX form of a TensorFlow function, and what stands in its way, for SavedModels and Keras files.

Imports TensorFlow.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import tensorflow as tf
import tf2onnx

from bookserve.export import engines, onnx_contract, onnx_graph
from bookserve.export.contracts import Contract
from bookserve.export.converters.source import ONNX, Run
from bookserve.export.errors import ExportError
from bookserve.export.example_inputs import Table

_OPERATIONS = (
    re.compile(r"Tensorflow op \[[^:\]]*: ([A-Za-z0-9]+)\] is not supported"),
    re.compile(r"No Op registered for ([A-Za-z0-9]+)"),
)


class Servable:
    """A function of the contract's inputs in order that gives the contract's outputs by name."""

    def __init__(self, contract: Contract, function: Callable[..., Any]) -> None:
        self.specs = [
            tf.TensorSpec(tensor.shape, tf.string if tensor.dtype == "object" else tensor.dtype, tensor.name)
            for tensor in contract.inputs
        ]

        def serve(*inputs: Any) -> dict[str, Any]:
            outputs = function(*inputs)
            return {tensor.name: tf.identity(outputs[tensor.name], name=tensor.name) for tensor in contract.outputs}

        self.serve = tf.function(serve, input_signature=self.specs, autograph=False)


def to_onnx(servable: Servable, contract: Contract, folder: Path) -> tuple[Run, dict[str, Table]] | str:
    """Write the ONNX graph; returns its run and the tables that inputs are looked up in, or what stands in the way."""
    kept = _Kept()
    logger = logging.getLogger("tf2onnx")
    logger.addHandler(kept)
    path = folder / ONNX
    try:
        onnx_graph.convert(servable, contract, path, quiet=False)
        run = engines.onnx_graph(path)
    except Exception as error:  # tf2onnx fails in many ways on what it does not know
        path.unlink(missing_ok=True)
        return _obstacle("\n".join((*kept.lines, str(error))))
    finally:
        logger.removeHandler(kept)
    graph = onnx.load(path)
    return run, onnx_contract.tables(graph)


def computes_in(function: Any, dtype: Any) -> bool:
    """Whether a concrete function, or one that it calls, makes tensors of a type."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for part in graph.library.function for node in part.node_def)]
    return any(node.attr["T"].type == dtype.as_datatype_enum for node in nodes if "T" in node.attr)


def versions() -> tuple[str, ...]:
    """The libraries that took part."""
    assert tf2onnx is not None
    return ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime")


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _obstacle(text: str) -> str:
    operations = list(dict.fromkeys(name for pattern in _OPERATIONS for name in pattern.findall(text)))
    if operations:
        return f"the operation {', '.join(operations)} has no ONNX form"
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "tf2onnx failed"


def refuse_if_empty(contract: Contract, path: Path) -> None:
    """Raises ExportError for a function without inputs or outputs."""
    if not contract.inputs or not contract.outputs:
        raise ExportError(f"{path}: the signature '{contract.signature}' has no inputs or no outputs")
