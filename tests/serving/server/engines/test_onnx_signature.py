"""What an ONNX graph says of its inputs and outputs: defaults, scalars, ZipMap, bfloat16, what cannot be served."""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.engines.onnx_engine import OnnxEngine
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.server.types.signatures import Signature
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.tensors import to_array
from model_servers import StartServer

FLOAT, BFLOAT16, TEXT, INT = TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.STRING, TensorProto.INT64


def load(folder: Path, model: ModelProto) -> tuple[OnnxEngine, Signature]:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    engine = OnnxEngine(folder / "model.onnx", folder / "saved_model.pb", EngineOptions())
    return engine, engine.signatures["serving_default"]


def graph(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], initializers: Sequence[Any] = ()
) -> ModelProto:
    infos = [
        [helper.make_tensor_value_info(*info) if isinstance(info, tuple) else info for info in side]
        for side in (inputs, outputs)
    ]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(
        helper.make_graph(nodes, "g", *infos, list(initializers)), opset_imports=opsets, ir_version=10
    )


def scaled(factor: np.ndarray) -> ModelProto:
    """y = x * k, where k has a default."""
    return graph(
        [helper.make_node("Mul", ["x", "k"], ["y"])],
        [("x", FLOAT, ["N"]), ("k", FLOAT, [None] if factor.ndim else [])],
        [("y", FLOAT, ["N"])],
        [numpy_helper.from_array(factor, "k")],
    )


def test_an_input_with_a_default_may_be_left_out(tmp_path: Path) -> None:
    engine, signature = load(tmp_path, scaled(np.float32([2.5])))
    assert signature.may_be_omitted == {"k"}
    assert to_array(signature.definition.defaults["k"]).tolist() == [2.5]
    x = np.float32([1, 2])
    assert engine.run(signature, signature.complete({"x": x}), ["y"])[0].tolist() == [2.5, 5]
    assert engine.run(signature, signature.complete({"x": x, "k": np.float32([5])}), ["y"])[0].tolist() == [5, 10]
    with pytest.raises(ServingError, match="input alias: x"):
        signature.complete({"k": x})
    with pytest.raises(ServingError, match=r"Expects arg\[0\] to be float but int64 is provided: input 'k'"):
        signature.complete({"x": x, "k": np.int64([1])})


def test_weights_that_an_old_exporter_lists_as_inputs_are_none(tmp_path: Path) -> None:
    _, signature = load(tmp_path, scaled(np.ones(20_000, np.float32)))
    assert list(signature.inputs) == ["x"]


@pytest.mark.parametrize(("ir_version", "size"), [(3, 1), (8, 20_000)], ids=["before defaults", "too large for one"])
def test_a_weight_that_is_listed_as_an_input_is_not_sent_in_vain(
    tmp_path: Path, start_server: StartServer, ir_version: int, size: int
) -> None:
    """REST's columns pass over inputs that are unknown, as in TensorFlow Serving; the answer was made without it."""
    model = scaled(np.full(size, 2, np.float32))
    model.ir_version, model.opset_import[0].version = ir_version, 8
    (tmp_path / "m/1").mkdir(parents=True)
    load(tmp_path / "m/1", model)
    server = start_server(f"--model_root={tmp_path}", "--file_system_poll_wait_seconds=0")

    def ask(**inputs: list[float]) -> tuple[int, str]:
        request = urllib.request.Request(f"{server.url}/v1/models/m:predict", json.dumps({"inputs": inputs}).encode())
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    x = [1.0] * size
    assert ask(x=x)[0] == ask(x=x, other=x)[0] == 200
    code, answer = ask(x=x, k=[5.0] * size)
    assert code == 400
    assert "input 'k' is a constant of the graph, which no request can set" in answer


def test_scalars_have_a_shape_and_unknown_ranks_have_none(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["u"], ["v"])]
    _, signature = load(
        tmp_path, graph(nodes, [("x", FLOAT, []), ("u", FLOAT, None)], [("y", FLOAT, []), ("v", FLOAT, None)])
    )
    for infos, scalar, free in (
        (signature.definition.inputs, "x", "u"),
        (signature.definition.outputs, "y", "v"),
    ):
        assert infos[scalar].HasField("tensor_shape")
        assert not infos[scalar].tensor_shape.unknown_rank
        assert infos[free].tensor_shape.unknown_rank
    assert (signature.inputs["x"].shape, signature.inputs["u"].shape) == ((), None)


