import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import TensorProto, helper, numpy_helper

from bookserve.export import manifest as manifests
from bookserve.export.contracts import Tensor
from bookserve.export.errors import StoreError
from bookserve.export.life import compare
from bookserve.export.store import ModelStore

Invoke = Callable[..., Result]
TFLITE = Path(__file__).parents[2] / "serving/server/models/crashing.tflite"  # of tflite-micro, see test_trial.py there


def test_two_versions_differ_in_figures_and_graph(store: ModelStore, invoke: Invoke) -> None:
    result = invoke("models", "diff", "score", "1", "2", "--models-dir", store.root)
    assert result.exit_code == 0, result.output
    size = (store.path("score", 1) / "assets.extra/model.onnx").stat().st_size
    lines = result.output.splitlines()
    assert lines[0] == "score version 1 -> version 2"
    assert lines[1].startswith("contract    example.outputs.scores: [[2.35,")
    assert lines[2:4] == [
        "figures     test.accuracy: 0.91 -> 0.92 (+0.01)",
        "figures     test.loss: 0.31 -> 0.3 (-0.01)",
    ]
    assert lines[4] == f"size        {size + 8} -> {size + 8} bytes"
    assert lines[5:] == [f"files       assets.extra/model.onnx: {size} -> {size} bytes, other content"]
    told = json.loads(invoke("models", "diff", "score", "2", "2", "--json", "--models-dir", store.root).output)
    assert told == {
        "contract": {},
        "made": {},
        "figures": {},
        "operations": {},
        "bytes": [size + 8, size + 8],
        "files": {},
    }


def test_another_contract_and_other_operations_are_told(store: ModelStore) -> None:
    folder = store.path("score", 2)
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.float32([1.0, 2.0])))],
        "branch",
        [],
        [helper.make_tensor_value_info("one", TensorProto.FLOAT, [2])],
    )
    graph = onnx.load(folder / "assets.extra/model.onnx")
    graph.graph.node.append(helper.make_node("If", ["c"], ["one"], then_branch=branch, else_branch=branch))
    graph.graph.node.append(helper.make_node("Softmax", ["scores"], ["p"]))
    onnx.save(graph, folder / "assets.extra/model.onnx")
    (folder / "assets.extra/report/card.md").unlink()
    found = store.manifest("score", 2)
    inputs = (Tensor("x", "float32", (None, 4), free=("rows",)), Tensor("mask", "bool", (None,)))
    other = replace(found, contract=replace(found.contract, inputs=inputs, labels=()), precision="int8")
    (folder / manifests.LOCATION).write_text(other.to_json())
    told = compare.compare(store.path("score", 1), folder)
    assert told["contract"]["inputs.x.shape"] == [[None, 3], [None, 4]]
    assert told["contract"]["inputs.mask.dtype"] == [None, "bool"]
    assert told["contract"]["labels"] == [["no", "yes"], None]
    assert told["made"] == {"precision": ["float32", "int8"]}
    counts = {"Constant": [None, 2], "If": [None, 1], "Softmax": [None, 1]}
    assert told["operations"] == {"assets.extra/model.onnx": counts}
    assert told["files"]["assets.extra/report/card.md"] == [8, None]
    lines = list(compare.lines(told))
    assert "operations  assets.extra/model.onnx: Constant 0 -> 2" in lines
    assert "files       assets.extra/report/card.md: gone, 8 bytes" in lines


@pytest.mark.parametrize("name", ["model.tflite", "assets.extra/model.tflite"])
def test_operations_of_a_litert_file_are_told(store: ModelStore, name: str) -> None:
    folder = store.path("score", 2)
    shutil.copyfile(TFLITE, folder / name)
    told = compare.compare(store.path("score", 1), folder)
    counts = {"FULLY_CONNECTED": [None, 5], "QUANTIZE": [None, 2], "SOFTMAX": [None, 1], "SVDF": [None, 7]}
    assert told["operations"] == {name: counts}
    (folder / name).write_bytes(TFLITE.read_bytes()[:2000])
    with pytest.raises(StoreError, match=r"model\.tflite cannot be read: it is damaged"):
        compare.compare(store.path("score", 1), folder)
    (folder / name).write_bytes(b"text that is no LiteRT file")
    with pytest.raises(StoreError, match=r"model\.tflite cannot be read: it is no LiteRT file"):
        compare.compare(store.path("score", 1), folder)


def test_a_version_without_a_manifest_is_read_from_its_graph(store: ModelStore) -> None:
    shutil.copytree(store.path("score", 1), store.root / "score/3")
    (store.root / "score/3" / manifests.LOCATION).unlink()
    told = compare.compare(store.path("score", 1), store.path("score", 3))
    assert told["contract"]["task"] == ["tabular", "tensors"]
    assert not any(path.startswith("inputs") for path in told["contract"])
    assert told["files"] == {}


@pytest.mark.parametrize(("versions", "message"), [(("1", "9"), "(versions: 1, 2)"), (("0", "1"), "x>=1")])
def test_what_cannot_be_compared_is_named(
    store: ModelStore, invoke: Invoke, versions: tuple[str, str], message: str
) -> None:
    result = invoke("models", "diff", "score", *versions, "--models-dir", store.root)
    assert result.exit_code
    assert message in result.output


def test_a_graph_that_cannot_be_read_is_named(store: ModelStore, invoke: Invoke) -> None:
    (store.path("score", 2) / "assets.extra/model.onnx").write_bytes(b"\xff" * 40)
    result = invoke("models", "diff", "score", "1", "2", "--models-dir", store.root)
    assert result.exit_code == 1
    assert "2/assets.extra/model.onnx cannot be read" in result.output
