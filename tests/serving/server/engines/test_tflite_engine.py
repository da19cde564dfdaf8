"""LiteRT as an engine, with models that TensorFlow converts on the spot."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bookserve.serving.server.batching import row_independence
from bookserve.serving.server.engines import choose
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.types.errors import ServingError
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


def test_the_file_is_taken_only_when_asked_for(tmp_path: Path, flatbuffer: bytes) -> None:
    folder = version(tmp_path / "scale", flatbuffer)
    assert choose.load(folder, EngineOptions()).name == "onnx"
    (folder / "model.tflite").write_bytes(b"no flatbuffer")
    with pytest.raises(ServingError, match=r"model\.tflite does not load"):
        choose.load(folder, OPTIONS)
    (folder / "model.tflite").unlink()
    assert choose.load(folder, OPTIONS).name == "onnx"
