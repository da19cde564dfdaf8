"""ZipMap, with which scikit-learn's converters end a classifier: a sequence of dictionaries, one a row.

Behind it there is a tensor of floats, [rows, classes], which every protocol can carry. Such a graph is served with the
tensor in the place of the dictionaries, under the same name; so it is added to a model store.
"""

from bookserve.serving.wire.onnx_graph_pb2 import ModelProto, NodeProto

_FLOAT = 1  # TensorProto.DataType
_OPSET = 13  # of Identity, for a graph that has no operation of its domain


def replace(model: ModelProto) -> dict[str, tuple[str, ...]]:
    """Takes the ZipMaps that give outputs out of a model; answers the labels of their classes by output."""
    makers = {name: node for node in model.graph.node if node.op_type == "ZipMap" for name in node.output}
    labels = {}
    for output in model.graph.output:
        node = makers.get(output.name)
        if node is None:
            continue
        labels[output.name] = _labels(node)
        node.op_type, node.domain = "Identity", ""
        del node.attribute[:]
        output.type.Clear()
        output.type.tensor_type.elem_type = _FLOAT
        rows_and_classes = output.type.tensor_type.shape
        rows_and_classes.dim.add()
        rows_and_classes.dim.add().dim_value = len(labels[output.name])
    if labels and all(entry.domain not in ("", "ai.onnx") for entry in model.opset_import):
        model.opset_import.add(domain="", version=_OPSET)
    return labels


def _labels(node: NodeProto) -> tuple[str, ...]:
    for attribute in node.attribute:
        if attribute.name == "classlabels_int64s":
            return tuple(str(label) for label in attribute.ints)
        if attribute.name == "classlabels_strings":
            return tuple(label.decode("utf-8", "replace") for label in attribute.strings)
    return ()
