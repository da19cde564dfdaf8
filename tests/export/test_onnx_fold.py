"""Convolutions that take over what stands behind them, and those that must not."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bookserve.export import onnx_fold

CHANCE = np.random.default_rng(0)
X = CHANCE.standard_normal((3, 4, 9, 9), np.float32)
SCALE = np.linspace(0.5, 2.0, 6, dtype=np.float32).reshape(1, 6, 1, 1)
WEIGHTS = CHANCE.standard_normal((6, 4, 3, 3), np.float32)
Line = tuple[str, ...]
POOLED: list[Line] = [("Conv", "x", "w", "c"), ("MaxPool", "c", "p"), ("Mul", "p", "s", "m"), ("Add", "b", "m", "y")]


def model(
    lines: list[Line],
    *,
    side: int | str = 9,
    scale: np.ndarray = SCALE,
    pooling: dict[str, object] | None = None,
    convolution: dict[str, object] | None = None,
) -> onnx.ModelProto:
    """A graph from x [n, 4, side, side] to y of lines (operation, inputs ..., output)."""
    values = {"w": WEIGHTS, "v": WEIGHTS[:, :, :1, :1], "s": scale, "b": SCALE - 1, "c0": np.float32([3.0] * 6)}
    forms: dict[str, dict[str, object]] = {
        "Conv": {"pads": [1, 1, 1, 1], **(convolution or {})},
        "MaxPool": {"kernel_shape": [2, 2], "strides": [2, 2], **(pooling or {})},
    }
    nodes = [helper.make_node(kind, list(names[:-1]), [names[-1]], **forms.get(kind, {})) for kind, *names in lines]
    used = {name for line in lines for name in line[1:-1]}
    constants = [numpy_helper.from_array(value, name) for name, value in values.items() if name in used]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(made: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": X})[0])


def folded(made: onnx.ModelProto) -> list[str]:
    """Fold a graph that answers the same afterwards; returns its operations."""
    before = run(made)
    done = onnx_fold.fold(made)
    onnx.checker.check_model(made, full_check=True)
    np.testing.assert_allclose(run(made), before, rtol=0, atol=1e-5)
    assert bool(done) == (done > 0)
    return [node.op_type for node in made.graph.node]


def pads(made: onnx.ModelProto) -> list[int]:
    convolution = next(node for node in made.graph.node if node.op_type == "Conv")
    return next(list(one.ints) for one in convolution.attribute if one.name == "pads")


def test_scale_and_shift_behind_a_pooling_go_into_the_convolution() -> None:
    made = model(POOLED)
    assert folded(made) == ["Conv", "MaxPool"]
    assert len(made.graph.initializer) == 2
    with_bias = model([("Conv", "x", "w", "c0", "c"), *POOLED[1:]])
    assert folded(with_bias) == ["Conv", "MaxPool"]


def test_convolutions_of_the_same_weights_share_what_becomes_of_them() -> None:
    twice = [("Conv", "x", "w", "d"), ("MaxPool", "d", "q"), ("Mul", "q", "s", "o"), ("Add", "b", "o", "z")]
    made = model([*POOLED[:-1], ("Add", "b", "m", "y0"), *twice, ("Sub", "y0", "z", "y")])
    assert folded(made) == ["Conv", "MaxPool", "Conv", "MaxPool", "Sub"]
    assert len(made.graph.initializer) == 2


def test_a_scale_below_zero_stays_behind_a_pooling_and_goes_without_one() -> None:
    negative = SCALE * np.float32([1, 1, -1, 1, 1, 1]).reshape(1, 6, 1, 1)
    assert folded(model(POOLED, scale=negative)) == ["Conv", "MaxPool", "Mul", "Add"]
    alone = [("Conv", "x", "w", "p"), *POOLED[2:]]
    assert folded(model(alone, scale=negative)) == ["Conv"]


@pytest.mark.parametrize(
    "lines",
    [
        [*POOLED[:2], ("Mul", "p", "s", "m"), ("Add", "p", "m", "y")],  # the pooling is asked for twice
        [*POOLED[:2], ("Relu", "p", "r"), ("Mul", "r", "s", "y")],
        [("MaxPool", "x", "p"), ("Conv", "p", "w", "c"), ("AveragePool", "c", "a"), ("Mul", "a", "s", "y")],
    ],
)
def test_what_something_else_needs_stays(lines: list[Line]) -> None:
    made = model([line if line[0] != "AveragePool" else ("Relu", *line[1:]) for line in lines])
    assert "Mul" in folded(made)


def test_a_constant_of_more_than_a_number_a_channel_stays() -> None:
    wide = np.abs(CHANCE.standard_normal((1, 6, 4, 4), np.float32)) + np.float32(0.1)
    assert folded(model(POOLED, scale=wide))[:3] == ["Conv", "MaxPool", "Mul"]


def test_what_a_pooling_leaves_out_is_not_computed() -> None:
    made = model([("Conv", "x", "w", "c"), ("MaxPool", "c", "y")])
    folded(made)
    assert pads(made) == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("pooling", "convolution", "side", "expected"),
    [
        ({"kernel_shape": [3, 3]}, {}, 9, [1, 1, 1, 1]),  # windows to the end
        ({"ceil_mode": 1}, {}, 9, [1, 1, 1, 1]),
        ({"pads": [0, 0, 1, 1]}, {}, 9, [1, 1, 1, 1]),
        ({}, {}, "side", [1, 1, 1, 1]),  # the size is not known
        ({}, {"pads": [0, 0, 0, 0]}, 9, [0, 0, 0, 0]),  # nothing to take; 7 x 7
        ({"strides": [4, 4]}, {"pads": [1, 1, 3, 3]}, 9, [1, 1, 2, 2]),  # 11 x 11, 10 x 10 are needed
        ({}, {"pads": [1, 1, 2, 2], "strides": [2, 2]}, 9, [1, 1, 0, 0]),  # 5 x 5, 4 x 4 are needed
    ],
)
def test_only_as_much_as_is_left_out_goes(
    pooling: dict[str, object], convolution: dict[str, object], side: int | str, expected: list[int]
) -> None:
    made = model([("Conv", "x", "w", "c"), ("MaxPool", "c", "y")], side=side, pooling=pooling, convolution=convolution)
    folded(made)
    assert pads(made) == expected


def test_rows_that_others_need_are_computed() -> None:
    made = model([("Conv", "x", "w", "c"), ("MaxPool", "c", "p"), ("ReduceMax", "c", "r"), ("Add", "p", "r", "y")])
    folded(made)
    assert pads(made) == [1, 1, 1, 1]
