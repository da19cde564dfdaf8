"""Which values may be integers: the rules against the register of ONNX's operations."""

import numpy as np
import pytest
from onnx import TensorProto, defs, helper, numpy_helper
from onnx.defs import OpSchema

from bookserve.serving.server.engines import onnx_integers
from bookserve.serving.wire.onnx_graph_pb2 import ModelProto, NodeProto

INTEGERS = {"tensor(int32)", "tensor(int64)"}
# Results that are a part of an input, or hold one: the register names another type, the rules follow what is inside.
PARTS = {"ConcatFromSequence", "OptionalGetElement", "SequenceAt"}
# Operations with a graph inside: their results are found there.
WITH_GRAPHS = {"If", "Loop", "Scan", "SequenceMap"}


def schemas() -> list[OpSchema]:
    return [schema for schema in defs.get_all_schemas_with_history() if schema.domain in ("", "ai.onnx.ml")]


def integer_types(schema: OpSchema, type_name: str) -> set[str]:
    allowed = {one.type_param_str: set(one.allowed_type_strs) for one in schema.type_constraints}
    return allowed.get(type_name, {type_name}) & INTEGERS


def like(schema: OpSchema, place: int) -> int | None:
    """The input whose type this result has by the register."""
    result = schema.outputs[place]
    same = [number for number, one in enumerate(schema.inputs) if one.type_str == result.type_str]
    return same[0] if same and result.is_homogeneous and schema.inputs[same[0]].is_homogeneous else None


@pytest.mark.parametrize("schema", schemas(), ids=lambda schema: f"{schema.name}-{schema.since_version}")
def test_every_operation_that_may_make_an_integer_is_said_to(schema: OpSchema) -> None:
    """Without any of its attributes: when an input has the type of the result, or none tells it."""
    if schema.name in WITH_GRAPHS:
        return
    places = range(max(len(schema.outputs), 1))
    for place in places:
        if not schema.outputs or not integer_types(schema, schema.outputs[place].type_str):
            continue
        source = like(schema, place)
        inputs = [f"in{number}" for number in range(len(schema.inputs))]
        node = NodeProto(op_type=schema.name, domain=schema.domain, input=inputs)
        told = {entry for entry in ("dtype", "to", "value", "output_datatype") if entry in schema.attributes}
        if told:
            for name in told:
                entry = node.attribute.add(name=name)
                if schema.attributes[name].type == OpSchema.AttrType.TENSOR:
                    entry.t.data_type = TensorProto.INT64
                else:
                    entry.i = TensorProto.INT64
            assert onnx_integers.may_result(node, place, lambda name: False), "the attribute is not seen"
        elif schema.name in PARTS:
            assert onnx_integers.may_result(node, place, lambda name: name == "in0")
        elif source is not None:
            assert onnx_integers.may_result(node, place, lambda name: name == f"in{source}")  # noqa: B023
        else:
            assert onnx_integers.may_result(node, place, lambda name: False)
            for kind, type_name in ((onnx_integers.INT32, "tensor(int32)"), (onnx_integers.INT64, "tensor(int64)")):
                if type_name in integer_types(schema, schema.outputs[place].type_str):
                    assert onnx_integers.may_result(node, place, lambda name: False, (kind,)), type_name


def test_what_only_floats_go_into_is_no_integer() -> None:
    """Layer normalisation as exporters write it: no guard stands in the way of ONNX Runtime's fusions."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Pow", ["centred", "two"], ["squares"]),
        helper.make_node("ReduceMean", ["squares"], ["variance"], axes=[-1]),
        helper.make_node("Add", ["variance", "epsilon"], ["safe"]),
        helper.make_node("Sqrt", ["safe"], ["deviation"]),
        helper.make_node("Div", ["centred", "deviation"], ["y"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["sizes"], to=TensorProto.FLOAT),
        helper.make_node("TopK", ["y", "k"], ["largest", "places"]),
    ]
    graph = helper.make_graph(
        nodes,
        "normalised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [
            numpy_helper.from_array(np.float32(2), "two"),
            numpy_helper.from_array(np.float32(1e-5), "epsilon"),
            numpy_helper.from_array(np.int64([3]), "k"),
        ],
    )
    (may_be,) = onnx_integers.of(ModelProto.FromString(helper.make_model(graph).SerializeToString()))
    names = {name for node in nodes for name in (*node.input, *node.output)}
    assert {name for name in names if may_be(name)} == {"k", "shape", "places"}


def test_functions_that_call_each_other_end() -> None:
    """ONNX Runtime refuses such a model; to look at it must end."""
    functions = [
        helper.make_function(
            "local",
            name,
            ["a"],
            ["b"],
            [helper.make_node(other, ["a"], ["b"], domain="local")],
            [helper.make_opsetid("local", 1)],
        )
        for name, other in (("One", "Other"), ("Other", "One"))
    ]
    graph = helper.make_graph(
        [helper.make_node("One", ["x"], ["y"], domain="local")],
        "circle",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])],
    )
    model = helper.make_model(graph, functions=functions)
    whole, one, other = onnx_integers.of(ModelProto.FromString(model.SerializeToString()))
    assert whole("x")
    assert one("a")
    assert other("a")


def test_a_chain_of_functions_that_is_too_long_to_follow_may_hold_integers_everywhere() -> None:
    functions = [
        helper.make_function(
            "local",
            f"F{number}",
            ["a"],
            ["b"],
            [
                helper.make_node(
                    f"F{number + 1}" if number < 99 else "Identity", ["a"], ["b"], domain="local" if number < 99 else ""
                )
            ],
            [helper.make_opsetid("local", 1), helper.make_opsetid("", 17)],
        )
        for number in range(100)
    ]
    graph = helper.make_graph(
        [helper.make_node("F0", ["x"], ["y"], domain="local")],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])],
    )
    model = helper.make_model(graph, functions=functions[::-1])
    assert all(may_be("b") for may_be in onnx_integers.of(ModelProto.FromString(model.SerializeToString()))[1:])
