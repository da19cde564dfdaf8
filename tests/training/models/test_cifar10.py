import os
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from rich.console import Console

from bookserve.export import publish, run_files
from bookserve.export.contracts import CIFAR10
from bookserve.export.store import ModelStore
from bookserve.training import run
from bookserve.training.datasets import cifar10 as cifar10_data
from bookserve.training.datasets.cifar10 import Pictures, Split
from bookserve.training.datasets.files import DataRequest, Origin
from bookserve.training.models import cifar10

TINY = cifar10.Config(epochs=5, batch=32, filters=(8, 16, 16), learning_rate=1e-2, average=0.8, brightness=0.05)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    train, valid, test = (cifar10_data.draw(rows, seed) for seed, rows in enumerate((480, 80, 120)))
    return Pictures(train, valid, test, origin=Origin("sample", "drawn", ""))


def test_the_book_s_network_is_the_book_s() -> None:
    model = cifar10.build_model(cifar10.PROFILES["full"])
    assert model.input_shape == (None, 24, 24, 3)
    shapes = [tuple(variable.shape) for variable in model.trainable_variables if len(variable.shape) > 1]
    assert shapes == [(5, 5, 3, 64), (5, 5, 64, 64), (2304, 384), (384, 192), (192, 10)]


def test_local_response_normalisation_is_tensorflow_s() -> None:
    x = np.random.default_rng(0).normal(0, 30, (2, 3, 3, 12)).astype(np.float32)
    expected = tf.nn.local_response_normalization(x, 4, bias=1.0, alpha=0.001 / 9.0, beta=0.75)
    images = keras.Input((3, 3, 12))
    layer = keras.Model(images, cifar10._local_response_normalisation(images))
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5)


def test_training_learns_and_evaluation_agrees(pictures: Pictures, tmp_path: Path) -> None:
    run.make_repeatable(0)
    model = cifar10.build_model(TINY)
    history = cifar10.train(model, pictures, TINY, seed=0, callbacks=[])
    metrics = cifar10.evaluate(model, pictures, tmp_path)
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert metrics["test"]["accuracy"] > 0.3  # chance is 0.1
    assert metrics["test"]["accuracy_1000"] == metrics["test"]["accuracy"]  # of 120 rows
    assert metrics["valid"]["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-3)  # the averaged weights are kept
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("network", ["lean", "book"])
def test_the_serving_model_takes_whole_pictures(pictures: Pictures, network: str) -> None:
    model = cifar10.build_model(cifar10.Config(epochs=1, filters=(4, 8), network=network))  # type: ignore[arg-type]
    outputs = cifar10.serving_model(model)(pictures.test.images[:5])
    assert set(outputs) == {tensor.name for tensor in CIFAR10.outputs}
    logits = model(pictures.test.images[:5, 4:28, 4:28], training=False)
    np.testing.assert_allclose(outputs["probabilities"], keras.ops.softmax(logits), atol=1e-6)
    np.testing.assert_array_equal(outputs["classes"], np.argmax(logits, axis=1))


def test_the_book_s_network_is_published_with_both_graphs_alike(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "load_data", lambda *_: pictures)
    monkeypatch.setitem(cifar10.PROFILES, "smoke", cifar10.Config(epochs=1, batch=240, network="book"))
    result = run.train_model("cifar10", DataRequest("sample"), tmp_path / "runs", Console(quiet=True), profile="smoke")
    store = ModelStore(tmp_path / "models")
    made = publish.publish(run_files.read(result.folder, "cifar10"), store, lambda _: None)
    assert made.parity["probabilities"] < 1e-5
    session = onnxruntime.InferenceSession(store.path("cifar10", 1) / "assets.extra" / "model.onnx")
    assert session.run(None, {"images": pictures.test.images[:3]})[0].shape == (3, 10)


def test_crops_are_parts_of_the_picture_mirrored_half_the_time() -> None:
    run.make_repeatable(0)
    gradient = np.zeros((32, 32, 3), np.uint8)
    gradient[..., 0] = 4 * np.arange(32)[:, None]  # brighter downwards
    gradient[..., 1] = 4 * np.arange(32)  # brighter to the right
    same = Split(np.repeat(gradient[None], 64, axis=0), np.zeros(64, np.int64))
    config = cifar10.Config(epochs=1, batch=64, brightness=0.0, contrast=0.0)
    crops, _ = next(cifar10.training_batches(same, config, seed=0).as_numpy_iterator())
    steps = np.diff(crops.astype(int), axis=2)[:, 0, 0, 1]
    assert crops.shape == (64, 24, 24, 3)
    assert set(steps) == {4, -4}
    assert 16 <= (steps < 0).sum() <= 48
    assert (np.diff(crops[..., 0].astype(int), axis=1) == 4).all()
    assert set(crops[:, 0, 0, 0]) == {4 * row for row in range(9)}


def test_batches_differ_from_epoch_to_epoch_and_not_for_a_seed(pictures: Pictures) -> None:
    run.make_repeatable(0)
    dataset = cifar10.training_batches(pictures.train, TINY, seed=1)
    first, second = (next(dataset.as_numpy_iterator())[0] for _ in range(2))
    again = next(cifar10.training_batches(pictures.train, TINY, seed=1).as_numpy_iterator())[0]
    assert first.dtype == np.uint8
    assert (first != second).any()
    np.testing.assert_array_equal(first, again)
    labels = np.concatenate([batch for _, batch in dataset.as_numpy_iterator()])
    assert sorted(labels) == sorted(pictures.train.labels)


def test_every_profile_has_its_numbers() -> None:
    assert list(cifar10.PROFILES) == ["smoke", "default", "full"]
    smoke, default, full = cifar10.PROFILES.values()
    assert smoke.epochs < default.epochs < full.epochs


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif("DATA_DIR" not in os.environ, reason="needs the real data in DATA_DIR")
def test_default_reaches_70_percent_on_the_real_test_rows(tmp_path: Path) -> None:
    config = cifar10.PROFILES["default"]
    data = cifar10.load_data(config, DataRequest("real", Path(os.environ["DATA_DIR"])), seed=0)
    run.make_repeatable(0)
    model = cifar10.build_model(config)
    cifar10.train(model, data, config, seed=0, callbacks=[])
    assert cifar10.evaluate(model, data, tmp_path)["test"]["accuracy"] >= 0.70
