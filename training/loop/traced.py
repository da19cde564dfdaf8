"""What a network says of many rows, by one graph for any number of them.

Keras's `predict` traces a graph for each network and each size of batch that it meets. A training that asks several
networks about few rows then does little else, of which TensorFlow warns.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

ROWS = 500  # at a time, unless said otherwise


class Traced:
    """The graph of a network, as it answers after training. It has the weights that the network has when it is asked.

    Of a network with many inputs these are a mapping, and so are its answers where it has many outputs.
    """

    def __init__(self, model: keras.Model) -> None:
        self._inputs = model.input

        def answer(inputs: Any) -> Any:
            return model(inputs, training=False)

        specs = keras.tree.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), model.input)
        self._function = tf.function(answer, autograph=False).get_concrete_function(specs)

    @property
    def graph(self) -> tf.Graph:
        """Its operations."""
        return self._function.graph

    def answers(self, inputs: Any, rows: int = ROWS) -> Any:
        """What the network says of arrays [n, ...], of `rows` of them at a time: arrays [n, ...]."""
        map_all = keras.tree.map_structure
        given = map_all(lambda tensor, array: np.asarray(array, tensor.dtype), self._inputs, inputs)
        count = len(keras.tree.flatten(given)[0])
        parts = []
        for first in range(0, max(count, 1), rows):
            part = map_all(lambda array, first=first: tf.constant(array[first : first + rows]), given)
            parts.append(map_all(np.asarray, self._function(part)))
        return map_all(lambda *arrays: np.concatenate(arrays), *parts)
