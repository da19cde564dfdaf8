import keras
import numpy as np
import pytest
import tensorflow as tf

from bookserve.training.devices import exactness
from bookserve.training.models.ptb import lstm
from bookserve.training.models.ptb.lstm import run_keras_lstm, run_lstm

STEPS, BATCH, FEATURES, UNITS = 5, 3, 4, 6

Tensors = list[tf.Tensor]


@pytest.fixture(scope="module")
def layer() -> keras.layers.LSTM:
    layer = keras.layers.LSTM(UNITS, return_sequences=True, return_state=True)
    layer.build((BATCH, STEPS, FEATURES))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(size=weight.shape).astype(np.float32) for weight in layer.weights])
    return layer


@pytest.fixture(scope="module")
def inputs() -> Tensors:
    """`x`, the state before it, and how much each output counts in the sum whose gradient is taken."""
    rng = np.random.default_rng(1)
    shapes = ((STEPS, BATCH, FEATURES), (BATCH, UNITS), (BATCH, UNITS), (STEPS, BATCH, UNITS))
    return [tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes]


def ours(layer: keras.layers.LSTM, inputs: Tensors, dtype: tf.DType = tf.float32) -> tuple[Tensors, Tensors]:
    """Outputs and last state; gradients of a sum over all of them."""
    x, output, memory, counts = inputs
    with tf.GradientTape() as tape:
        tape.watch([x, output, memory])
        outputs, state = run_lstm(layer, x, (output, memory), dtype)
        total = tf.reduce_sum(outputs * counts) + tf.reduce_sum(state[0]) - 2 * tf.reduce_sum(state[1])
    sources = [x, output, memory, *(weight.value for weight in layer.weights)]
    return [outputs, *state], tape.gradient(total, sources)


def keras_s(layer: keras.layers.LSTM, inputs: Tensors) -> tuple[Tensors, Tensors]:
    """The same by Keras."""
    x, output, memory, counts = inputs
    with tf.GradientTape() as tape:
        tape.watch([x, output, memory])
        outputs, *state = layer(tf.transpose(x, [1, 0, 2]), initial_state=[output, memory])
        outputs = tf.transpose(outputs, [1, 0, 2])
        total = tf.reduce_sum(outputs * counts) + tf.reduce_sum(state[0]) - 2 * tf.reduce_sum(state[1])
    sources = [x, output, memory, *(weight.value for weight in layer.weights)]
    return [outputs, *state], tape.gradient(total, sources)


def test_outputs_state_and_gradients_are_those_of_keras(layer: keras.layers.LSTM, inputs: Tensors) -> None:
    for found, expected in zip(ours(layer, inputs), keras_s(layer, inputs), strict=True):
        for ours_, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours_, theirs, rtol=1e-4, atol=1e-5)


def test_the_way_to_cudnn_gives_the_same(layer: keras.layers.LSTM, inputs: Tensors) -> None:
    x, output, memory, counts = inputs
    with tf.GradientTape() as tape:
        tape.watch([x, output, memory])
        outputs, state = run_keras_lstm(layer, x, (output, memory))
        total = tf.reduce_sum(outputs * counts) + tf.reduce_sum(state[0]) - 2 * tf.reduce_sum(state[1])
    gradients = tape.gradient(total, [x, output, memory, *(weight.value for weight in layer.weights)])
    for found, expected in zip(([outputs, *state], gradients), ours(layer, inputs), strict=True):
        for theirs, ours_ in zip(found, expected, strict=True):
            np.testing.assert_allclose(theirs, ours_, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mode", "gpus", "pays"), [("fast", 1, True), ("exact", 1, False), ("fast", 0, False)])
def test_cudnn_is_for_fast_trainings_on_gpus(mode: str, gpus: int, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "mode", lambda: mode)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu"] * gpus)
    assert lstm.cudnn_pays() is pays


def test_bfloat16_products_are_near(layer: keras.layers.LSTM, inputs: Tensors) -> None:
    for found, expected in zip(ours(layer, inputs, tf.bfloat16), ours(layer, inputs), strict=True):
        for rough, exact in zip(found, expected, strict=True):
            assert rough.dtype == tf.float32
            assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


def test_kept_scales_what_the_layer_sees_of_its_own_outputs(layer: keras.layers.LSTM, inputs: Tensors) -> None:
    """The same for all rows of a batch, it is as if it scaled the rows of the recurrent weights."""
    x, output, memory, counts = inputs
    kept = np.array([0, 2, 1, 0, 2, 1], np.float32)
    kernel, recurrent, bias = layer.get_weights()
    scaled = keras.layers.LSTM(UNITS, return_sequences=True, return_state=True)
    scaled.build((BATCH, STEPS, FEATURES))
    scaled.set_weights([kernel, recurrent * kept[:, None], bias])
    with tf.GradientTape() as tape:
        outputs, _ = run_lstm(layer, x, (output, memory), kept=tf.tile(kept[None], [BATCH, 1]))
        total = tf.reduce_sum(outputs * counts)
    with tf.GradientTape() as other:
        expected, _ = run_lstm(scaled, x, (output, memory))
        expected_total = tf.reduce_sum(expected * counts)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    found = tape.gradient(total, layer.cell.recurrent_kernel.value)
    wanted = other.gradient(expected_total, scaled.cell.recurrent_kernel.value) * kept[:, None]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
