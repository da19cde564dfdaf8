"""The outline of a graph, without its weights and without an engine."""

import json
import shutil
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

from bookserve.serving.gateway import graph_outline, litert_outline
from bookserve.serving.wire.tensorflow_pb2 import SavedModel
from http_calls import problem_of


def layers(count: int, constants: np.ndarray | None = None, old: bool = False) -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.ones((3, 3), np.float32) if constants is None else constants, "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h0"])]
    nodes += [helper.make_node("Relu", [f"h{place}"], [f"h{place + 1}"]) for place in range(count)]
    nodes.append(helper.make_node("Gelu", [f"h{count}"], ["y"], domain="com.microsoft"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])]
    if old:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, weights.dims))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])]
    return helper.make_model(helper.make_graph(nodes, "layers", inputs, outputs, [weights]))


def write(folder: Path, content: bytes, name: str = "assets.extra/model.onnx") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return folder


@pytest.mark.parametrize("old", [False, True])
def test_operations_are_counted_and_inputs_and_outputs_have_their_shapes(tmp_path, old) -> None:
    content = layers(4, old=old).SerializeToString()
    assert graph_outline.outline(write(tmp_path, content)) == {
        "file": "assets.extra/model.onnx",
        "bytes": len(content),
        "nodes": 6,
        "kinds": 3,
        "operations": [["Relu", 4], ["MatMul", 1], ["com.microsoft.Gelu", 1]],
        "whole": True,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [None, 3]}],
    }


def test_a_saved_model_is_counted_with_its_functions(tmp_path) -> None:
    model = SavedModel()
    graph = model.meta_graphs.add().graph_def
    graph.node.add(name="x", op="Placeholder")
    function = graph.library.function.add()
    for name in ("a", "b"):
        function.node_def.add(name=name, op="MatMul")
    told = graph_outline.outline(write(tmp_path, model.SerializeToString(), "saved_model.pb"))
    assert (told["file"], told["operations"]) == ("saved_model.pb", [["MatMul", 2], ["Placeholder", 1]])
    assert "inputs" not in told


