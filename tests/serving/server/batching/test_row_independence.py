"""Which signatures a version shows to have independent rows, with small ONNX graphs."""

from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bookserve.serving.server.batching import row_independence
from bookserve.serving.server.engines import choose
from bookserve.serving.server.engines.engine import EngineOptions
from model_servers import write_graph


@pytest.mark.parametrize(
    ("nodes", "dtype", "shape", "expected"),
    [
        ([helper.make_node("Mul", ["x", "two"], ["y"])], TensorProto.FLOAT, ["n", 3], True),
        ([helper.make_node("Softmax", ["x"], ["y"], axis=1)], TensorProto.FLOAT, ["n", "t"], True),
        ([helper.make_node("Softmax", ["x"], ["y"], axis=0)], TensorProto.FLOAT, ["n", 3], False),
        (
            [
                helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1),
                helper.make_node("Sub", ["x", "mean"], ["y"]),
            ],
            TensorProto.FLOAT,
            ["n", 3],
            False,
        ),
        ([helper.make_node("CumSum", ["x", "zero"], ["y"])], TensorProto.INT32, ["n", 3], False),
        ([helper.make_node("Abs", ["x"], ["y"])], TensorProto.UINT8, ["n", 4, 4], True),
        ([helper.make_node("Abs", ["x"], ["y"])], TensorProto.FLOAT, [2, 3], False),
    ],
    ids=["scale", "softmax", "softmax over rows", "less the mean", "running sum", "bytes", "fixed rows"],
)
def test_rows_show_whether_they_are_independent(
    tmp_path: Path, nodes: list[NodeProto], dtype: int, shape: list[str | int], expected: bool
) -> None:
    graph = helper.make_graph(
        nodes,
        "rows",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
        [
            numpy_helper.from_array(np.float32(2), "two"),
            numpy_helper.from_array(np.int32(0), "zero"),
            numpy_helper.from_array(np.array([0], np.int64), "axis"),
        ],
    )
    engine = choose.load(write_graph(tmp_path / "rows", 1, graph), EngineOptions())
    assert row_independence.independent(engine) == ({"serving_default"} if expected else set())
