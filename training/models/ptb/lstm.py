"""An LSTM layer of Keras, unrolled, with its gradient written out: on a CPU several times as fast as `model.fit`'s.

The gradients of the weights are one matrix product over all steps instead of one a step, and all products may run in
bfloat16, which processors with AVX-512 BF16 or AMX, and newer GPUs, do at twice the rate. Sums and the state stay
float32.
"""

from typing import Any

import keras
import tensorflow as tf

from bookserve.training.devices import exactness

State = tuple[Any, Any]  # output and memory, float32 [batch, units]


def run_lstm(
    layer: keras.layers.LSTM, x: Any, state: State, dtype: tf.DType = tf.float32, kept: Any = 1.0
) -> tuple[Any, State]:
    """What `layer` computes over float32 x [steps, batch, features] from a given state; the step count must be known.

    `dtype` is that of the matrix products. `kept` float32 [batch, units] scales what the recurrent weights see of the
    layer's own output, the same in every step (variational dropout, Gal and Ghahramani 2016).
    Returns all outputs, float32 [steps, batch, units], and the last state.
    """
    cell = layer.cell
    weights = (tf.convert_to_tensor(each) for each in (cell.kernel, cell.recurrent_kernel, cell.bias))
    outputs, output, memory = _unroll(dtype)(x, *state, *weights, tf.convert_to_tensor(kept))
    return outputs, (output, memory)


def run_keras_lstm(layer: keras.layers.LSTM, x: Any, state: State) -> tuple[Any, State]:
    """The same as `run_lstm` in float32 without `kept`, by Keras: on a GPU that is cuDNN's LSTM, on a CPU a loop."""
    _, outputs, (output, memory) = layer.inner_loop(tf.transpose(x, [1, 0, 2]), state, None)
    return tf.transpose(outputs, [1, 0, 2]), (output, memory)


def cudnn_pays() -> bool:
    """Whether cuDNN's LSTM is to be taken: on GPUs, for trainings that need not repeat themselves to the last bit."""
    return exactness.mode() == exactness.FAST and bool(tf.config.list_physical_devices("GPU"))


def _unroll(dtype: tf.DType) -> Any:
    """The layer as a function of tensors: inputs, output, memory, kernel, recurrent kernel, bias, kept."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def unroll(x: Any, output: Any, memory: Any, kernel: Any, recurrent: Any, bias: Any, kept: Any) -> Any:
        steps, features, units = x.shape[0], x.shape[2], recurrent.shape[0]
        kernel, recurrent = tf.cast(kernel, dtype), tf.cast(recurrent, dtype)
        rows = tf.reshape(tf.cast(x, dtype), [-1, features])  # (steps * batch, features)
        driven = tf.matmul(rows, kernel) + tf.cast(bias, dtype)
        seen, gates, outputs = [], [], []
        for part in tf.split(driven, steps):
            seen.append(tf.cast(output * kept, dtype))
            total = tf.cast(part, tf.float32) + tf.cast(tf.matmul(seen[-1], recurrent), tf.float32)
            # Keras's order: input gate, forget gate, candidate, output gate
            admit, keep, candidate, show = tf.split(total, 4, axis=1)
            admit, keep, show = tf.sigmoid(admit), tf.sigmoid(keep), tf.sigmoid(show)
            candidate, before = tf.tanh(candidate), memory
            memory = keep * before + admit * candidate
            bounded = tf.tanh(memory)
            output = show * bounded
            gates.append((admit, keep, candidate, show, before, bounded))
            outputs.append(output)

        def gradient(d_outputs: Any, d_output: Any, d_memory: Any) -> tuple[Any, ...]:
            totals = []
            for d_later, step in zip(reversed(tf.unstack(d_outputs)), reversed(gates), strict=True):
                admit, keep, candidate, show, before, bounded = step
                d_output += d_later
                d_memory += d_output * show * (1 - bounded * bounded)
                parts = (
                    d_memory * candidate * admit * (1 - admit),
                    d_memory * before * keep * (1 - keep),
                    d_memory * admit * (1 - candidate * candidate),
                    d_output * bounded * show * (1 - show),
                )
                totals.append(tf.cast(tf.concat(parts, axis=1), dtype))  # (batch, 4 * units)
                d_output = tf.cast(tf.matmul(totals[-1], recurrent, transpose_b=True), tf.float32) * kept
                d_memory *= keep
            total = tf.concat(totals[::-1], axis=0)  # (steps * batch, 4 * units)
            products = (
                tf.reshape(tf.matmul(total, kernel, transpose_b=True), tf.shape(x)),
                tf.matmul(rows, total, transpose_a=True),
                tf.matmul(tf.concat(seen, axis=0), total, transpose_a=True),
            )
            d_x, d_kernel, d_recurrent = (tf.cast(product, tf.float32) for product in products)
            d_bias = tf.reduce_sum(tf.cast(total, tf.float32), axis=0)
            return d_x, d_output, d_memory, d_kernel, d_recurrent, d_bias, None

        return (tf.reshape(tf.stack(outputs), [steps, -1, units]), output, memory), gradient

    return unroll
