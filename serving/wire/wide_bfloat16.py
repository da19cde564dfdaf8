"""A graph of bfloat16 that computes in float32, for where ONNX Runtime lacks an operation in bfloat16, as on CPUs.

Weights stay bfloat16 and are cast when the graph is loaded, inputs and outputs by each run. In between nothing is
rounded. For float16 ONNX Runtime puts such casts by itself.
"""

from collections.abc import Iterable, Iterator, Mapping, MutableSequence

from bookserve.serving.wire.onnx_graph_pb2 import GraphProto, ModelProto, NodeProto, ValueInfoProto

_FLOAT, _BFLOAT16 = 1, 16  # TensorProto.DataType
_INT = 2  # AttributeProto.AttributeType
# Attributes with the type of what a node gives, or in which it computes.
_TYPES = frozenset({"to", "dtype", "output_dtype", "precision", "softmax_precision", "stash_type"})
# What ONNX Runtime says of an operation that it has not for the types of a graph: on CPUs, and with a GPU.
_LACKS = ("Could not find an implementation for", "Provider type for")


def is_lack(error: BaseException) -> bool:
    """Whether ONNX Runtime did not load a graph because it has not all operations for their types."""
    return any(sign in str(error) for sign in _LACKS)


def widened(content: bytes) -> bytes | None:
    """The ONNX file `content` with float32 in the place of bfloat16; None where it has none.

    Raises DecodeError where it is no ONNX file.
    """
    model = ModelProto.FromString(content)
    before = model.SerializeToString(deterministic=True)
    _widen(model)
    after = model.SerializeToString(deterministic=True)
    return None if after == before else after


def _widen(model: ModelProto) -> None:
    graph = model.graph
    given = [value.name for value in graph.input if _is_narrow(value)]
    answered = [value.name for value in graph.output if _is_narrow(value) and value.name not in given]
    names = {name: f"{name}/float32" for name in (*given, *answered)}
    _widen_graph(graph, names)
    starts = [_cast(name, names[name], _FLOAT) for name in given]
    ends = [_cast(names[name], name, _BFLOAT16) for name in answered]
    _set(graph.node, [*starts, *graph.node, *ends])
    for function in model.functions:
        _set(function.node, list(_wide_nodes(function.node, {})))
        _declare_float(function.value_info)


def _widen_graph(graph: GraphProto, names: Mapping[str, str]) -> None:
    """The same for a graph, or one inside a node; `names` has new names for the model's inputs and outputs."""
    listed = {value.name for value in graph.input}
    starts = []
    for tensor in graph.initializer:
        if tensor.data_type == _BFLOAT16 and tensor.name not in listed:
            wide = names.get(tensor.name, tensor.name)
            tensor.name = f"{tensor.name}/bfloat16"
            starts.append(_cast(tensor.name, wide, _FLOAT))
    _set(graph.node, [*starts, *_wide_nodes(graph.node, names)])
    _declare_float(value for value in (*graph.input, *graph.output, *graph.value_info) if value.name not in names)


def _wide_nodes(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> Iterator[NodeProto]:
    """The nodes with what their attributes say of types, and casts after those whose attribute is a constant."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        constant = False
        for attribute in node.attribute:
            if attribute.name in _TYPES and attribute.type == _INT and attribute.i == _BFLOAT16:
                attribute.i = _FLOAT
            constant = constant or attribute.t.data_type == _BFLOAT16
            if attribute.HasField("g"):
                _widen_graph(attribute.g, names)
                for value in attribute.g.output:
                    value.name = names.get(value.name, value.name)
        yield node
        if constant:
            wide = node.output[0]
            node.output[0] = f"{wide}/bfloat16"
            yield _cast(node.output[0], wide, _FLOAT)


def _cast(source: str, target: str, to: int) -> NodeProto:
    node = NodeProto(op_type="Cast", input=[source], output=[target])
    node.attribute.add(name="to", type=_INT, i=to)
    return node


def _set(field: MutableSequence[NodeProto], nodes: list[NodeProto]) -> None:
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]  # as those of the field go with it
    del field[:]
    field.extend(copies)


def _is_narrow(value: ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == _BFLOAT16


def _declare_float(values: Iterable[ValueInfoProto]) -> None:
    for value in values:
        if _is_narrow(value):
            value.type.tensor_type.elem_type = _FLOAT
