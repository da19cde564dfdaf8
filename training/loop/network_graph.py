"""The graph of a network, for TensorBoard. Keras's own callback writes none of a network that `fit` does not train."""

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from bookserve.training.loop.traced import Traced


class NetworkGraph(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes the graph of the network, as it answers after training, into the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Write it."""
        writer = tf.summary.create_file_writer(str(self._folder))
        with writer.as_default():
            tf.summary.graph(Traced(self.model).graph)
        writer.close()