@pytest.mark.parametrize("labels", [{"classlabels_int64s": [3, 7]}, {"classlabels_strings": ["chat", "été"]}])
def test_the_dictionaries_of_a_zip_map_are_a_tensor(tmp_path: Path, labels: dict[str, list[Any]]) -> None:
    kind = INT if "classlabels_int64s" in labels else TEXT
    dictionaries = helper.make_value_info(
        "probabilities",
        helper.make_sequence_type_proto(helper.make_map_type_proto(kind, helper.make_tensor_type_proto(FLOAT, None))),
    )
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"], axis=1),
        helper.make_node("ZipMap", ["p"], ["probabilities"], domain="ai.onnx.ml", **labels),
    ]
    engine, signature = load(tmp_path, graph(nodes, [("x", FLOAT, ["N", 2])], [dictionaries]))
    assert engine.labels == {"probabilities": tuple(map(str, *labels.values()))}
    assert signature.outputs["probabilities"].shape == (None, 2)
    (answer,) = engine.run(signature, {"x": np.log(np.float32([[1, 3], [1, 1]]))}, ["probabilities"])
    np.testing.assert_allclose(answer, [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6)
    assert not engine.doubts  # its rows are independent
    rows = np.random.default_rng(5).normal(size=(6, 2)).astype(np.float32)
    (together,) = engine.run(signature, {"x": rows}, ["probabilities"])
    apart = [engine.run(signature, {"x": rows[place : place + 1]}, ["probabilities"])[0] for place in range(len(rows))]
    np.testing.assert_array_equal(together, np.concatenate(apart))


def test_bfloat16_goes_in_and_comes_out_beside_other_types(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=FLOAT),
        helper.make_node("Add", ["wide", "bias"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=BFLOAT16),
        helper.make_node("Cast", ["sum"], ["text"], to=TEXT),
    ]
    model = graph(
        nodes,
        [("x", BFLOAT16, ["N", 2]), ("bias", FLOAT, [2])],
        [("y", BFLOAT16, ["N", 2]), ("sum", FLOAT, ["N", 2]), ("text", TEXT, ["N", 2])],
    )
    engine, signature = load(tmp_path, model)
    x = np.array([[1.5, -2], [3.140625, 0]], ml_dtypes.bfloat16)
    y, total, text = engine.run(signature, {"x": x, "bias": np.float32([1, 0.5])}, ["y", "sum", "text"])
    expected = x.astype(np.float32) + np.float32([1, 0.5])
    np.testing.assert_array_equal(total, expected)
    np.testing.assert_array_equal(y, expected.astype(ml_dtypes.bfloat16))
    assert y.dtype == ml_dtypes.bfloat16
    assert text[0].tolist() == [b"2.5", b"-1.5"]


@pytest.mark.parametrize("operation", ["MatMul", "Add", "Relu", "Softmax"])
def test_arithmetic_in_bfloat16_is_done_in_float32_where_there_is_none(tmp_path: Path, operation: str) -> None:
    taken = ["x"] if operation in ("Relu", "Softmax") else ["x", "x"]
    model = graph([helper.make_node(operation, taken, ["y"])], [("x", BFLOAT16, [1, 1, 2, 2])], [("y", BFLOAT16, None)])
    engine, signature = load(tmp_path, model)
    x = np.array([[[[1.5, -2], [3.140625, 0.25]]]], ml_dtypes.bfloat16)
    (y,) = engine.run(signature, {"x": x}, ["y"])
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x.astype(np.float32)})
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y, expected.astype(ml_dtypes.bfloat16))


def test_bfloat16_inputs_and_outputs_stay_so_where_it_is_computed_in_float32(tmp_path: Path) -> None:
    weights = np.random.default_rng(1).standard_normal((4, 3)).astype(ml_dtypes.bfloat16)
    model = graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Add", ["y", "y"], ["twice"]),
            helper.make_node("Relu", ["twice"], ["z"]),
        ],
        [("x", BFLOAT16, ["N", 4])],
        [("y", BFLOAT16, ["N", 3]), ("z", BFLOAT16, ["N", 3]), ("w", BFLOAT16, [4, 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    engine, signature = load(tmp_path, model)
    x = np.random.default_rng(2).standard_normal((9, 4)).astype(ml_dtypes.bfloat16)
    y, z, w = engine.run(signature, {"x": x}, ["y", "z", "w"])
    exact = x.astype(np.float32) @ weights.astype(np.float32)
    assert {array.dtype for array in (y, z, w)} == {np.dtype(ml_dtypes.bfloat16)}
    np.testing.assert_array_equal(w, weights)
    np.testing.assert_allclose(y.astype(np.float32), exact, rtol=2**-8)
    np.testing.assert_allclose(z.astype(np.float32), np.maximum(2 * exact, 0), rtol=2**-8)


def test_what_is_no_tensor_is_refused_with_what_to_do(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("y", FLOAT, None)
    model = graph([helper.make_node("SequenceConstruct", ["x"], ["y"])], [("x", FLOAT, ["N"])], [sequence])
    with pytest.raises(
        ServingError, match=r"'y' is a seq\(tensor\(float\)\).*Export the graph with a tensor"
    ) as caught:
        load(tmp_path, model)
    assert caught.value.code == tensorflow_error_pb2.FAILED_PRECONDITION


def test_operations_of_ones_own_are_missed_with_the_flag_that_brings_them(tmp_path: Path) -> None:
    node = helper.make_node("Shout", ["x"], ["y"], domain="my.company")
    model = graph([node], [("x", FLOAT, ["N"])], [("y", FLOAT, ["N"])])
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    with pytest.raises(ServingError, match="--custom_op_libraries"):
        load(tmp_path, model)
