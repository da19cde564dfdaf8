"""What a graph says of its inputs' tables and of its outputs."""

import numpy as np
import onnx
import pytest

from bookserve.export import onnx_contract


def graph(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18, "ai.onnx.ml" : 3]> {text}')


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("y = Sigmoid(x)", {"y"}),
        ("s = Softmax(x) y = Identity(s)", {"y"}),
        ("y = Softmax<axis=1>(x)", {"y"}),
        ("y = Softmax<axis=0>(x)", set()),
        ("s = Sigmoid(x) y = Mul(s, x)", set()),
        ("y = Relu(x)", set()),
    ],
)
def test_outputs_of_sigmoid_and_softmax_are_probabilities(nodes: str, expected: set[str]) -> None:
    assert onnx_contract.probabilities(graph(f"g (float[n, 3] x) => (float[n, 3] y) {{ {nodes} }}")) == expected


def test_inputs_that_are_looked_up_have_the_keys_of_their_table() -> None:
    made = graph(
        """g (string[n, 1] city, int64[n, 1] code, int64[n, 2] word, float[n, 1] age)
        => (float[n, 1] a, float[n, 1, 2] b, float[n, 2, 4] c, float[n, 1] d)
        {
            a = ai.onnx.ml.LabelEncoder<keys_strings=["Bern", "Chur"], values_floats=[1.0, 2.0]>(city)
            same = Identity(code)
            b = ai.onnx.ml.OneHotEncoder<cats_int64s=[8001, 3011]>(same)
            c = Gather(table, word)
            d = Identity(age)
        }"""
    )
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((9, 4), np.float32), "table"))
    assert onnx_contract.tables(made) == {"city": (b"Bern", b"Chur"), "code": (8001, 3011), "word": 9}
