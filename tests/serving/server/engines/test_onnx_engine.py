"""ONNX Runtime as an engine, in this process."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.engines.onnx_engine import OnnxEngine
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire import tensorflow_error_pb2, text_locale
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


def test_no_operation_asks_a_service_on_the_network(tmp_path: Path) -> None:
    """ONNX Runtime's wheel has a provider for operations that send their inputs to an address in the graph."""
    attributes = {"model_uri": "http://127.0.0.1:9/score", "model_name": "m", "verbose": "0"}
    node = helper.make_node("AzureTritonInvoker", ["auth", "x"], ["y"], domain="com.microsoft.extensions", **attributes)
    text = [helper.make_tensor_value_info(name, TensorProto.STRING, [1]) for name in ("auth", "x", "y")]
    graph = helper.make_graph([node], "remote", text[:2], text[2:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft.extensions", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "model.onnx")
    with pytest.raises(ServingError, match="AzureTritonInvoker"):
        OnnxEngine(tmp_path / "model.onnx", tmp_path / "saved_model.pb", EngineOptions())
    echo = write_echo_model(tmp_path / "echo", 1, {"a": TensorProto.FLOAT})
    engine = OnnxEngine(echo / "model.onnx", tmp_path / "saved_model.pb", EngineOptions())
    assert "AzureExecutionProvider" not in engine._session.get_providers()


@pytest.mark.parametrize("attributes", [{}, {"locale": "en_US"}, {"locale": "en_GB.UTF-8"}], ids=str)
def test_text_is_put_in_lower_case_where_the_system_has_no_english(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, str]
) -> None:
    """As text models of scikit-learn begin, in a slim container image."""
    monkeypatch.setattr(text_locale, "_has", lambda locale: locale == "C.UTF-8")
    node = helper.make_node("StringNormalizer", ["x"], ["y"], case_change_action="LOWER", **attributes)
    text = [helper.make_tensor_value_info(name, TensorProto.STRING, [name.upper()]) for name in ("x", "y")]
    graph = helper.make_graph([node], "text", text[:1], text[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    engine = OnnxEngine(tmp_path / "m.onnx", tmp_path / "saved_model.pb", EngineOptions())
    (signature,) = engine.signatures.values()
    (answer,) = engine.run(signature, {"x": np.array(["\u00c4 Cat".encode()], object)}, ["y"])
    assert answer.tolist() == ["\u00e4 cat".encode()]
