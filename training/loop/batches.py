"""Which rows a step trains on, and with what random numbers: decided by the seed, the epoch and the step alone.

A training that goes on in its fifth epoch thus sees the batches of the fifth epoch, and not those of the first.
"""

from typing import Any

import tensorflow as tf


def row_order(rows: int, batch: int, seed: int, first_epoch: int, epochs: int) -> tf.data.Dataset:
    """Row numbers int64 [batch], and a seed int32 [2] for stateless random operations, for each step to the last epoch.

    Every epoch has `rows // batch` steps and an order of its own; what is left over of the rows is not used in it.
    """
    steps = rows // batch

    def steps_of(epoch: Any) -> tf.data.Dataset:
        number = tf.cast(epoch, tf.int32)
        order = tf.random.experimental.stateless_shuffle(tf.range(rows, dtype=tf.int64), seed=[seed, -1 - number])
        seeds = tf.stack([tf.fill([steps], seed), number * steps + tf.range(steps)], axis=1)  # (steps, 2)
        return tf.data.Dataset.from_tensor_slices((tf.reshape(order[: steps * batch], [steps, batch]), seeds))

    return tf.data.Dataset.range(first_epoch, epochs).flat_map(steps_of)
