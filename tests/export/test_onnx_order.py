import copy
import random

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bookserve.export import onnx_order

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def branch(name: str, factor: str, inner: str) -> onnx.GraphProto:
    """The outer value `scaled` times an outer or an own constant."""
    own = [numpy_helper.from_array(np.float32([7]), factor)] if factor.startswith("own") else []
    node = helper.make_node("Mul", ["scaled", factor], [inner])
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(inner, TensorProto.FLOAT, ["n", 3])], own)


def graph(number: int) -> onnx.ModelProto:
    """`y` = 3x - 7, or 14x where the sum of x is above 100, and `flag`, that sum above 100; names and order differ."""
    tag = str(number)
    nodes = [
        helper.make_node("Mul", ["x", f"two{tag}"], ["scaled"], name=f"mul{tag}"),
        helper.make_node("ReduceSum", ["x"], [f"sum{tag}"], keepdims=0, name=f"sum{tag}"),
        helper.make_node("Greater", [f"sum{tag}", f"limit{tag}"], ["flag"], name=f"greater{tag}"),
        helper.make_node(
            "If",
            ["flag"],
            [f"chosen{tag}"],
            name=f"if{tag}",
            then_branch=branch(f"then{tag}", f"own{tag}", f"a{tag}"),
            else_branch=branch(f"else{tag}", f"half{tag}", f"b{tag}"),
        ),
        helper.make_node("Add", [f"chosen{tag}", f"shift{tag}"], ["y"], name=f"add{tag}"),
        helper.make_node("Neg", ["x"], [f"nobody{tag}"], name=f"neg{tag}"),  # which no output needs
    ]
    constants = {"two": 2, "limit": 100, "half": 1.5, "shift": 0}
    initializers = [numpy_helper.from_array(np.float32(value), f"{name}{tag}") for name, value in constants.items()]
    chance = random.Random(number)
    chance.shuffle(nodes)
    chance.shuffle(initializers)
    for node in nodes:
        attributes = list(node.attribute)
        chance.shuffle(attributes)
        copies = [copy.deepcopy(one) for one in attributes]
        del node.attribute[:]
        node.attribute.extend(copies)
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        initializers,
        value_info=[helper.make_tensor_value_info("scaled", TensorProto.FLOAT, ["n", 3])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(made, opset_imports=opsets[:: -1 if number % 2 else 1], ir_version=8)


@pytest.fixture(scope="module")
def rewritten() -> list[onnx.ModelProto]:
    models = [graph(number) for number in range(5)]
    for model in models:
        onnx_order.rewrite(model)
    return models


def test_graphs_that_differ_by_names_and_order_become_the_same_bytes(rewritten: list[onnx.ModelProto]) -> None:
    assert len({graph(number).SerializeToString() for number in range(5)}) == 5
    assert len({model.SerializeToString(deterministic=True) for model in rewritten}) == 1


@pytest.mark.parametrize(("x", "y"), [(X, 3 * X), (X + 20, 14 * (X + 20))], ids=["else", "then"])
def test_the_graph_computes_what_it_did(rewritten: list[onnx.ModelProto], x: np.ndarray, y: np.ndarray) -> None:
    onnx.checker.check_model(rewritten[0], full_check=True)
    found, flag = onnxruntime.InferenceSession(rewritten[0].SerializeToString()).run(["y", "flag"], {"x": x})
    np.testing.assert_allclose(found, y)
    assert bool(flag) == (x.sum() > 100)


def test_nodes_are_called_by_operation_and_place_and_inputs_and_outputs_as_before(
    rewritten: list[onnx.ModelProto],
) -> None:
    model = rewritten[0].graph
    assert [node.name for node in model.node] == ["ReduceSum_0", "Greater_0", "Mul_0", "If_0", "Add_0"]
    assert {tensor.name for tensor in model.initializer} == {"Mul_0/1", "Greater_0/1", "If_0/2", "Add_0/1"}
    assert [value.name for value in model.value_info] == ["Mul_0:0"]
    assert [value.name for value in (*model.input, *model.output)] == ["x", "y", "flag"]


def test_an_output_that_is_an_input_or_a_constant_stays() -> None:
    both = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "c")]
    model = helper.make_model(helper.make_graph([], "g", both[:1], both, [numpy_helper.from_array(X[0, :1], "c")]))
    onnx_order.rewrite(model)
    assert [value.name for value in model.graph.output] == ["x", "c"]
    assert [tensor.name for tensor in model.graph.initializer] == ["c"]
