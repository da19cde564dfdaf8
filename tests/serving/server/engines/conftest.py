from collections.abc import Iterator

import pytest
import tensorflow as tf

from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.engines.tensorflow_engine import TensorFlowEngine


@pytest.fixture(scope="session")
def tensorflow_kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A version that stays loaded: the process that has imported TensorFlow lives as long as it has versions."""
    folder = tmp_path_factory.mktemp("kept") / "1"
    module = tf.Module()
    module.same = tf.function(tf.identity, input_signature=[tf.TensorSpec([], tf.float32)])
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.same})
    engine = TensorFlowEngine(folder, EngineOptions())
    yield
    engine.close()
