import os
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from book_contracts import CONTRACTS
from bookserve.training import run
from bookserve.training.datasets import digit_sample
from bookserve.training.datasets.files import DataRequest, Origin
from bookserve.training.datasets.splits import ImageSplits, LabelledImages
from bookserve.training.devices import precision
from bookserve.training.errors import TrainingError
from bookserve.training.models import mnist

TINY = mnist.Config(epochs=6, batch=32, filters_1=8, filters_2=8, hidden=32, learning_rate=8e-3, dropout=0.2)
CONVOLUTIONS = replace(TINY, convolutions=(4, 4, 8, 8, 8, 8, 8), learning_rate=2e-2, average=0.9)
NETWORKS = pytest.mark.parametrize("config", [TINY, CONVOLUTIONS], ids=["LeNet-5", "convolutions"])


@pytest.fixture(scope="module")
def digits() -> ImageSplits:
    images, labels = digit_sample.draw(640, seed=0)
    splits = [LabelledImages(images[part], labels[part]) for part in (slice(0, 480), slice(480, 560), slice(560, 640))]
    return ImageSplits(*splits, origin=Origin("sample", "drawn digits", ""))


def test_the_network_is_the_book_s() -> None:
    model = mnist.build_model(mnist.CONFIGS["standard"]["default"])
    assert model.input_shape == (None, 28, 28)
    assert model.output_shape == (None, 10)
    shapes = [tuple(variable.shape) for variable in model.trainable_variables]
    assert shapes == [(5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (3136, 512), (512,), (512, 10), (10,)]


def test_the_book_s_numbers(digits: ImageSplits) -> None:
    config = mnist.CONFIGS["book"]["default"]
    assert (config.epochs, config.batch, config.dropout, config.keep_best) == (10, 64, 0.5, False)
    model = mnist.build_model(config)
    seen = keras.Model(model.input, model.layers[1].output)(np.array([[[0, 255] * 14] * 28], np.uint8)).numpy()
    assert (seen.min(), seen.max()) == pytest.approx((-0.5, 0.5))
    first, *_, last = (layer for layer in model.layers if hasattr(layer, "kernel"))
    assert not first.bias.numpy().any()
    assert last.bias.numpy() == pytest.approx(np.full(10, 0.1))
    assert np.abs(first.kernel.numpy()).max() <= 0.2  # two deviations of the truncated normal
    dense = [layer for layer in model.layers if type(layer) is keras.layers.Dense]
    squares = sum(float((weights.numpy() ** 2).sum()) for layer in dense for weights in (layer.kernel, layer.bias))
    assert float(sum(model.losses)) == pytest.approx(5e-4 * squares / 2, rel=1e-4)
    optimizer = mnist._optimizer(config, steps=100)
    assert type(optimizer) is keras.optimizers.SGD
    assert optimizer.momentum == 0.9
    rates = [float(optimizer._learning_rate(step)) for step in (0, 99, 100, 250)]
    assert rates == pytest.approx([0.01, 0.01, 0.0095, 0.01 * 0.95**2])


@pytest.mark.slow
@pytest.mark.parametrize("average", [None, 0.95])
def test_the_book_s_network_learns_and_keeps_its_last_weights_or_their_average(
    digits: ImageSplits, tmp_path: Path, average: float | None
) -> None:
    small = replace(mnist.BOOK, epochs=8, batch=32, filters_1=8, filters_2=8, hidden=32, dropout=0.2)
    config = replace(small, average=average)
    run.make_repeatable(0)
    model = mnist.build_model(config)
    history = mnist.train(model, digits, config, seed=0, callbacks=[])
    assert len(history["loss"]) == 8
    after = mnist.evaluate(model, digits, tmp_path)
    assert after["valid"]["accuracy"] == pytest.approx(history["val_accuracy"][-1])
    assert after["valid"]["loss"] == pytest.approx(history["val_loss"][-1] - float(sum(model.losses)), rel=1e-3)
    assert after["test"]["accuracy"] > 0.5


def test_the_network_of_full_is_of_convolutions_that_see_the_whole_picture() -> None:
    model = mnist.build_model(mnist.CONFIGS["standard"]["full"])
    kernels = [layer.kernel.shape for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [shape[2:] for shape in kernels] == [
        (1, 32),
        (32, 40),
        (40, 60),
        (60, 80),
        (80, 100),
        (100, 120),
        (120, 140),
    ]
    assert {shape[:2] for shape in kernels} == {(3, 3)}
    (last,) = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert last.kernel.shape == (3 * 3 * 140, 10)
    assert model.output_shape == (None, 10)


def test_more_convolutions_than_a_picture_has_room_for_are_told() -> None:
    assert mnist.build_model(replace(CONVOLUTIONS, convolutions=(4,) * 7)).output_shape == (None, 10)
    with pytest.raises(TrainingError, match="convolutions: after 8 of 9 nothing is left"):
        mnist.build_model(replace(CONVOLUTIONS, convolutions=(4,) * 9))


@pytest.mark.usefixtures("drawn")
@NETWORKS
def test_training_learns_and_evaluation_agrees(digits: ImageSplits, config: mnist.Config, tmp_path: Path) -> None:
    run.make_repeatable(0)
    model = mnist.build_model(config)
    before = mnist.evaluate(model, digits, tmp_path)
    history = mnist.train(model, digits, config, seed=0, callbacks=[])
    after = mnist.evaluate(model, digits, tmp_path)
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert after["train"]["loss"] < before["train"]["loss"] / 2
    assert after["test"]["accuracy"] > 0.5
    kept = history["val_loss"][-1] if config.average else min(history["val_loss"])
    assert after["valid"]["loss"] == pytest.approx(kept, rel=1e-3)
    assert after["test"]["rows"] == 80
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


@NETWORKS
def test_the_serving_model_keeps_the_contract(digits: ImageSplits, config: mnist.Config) -> None:
    model = mnist.build_model(config)
    served = mnist.serving_model(model)
    outputs = served(digits.test.images[:5])
    assert set(outputs) == {tensor.name for tensor in CONTRACTS["mnist"].outputs}
    probabilities, classes = outputs["probabilities"].numpy(), outputs["classes"].numpy()
    logits = model(digits.test.images[:5], training=False).numpy()
    np.testing.assert_allclose(probabilities, keras.ops.softmax(logits).numpy(), atol=1e-6)
    np.testing.assert_array_equal(classes, logits.argmax(axis=1))
    assert classes.dtype == np.int64


@NETWORKS
def test_what_a_gpu_trained_in_bfloat16_is_served_in_float32(
    digits: ImageSplits, config: mnist.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "fastest_on_gpus", lambda: "mixed_bfloat16")
    run.make_repeatable(0)
    model = mnist.build_model(config)
    assert {layer.name for layer in model.layers if layer.compute_dtype == "float32"} >= {"scaled", "logits"}
    assert "bfloat16" in {layer.compute_dtype for layer in model.layers}
    served = mnist.serving_model(model)
    (network,) = [layer for layer in served.layers if layer.name == model.name]
    assert {layer.compute_dtype for layer in network.layers} == {"float32"}
    expected = keras.ops.softmax(model(digits.test.images[:20], training=False))
    np.testing.assert_allclose(served(digits.test.images[:20])["probabilities"], expected, atol=0.02)


def test_batches_are_shuffled_anew_each_epoch_and_the_same_for_a_seed(digits: ImageSplits) -> None:
    run.make_repeatable(0)

    def read() -> list[np.ndarray]:
        batches = mnist.training_batches(digits.train, TINY, seed=1).as_numpy_iterator()
        labels = np.concatenate([labels for _, labels in batches])
        return np.split(labels, TINY.epochs)

    first, second = read()[:2]
    again = read()[0]
    assert sorted(first) == sorted(digits.train.labels)
    assert (first != digits.train.labels).any()
    assert (first != second).any()
    np.testing.assert_array_equal(first, again)


def test_distortion_changes_each_image_differently_and_keeps_it_a_digit(digits: ImageSplits) -> None:
    run.make_repeatable(0)
    full = mnist.CONFIGS["standard"]["full"]
    config = mnist.Config(epochs=2, batch=32, rotation=full.rotation, shift=full.shift, elastic=full.elastic)
    one = LabelledImages(np.repeat(digits.train.images[:1], 32, axis=0), np.zeros(32, np.int64))
    first, second = (images for images, _ in mnist.training_batches(one, config, seed=0).as_numpy_iterator())
    assert first.dtype == np.uint8
    assert first.shape == (32, 28, 28)
    assert len(np.unique(first.reshape(32, -1), axis=0)) == 32
    mass = first.astype(float).sum(axis=(1, 2)) / one.images[0].sum()
    assert (np.abs(mass - 1) < 0.4).all()
    assert first.tolist() != second.tolist()


def test_no_distortion_leaves_every_pixel(digits: ImageSplits) -> None:
    run.make_repeatable(0)
    config = mnist.Config(epochs=1, batch=80, shift=1e-9)
    images, labels = next(mnist.training_batches(digits.test, config, seed=0).as_numpy_iterator())
    order = np.lexsort(images.reshape(80, -1).T)
    expected = np.lexsort(digits.test.images.reshape(80, -1).T)
    np.testing.assert_array_equal(images[order], digits.test.images[expected])
    np.testing.assert_array_equal(labels[order], digits.test.labels[expected])


def test_every_profile_has_its_numbers() -> None:
    assert list(mnist.CONFIGS["standard"]) == ["smoke", "default", "full"]
    smoke, default, full = mnist.CONFIGS["standard"].values()
    assert smoke.epochs < default.epochs < full.epochs


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif("DATA_DIR" not in os.environ, reason="needs the real data in DATA_DIR")
def test_default_reaches_99_2_percent_on_the_real_test_rows(tmp_path: Path) -> None:
    config = mnist.CONFIGS["standard"]["default"]
    data = mnist.load_data(config, DataRequest("real", Path(os.environ["DATA_DIR"])), seed=0)
    run.make_repeatable(0)
    model = mnist.build_model(config)
    mnist.train(model, data, config, seed=0, callbacks=[])
    assert mnist.evaluate(model, data, tmp_path)["test"]["accuracy"] >= 0.992
