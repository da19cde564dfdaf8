"""Small models whose requests can go wrong in the ways that native engines know, for the fuzz tests.

ONNX graphs by the onnx package alone; LiteRT files and SavedModels need TensorFlow, which takes seconds to import.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_servers import write_echo_model, write_graph

F, I32, I64, S = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.STRING
_ML = "ai.onnx.ml"
_HIDDEN, _FEATURES = 4, 3
SCALARS = {
    TensorProto.DataType.Name(number): number
    for number in (F, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL, S, *range(2, 8), 12, 13)
}  # 2 to 7, 12 and 13 are the integers


def write_onnx_models(root: Path) -> None:
    """Each as version 1 of a model of its own."""
    random = np.random.default_rng(0).random
    for name, gates in (("lstm", 4), ("gru", 3), ("rnn", 1)):
        weights = [
            numpy_helper.from_array(random((1, gates * _HIDDEN, size), np.float32), key)
            for key, size in (("w", _FEATURES), ("r", _HIDDEN))
        ]
        node = helper.make_node(name.upper(), ["x", "w", "r", "", "lengths"], ["y"], hidden_size=_HIDDEN)
        _write(
            root / name,
            [node],
            {"x": (F, ["steps", "rows", _FEATURES]), "lengths": (I32, ["rows"])},
            {"y": (F, ["steps", 1, "rows", _HIDDEN])},
            weights,
        )
    _write(
        root / "pair",
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Concat", ["a", "b"], ["both"], axis=1)],
        {"a": (F, ["n", "w"]), "b": (F, ["m", "v"])},
        {"sum": (F, ["k", "u"]), "both": (F, ["n", "t"])},
    )
    _write(
        root / "lengths",
        [
            helper.make_node("Tile", ["x", "repeats"], ["tiled"]),
            helper.make_node("Expand", ["x", "repeats"], ["expanded"]),
            helper.make_node("ConstantOfShape", ["repeats"], ["zeros"]),
        ],
        {"x": (F, [1, "w"]), "repeats": (I64, [2])},
        {name: (F, [f"{name}_0", f"{name}_1"]) for name in ("tiled", "expanded", "zeros")},
    )
    _write(
        root / "range",
        [
            helper.make_node("Range", ["start", "limit", "step"], ["numbers"]),
            helper.make_node("OneHot", ["indices", "limit", "values"], ["hot"]),
        ],
        {"start": (I64, []), "limit": (I64, []), "step": (I64, []), "indices": (I64, ["n"]), "values": (F, [2])},
        {"numbers": (I64, ["m"]), "hot": (F, ["n", "d"])},
    )
    table = numpy_helper.from_array(random((5, 2), np.float32), "table")
    _write(
        root / "lookup",
        [
            helper.make_node("Gather", ["table", "ids"], ["found"]),
            helper.make_node("Reshape", ["ids", "shape"], ["shaped"]),
            helper.make_node("TopK", ["scores", "k"], ["best", "places"]),
        ],
        {"ids": (I64, ["n"]), "shape": (I64, [2]), "scores": (F, ["n", "c"]), "k": (I64, [1])},
        {"found": (F, ["n", 2]), "shaped": (I64, ["p", "q"]), "best": (F, ["n", "j"]), "places": (I64, ["n", "j"])},
        [table],
    )
    _write(
        root / "trees",
        [
            helper.make_node(
                "TreeEnsembleRegressor", ["x"], ["y"], domain=_ML, n_targets=1, post_transform="NONE",
                nodes_falsenodeids=[2, 0, 0], nodes_featureids=[3, 0, 0], nodes_hitrates=[1.0] * 3,
                nodes_missing_value_tracks_true=[0] * 3, nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
                nodes_nodeids=[0, 1, 2], nodes_treeids=[0] * 3, nodes_truenodeids=[1, 0, 0],
                nodes_values=[0.5, 0.0, 0.0], target_ids=[0, 0], target_nodeids=[1, 2], target_treeids=[0, 0],
                target_weights=[1.0, 2.0],
            )
        ],
        {"x": (F, ["n", "features"])},
        {"y": (F, ["n", 1])},
    )  # fmt: skip
    _write(
        root / "words",
        [
            helper.make_node(
                "LabelEncoder", ["text"], ["id"], domain=_ML, keys_strings=["a", "b"], values_int64s=[1, 2]
            ),
            helper.make_node("Identity", ["text"], ["same"]),
        ],
        {"text": (S, ["n", "w"])},
        {"id": (I64, ["n", "w"]), "same": (S, ["n", "w"])},
    )
    _write(
        root / "scalars",
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in SCALARS],
        {f"in_{name}": (number, []) for name, number in SCALARS.items()},
        {f"out_{name}": (number, []) for name, number in SCALARS.items()},
    )
    write_echo_model(root / "echo", 1, SCALARS)


def write_tensorflow_models(root: Path) -> None:
    """LiteRT files and SavedModels, each as version 1 of a model of its own."""
    import tensorflow as tf

    class Pieces(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def split(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"words": tf.strings.split(text), "letters": tf.strings.length(text)}

        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32), tf.TensorSpec([2], tf.int32)])
        def shaped(self, x: tf.Tensor, shape: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": tf.reshape(x, shape), "zeros": tf.zeros(shape), "total": tf.reduce_sum(x)}

        @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
        def scalar(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"same": tf.identity(text), "letters": tf.strings.length(text)}

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32), tf.TensorSpec([None], tf.int32)])
        def lookup(self, x: tf.Tensor, ids: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"rows": tf.gather(x, ids), "scaled": tf.nn.softmax(2.0 * x), "halves": ids // 2}

        @tf.function(input_signature=[tf.TensorSpec([None, 6, 6, 1], tf.float32)])
        def convolved(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": tf.nn.max_pool2d(tf.nn.conv2d(image, tf.ones([3, 3, 1, 2]), 1, "VALID"), 2, 2, "VALID")}

    pieces = Pieces()
    for name in ("split", "shaped", "scalar"):
        tf.saved_model.save(
            pieces, str(root / f"tf_{name}" / "1"), signatures={"serving_default": getattr(pieces, name)}
        )
    for name in ("lookup", "convolved"):
        folder = root / f"lite_{name}" / "1"
        saved = root.parent / "converted" / name
        tf.saved_model.save(pieces, str(saved), signatures={"serving_default": getattr(pieces, name)})
        folder.mkdir(parents=True)
        (folder / "model.tflite").write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(saved)).convert())


_Tensors = dict[str, tuple[int, list[int | str] | None]]


def _write(
    base: Path,
    nodes: list[onnx.NodeProto],
    inputs: _Tensors,
    outputs: _Tensors,
    constants: list[onnx.TensorProto] | None = None,
) -> None:
    infos = [
        [helper.make_tensor_value_info(name, number, shape) for name, (number, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, base.name, *infos, constants or [])
    write_graph(base, 1, graph)
