"""ONNX Runtime as an engine, in this process."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.engines.onnx_engine import OnnxEngine
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire import tensorflow_error_pb2
from model_servers import write_echo_model


def test_strings_are_bytes_outside_and_text_inside(tmp_path: Path) -> None:
    version = write_echo_model(tmp_path, 1, {"a": TensorProto.STRING, "b": TensorProto.FLOAT})
    engine = OnnxEngine(version / "model.onnx", version / "saved_model.pb", EngineOptions())
    (signature,) = engine.signatures.values()
    words = np.array([["é".encode(), b"", b"nul\0"]], dtype=object)
    numbers = np.float32([[1, 2, 3]])
    answered_numbers, answered = engine.run(signature, {"in_a": words, "in_b": numbers}, ["out_b", "out_a"])
    assert answered.tolist() == words.tolist()
    np.testing.assert_array_equal(answered_numbers, numbers)
    words[0, 1] = b"\xff"
    with pytest.raises(ServingError, match="input 'in_a': a string of an ONNX model has to be UTF-8") as caught:
        engine.run(signature, {"in_a": words, "in_b": numbers}, ["out_a"])
    assert caught.value.code == tensorflow_error_pb2.INVALID_ARGUMENT