def lite(operations: int = 3, codes: int = 0) -> bytes:
    """A LiteRT file: so many FULLY_CONNECTED and a custom operation, and a body with one ADD."""
    kinds = [schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.CUSTOM, schema.BuiltinOperator.ADD]
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT()]
    model.operatorCodes = []
    for kind in [*kinds, *[schema.BuiltinOperator.ADD] * codes]:
        code = schema.OperatorCodeT()
        code.builtinCode = kind
        code.customCode = "Mine" if kind == schema.BuiltinOperator.CUSTOM else None
        model.operatorCodes.append(code)
    main, body = schema.SubGraphT(), schema.SubGraphT()
    main.tensors = []
    for name, shape, free in (("x", [1, 3], [-1, 3]), ("y", [2], None)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.shapeSignature, tensor.hasRank = name, shape, free, True
        tensor.type = schema.TensorType.FLOAT32 if name == "x" else schema.TensorType.INT8
        main.tensors.append(tensor)
    main.inputs, main.outputs = [0], [1]
    for graph, places in ((main, [0] * operations + [1]), (body, [2])):
        graph.operators = []
        for place in places:
            operator = schema.OperatorT()
            operator.opcodeIndex = place
            graph.operators.append(operator)
    model.subgraphs = [main, body]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("name", ["model.tflite", "assets.extra/model.tflite"])
def test_a_litert_file_has_its_operations_of_all_graphs_and_its_tensors(tmp_path, name) -> None:
    content = lite()
    assert graph_outline.outline(write(tmp_path, content, name)) == {
        "file": name,
        "bytes": len(content),
        "nodes": 5,
        "kinds": 3,
        "operations": [["FULLY_CONNECTED", 3], ["Mine", 1], ["ADD", 1]],
        "whole": True,
        "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 3]}],
        "outputs": [{"name": "y", "dtype": "int8", "shape": [2]}],
    }


def test_a_litert_file_that_another_wrote(tmp_path) -> None:
    """One of a speech detector, whose types were changed."""
    shutil.copy(Path(__file__).parents[1] / "server" / "models" / "crashing.tflite", tmp_path / "model.tflite")
    told = graph_outline.outline(tmp_path)
    assert told["operations"] == [["SVDF", 7], ["FULLY_CONNECTED", 5], ["QUANTIZE", 2], ["SOFTMAX", 1]]
    assert told["inputs"] == [{"name": "", "dtype": "int16", "shape": [1, 96]}]
    assert told["outputs"] == [{"name": "", "dtype": "int32", "shape": [1, 2]}]


def test_a_litert_file_is_bounded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(litert_outline, "MAX_OPERATIONS", 50)
    told = graph_outline.outline(write(tmp_path / "long", lite(100), "model.tflite"))
    assert (told["nodes"], told["whole"]) == (50, False)
    assert graph_outline.outline(write(tmp_path / "kinds", lite(codes=2_000), "model.tflite")) is None


def test_a_damaged_litert_file_has_no_outline(tmp_path) -> None:
    content = lite()
    chance = np.random.default_rng(0)
    outlines = 0
    for number in range(300):
        broken = bytearray(content)
        for place in chance.integers(8, len(content), 4):
            broken[place] = chance.integers(0, 256)
        told = graph_outline.outline(write(tmp_path / str(number), bytes(broken), "model.tflite"))
        outlines += told is not None
    assert outlines < 300  # the others are None, and nothing is raised
    for number, bad in enumerate((content[:40], b"", b"TFL3" * 10, content.replace(b"TFL3", b"TFL2"))):
        assert graph_outline.outline(write(tmp_path / f"bad {number}", bad, "model.tflite")) is None


def test_weights_are_not_read_and_a_long_graph_is_not_counted_to_its_end(tmp_path, monkeypatch) -> None:
    read = []
    original = graph_outline._Reader.bytes

    def count(self, *place: int) -> bytes:
        found = original(self, *place)
        read.append(len(found))
        return found

    monkeypatch.setattr(graph_outline._Reader, "bytes", count)
    large = write(tmp_path / "large", layers(1, np.ones((3, 1_000_000), np.float32)).SerializeToString())
    assert graph_outline.outline(large)["nodes"] == 3
    assert sum(read) < 1_000
    monkeypatch.setattr(graph_outline, "MAX_FIELDS", 500)
    told = graph_outline.outline(write(tmp_path / "long", layers(1_000).SerializeToString()))
    assert not told["whole"]
    assert 50 < told["nodes"] < 200
    kinds = [helper.make_node(f"Own{number}", [], ["y"], domain="mine") for number in range(300)]
    monkeypatch.undo()
    many = helper.make_model(helper.make_graph(kinds, "many", [], []))
    told = graph_outline.outline(write(tmp_path / "many", many.SerializeToString()))
    assert (told["kinds"], len(told["operations"])) == (300, graph_outline.MAX_KINDS)


def test_what_is_no_whole_graph_has_no_outline_and_no_link_is_followed(tmp_path) -> None:
    content = layers(4).SerializeToString()
    assert graph_outline.outline(tmp_path) is None
    for number, bad in enumerate((content[:-3], b"\xff" * 40, b"\x3a\xff\xff\xff\xff\x7f", b"\x0f\x00")):
        assert graph_outline.outline(write(tmp_path / str(number), bad)) is None
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "model.onnx").symlink_to(write(tmp_path / "other", content) / "assets.extra" / "model.onnx")
    assert graph_outline.outline(tmp_path / "link") is None


def test_the_gateway_tells_it_of_a_version(client, tmp_path) -> None:
    folder = tmp_path / "mnist" / "3"
    path = "/api/v1/models/mnist/versions/3/graph"
    assert "no graph in the store that is outlined" in problem_of(client.get(path), 404)["detail"]
    write(folder, layers(4).SerializeToString())
    (folder / "assets.extra" / "manifest.json").write_text(json.dumps({"model": "mnist", "version": 3}))
    assert client.get(path).get_json()["operations"][0] == ["Relu", 4]
    newest = client.get("/api/v1/models/mnist").get_json()["versions"][0]
    assert newest["graph"] == path
    etag = client.get(path).headers["ETag"]
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 304
