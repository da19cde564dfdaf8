"""The Open Inference Protocol on a SavedModel that TensorFlow runs: another signature, and strings that are no text."""

from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
import tritonclient.http
from tritonclient.utils import InferenceServerException

from model_servers import Server, server_starter

pytestmark = pytest.mark.slow


class Text(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
    def half(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x / 2.0}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def upper(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"upper": tf.strings.upper(text), "length": tf.strings.length(text)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tensorflow")
    text = Text()
    signatures = {"serving_default": text.half, "upper": text.upper}
    tf.saved_model.save(text, str(folder / "models/text/1"), signatures=signatures)
    with server_starter(folder) as start:
        yield start(f"--model_root={folder / 'models'}")


def test_signatures_and_strings(server: Server) -> None:
    text = tritonclient.http.InferInput("text", [2], "BYTES")
    text.set_data_from_numpy(np.array([b"ab", b"\xff"], dtype=object))
    named = {"signature_name": "upper"}
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.rest_port}") as client:
        metadata = client.get_model_metadata("text")
        result = client.infer("text", [text], parameters=named)
        as_json = [tritonclient.http.InferRequestedOutput("upper", binary_data=False)]
        with pytest.raises(InferenceServerException, match="output 'upper' is no UTF-8, which JSON needs"):
            client.infer("text", [text], outputs=as_json, parameters=named)
        with pytest.raises(InferenceServerException, match="the model has no input 'text': its inputs are x"):
            client.infer("text", [text])
    assert metadata["platform"] == "tensorflow_savedmodel"
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]
    assert result.as_numpy("upper").tolist() == [b"AB", b"\xff"]
    assert result.as_numpy("length").tolist() == [2, 1]
