"""The bfloat16 graph of a float32 ONNX graph: half the size, with the range of float32 and 8 bits, for GPUs.

What ONNX Runtime computes in bfloat16 on CUDA is bfloat16; other operations stay float32, and so do inputs and outputs.
On CPUs it loads no such graph: `on_cpu` gives one that it loads, and that rounds to bfloat16 after each operation.
"""

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference, version_converter
from onnxruntime.transformers.float16 import convert_float_to_float16

from bookserve.export import onnx_metadata, onnx_order
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError
from bookserve.export.quantization import graph_types
from bookserve.export.quantization.int8_graph import load

# Of an output's largest value that a bfloat16 graph may be off: about ten roundings to 8 bits.
TOLERANCE = 4e-2
OPSET = 22  # the first in which Conv may be bfloat16
# What has a kernel for bfloat16 in the CUDA provider of onnxruntime-gpu 1.31.1: a graph of each was given to it. It has
# none of MaxPool, LSTM, GRU, Clip, LeakyRelu, BatchNormalization, ReduceMax and Pad, among others. It has Cast; whole
# numbers become float32 first all the same, as bfloat16 holds them to 256.
ON_CUDA = frozenset(
    (
        *("Conv", "Gemm", "MatMul", "AveragePool", "ReduceMean", "ReduceSum", "Softmax", "LayerNormalization"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "Neg", "Abs", "Sqrt", "Exp", "Erf"),
        *("Relu", "Sigmoid", "Tanh", "Gelu", "Softplus", "HardSigmoid"),
        *("Reshape", "Flatten", "Transpose", "Concat", "Slice", "Gather", "Expand", "Tile", "Squeeze", "Unsqueeze"),
        *("Identity", "Shape"),
    )
)
_LARGEST = (2 - 2**-7) * 2.0**127  # of what bfloat16 holds


def make(source: Path, target: Path, contract: Contract) -> None:
    """Write the bfloat16 graph of the graph in `source` to `target`.

    ONNX Runtime's converter decides what is float16 and where to cast; each float16 then becomes bfloat16.

    Raises:
        ExportError: the graph cannot be read or converted, has no float32 weights, has some of 16 bits already, or has
            branches or loops.
    """
    graph = load(source)
    if not any(tensor.data_type == TensorProto.FLOAT and tensor.dims for tensor in graph.graph.initializer):
        raise ExportError("the graph has no float32 weights")
    try:
        made = _converted(graph_types.add(version_converter.convert_version(graph, OPSET)))
        graph_types.drop_round_trips(made.graph)
        onnx_order.sort(made.graph)  # the converter puts its casts at the end
        onnx_metadata.write(made, contract, "bfloat16")
        onnx.checker.check_model(made, full_check=True)
    except Exception as error:  # the libraries' errors share no base class
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"the graph has no bfloat16 form: {lines[0][:300]}") from error
    target.write_bytes(made.SerializeToString(deterministic=True))


def _converted(graph: onnx.ModelProto) -> onnx.ModelProto:
    kinds = {attribute.type for node in graph.graph.node for attribute in node.attribute}
    if kinds & {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}:
        raise ExportError("it has branches or loops")
    exact = {tensor.name: tensor for tensor in graph.graph.initializer}
    exact |= {node.output[0]: node.attribute[0].t for node in graph.graph.node if node.op_type == "Constant"}
    if any(tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for tensor in exact.values()):
        raise ExportError("parts of it have 16 bits already")
    float32 = {node.op_type for node in graph.graph.node if not _on_cuda(node)}
    made: onnx.ModelProto = convert_float_to_float16(
        graph, keep_io_types=True, op_block_list=sorted(float32 - {"Constant"})
    )
    for tensor in made.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(_rounded(exact[tensor.name], tensor.name))
    for value in (*made.graph.input, *made.graph.output, *made.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    for node in made.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
            elif node.op_type == "Constant" and attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(_rounded(exact[node.output[0]], attribute.t.name))
    return made


def _rounded(tensor: TensorProto, name: str) -> TensorProto:
    """In bfloat16, to even; what is finite stays finite, such as the lowest float32 number, by which masks are made."""
    exact = numpy_helper.to_array(tensor)
    held = np.where(np.isfinite(exact), np.clip(exact, -_LARGEST, _LARGEST), exact)
    return numpy_helper.from_array(held.astype(ml_dtypes.bfloat16), name)


def on_cpu(path: Path) -> bytes:
    """The graph in the file `path` in operations that ONNX Runtime has on CPUs.

    Each computes in float32 what is rounded to bfloat16 then. ONNX Runtime itself does so with float16.

    Raises:
        ExportError: the graph cannot be read, or a type in it is not known.
    """
    graph = shape_inference.infer_shapes(load(path))
    types = {value.name: value.type.tensor_type.elem_type for value in _values(graph.graph)}
    types |= {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    nodes = []
    widened: set[str] = set()
    for node in graph.graph.node:
        if node.op_type == "Cast" or not _on_cuda(node):  # the latter are float32, with casts around
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            if name and _type(types, name) == TensorProto.BFLOAT16:
                if name not in widened:
                    nodes.append(helper.make_node("Cast", [name], [f"{name}/float32"], to=TensorProto.FLOAT))
                    widened.add(name)
                node.input[place] = f"{name}/float32"
        narrow = [name for name in node.output if name and _type(types, name) == TensorProto.BFLOAT16]
        node.output[:] = [f"{name}/exact" if name in narrow else name for name in node.output]
        nodes.append(node)
        nodes += [helper.make_node("Cast", [f"{name}/exact"], [name], to=TensorProto.BFLOAT16) for name in narrow]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return graph.SerializeToString()


def _on_cuda(node: onnx.NodeProto) -> bool:
    return not node.domain and node.op_type in ON_CUDA


def _values(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    return [*graph.input, *graph.output, *graph.value_info]


def _type(types: Mapping[str, int], name: str) -> int:
    if name not in types:
        raise ExportError(f"the type of {name} in the bfloat16 graph is not known")
    return types[name]
