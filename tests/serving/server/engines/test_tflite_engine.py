"""LiteRT as an engine, with models that TensorFlow converts on the spot."""

from pathlib import Path

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from bookserve.export import graph_contract
from bookserve.export.converters import tflite_file
from bookserve.export.converters.source import Wishes
from bookserve.export.errors import ExportError
from bookserve.serving.server.batching import row_independence
from bookserve.serving.server.engines import choose
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire.tensorflow_pb2 import SignatureDef
from model_servers import write_scale_model

OPTIONS = EngineOptions(prefer_tflite=True)


class Scale(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32)])
    def __call__(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": 2.0 * x, "total": tf.reduce_sum(x, axis=1)}


@pytest.fixture(scope="module")
def flatbuffer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("scale") / "saved"
    scale = Scale()
    tf.saved_model.save(scale, str(folder), signatures={"serving_default": scale.__call__})
    data: bytes = tf.lite.TFLiteConverter.from_saved_model(str(folder)).convert()
    return data


@pytest.fixture(scope="module")
def bare() -> bytes:
    """Without signatures: the inputs and outputs are named by their tensors."""
    function = tf.function(lambda x: x + 1.0).get_concrete_function(tf.TensorSpec([1, 3], tf.float32, name="x"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    data: bytes = converter.convert()
    return data


def version(base: Path, data: bytes) -> Path:
    folder = write_scale_model(base, 1, 5.0)
    (folder / "model.tflite").write_bytes(data)
    return folder


def test_signatures_and_any_number_of_rows(tmp_path: Path, flatbuffer: bytes) -> None:
    engine = choose.load(version(tmp_path / "scale", flatbuffer), OPTIONS)
    assert engine.name == "tflite"
    signature = engine.signatures["serving_default"]
    assert signature.inputs["x"].shape == (None, 3)
    for count in (1, 4, 2):
        x = np.random.default_rng(count).random((count, 3), np.float32)
        y, total = engine.run(signature, {"x": x}, ["y", "total"])
        np.testing.assert_allclose(y, 2 * x, rtol=1e-6)
        np.testing.assert_allclose(total, x.sum(axis=1), rtol=1e-5)
    assert row_independence.shared(engine, tmp_path, unasked=True, declared=None) == set()
    assert row_independence.shared(engine, tmp_path, unasked=True, declared=True) == {"serving_default"}


def test_a_model_without_signatures_is_served_by_its_tensor_names(tmp_path: Path, bare: bytes) -> None:
    engine = choose.load(version(tmp_path / "bare", bare), OPTIONS)
    signature = engine.signatures["serving_default"]
    (x,), (y,) = signature.inputs, signature.outputs
    (answer,) = engine.run(signature, {x: np.zeros((1, 3), np.float32)}, [y])
    assert answer.tolist() == [[1, 1, 1]]


def test_the_file_may_lie_in_assets_extra_where_export_puts_it(tmp_path: Path, flatbuffer: bytes) -> None:
    folder = write_scale_model(tmp_path / "scale", 1, 5.0)
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra/model.tflite").write_bytes(flatbuffer)
    assert choose.load(folder, OPTIONS).name == "tflite"
    assert choose.load(folder, EngineOptions()).name == "onnx"
    (folder / "model.onnx").unlink()
    (folder / "saved_model.pb").write_bytes(b"of TensorFlow")
    assert choose.runs_in_the_server(folder, OPTIONS)
    assert not choose.runs_in_the_server(folder, EngineOptions())
    (folder / "saved_model.pb").unlink()
    assert choose.runs_in_the_server(folder, EngineOptions())  # so that it is tried in a child first
    assert choose.load(folder, EngineOptions()).name == "tflite"
    (read,) = graph_contract.of_version(folder, "scale", None).inputs
    assert (read.name, read.dtype, read.shape) == ("x", "float32", (None, 3))
    (folder / "model.tflite").write_bytes(b"no flatbuffer, and first in turn")
    with pytest.raises(ServingError, match=r"1/model\.tflite does not load"):
        choose.load(folder, OPTIONS)


def test_beside_other_graphs_the_file_is_taken_only_when_asked_for(tmp_path: Path, flatbuffer: bytes) -> None:
    folder = version(tmp_path / "scale", flatbuffer)
    assert choose.load(folder, EngineOptions()).name == "onnx"
    (folder / "model.tflite").write_bytes(b"no flatbuffer")
    with pytest.raises(ServingError, match=r"model\.tflite does not load"):
        choose.load(folder, OPTIONS)
    (folder / "model.tflite").unlink()
    assert choose.load(folder, OPTIONS).name == "onnx"


class Counter(tf.Module):
    """Counts its calls in a variable."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = tf.Variable(0.0)

    @tf.function(input_signature=[tf.TensorSpec([1, 3], tf.float32)])
    def __call__(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        self.calls.assign_add(1.0)
        return {"y": x + self.calls}


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("counter") / "saved"
    counter = Counter()
    tf.saved_model.save(counter, str(folder), signatures={"serving_default": counter.__call__})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    converter.experimental_enable_resource_variables = True
    data: bytes = converter.convert()
    return data


@pytest.fixture(scope="module")
def remembering() -> bytes:
    """A layer whose memory is a variable tensor, as in streaming keyword spotters (SVDF)."""
    from tensorflow.lite.python import schema_py_generated as schema

    def tensor(name: str, shape: list[int], buffer: int, variable: bool = False) -> object:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.isVariable = name.encode(), shape, buffer, variable
        made.type = schema.TensorType.FLOAT32
        return made

    def buffer(values: list[float]) -> object:
        made = schema.BufferT()
        made.data = np.frombuffer(np.array(values, np.float32).tobytes(), np.uint8) if values else None
        return made

    options = schema.SVDFOptionsT()
    options.rank = 1
    operator = schema.OperatorT()
    operator.inputs, operator.outputs, operator.opcodeIndex = [0, 1, 2, -1, 3], [4], 0
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.SVDFOptions, options
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SVDF
    code.version = 1
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("x", [1, 3], 0),
        tensor("features", [2, 3], 1),
        tensor("times", [2, 4], 2),
        tensor("memory", [1, 8], 0, variable=True),
        tensor("y", [1, 2], 0),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [4], [operator]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [buffer([]), buffer([1, 2, 3, 0.5, -1, 2]), buffer([0.25, 0.5, 0.75, 1, 1, 2, 3, 4])]
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def with_metadata(data: bytes, definitions: dict[str, SignatureDef]) -> bytes:
    """The file with SignatureDefs in its metadata, as TensorFlow's signature_def_util writes them."""
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    content = flexbuffers.Builder()
    with content.Map():
        for key, definition in definitions.items():
            content.Key(key)
            content.String(definition.SerializeToString().decode("latin-1"))
    entry, buffer = schema.MetadataT(), schema.BufferT()
    entry.name, entry.buffer, buffer.data = "signature_defs_metadata", len(model.buffers), list(content.Finish())
    model.metadata = [*(model.metadata or []), entry]
    model.buffers.append(buffer)
    model.signatureDefs = []
    return packed(model)


def with_custom_operation(data: bytes, name: str) -> bytes:
    """The file whose first operation is one of that name instead, as TensorFlow's converter leaves it in."""
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = name
    return packed(model)


def packed(model: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("which", ["counting", "remembering"])
def test_no_state_outlives_a_request(tmp_path: Path, which: str, request: pytest.FixtureRequest) -> None:
    engine = choose.load(version(tmp_path / which, request.getfixturevalue(which)), OPTIONS)
    signature = engine.signatures["serving_default"]
    ((name, _),) = signature.inputs.items()
    x = np.array([[0.5, -1.5, 2.0]], np.float32)
    first, *others = (engine.run(signature, {name: x}, list(signature.outputs))[0] for _ in range(3))
    for other in others:
        np.testing.assert_array_equal(other, first)
    if which == "counting":
        np.testing.assert_array_equal(first, x + 1)


def test_the_signatures_of_the_metadata_come_first(tmp_path: Path, bare: bytes) -> None:
    plain = choose.load(version(tmp_path / "plain", bare), OPTIONS).signatures["serving_default"]
    (x,), (y,) = plain.inputs.values(), plain.outputs.values()
    definition = SignatureDef(method_name="tensorflow/serving/predict")
    definition.inputs["pixels"].name = f"{x.tensor.partition(':')[0]}:0"
    definition.outputs["score"].name = y.tensor
    engine = choose.load(version(tmp_path / "named", with_metadata(bare, {"rate": definition})), OPTIONS)
    assert list(engine.signatures) == ["rate"]
    signature = engine.signatures["rate"]
    for rows in (1, 3, 2):
        pixels = np.random.default_rng(rows).random((rows, 3), np.float32)
        (score,) = engine.run(signature, signature.complete({"pixels": pixels}), ["score"])
        np.testing.assert_allclose(score, pixels + 1)
    definition.outputs["score"].name = "elsewhere:0"
    with pytest.raises(ServingError, match=r"'score' of its metadata .* is the tensor 'elsewhere:0'"):
        choose.load(version(tmp_path / "wrong", with_metadata(bare, {"rate": definition})), OPTIONS)


def test_a_fixed_batch_is_resized_and_what_does_not_fit_leaves_no_trace(tmp_path: Path, bare: bytes) -> None:
    engine = choose.load(version(tmp_path / "bare", bare), OPTIONS)
    signature = engine.signatures["serving_default"]
    (x,), (y,) = signature.inputs, signature.outputs
    assert ":" not in x + y
    assert signature.inputs[x].shape == (1, 3)
    for shape in ((1, 3), (5, 3), (2, 4), (1, 3)):
        given = np.random.default_rng(1).random(shape, np.float32)
        np.testing.assert_allclose(engine.run(signature, signature.complete({x: given}), [y])[0], given + 1)
    with pytest.raises(ServingError, match=r"expects shape \[1, 3\], the request has \[3\]"):
        signature.complete({x: np.zeros(3, np.float32)})


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ("FlexDigamma", "lacks TensorFlow's operation Digamma: serve the SavedModel .* TFLITE_BUILTINS alone"),
        ("Digamma", "lacks the custom operation Digamma: serve the SavedModel .* without custom operations"),
        ("ParseExampleV2", "lacks the custom operation ParseExampleV2: .* with its features as tensors"),
    ],
)
def test_operations_that_are_missing_are_named(tmp_path: Path, bare: bytes, operation: str, message: str) -> None:
    folder = version(tmp_path / "custom", with_custom_operation(bare, operation))
    with pytest.raises(ServingError, match=message):
        choose.load(folder, OPTIONS)
    with pytest.raises(ExportError, match=f"LiteRT lacks its operation {operation}: add the SavedModel"):
        tflite_file.convert(folder / "model.tflite", tmp_path, Wishes("custom", trust=False, example=None))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["digits.tflite"], r"digits\.tflite: rename it to model\.tflite"),
        (["digits.onnx"], r"digits\.onnx: rename it to model\.onnx"),
        (["net.keras"], r"`bookserve models add digits .*net\.keras`"),
        (["net.h5"], "models add digits"),
        (["net.pt"], "models add digits"),
        (["net.joblib"], "models add digits"),
        (["exported/saved_model.pb"], "one folder too deep"),
        (["notes.txt"], r"expected assets\.extra/model\.onnx, .*; it has notes\.txt"),
        ([], "it is empty"),
    ],
)
def test_a_folder_without_a_model_says_what_is_there(tmp_path: Path, names: list[str], message: str) -> None:
    folder = tmp_path / "digits/1"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    with pytest.raises(ServingError, match=message):
        choose.load(folder, EngineOptions())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        ("saved_model.pb", b"<!DOCTYPE html><title>404</title>", "is a web page"),
        ("model.tflite", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an answer in XML"),
        ("model.onnx", b"PK\x03\x04\x14\x00", "is a ZIP archive"),
        ("model.onnx", b"", r"model\.onnx is empty"),
    ],
)
def test_a_file_that_is_plainly_no_model_says_what_it_is(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    folder = tmp_path / "digits/1"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    with pytest.raises(ServingError, match=message):
        choose.load(folder, OPTIONS)


def test_a_folder_in_place_of_a_model_is_not_to_be_renamed(tmp_path: Path) -> None:
    (tmp_path / "digits/1/model.onnx").mkdir(parents=True)
    with pytest.raises(ServingError, match=r"its model\.onnx is a folder"):
        choose.load(tmp_path / "digits/1", OPTIONS)
