import keras
import numpy as np
import pytest
import tensorflow as tf

from bookserve.training import run
from bookserve.training.devices import precision
from bookserve.training.models.cifar10 import book


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "fastest", lambda: "float32")


def test_the_network_is_the_book_s() -> None:
    run.make_repeatable(0)
    model = book.build_model(book.Config(epochs=1))
    assert model.input_shape == (None, 24, 24, 3)
    kernels = [variable for variable in model.trainable_variables if variable.name == "kernel"]
    shapes = [tuple(kernel.shape) for kernel in kernels]
    assert shapes == [(5, 5, 3, 64), (5, 5, 64, 64), (2304, 384), (384, 192), (192, 10)]
    # a normal distribution cut off at two deviations has 0.88 of its deviation
    deviations = [float(np.std(kernel)) / 0.88 for kernel in kernels]
    assert deviations == pytest.approx([0.05, 0.05, 0.04, 0.04, 1 / 192], rel=0.05)
    biases = [variable for variable in model.trainable_variables if variable.name == "bias"]
    assert [float(np.mean(bias)) for bias in biases] == pytest.approx([0.0, 0.1, 0.1, 0.1, 0.0])


def test_the_dense_layers_are_held_small_by_the_loss() -> None:
    model = book.build_model(book.Config(epochs=1))
    squares = sum(float(np.square(layer.kernel).sum()) for layer in model.layers[-3:-1])
    assert float(sum(model.losses)) == pytest.approx(0.004 * squares / 2, rel=1e-4)


def test_local_response_normalisation_is_tensorflow_s() -> None:
    x = np.random.default_rng(0).normal(0, 30, (2, 3, 3, 12)).astype(np.float32)
    expected = tf.nn.local_response_normalization(x, 4, bias=1.0, alpha=0.001 / 9.0, beta=0.75)
    images = keras.Input((3, 3, 12))
    layer = keras.Model(images, book.local_response_normalisation(images))
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5)


def test_the_rate_falls_in_stairs() -> None:
    config = book.Config(epochs=5, stair=2)
    model = book.build_model(config)
    book.compile_model(model, config, steps=10)
    rates = [float(model.optimizer._learning_rate(step)) for step in (0, 19, 20, 40)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_crops_are_parts_of_the_picture_mirrored_half_the_time() -> None:
    run.make_repeatable(0)
    gradient = np.zeros((32, 32, 3), np.uint8)
    gradient[..., 0] = 4 * np.arange(32)[:, None]  # brighter downwards
    gradient[..., 1] = 4 * np.arange(32)  # brighter to the right
    images = np.repeat(gradient[None], 64, axis=0)
    config = book.Config(epochs=1, brightness=0.0, contrast=0.0)
    crops = np.array(book.distort(images, config, tf.constant([0, 0])))
    steps = np.diff(crops, axis=2)[:, 0, 0, 1]
    assert crops.shape == (64, 24, 24, 3)
    assert set(steps) == {4, -4}
    assert 16 <= (steps < 0).sum() <= 48
    assert (np.diff(crops[..., 0], axis=1) == 4).all()
    assert set(crops[:, 0, 0, 0]) == {4 * row for row in range(9)}


def test_light_changes_from_picture_to_picture() -> None:
    images = np.full((64, 32, 32, 3), 100, np.uint8)
    images[:, ::2] = 120
    crops = np.array(book.distort(images, book.Config(epochs=1), tf.constant([0, 0])))
    means, spreads = crops.mean(axis=(1, 2, 3)), crops.max(axis=(1, 2, 3)) - crops.min(axis=(1, 2, 3))
    assert 47 <= means.min() < 70
    assert 150 < means.max() <= 173
    assert 4 <= spreads.min() < 10
    assert 30 < spreads.max() <= 36.01
