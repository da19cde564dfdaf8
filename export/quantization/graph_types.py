"""What ONNX Runtime's converter to float16 lacks: the types of all values before it, and fewer casts after it.

onnx infers the types of its own operations. For what others give, such as ai.onnx.ml's, ONNX Runtime is asked.
"""

from collections.abc import Collection

import onnx
import onnxruntime
from onnx import helper, shape_inference

_TYPES = {
    f"tensor({name})": number
    for name, number in (
        *(("float", 1), ("uint8", 2), ("int8", 3), ("uint16", 4), ("int16", 5), ("int32", 6), ("int64", 7)),
        *(("string", 8), ("bool", 9), ("float16", 10), ("double", 11), ("uint32", 12), ("uint64", 13)),
    )
}
_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def add(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with `value_info` of every value that is a tensor. Raises what ONNX Runtime does of a wrong graph."""
    typed = shape_inference.infer_shapes(graph)
    known = {value.name for value in (*typed.graph.value_info, *typed.graph.output)}
    missing = [name for node in typed.graph.node for name in node.output if name and name not in known]
    if not missing:
        return typed
    asked = onnx.ModelProto()
    asked.CopyFrom(typed)
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for value in session.get_outputs():
        if value.name in missing and value.type in _TYPES:
            typed.graph.value_info.append(helper.make_tensor_value_info(value.name, _TYPES[value.type], None))
    return typed


def casts(graph: onnx.GraphProto) -> frozenset[str]:
    """What casts give."""
    return frozenset(node.output[0] for node in graph.node if node.op_type == "Cast")


def drop_round_trips(graph: onnx.GraphProto, own: Collection[str] = ()) -> None:
    """Give float32 nodes the float32 values that are there, in the place of those that were cast to 16 bits and back.

    The converter casts all inputs at once, also those that a float32 node takes. `own` is what the casts gave that were
    there before: of whole numbers, say. Casts that nothing needs any more stay: `onnx_order.sort` drops them.
    """
    makers = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    exact = {}
    for name, node in makers.items():
        before = makers.get(node.input[0])
        if before is None or before.output[0] in own:
            continue
        if _target(node) == onnx.TensorProto.FLOAT and _target(before) in _HALVES:
            exact[name] = before.input[0]
    for node in graph.node:
        node.input[:] = [exact.get(name, name) for name in node.input]


def _target(cast: onnx.NodeProto) -> int:
    return next(attribute.i for attribute in cast.attribute if attribute.name == "to")
