"""What models of others have that ours have not: each found in a wheel of PyPI that `models add` once refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from bookserve.export import saved_model_contract
from bookserve.export.contracts import from_json
from bookserve.export.converters import trial
from bookserve.export.errors import ExportError


def converted(path: Path, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    job = {"path": str(path), "folder": str(folder), "model": "score", "task": None, "labels": None}
    result: dict[str, Any] = trial.run({**job, "example": None, "trust": False})
    return result


def test_a_tensorflow_1_export_of_examples_tables_and_several_signatures(tmp_path: Path) -> None:
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("a\nthe\n42\n")
    features = {
        "amount": tf.io.FixedLenFeature([2], tf.float32),
        "count": tf.io.FixedLenFeature([], tf.int64, 1),
        "words": tf.io.VarLenFeature(tf.string),
    }
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        examples = tf.compat.v1.placeholder(tf.string, [None])
        parsed = tf.compat.v1.parse_example(examples, features)
        initializer = tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        table = tf.lookup.StaticVocabularyTable(initializer, 2)
        numbers = tf.cast(tf.sparse.to_dense(table.lookup(parsed["words"])), tf.float32)
        total = tf.reduce_sum(parsed["amount"], 1) + tf.cast(parsed["count"], tf.float32) + tf.reduce_sum(numbers, 1)
        session.run(tf.compat.v1.tables_initializer())
        build = tf.compat.v1.saved_model.build_signature_def
        tensor = tf.compat.v1.saved_model.build_tensor_info
        inputs = {"examples": tensor(examples)}
        regress = build(inputs, {"outputs": tensor(total)}, "tensorflow/serving/regress")
        predict = build(inputs, {"total": tensor(total), "double": tensor(2 * total)}, "tensorflow/serving/predict")
        builder = tf.compat.v1.saved_model.Builder(str(tmp_path / "saved"))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {"serving_default": regress, "predict": predict},
            assets_collection=tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.ASSET_FILEPATHS),
            main_op=tf.compat.v1.tables_initializer(),
        )
        builder.save()
    found = {feature.key: feature for feature in saved_model_contract.parsed_features(tmp_path / "saved")}
    assert {key: feature.dtype for key, feature in found.items()} == {
        b"amount": "float32",
        b"count": "int64",
        b"words": "object",
    }
    assert found[b"amount"].shape == (2,)
    result = converted(tmp_path / "saved", tmp_path / "version")
    assert result["rows"] == "the example's"
    assert result["graphs"] == ["saved_model.pb"]
    assert "kept as a SavedModel alone" in result["notes"][0]
    (answer,) = from_json(result["contract"]).example.outputs["outputs"]  # type: ignore[union-attr]
    assert np.isfinite(answer)


def test_a_saved_model_that_only_the_loader_of_tensorflow_1_takes(tmp_path: Path) -> None:
    module = tf.Module()
    module.weight = tf.Variable([[2.0], [3.0]])

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
    def score(x: Any) -> dict[str, Any]:
        return {"y": x @ module.weight}

    module.score = score
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=score)
    file = tmp_path / "saved/saved_model.pb"
    saved = SavedModel.FromString(file.read_bytes())
    nodes = saved.meta_graphs[0].object_graph_def.nodes
    variable = next(number for number, node in enumerate(nodes) if node.HasField("variable"))
    # The optimizers of Keras 2 left such entries, whose class is no longer there.
    nodes[0].slot_variables.add(original_variable_node_id=variable, slot_name="m", slot_variable_node_id=variable)
    file.write_bytes(saved.SerializeToString())
    result = converted(tmp_path / "saved", tmp_path / "version")
    assert "TensorFlow 1's loader does" in result["notes"][0]
    example = from_json(result["contract"]).example
    assert example is not None
    np.testing.assert_allclose(example.outputs["y"], np.array(example.inputs["x"]) @ [[2.0], [3.0]], rtol=1e-5)


def test_an_onnx_graph_with_minus_one_and_a_batch_inside(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["state", "first"], ["s"]), helper.make_node("Add", ["x", "s"], ["y"])]
    made = helper.make_graph(
        nodes,
        "recurrent",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, 3]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, "batch", 3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [-1, 3])],
        [numpy_helper.from_array(np.array(0), "first")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    result = converted(tmp_path / "model.onnx", tmp_path / "version")
    contract = from_json(result["contract"])
    assert [tensor.shape for tensor in contract.inputs] == [(None, 3), (2, None, 3)]
    assert contract.example is not None
    assert np.shape(contract.example.inputs["state"]) == (2, 1, 3)


def test_the_probabilities_of_scikit_learn_in_dictionaries_become_a_table(tmp_path: Path) -> None:
    """What `skl2onnx.to_onnx` writes without options, which the command refused without a remedy."""
    rows = np.random.default_rng(5).normal(size=(60, 3)).astype(np.float32)
    model = LogisticRegression().fit(rows, np.array(["b", "a", "c"])[rows.argmax(1)])
    (tmp_path / "score.onnx").write_bytes(to_onnx(model, rows[:1]).SerializeToString())
    converted(tmp_path / "score.onnx", tmp_path / "made")
    session = onnxruntime.InferenceSession(tmp_path / "made" / "assets.extra" / "model.onnx")
    _, found = session.run(None, {"X": rows})
    np.testing.assert_allclose(found, model.predict_proba(rows), atol=1e-5)
    (tmp_path / "parts.onnx").write_bytes(a_sequence().SerializeToString())
    with pytest.raises(ExportError, match="'y' is no tensor but a sequence: export the graph with a tensor"):
        converted(tmp_path / "parts.onnx", tmp_path / "not made")


def a_sequence() -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("SplitToSequence", ["x"], ["y"])], "parts", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
