"""bfloat16 graphs made float32: ONNX Runtime on what came of them, beside onnx's own evaluator on what they were."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bookserve.serving.wire import wide_bfloat16

FLOAT, BFLOAT16, BOOL, INT = TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.BOOL, TensorProto.INT64
STEP = 2.0**-8  # of a value, to the next bfloat16
node, info = helper.make_node, helper.make_tensor_value_info


def weights(name: str, *shape: int) -> TensorProto:
    chance = np.random.default_rng(len(name))
    return numpy_helper.from_array(chance.standard_normal(shape).astype(ml_dtypes.bfloat16), name)


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], held: list[Any], **more: Any) -> ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **more)


def answers(made: ModelProto, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The only output, float32: of the evaluator, which rounds after each node, and of the widened graph."""
    onnx.checker.check_model(made)
    (expected,) = ReferenceEvaluator(made).run(None, feeds)
    wide = wide_bfloat16.widened(made.SerializeToString())
    assert wide is not None
    (answer,) = onnxruntime.InferenceSession(wide).run(None, feeds)
    return np.asarray(expected, np.float32), answer


def near(expected: np.ndarray, answer: np.ndarray, roundings: int) -> None:
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, expected, rtol=0, atol=roundings * STEP * np.abs(expected).max())
    assert np.ptp(expected) > 0


