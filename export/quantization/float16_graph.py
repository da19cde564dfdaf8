"""The float16 graph of a float32 ONNX graph, by ONNX Runtime's own converter: half the size, for GPUs.

Weights and what goes from node to node are float16; inputs and outputs keep their types.
"""

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from bookserve.export import onnx_metadata, onnx_order
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError
from bookserve.export.quantization import graph_types
from bookserve.export.quantization.int8_graph import load

# Of an output's largest value that a float16 graph may be off: about ten roundings to 11 bits.
TOLERANCE = 5e-3


def make(source: Path, target: Path, contract: Contract) -> None:
    """Write the float16 graph of the graph in `source` to `target`.

    Raises:
        ExportError: the graph cannot be read or converted, has no float32 weights, or is quantised.
    """
    graph = load(source)
    if not any(tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims for tensor in graph.graph.initializer):
        raise ExportError("the graph has no float32 weights")
    try:
        converted = convert_float_to_float16(graph_types.add(graph), keep_io_types=True)
        graph_types.drop_round_trips(converted.graph, graph_types.casts(graph.graph))
        onnx_order.sort(converted.graph)  # the converter puts its casts at the end
        onnx_metadata.write(converted, contract, "float16")
        onnx.checker.check_model(converted, full_check=True)
    except Exception as error:  # the library's and onnx's errors share no base class
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"the graph has no float16 form: {lines[0][:300]}") from error
    target.write_bytes(converted.SerializeToString(deterministic=True))
