"""GELU in the forms of the exporters, and what only looks like it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bookserve.export import onnx_gelu

X = np.linspace(-4, 4, 24, dtype=np.float32).reshape(2, 3, 4)
TANH, CUBE, ROOT = 0.7978845608, 0.044715, 1.4142135
Line = tuple[str, ...]

TRANSPOSED: list[Line] = [  # of tf2onnx, whose convolutions have channels first and all else channels last
    ("Mul", "x", "scale", "s"),
    ("Transpose", "s", "t"),
    ("Pow", "t", "three", "p"),
    ("Mul", "cube", "p", "c"),
    ("Transpose", "c", "b"),
    ("Add", "s", "b", "a"),
    ("Mul", "tanh", "a", "u"),
    ("Tanh", "u", "g"),
    ("Add", "one", "g", "q"),
    ("Mul", "half", "s", "h"),
    ("Mul", "h", "q", "y"),
]
POW: list[Line] = [
    ("Pow", "x", "three", "p"),
    ("Mul", "p", "cube", "c"),
    ("Add", "x", "c", "a"),
    ("Mul", "a", "tanh", "u"),
    ("Tanh", "u", "g"),
    ("Add", "g", "one", "q"),
    ("Mul", "x", "q", "r"),
    ("Mul", "r", "half", "y"),
]
SQUARE: list[Line] = [
    ("Mul", "x", "cube", "c"),
    ("Mul", "c", "x", "d"),
    ("Add", "one", "d", "e"),
    ("Mul", "x", "tanh", "m"),
    ("Mul", "m", "e", "u"),
    ("Tanh", "u", "g"),
    ("Add", "g", "one", "q"),
    ("Mul", "q", "half", "r"),
    ("Mul", "x", "r", "y"),
]
ERF: list[Line] = [
    ("Div", "x", "root", "d"),
    ("Erf", "d", "g"),
    ("Add", "g", "one", "q"),
    ("Mul", "x", "q", "r"),
    ("Mul", "half", "r", "y"),
]
ERFC: list[Line] = [  # of tf.nn.gelu
    ("Mul", "half", "x", "h"),
    ("Neg", "x", "n"),
    ("Mul", "n", "inverse", "d"),
    ("Erf", "d", "g"),
    ("Sub", "one", "g", "q"),
    ("Mul", "h", "q", "y"),
]
FORMS = {"transposed": TRANSPOSED, "pow": POW, "square": SQUARE, "erf": ERF, "erfc": ERFC}


def model(lines: list[Line], opset: int = 18, **changed: float) -> onnx.ModelProto:
    """A graph from x [n, 3, 4] to y of lines (operation, inputs ..., output)."""
    values = {
        "half": 0.5,
        "one": 1,
        "three": 3,
        "cube": CUBE,
        "tanh": TANH,
        "root": ROOT,
        "inverse": 1 / ROOT,
        **changed,
    }
    values |= changed
    constants = [numpy_helper.from_array(np.float32(value), name) for name, value in values.items()]
    constants.append(numpy_helper.from_array(np.float32([1, 2, 3, 4]), "scale"))
    nodes = [
        helper.make_node(kind, list(names[:-1]), [names[-1]], **({"perm": [0, 2, 1]} if kind == "Transpose" else {}))
        for kind, *names in lines
    ]
    used = {name for line in lines for name in line[1:-1]}
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], [one for one in constants if one.name in used])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(made: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": X})[0])


@pytest.mark.parametrize("form", FORMS)
def test_gelu_becomes_one_node_that_answers_as_before(form: str) -> None:
    made = model(FORMS[form])
    before = run(made)
    assert onnx_gelu.fuse(made) == 1
    onnx.checker.check_model(made, full_check=True)
    kinds = [node.op_type for node in made.graph.node]
    assert kinds == (["Mul", "Gelu"] if form == "transposed" else ["Gelu"])
    assert {one.name for one in made.graph.initializer} == ({"scale"} if form == "transposed" else set())
    np.testing.assert_allclose(run(made), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "changed"),
    [
        ("pow", {"cube": 0.05}),
        ("pow", {"three": 2}),
        ("square", {"half": 1}),
        ("erf", {"root": 1.5}),
        ("erf", {"one": 2}),
        ("erfc", {"inverse": -1 / ROOT}),
        ("erfc", {"one": 2}),
    ],
)
def test_what_computes_something_else_stays(form: str, changed: dict[str, float]) -> None:
    made = model(FORMS[form], **changed)
    before = made.SerializeToString(deterministic=True)
    assert onnx_gelu.fuse(made) == 0
    assert made.SerializeToString(deterministic=True) == before


def test_a_cube_that_is_not_transposed_back_stays() -> None:
    made = model(TRANSPOSED)
    back = next(node for node in made.graph.node if node.output[0] == "b")
    back.attribute[0].ints[:] = [0, 1, 2]
    assert onnx_gelu.fuse(made) == 0


def test_what_others_take_of_a_gelu_stays() -> None:
    made = model([*ERF[:-1], ("Mul", "half", "r", "z"), ("Add", "z", "g", "y")])
    before = run(made)
    assert onnx_gelu.fuse(made) == 1
    assert sorted(node.op_type for node in made.graph.node) == ["Add", "Div", "Erf", "Gelu"]
    np.testing.assert_allclose(run(made), before, rtol=0, atol=1e-6)


def test_a_graph_of_an_older_opset_stays() -> None:
    assert onnx_gelu.fuse(model(ERF, opset=17)) == 0
