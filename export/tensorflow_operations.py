"""Operations of TensorFlow that tf2onnx does not convert, or not for all types: handlers that it finds by this import.

What they compute is in https://www.tensorflow.org/api_docs/python/tf/raw_ops, of the operation's name.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from onnx import TensorProto, helper
from tf2onnx import tfonnx
from tf2onnx.handler import tf_op

assert tfonnx  # its own handlers come first: the last one of an operation is taken

TABLES_DOMAIN = "ai.onnx.ml"
TABLES_OPSET = 2  # the first whose LabelEncoder has every pair of types
_NAMES = {TensorProto.INT64: "int64", TensorProto.STRING: "string", TensorProto.FLOAT: "float32"}  # of a table's types
_tables: dict[str, Any] = {}  # placeholder -> the handle of a table, while a function is converted


@contextmanager
def tables_of(function: Any) -> Iterator[None]:
    """Let handlers read the tables that a concrete function has captured."""
    for handle, placeholder in function.graph.captures:
        if handle.dtype == tf.resource:
            _tables[placeholder.op.name] = handle
    try:
        yield
    finally:
        _tables.clear()


def _replace(graph: Any, node: Any, kind: str, inputs: list[str], **options: Any) -> None:
    """Put another node in the place of `node`."""
    shapes, dtypes = node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    graph.make_node(kind, inputs, name=node.name, outputs=node.output, shapes=shapes, dtypes=dtypes, **options)


def _one(graph: Any, node: Any) -> str:
    dtype = helper.tensor_dtype_to_np_dtype(graph.get_dtype(node.input[0]))
    name: str = graph.make_const(f"{node.name}_one", np.ones((), dtype)).output[0]
    return name


@tf_op("Erfc")
class Erfc:
    """1 - erf(x)."""

    @classmethod
    def version_9(cls, graph: Any, node: Any, **_: Any) -> None:
        """As nodes of opset 9."""
        erf = graph.make_node("Erf", [node.input[0]], shapes=node.output_shapes, dtypes=node.output_dtypes)
        _replace(graph, node, "Sub", [_one(graph, node), erf.output[0]])


@tf_op("Expm1")
class Expm1:
    """exp(x) - 1."""

    @classmethod
    def version_7(cls, graph: Any, node: Any, **_: Any) -> None:
        """As nodes of opset 7."""
        power = graph.make_node("Exp", [node.input[0]], shapes=node.output_shapes, dtypes=node.output_dtypes)
        _replace(graph, node, "Sub", [power.output[0], _one(graph, node)])


@tf_op("Bucketize")
class Bucketize:
    """How many boundaries are not above x: int32."""

    @classmethod
    def version_13(cls, graph: Any, node: Any, **_: Any) -> None:
        """As nodes of opset 16, whose GreaterOrEqual has every type."""
        dtype = helper.tensor_dtype_to_np_dtype(graph.get_dtype(node.input[0]))
        boundaries = np.array(node.get_attr_value("boundaries"), np.float32)
        last = graph.make_const(f"{node.name}_last", np.array([-1], np.int64)).output[0]
        if np.issubdtype(dtype, np.integer):  # TensorFlow compares whole numbers with these as they are
            wide = graph.make_node("Cast", [node.input[0]], attr={"to": TensorProto.DOUBLE}).output[0]
            limits = boundaries.astype(np.float64)
        else:
            wide, limits = node.input[0], boundaries.astype(dtype)
        each = graph.make_node("Unsqueeze", [wide, last]).output[0]
        bounds = graph.make_const(f"{node.name}_boundaries", limits).output[0]
        above = graph.make_node("GreaterOrEqual", [each, bounds]).output[0]
        ones = graph.make_node("Cast", [above], attr={"to": TensorProto.INT32}).output[0]
        _replace(graph, node, "ReduceSum", [ones, last], attr={"keepdims": 0})


@tf_op("LookupTableFindV2")
class LookupTableFind:
    """The value of a key in a table, or the default value."""

    @classmethod
    def version_8(cls, graph: Any, node: Any, **_: Any) -> None:
        """As LabelEncoder, with the table's entries in the order of their keys."""
        place = node.inputs[0]
        while place.type == "Identity":
            place = place.inputs[0]
        key_type, value_type = graph.get_dtype(node.input[1]), graph.get_dtype(node.output[0])
        default = node.inputs[2].get_tensor_value(as_list=False).item()
        if place.name not in _tables or not {key_type, value_type} <= _NAMES.keys():
            raise ValueError("Tensorflow op [table: LookupTableFindV2] is not supported")
        keys, values = zip(*_entries(_tables[place.name], _NAMES[key_type], _NAMES[value_type]), strict=True)
        key_name, value_name = (_NAMES[kind].removesuffix("32") for kind in (key_type, value_type))
        attributes = {
            f"keys_{key_name}s": keys,
            f"values_{value_name}s": values,
            f"default_{value_name}": default,
        }
        if graph.get_shape(node.output[0]) is None:
            graph.set_shape(node.output[0], graph.get_shape(node.input[1]))
        _replace(graph, node, "LabelEncoder", [node.input[1]], attr=attributes, domain=TABLES_DOMAIN)
        if not graph.find_output_consumers(place.output[0]):
            graph.remove_node(place.name)


def _entries(handle: Any, keys: str, values: str) -> list[tuple[Any, Any]]:
    """The keys of a table with their values, in the keys' order."""
    with ThreadPoolExecutor(1) as outside:  # of the graph that tf2onnx has made this thread's
        found = outside.submit(tf.raw_ops.LookupTableExportV2, table_handle=handle, Tkeys=keys, Tvalues=values).result()
        pairs: list[list[Any]] = outside.submit(lambda: [array.numpy().tolist() for array in found]).result()
    return sorted(zip(*pairs, strict=True))
