"""A small model of every task, each with a manifest and an ONNX graph."""

from pathlib import Path

import numpy as np
import small_networks
from onnx import TensorProto, helper, numpy_helper

from bookserve.export import manifest
from bookserve.export.contracts import Contract, Fingerprint, Preprocessing, Tensor
from bookserve.export.manifest import Manifest
from model_servers import write_graph

WORDS = ("<unk>", "<eos>", "the", "stock", "market", "rose", "N")
DIGITS = Contract(
    "digits",
    1,
    (Tensor("images", "uint8", (None, 16, 16)),),
    (Tensor("probabilities", "float32", (None, 10), unit="probability"),),
    labels=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    task="image-classification",
    preprocessing=Preprocessing("images", size=(16, 16), colour="grey", resize="stretch"),
)
FLATS = Contract(
    "flats",
    1,
    (Tensor("x", "float32", (None, 2)),),
    (Tensor("price", "float32", (None, 1)),),
    task="regression",
    columns=("area", "rooms"),
)
TOXIC = Contract(
    "toxic",
    1,
    (Tensor("bits", "uint8", (None, 64)),),
    (Tensor("probabilities", "float32", (None, 2), unit="probability"),),
    labels=("no", "yes"),
    task="molecules",
    preprocessing=Preprocessing("bits", fingerprint=Fingerprint("morgan", 2, 64)),
)
NEXT = Contract(
    "next",
    1,
    (Tensor("words", "int64", (None, None)),),
    (Tensor("probabilities", "float32", (None, len(WORDS)), unit="probability"),),
    assets=("vocabulary.txt",),
    task="text",
    preprocessing=Preprocessing("words", vocabulary="vocabulary.txt"),
)
NOUGHTS = Contract(
    "noughts",
    1,
    (Tensor("board", "float32", (None, 3, 3, 2)),),
    (Tensor("probabilities", "float32", (None, 9), unit="probability"), Tensor("value", "float32", (None,))),
    task="board",
)
PAIR = Contract(
    "pair",
    1,
    (Tensor("a", "float32", (None, None)), Tensor("b", "int64", (None, 1))),
    (Tensor("sum", "float32", (None, None)),),
)
MEAN = Contract("mean", 1, (Tensor("x", "float32", (None, 2)),), (Tensor("y", "float32", (None, 2)),))


def write_all(root: Path) -> Path:
    """One version of each. The rows of `mean` change each other's answers."""
    small_networks.write_convolutional(root / "digits/1/assets.extra/model.onnx")
    describe(root, DIGITS)
    node = helper.make_node
    add(root, FLATS, [node("MatMul", ["x", "w"], ["price"])], w=np.array([[1000], [500]], np.float32))
    weights = np.linspace(-1, 1, 128, dtype=np.float32).reshape(64, 2)
    add(
        root,
        TOXIC,
        [
            node("Cast", ["bits"], ["x"], to=TensorProto.FLOAT),
            node("MatMul", ["x", "w"], ["scores"]),
            node("Sigmoid", ["scores"], ["probabilities"]),
        ],
        w=weights,
    )
    table = np.eye(len(WORDS), dtype=np.float32)[[1, 2, 3, 4, 5, 6, 0]]  # each word is followed by the next one
    add(
        root,
        NEXT,
        [node("Gather", ["words", "last"], ["word"], axis=1), node("Gather", ["table", "word"], ["probabilities"])],
        last=np.array(-1, np.int64),
        table=table,
    )
    (root / "next/1/assets").mkdir()
    (root / "next/1/assets/vocabulary.txt").write_text("\n".join(WORDS) + "\n")
    describe(root, NEXT)
    chance = np.random.default_rng(1)
    add(
        root,
        NOUGHTS,
        [
            node("Reshape", ["board", "flat"], ["x"]),
            node("MatMul", ["x", "w"], ["scores"]),
            node("Softmax", ["scores"], ["probabilities"]),
            node("MatMul", ["x", "v"], ["values"]),
            node("Squeeze", ["values", "one"], ["value"]),
        ],
        flat=np.array([0, 18], np.int64),
        w=chance.standard_normal((18, 9)).astype(np.float32),
        v=chance.standard_normal((18, 1)).astype(np.float32),
        one=np.array([1], np.int64),
    )
    add(
        root,
        PAIR,
        [node("Cast", ["b"], ["c"], to=TensorProto.FLOAT), node("Add", ["a", "c"], ["sum"])],
    )
    add(
        root,
        MEAN,
        [node("ReduceMean", ["x", "axis"], ["m"], keepdims=1), node("Sub", ["x", "m"], ["y"])],
        axis=np.array([0], np.int64),
    )
    return root


def add(root: Path, contract: Contract, nodes: list[object], **weights: np.ndarray) -> None:
    """Version 1 of a model whose graph has the contract's tensors."""

    def info(tensor: Tensor) -> object:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        shape = [f"{tensor.name}_{place}" if size is None else size for place, size in enumerate(tensor.shape)]
        return helper.make_tensor_value_info(tensor.name, kind, ["n", *shape[1:]])

    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs, outputs = ([info(tensor) for tensor in side] for side in (contract.inputs, contract.outputs))
    write_graph(root / contract.model, 1, helper.make_graph(nodes, contract.model, inputs, outputs, constants))
    describe(root, contract)


def describe(root: Path, contract: Contract, version: int = 1) -> None:
    """Writes the manifest of a version."""
    folder = root / contract.model / str(version)
    (folder / "assets.extra").mkdir(exist_ok=True)
    (folder / manifest.LOCATION).unlink(missing_ok=True)
    told = Manifest(contract.model, version, "2026-01-02T03:04:05+00:00", contract, {}, manifest.digests(folder), {})
    (folder / manifest.LOCATION).write_text(told.to_json())
