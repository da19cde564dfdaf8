import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from book_contracts import CONTRACTS
from bookserve.export import publish, run_reader
from bookserve.export.manifest import Manifest
from bookserve.export.store import ModelStore
from bookserve.training import run
from bookserve.training.datasets import cifar10 as cifar10_data
from bookserve.training.datasets.files import DataRequest, Origin
from bookserve.training.datasets.splits import ImageSplits
from bookserve.training.devices import precision
from bookserve.training.loop import averages
from bookserve.training.loop.checkpoint import NO_CHECKPOINT, Checkpoint
from bookserve.training.models.cifar10 import book, modern
from bookserve.training.models.cifar10 import model as cifar10

TINY = modern.Config(epochs=4, batch=32, widths=(8, 16, 16), learning_rate=0.1)
TINY_BOOK = book.Config(epochs=2, batch=48, average=0.5)


@pytest.fixture(scope="module")
def pictures() -> ImageSplits:
    train, valid, test = (cifar10_data.draw(rows, seed) for seed, rows in enumerate((480, 80, 120)))
    return ImageSplits(train, valid, test, origin=Origin("sample", "drawn", ""))


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "fastest", lambda: "float32")


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_the_modern_network_learns_reports_and_is_published_with_both_graphs_alike(
    pictures: ImageSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, history, made = _road("standard", TINY, pictures, tmp_path, monkeypatch)
    test = result.metrics["test"]
    assert list(history) == ["epoch", "accuracy", "loss", "val_accuracy", "val_loss"]
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert test["accuracy"] > 0.3  # chance is 0.1
    assert test["accuracy_1000"] == test["accuracy"]  # of 120 rows
    for picture in ("confusion.png", "mistakes.png"):
        assert (result.folder / "report" / picture).read_bytes().startswith(b"\x89PNG")
    assert made.parity["probabilities"] < 1e-5


@pytest.mark.slow
def test_of_the_book_s_network_the_averages_are_validated_kept_and_published(
    pictures: ImageSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    take = averages.take_averages
    monkeypatch.setattr(cifar10, "take_averages", lambda model: (take(model), kept.append(model)))
    result, history, made = _road("book", TINY_BOOK, pictures, tmp_path, monkeypatch)
    assert result.metrics["valid"]["accuracy"] == pytest.approx(history["val_accuracy"][-1])
    for variable, average in zip(kept[-1].trainable_variables, kept[-1].optimizer.averages, strict=True):
        np.testing.assert_array_equal(variable, average)
    assert {id(average) for average in kept[-1].optimizer.averages} <= {id(v) for v in kept[-1].optimizer.variables}
    assert made.parity["probabilities"] < 1e-5


def _road(
    configuration: str, config: cifar10.Config, data: ImageSplits, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[run.Result, dict[str, list[float]], Manifest]:
    """From the configuration to a published version."""
    monkeypatch.setattr(cifar10, "load_data", lambda *_: data)
    monkeypatch.setitem(cifar10.CONFIGS[configuration], "smoke", config)
    request, quiet = DataRequest("sample"), Console(quiet=True)
    result = run.train_model("cifar10", request, folder / "runs", quiet, configuration, "smoke")
    lines = (result.folder / "history.csv").read_text().splitlines()
    columns = zip(*(map(float, line.split(",")) for line in lines[1:]), strict=True)
    history = dict(zip(lines[0].split(","), map(list, columns), strict=True))
    made = publish.publish(run_reader.read(result.folder, "cifar10"), ModelStore(folder / "models"), lambda _: None)
    return result, history, made


class StoppedError(Exception):
    """What a kill is in this test."""


class StopInSecondEpoch(keras.callbacks.Callback):  # type: ignore[misc]
    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        if epoch == 1:
            raise StoppedError


@pytest.mark.slow
def test_a_training_that_was_stopped_ends_with_the_same_weights(pictures: ImageSplits, tmp_path: Path) -> None:
    config = modern.Config(epochs=2, batch=160, widths=(4, 8, 8))

    def trained(checkpoint: Checkpoint, callbacks: list[keras.callbacks.Callback]) -> list[np.ndarray]:
        run.make_repeatable(0)
        model = cifar10.build_model(config)
        cifar10.train(model, pictures, config, 0, callbacks, checkpoint)
        return list(model.get_weights())

    through = trained(NO_CHECKPOINT, [])
    with pytest.raises(StoppedError):
        trained(Checkpoint(tmp_path / "stopped"), [StopInSecondEpoch()])
    for expected, actual in zip(through, trained(Checkpoint(tmp_path / "stopped"), []), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_the_modern_network_is_asked_for_the_mirror_image_too(pictures: ImageSplits) -> None:
    model = cifar10.build_model(TINY)
    served = cifar10.serving_model(model)
    images = pictures.test.images[:5]
    outputs = served(images)
    assert set(outputs) == {tensor.name for tensor in CONTRACTS["cifar10"].outputs}
    logits = (np.array(model(images, training=False)) + np.array(model(images[:, :, ::-1], training=False))) / 2
    np.testing.assert_allclose(outputs["probabilities"], keras.ops.softmax(logits), atol=1e-6)
    np.testing.assert_array_equal(outputs["classes"], np.argmax(logits, axis=1))
    np.testing.assert_allclose(served(images[:, :, ::-1])["probabilities"], outputs["probabilities"], atol=1e-6)


def test_the_book_s_network_is_served_the_central_crop(pictures: ImageSplits) -> None:
    model = cifar10.build_model(TINY_BOOK)
    outputs = cifar10.serving_model(model)(pictures.test.images[:5])
    logits = model(pictures.test.images[:5, 4:28, 4:28], training=False)
    np.testing.assert_allclose(outputs["probabilities"], keras.ops.softmax(logits), atol=1e-6)


@pytest.mark.parametrize("config", [TINY, TINY_BOOK])
def test_what_was_trained_in_bfloat16_is_served_in_float32(
    config: cifar10.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "fastest", lambda: "mixed_bfloat16")
    model = cifar10.build_model(config)
    (network,) = [layer for layer in cifar10.serving_model(model).layers if layer.name == model.name]
    assert "bfloat16" in {layer.compute_dtype for layer in model.layers if isinstance(layer, keras.layers.Layer)}
    assert {layer.compute_dtype for layer in network.layers if isinstance(layer, keras.layers.Layer)} == {"float32"}
    for expected, actual in zip(model.get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_picture_is_mirrored_in_every_other_epoch(pictures: ImageSplits) -> None:
    run.make_repeatable(0)
    config = modern.Config(epochs=2, batch=480, shift=0)
    first, second = (images for images, _ in cifar10.training_batches(pictures.train, config, 1).as_numpy_iterator())
    places = {image.tobytes(): row for row, image in enumerate(pictures.train.images)}
    whole = [{places[image.tobytes()] for image in epoch if image.tobytes() in places} for epoch in (first, second)]
    assert 180 < len(whole[0]) < 300
    assert whole[0] | whole[1] == set(range(480))
    assert not whole[0] & whole[1]


@pytest.mark.parametrize("config", [TINY, TINY_BOOK])
def test_batches_differ_from_epoch_to_epoch_and_not_for_a_seed(config: cifar10.Config, pictures: ImageSplits) -> None:
    run.make_repeatable(0)
    steps = 480 // config.batch
    batches = list(cifar10.training_batches(pictures.train, config, seed=1).as_numpy_iterator())
    assert len(batches) == config.epochs * steps
    assert (batches[0][0] != batches[steps][0]).any()
    labels = np.concatenate([labels for _, labels in batches[:steps]])
    assert sorted(labels) == sorted(pictures.train.labels)
    later = next(cifar10.training_batches(pictures.train, config, seed=1, first_epoch=1).as_numpy_iterator())
    np.testing.assert_array_equal(later[0], batches[steps][0])


SPLIT = """
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from bookserve.training import run
from bookserve.training.datasets import cifar10 as pictures
from bookserve.training.datasets.files import Origin
from bookserve.training.datasets.splits import ImageSplits
from bookserve.training.devices import precision
from bookserve.training.models.cifar10 import book, model as cifar10
precision.fastest = lambda: "float32"
train, valid = pictures.draw(80, 0), pictures.draw(41, 1)
data = ImageSplits(train, valid, valid, Origin("sample", "drawn", ""))
config = book.Config(epochs=3, batch=16, average=0.9)
losses = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    run.make_repeatable(0)
    with strategy.scope():
        model = cifar10.build_model(config)
        history = cifar10.train(model, data, config, 0, [])
    losses.append(history["loss"] + history["val_loss"])
print(losses)
np.testing.assert_allclose(*losses, rtol=1e-4)  # rounding, which the steps enlarge
print("replicas", strategy.num_replicas_in_sync)
"""


@pytest.mark.slow
def test_two_replicas_have_the_losses_of_one() -> None:
    done = subprocess.run([sys.executable, "-c", SPLIT], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("replicas 2")


def test_every_profile_has_its_numbers() -> None:
    for profiles in cifar10.CONFIGS.values():
        assert list(profiles) == ["smoke", "default", "full"]
        smoke, default, full = profiles.values()
        assert smoke.epochs < default.epochs < full.epochs


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif("DATA_DIR" not in os.environ, reason="needs the real data in DATA_DIR")
def test_default_reaches_80_percent_on_the_real_validation_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # in whatever precision is fastest here
    config = cifar10.CONFIGS["standard"]["default"]
    data = cifar10.load_data(config, DataRequest("real", Path(os.environ["DATA_DIR"])), seed=0)
    run.make_repeatable(0)
    model = cifar10.build_model(config)
    cifar10.train(model, data, config, seed=0, callbacks=[])
    assert cifar10.evaluate(model, data, tmp_path)["valid"]["accuracy"] >= 0.80
