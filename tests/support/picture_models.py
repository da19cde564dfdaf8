"""Small models that take pictures, in a store with manifests that say so."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bookserve.export.contracts import Contract, Preprocessing, Tensor
from bookserve.export.manifest import LOCATION, DataOrigin, Manifest
from model_servers import write_graph

DIGITS = Contract(
    "digits",
    1,
    (Tensor("images", "uint8", (None, 28, 28)),),
    (Tensor("probabilities", "float32", (None, 10), unit="probability"),),
    labels=tuple("0123456789"),
    task="image-classification",
    preprocessing=Preprocessing("images", size=(28, 28), colour="grey", resize="centred"),
)
PHOTOS = Contract(
    "photos",
    1,
    (Tensor("x", "float32", (None, 3, 16, 24)),),
    (Tensor("scores", "float32", (None, 10), unit="probability"),),
    labels=tuple("abcdefghij"),
    task="image-classification",
    preprocessing=Preprocessing(
        "x",
        size=(16, 24),
        colour="rgb",
        resize="crop",
        layout="channels-first",
        scale=1 / 255,
        mean=(0.5, 0.4, 0.3),
        deviation=(0.2, 0.3, 0.4),
    ),
)


def write(root: Path, contract: Contract, *, silent: bool = False) -> None:
    """Version 1 of a model with random weights; `silent` leaves out that it takes pictures."""
    (given,), (output,) = contract.inputs, contract.outputs
    size = int(np.prod([length or 1 for length in given.shape]))
    weights = np.random.default_rng(0).normal(0, 0.002, (size, 10)).astype(np.float32)
    kind = TensorProto.UINT8 if given.dtype == "uint8" else TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Cast", [given.name], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["numbers"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], [output.name]),
        ],
        contract.model,
        [helper.make_tensor_value_info(given.name, kind, ["n", *given.shape[1:]])],
        [helper.make_tensor_value_info(output.name, TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weights, "weights")],
    )
    version = write_graph(root / contract.model, 1, graph)
    told = replace(contract, task="tensors", preprocessing=None) if silent else contract
    manifest = Manifest(
        model=contract.model,
        version=1,
        created="2026-01-02T03:04:05+00:00",
        contract=told,
        data=DataOrigin("sample", "drawn weights", "0" * 64),
        profile="smoke",
        seed=0,
        parity={},
        files={"model.onnx": hashlib.sha256((version / "model.onnx").read_bytes()).hexdigest()},
        made_with={"bookserve": "0.1.0"},
    )
    (version / LOCATION).parent.mkdir()
    (version / LOCATION).write_text(manifest.to_json(), encoding="utf-8")


def write_colours(folder: Path) -> Path:
    """An ONNX file of the mean of red, green and blue: (rows, 3, height, width) to (rows, 3), of any size."""
    node = helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0)
    made = helper.make_graph(
        [node],
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["rows", 3, "height", "width"])],
        [helper.make_tensor_value_info("means", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(np.array([2, 3], np.int64), "axes")],
    )
    path = folder / "colours.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path
