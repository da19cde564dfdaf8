"""The SignatureDef of an ONNX graph: its inputs and outputs, and the inputs that have a default.

An initializer of an input's name is the input's default, which a request may override. ONNX Runtime tells neither the
value of one nor a scalar from a tensor of unknown rank; where that matters, the file is read.
"""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from bookserve.serving.server.types.errors import failed_precondition
from bookserve.serving.server.types.signatures import PREDICT_METHOD
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.onnx_graph_pb2 import GraphProto, ModelProto, TensorProto
from bookserve.serving.wire.tensors import ELEMENT_TYPES, Array, ElementType, TensorSpec, to_proto, write_spec

log = logging.getLogger(__name__)

_ELEMENTS = {f"tensor({element.onnx})": element for element in ELEMENT_TYPES if element.onnx}
# Old exporters list all weights of a graph as inputs; nobody sends those.
MAX_DEFAULT_BYTES = 64 << 10
_WIDEST = 8  # bytes of an element, at most
_EXTERNAL = 1  # TensorProto.DataLocation
_CONTENT_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def of_session(session: Any, path: Path) -> tuple[tensorflow_pb2.SignatureDef, frozenset[str]]:
    """The SignatureDef of the graph that `session` has loaded from `path`, and the inputs that may be left out.

    Raises ServingError (FAILED_PRECONDITION) for an input or output that is no tensor which can be served.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    overridable = session.get_overridable_initializers()
    graph = GraphProto()
    if overridable or not all(node.shape for node in (*inputs, *outputs)):
        graph = ModelProto.FromString(path.read_bytes()).graph
    if sum(_nbytes(tensor) for tensor in graph.initializer if tensor.name in {node.name for node in overridable}) > (
        MAX_DEFAULT_BYTES
    ):
        log.info("%s lists %d weights as inputs with defaults: they are not served as inputs", path, len(overridable))
        overridable = []
    unranked = _unranked(graph)
    definition = tensorflow_pb2.SignatureDef(method_name=PREDICT_METHOD)
    for nodes, infos in (((*inputs, *overridable), definition.inputs), (outputs, definition.outputs)):
        for node in nodes:
            shape = tuple(size if isinstance(size, int) else None for size in node.shape)
            known = None if not shape and node.name in unranked else shape
            number = _element(node, path).number
            infos[node.name].CopyFrom(write_spec(TensorSpec(node.name, number, known, node.name)))
    optional = frozenset(node.name for node in overridable)
    for tensor in graph.initializer:
        if tensor.name in optional and (value := _value(tensor, definition.inputs[tensor.name].dtype)) is not None:
            definition.defaults[tensor.name].CopyFrom(to_proto(value))
    return definition, optional


def _element(node: Any, path: Path) -> ElementType:
    element = _ELEMENTS.get(node.type)
    if element is None:
        raise failed_precondition(
            f"{path}: '{node.name}' is a {node.type}, which no protocol can carry: inputs and outputs have to be"
            f" {', '.join(sorted(_ELEMENTS))}. Export the graph with a tensor in its place"
        )
    return element


def _nbytes(tensor: TensorProto) -> int:
    return math.prod(tensor.dims) * _WIDEST


def _unranked(graph: GraphProto) -> set[str]:
    return {info.name for info in (*graph.input, *graph.output) if not info.type.tensor_type.HasField("shape")}


def _value(tensor: TensorProto, number: tensorflow_pb2.DataType) -> Array | None:
    """The values of an initializer; None where they are text, or in another file."""
    dtype = next(element.dtype for element in ELEMENT_TYPES if element.number == number)
    if dtype.kind == "O" or tensor.data_location == _EXTERNAL:
        return None
    shape = tuple(tensor.dims)
    if tensor.HasField("raw_data"):
        flat: Array = np.frombuffer(tensor.raw_data, dtype.newbyteorder("<"))
    else:
        flat = np.array([value for field in _CONTENT_FIELDS for value in getattr(tensor, field)])
        is_bits = dtype.itemsize == 2 and dtype.kind in "fV"
        flat = flat.astype(np.uint16).view(dtype) if is_bits else flat.astype(dtype)
    return flat.reshape(shape) if flat.size == math.prod(shape) else None
