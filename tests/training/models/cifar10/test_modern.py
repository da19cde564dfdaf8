from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from bookserve.training import run
from bookserve.training.datasets import cifar10
from bookserve.training.devices import precision
from bookserve.training.models.cifar10 import modern

TINY = modern.Config(epochs=2, widths=(8, 16, 16))


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "fastest", lambda: "float32")


def test_the_network_is_jordan_s() -> None:
    model = modern.build_model(modern.Config(epochs=1))
    shapes = [tuple(variable.shape) for variable in model.trainable_variables if variable.name == "kernel"]
    assert shapes == [
        *[(3, 3, 24, 64), (3, 3, 64, 64), (3, 3, 64, 256), (3, 3, 256, 256), (3, 3, 256, 256), (3, 3, 256, 256)],
        (256, 10),
    ]
    assert tuple(model.get_layer("whitening").kernel.shape) == (2, 2, 3, 24)
    assert not model.get_layer("whitening").kernel.trainable
    assert {variable.name for variable in model.trainable_variables} == {"kernel", "bias", "beta"}  # no scales


def test_whitened_patches_are_uncorrelated() -> None:
    images = cifar10.draw(200, seed=0).images
    model = modern.build_model(TINY)
    modern.whiten(model, images)
    scaled = model.get_layer("scaled")(images)
    filtered = np.array(model.get_layer("whitening")(scaled)).reshape(-1, 24)
    np.testing.assert_allclose(filtered[:, 12:], -filtered[:, :12], atol=1e-4)
    moments = filtered[:, :12].T @ filtered[:, :12] / len(filtered)
    np.testing.assert_allclose(moments, np.diag(np.diag(moments)), atol=1e-3)
    assert (np.diag(moments) > 0.5).all()
    assert (np.diag(moments) < 1.001).all()


def test_convolutions_begin_as_the_identity() -> None:
    model = modern.build_model(TINY)
    first, second = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)][1:3]
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 24)).astype(np.float32)
    np.testing.assert_array_equal(first(x), x[..., :8])
    np.testing.assert_array_equal(second(x[..., :8]), x[..., :8])
    third = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)][3]
    wider = np.array(third(x[..., :8]))
    np.testing.assert_array_equal(wider[..., :8], x[..., :8])
    assert wider[..., 8:].std() > 0


def test_biases_of_the_normalisation_learn_faster() -> None:
    beta, kernel = keras.Variable([0.0], name="beta"), keras.Variable([0.0], name="kernel")
    descent = modern.Descent(0.1, momentum=0.5, weight_decay=0.0, bias_rate=64.0)
    descent.apply([tf.constant([1.0]), tf.constant([1.0])], [beta, kernel])
    assert float(kernel[0]) == pytest.approx(-0.15)  # Nesterov: 1 + 0.5
    assert float(beta[0]) == pytest.approx(64 * -0.15)


def test_slow_weights_take_a_step_every_so_often_and_the_weights_go_on_from_there() -> None:
    """Against Jordan's LookaheadState: slow = decay slow + (1 - decay) fast, decay = 0.95**5 (step / steps)**3."""
    weight = keras.Variable([1.0, -2.0], name="kernel")
    descent = modern.Descent(0.1, momentum=0.0, weight_decay=0.0, bias_rate=64.0, lookahead=2, steps=6)
    fast, slow = np.array([1.0, -2.0]), np.array([1.0, -2.0])
    for step in range(1, 7):
        gradient = np.array([0.5 * step, -1.0])
        descent.apply([tf.constant(gradient, tf.float32)], [weight])
        fast = fast - 0.1 * gradient
        if step % 2 == 0:
            past = 0.95**5 * (step / 6) ** 3
            slow = past * slow + (1 - past) * fast
            fast = slow
        np.testing.assert_allclose(weight, fast, rtol=1e-5)
    assert np.abs(fast - (np.array([1.0, -2.0]) - 0.1 * np.array([0.5 * 21, -6.0]))).max() > 0.05


def test_moved_images_have_half_of_the_weight() -> None:
    images = cifar10.draw(3, seed=0).images
    model = modern.build_model(replace(TINY, moved=True))
    moved = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    weighted = ((0.5, images), (0.25, moved[:, :32, :32]), (0.25, moved[:, 2:, 2:]))
    expected = sum(
        weight * (np.array(model(views)) + np.array(model(views[:, :, ::-1]))) / 2 for weight, views in weighted
    )
    np.testing.assert_allclose(modern.averaged(model, images), expected, atol=1e-5)
    plain = modern.build_model(TINY)
    plain.set_weights(model.get_weights())
    assert np.abs(np.array(modern.averaged(plain, images)) - expected).max() > 1e-4


def test_pictures_are_shifted_by_at_most_two_pixels_and_reflected() -> None:
    run.make_repeatable(0)
    gradient = np.zeros((32, 32, 3), np.uint8)
    gradient[..., 0] = 4 * np.arange(32)[:, None]  # brighter downwards
    gradient[..., 1] = 4 * np.arange(32)  # brighter to the right
    images = np.repeat(gradient[None], 64, axis=0)
    mirrored = np.arange(64) % 2 == 1
    distorted = np.array(modern.distort(images, mirrored, TINY, tf.constant([1, 2]))) // 4
    padded = np.pad(np.arange(32), 2, mode="reflect")
    windows = [padded[start : start + 32].tolist() for start in range(5)]
    down = [windows.index(picture[:, 0, 0].tolist()) for picture in distorted]
    distorted[mirrored] = distorted[mirrored, :, ::-1]
    right = [windows.index(picture[0, :, 1].tolist()) for picture in distorted]
    assert set(down) == set(right) == set(range(5))
    assert down != right
    assert (distorted[..., 2] == 0).all()
    assert distorted.dtype == np.uint8
    np.testing.assert_array_equal(distorted[:, :, 0, 0], distorted[:, :, 31, 0])


def test_the_rate_rises_from_a_fifth_and_falls_to_nothing() -> None:
    model = modern.build_model(TINY)
    modern.compile_model(model, TINY, steps=50)
    rates = [float(model.optimizer._learning_rate(step)) for step in (0, 20, 100)]
    assert rates == pytest.approx([0.1, 0.5, 0.0], abs=1e-6)


def test_targets_are_smoothed() -> None:
    model = modern.build_model(TINY)
    modern.compile_model(model, TINY, steps=1)
    logits = np.log(np.full((1, 10), 0.02, np.float32) + 0.8 * np.eye(10, dtype=np.float32)[:1])
    least = -(0.82 * np.log(0.82) + 9 * 0.02 * np.log(0.02))  # the targets are 0.82 and 0.02
    assert float(model.loss(np.array([0]), logits)[0]) == pytest.approx(least, rel=1e-5)
