"""A function of TensorFlow in the form that tf2onnx takes, which knows neither constants that a function has captured
nor functions that XLA compiles, as Keras's convolutions of groups are.
"""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

_KEPT_APART = ("_XlaMustCompile", "_noinline")  # attributes of functions that are not put in the place of their calls


def plain(serve: Any, specs: Any) -> Any:
    """The same function, whose captured tensors are variables and tables alone, and whose parts are all TensorFlow's.

    `serve` is a tf.function of `specs`; itself where nothing is to be done.
    """
    library = serve.get_concrete_function().graph.as_graph_def().library.function
    if any("_XlaMustCompile" in function.attr for function in library):
        serve = _function(_without_xla(serve.get_concrete_function()), specs)
    if any(tensor.dtype != tf.resource for tensor in serve.get_concrete_function().captured_inputs):
        serve = _function(_with_constants(serve.get_concrete_function()), specs)
    return serve


def _function(serve: Any, specs: Any) -> Any:
    return tf.function(serve, input_signature=specs, autograph=False)


def _with_constants(function: Any) -> Any:
    """Variables and captured tensors as constants of the graph."""
    frozen = convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
    captured = {placeholder.name: tensor for tensor, placeholder in function.graph.captures}
    tables = [captured[tensor.name] for tensor in frozen.inputs if tensor.name in captured]

    def serve(*inputs: Any) -> Any:
        return tf.nest.pack_sequence_as(function.structured_outputs, list(frozen(*inputs, *tables)))

    return serve


def _without_xla(function: Any) -> Any:
    """The graph once more, under other names, with functions that may be put in the place of their calls."""
    graph = function.graph.as_graph_def()
    names = {part.signature.name: f"plain_{part.signature.name}" for part in graph.library.function}
    _rename(graph.node, names)
    for part in graph.library.function:
        part.signature.name = names[part.signature.name]
        _rename(part.node_def, names)
        for attribute in _KEPT_APART:
            part.attr.pop(attribute, None)
    del graph.library.gradient[:]
    imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    ends = [
        [imported.graph.get_tensor_by_name(end.name) for end in some] for some in (function.inputs, function.outputs)
    ]
    pruned = imported.prune(*ends)

    def serve(*inputs: Any) -> Any:
        for variable in function.graph.variables:  # or they would stay resources
            tf.compat.v1.get_default_graph().watch_variable(variable)
        return tf.nest.pack_sequence_as(function.structured_outputs, list(pruned(*inputs, *function.captured_inputs)))

    return serve


def _rename(nodes: Iterable[Any], names: dict[str, str]) -> None:
    for node in nodes:
        node.op = names.get(node.op, node.op)
        for attribute in _KEPT_APART:
            node.attr.pop(attribute, None)
        for value in node.attr.values():
            for function in (value.func, *value.list.func):
                if function.name in names:
                    function.name = names[function.name]
