"""The ONNX graph of a version: the same signature for our own model server, which carries no TensorFlow."""

import logging
from pathlib import Path
from typing import Any, Protocol

import onnx
import tf2onnx

from bookserve.export import (
    onnx_fold,
    onnx_gelu,
    onnx_metadata,
    onnx_order,
    parity,
    tensorflow_function,
    tensorflow_operations,
)
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError

LOCATION = parity.LOCATION
OPSET = 18  # of graphs without GELU


class Servable(Protocol):
    """A function under the contract: `serve` takes `specs` in order and gives the contract's outputs by name."""

    serve: Any
    specs: Any


def convert(servable: Servable, contract: Contract, path: Path, quiet: bool = True) -> None:
    """Write the ONNX graph: inputs and outputs named, typed and ordered as in the contract, free dimensions free.

    `quiet` keeps what tf2onnx says of operations that it does not know from its log.

    Raises:
        ExportError: an operation of the network has no ONNX form, or the result does not keep the contract.
    """
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL if quiet else logging.ERROR)
    function = tensorflow_function.plain(servable.serve, servable.specs)
    try:
        with tensorflow_operations.tables_of(function.get_concrete_function()):
            graph, _ = tf2onnx.convert.from_function(function, input_signature=servable.specs, opset=OPSET)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ExportError(f"{contract.model} cannot be converted to ONNX: {error}") from error
    _order_outputs(graph, contract)
    _refuse_unknown(graph, contract)
    _import_tables(graph)
    onnx_gelu.fuse(graph)
    onnx_fold.fold(graph)
    onnx_order.rewrite(graph)
    onnx_metadata.write(graph, contract)
    _name_free_dimensions(graph, contract)
    try:
        onnx.checker.check_model(graph, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{contract.model} uses an operation that ONNX has not: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _refuse_unknown(graph: onnx.ModelProto, contract: Contract) -> None:
    """Raises ExportError for operations that tf2onnx has left as they were: shape inference may crash on one."""
    kinds = dict.fromkeys(node.op_type for node in graph.graph.node if not node.domain)
    unknown = [kind for kind in kinds if not onnx.defs.has(kind)]
    if unknown:
        raise ExportError(f"{contract.model} uses an operation that ONNX has not: {', '.join(unknown)}")


def _import_tables(graph: onnx.ModelProto) -> None:
    """Names the domain of tables, where a node is of it."""
    domain = tensorflow_operations.TABLES_DOMAIN
    named = any(entry.domain == domain for entry in graph.opset_import)
    if not named and any(node.domain == domain for node in graph.graph.node):
        graph.opset_import.append(onnx.helper.make_opsetid(domain, tensorflow_operations.TABLES_OPSET))


def _order_outputs(graph: onnx.ModelProto, contract: Contract) -> None:
    """tf2onnx sorts outputs by name; the contract's order is the one that callers see."""
    made = {output.name: output for output in graph.graph.output}
    wanted = [tensor.name for tensor in contract.outputs]
    if set(made) != set(wanted) or [value.name for value in graph.graph.input] != [t.name for t in contract.inputs]:
        raise ExportError(
            f"the ONNX graph of {contract.model} has the inputs {[value.name for value in graph.graph.input]} and the "
            f"outputs {sorted(made)}, the contract {contract.id} has {[t.name for t in contract.inputs]} and {wanted}"
        )
    ordered = [made[name] for name in wanted]
    del graph.graph.output[:]
    graph.graph.output.extend(ordered)


def _name_free_dimensions(graph: onnx.ModelProto, contract: Contract) -> None:
    """Call the batch "n" instead of tf2onnx's running numbers, and write down the contract's fixed sizes."""
    values = [*graph.graph.input, *graph.graph.output]
    for value, tensor in zip(values, [*contract.inputs, *contract.outputs], strict=True):
        dimensions = value.type.tensor_type.shape.dim
        if tensor.shape and not value.type.tensor_type.HasField("shape"):  # as tf2onnx leaves what it does not know
            dimensions.extend(onnx.TensorShapeProto.Dimension() for _ in tensor.shape)
        if len(dimensions) != len(tensor.shape):
            continue  # of unknown rank
        for number, (dimension, size) in enumerate(zip(dimensions, tensor.shape, strict=True)):
            if size is not None:
                dimension.dim_value = size
            else:
                dimension.dim_param = "n" if number == 0 else f"{tensor.name}_{number}"