def test_a_network_of_convolutions_answers_as_before() -> None:
    nodes = [
        node("Cast", ["x"], ["low"], to=BFLOAT16),
        node("Conv", ["low", "filters", "shift"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p"], ["flat"]),
        node("Gemm", ["flat", "w", "shift"], ["g"], alpha=0.125),
        node("Softmax", ["g"], ["s"]),
        node("Cast", ["s"], ["y"], to=FLOAT),
    ]
    held = [weights("filters", 5, 3, 3, 3), weights("shift", 5), weights("w", 5 * 8 * 8, 5)]
    made = model(nodes, [info("x", FLOAT, ["n", 3, 16, 16])], [info("y", FLOAT, ["n", 5])], held)
    made.graph.value_info.append(info("c", BFLOAT16, ["n", 5, 16, 16]))
    near(*answers(made, {"x": np.random.default_rng(0).random((7, 3, 16, 16), np.float32)}), roundings=16)


def test_branches_and_loops_take_what_is_around_them() -> None:
    then = helper.make_graph([node("Mul", ["low", "w"], ["a"])], "then", [], [info("a", BFLOAT16, None)])
    other = helper.make_graph([node("Sub", ["low", "v"], ["b"])], "else", [], [info("b", BFLOAT16, None)],
                              [weights("v", 6)])  # fmt: skip
    body = helper.make_graph(
        [node("Add", ["state", "w"], ["next"]), node("Identity", ["go"], ["on"])],
        "body",
        [info("turn", INT, []), info("go", BOOL, []), info("state", BFLOAT16, None)],
        [info("on", BOOL, []), info("next", BFLOAT16, None)],
    )
    nodes = [
        node("Cast", ["x"], ["low"], to=BFLOAT16),
        node("If", ["yes"], ["chosen"], then_branch=then, else_branch=other),
        node("Loop", ["turns", "true", "chosen"], ["last"], body=body),
        node("Cast", ["last"], ["y"], to=FLOAT),
    ]
    inputs = [info("x", FLOAT, ["n", 6]), info("yes", BOOL, [])]
    turns, true = numpy_helper.from_array(np.int64(3), "turns"), numpy_helper.from_array(np.array(True), "true")
    made = model(nodes, inputs, [info("y", FLOAT, ["n", 6])], [weights("w", 6), turns, true])
    x = np.random.default_rng(2).standard_normal((5, 6)).astype(np.float32)
    for yes in (True, False):
        near(*answers(made, {"x": x, "yes": np.array(yes)}), roundings=5)


def test_constants_random_types_and_functions() -> None:
    filled = helper.make_tensor("value", BFLOAT16, [1], [0.75])
    inner = [
        node("Constant", [], ["half"], value=numpy_helper.from_array(np.array(0.5, ml_dtypes.bfloat16))),
        node("Cast", ["inside"], ["low"], to=BFLOAT16),
        node("Mul", ["low", "half"], ["halved"]),
    ]
    halve = helper.make_function("own", "Halve", ["inside"], ["halved"], inner, [helper.make_opsetid("", 22)])
    nodes = [
        node("Constant", [], ["c"], value=weights("c", 4)),
        node("Shape", ["x"], ["shape"]),
        node("ConstantOfShape", ["shape"], ["level"], value=filled),
        node("Halve", ["x"], ["halves"], domain="own"),
        node("Add", ["halves", "c"], ["sum"]),
        node("Sub", ["sum", "level"], ["less"]),
        node("EyeLike", ["less"], ["eye"], dtype=BFLOAT16),
        node("Add", ["less", "eye"], ["all"]),
        node("Cast", ["all"], ["y"], to=FLOAT),
    ]
    made = model(nodes, [info("x", FLOAT, ["n", 4])], [info("y", FLOAT, ["n", 4])], [], functions=[halve])
    near(*answers(made, {"x": np.random.default_rng(3).standard_normal((4, 4)).astype(np.float32)}), roundings=5)


def test_weights_beside_the_file_stay_there(tmp_path: Path) -> None:
    nodes = [
        node("Cast", ["x"], ["low"], to=BFLOAT16),
        node("MatMul", ["low", "w"], ["m"]),
        node("Cast", ["m"], ["y"], to=FLOAT),
    ]
    made = model(nodes, [info("x", FLOAT, ["n", 512])], [info("y", FLOAT, ["n", 64])], [weights("w", 512, 64)])
    x = np.random.default_rng(4).standard_normal((3, 512)).astype(np.float32)
    expected, _ = answers(made, {"x": x})
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    wide = wide_bfloat16.widened((tmp_path / "m.onnx").read_bytes())
    assert wide is not None
    assert len(wide) < 2_000
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    (answer,) = onnxruntime.InferenceSession(wide, options).run(None, {"x": x})
    near(expected, answer, roundings=2)


def test_a_default_of_an_input_may_still_be_given_or_left_out() -> None:
    nodes = [
        node("Cast", ["x"], ["low"], to=BFLOAT16),
        node("Mul", ["low", "w"], ["m"]),
        node("Cast", ["m"], ["y"], to=FLOAT),
    ]
    inputs = [info("x", FLOAT, ["n", 4]), info("w", BFLOAT16, [4])]
    made = model(nodes, inputs, [info("y", FLOAT, ["n", 4])], [weights("w", 4)])
    near(*answers(made, {"x": np.random.default_rng(5).standard_normal((4, 4)).astype(np.float32)}), roundings=3)


def test_a_lack_is_known_by_the_words_of_processors_and_of_gpus() -> None:
    made = model([node("Relu", ["x"], ["y"])], [info("x", BFLOAT16, ["n"])], [info("y", BFLOAT16, ["n"])], [])
    with pytest.raises(Exception, match="Relu") as caught:
        onnxruntime.InferenceSession(made.SerializeToString())
    assert wide_bfloat16.is_lack(caught.value)
    # onnxruntime-gpu 1.31.1, of a graph with bfloat16 for which CUDA has no kernel
    told = "node_provider_type.empty() was false. Provider type for MaxPool node with name '' is not set."
    assert wide_bfloat16.is_lack(RuntimeError(told))
    with pytest.raises(Exception, match="protobuf") as caught:
        onnxruntime.InferenceSession(b"no graph")
    assert not wide_bfloat16.is_lack(caught.value)


def test_what_has_no_bfloat16_is_left_alone() -> None:
    made = model([node("Relu", ["x"], ["y"])], [info("x", FLOAT, ["n"])], [info("y", FLOAT, ["n"])], [])
    assert wide_bfloat16.widened(made.SerializeToString()) is None
    with pytest.raises(DecodeError):
        wide_bfloat16.widened(b"no graph")
