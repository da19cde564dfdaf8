"""Ten kinds of things on small colour images (chapter 9): convolutional networks on CIFAR-10, on one device or many.

The configuration "standard" trains the network of `modern.py`, "book" that of chapter 9, which is in `book.py`; here is
what they share. The batch is the global one: over many devices each takes its part, and the loss is divided by the
whole.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from optuna.distributions import FloatDistribution

from bookserve.export import figures
from bookserve.export.contracts import Contract, Preprocessing, Tensor
from bookserve.training import plots
from bookserve.training.datasets import cifar10, picture_folder
from bookserve.training.datasets.files import DataRequest
from bookserve.training.datasets.own_data import PictureFolder
from bookserve.training.datasets.splits import ImageSplits, LabelledImages
from bookserve.training.devices import precision
from bookserve.training.loop.averages import ValidateAverages, take_averages
from bookserve.training.loop.batches import row_order
from bookserve.training.loop.checkpoint import NO_CHECKPOINT, Checkpoint
from bookserve.training.loop.fit import fit
from bookserve.training.loop.small_data import for_rows
from bookserve.training.loop.traced import Traced
from bookserve.training.models import STANDARD, KeyMetric
from bookserve.training.models.cifar10 import book, modern
from bookserve.training.tuning.search_space import Search, choice

CONTRACT = Contract(
    model="cifar10",
    version=1,
    task="image-classification",
    inputs=(Tensor("images", "uint8", (None, 32, 32, 3), unit="colour level"),),
    outputs=(
        Tensor("probabilities", "float32", (None, 10), unit="probability"),
        Tensor("classes", "int64", (None,), ranks="probabilities"),
    ),
    labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    preprocessing=Preprocessing("images", size=(32, 32), colour="rgb", resize="crop"),
)
DATA_SET = cifar10
# Chapter 9's script "achieves ~86% accuracy after 100K steps".
KEY_METRIC = KeyMetric(name="accuracy", book=0.86, exact="accuracy_1000")
EVALUATION_BATCH = 500
FIRST_TEST_ROWS = 1_000  # whose accuracy is a figure of its own: see the note on the test batch in datasets/cifar10.py
MISTAKES = 32  # images of the report

Config = modern.Config | book.Config

CONFIGS: dict[str, dict[str, Config]] = {
    STANDARD: {
        "smoke": modern.Config(epochs=1, train_rows=5_000, batch=64, widths=(16, 32, 32), learning_rate=0.1),
        "default": modern.Config(epochs=6, widths=(32, 64, 64)),
        "full": modern.Config(epochs=20),
    },
    "book": {
        "smoke": book.Config(epochs=1, train_rows=5_000, batch=64),
        "default": book.Config(epochs=5, stair=4, average=0.99),
        # chapter 9 trains for 256 epochs and never comes to the stair
        "full": book.Config(epochs=130, stair=110, average=0.999),
    },
}
SEARCHES: dict[str, Search] = {
    STANDARD: Search(
        objective="val_accuracy",
        higher_is_better=True,
        epoch="last",
        space={
            "learning_rate": FloatDistribution(0.1, 1.0, log=True),
            "weight_decay": FloatDistribution(2e-3, 5e-2, log=True),
            "label_smoothing": FloatDistribution(0.0, 0.3),
            "bias_rate": choice(16.0, 64.0),
            "shift": choice(0, 2, 4),
        },
    ),
    "book": Search(
        objective="val_accuracy",
        higher_is_better=True,
        epoch="last",
        space={
            "learning_rate": FloatDistribution(0.01, 0.3, log=True),
            "weight_decay": FloatDistribution(1e-4, 1e-1, log=True),
            "average": choice(0.9, 0.99, 0.999),
            "contrast": FloatDistribution(0.0, 0.8),
        },
    ),
}


def load_data(config: Config, request: DataRequest, seed: int) -> ImageSplits:
    """CIFAR-10, or the drawn shapes that stand in for it; or a user's own pictures, whose central square is taken."""
    if isinstance(request.own, PictureFolder):
        return picture_folder.read(request.own, (cifar10.SIDE, cifar10.SIDE), "rgb", seed, config.train_rows)
    return cifar10.load(request, seed, config.train_rows)


def on_own_data(config: Config, data: ImageSplits, name: str) -> tuple[Config, Contract]:
    """The numbers and the contract for a user's own pictures: their classes, and a rate for the size of the batch."""
    classes, few = len(data.labels), for_rows(config, len(data.train.labels))
    rate = config.learning_rate * (few.batch / config.batch) ** 0.5
    outputs = (replace(CONTRACT.outputs[0], shape=(None, classes)), *CONTRACT.outputs[1:])
    contract = replace(CONTRACT, model=name, version=1, outputs=outputs, labels=data.labels)
    return replace(few, classes=classes, learning_rate=rate), contract


def build_model(config: Config) -> keras.Model:
    """The network of the configuration, untrained: images or their crops in, float32 logits [n, classes] out."""
    if isinstance(config, book.Config):
        return book.build_model(config)
    return modern.build_model(config)


def train(
    model: keras.Model,
    data: ImageSplits,
    config: Config,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback],
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> dict[str, list[float]]:
    """Train in place; the weights of the last epoch are kept, of "book" their average. Returns figure -> epochs."""
    steps = len(data.train.labels) // config.batch
    if isinstance(config, book.Config):
        book.compile_model(model, config, steps)
        callbacks = [ValidateAverages(), *callbacks]
    else:
        modern.whiten(model, data.train.images)
        modern.compile_model(model, config, steps)
    history = fit(
        model,
        lambda first_epoch: training_batches(data.train, config, seed, first_epoch),
        config.epochs,
        steps,
        _batches(data.valid.images, data.valid.labels, model.input_shape[1]),
        callbacks,
        checkpoint,
    )
    if isinstance(config, book.Config):
        take_averages(model)
    return history


def evaluate(model: keras.Model, data: ImageSplits, report: Path) -> dict[str, dict[str, float]]:
    """Split -> figure -> value, of the network as it is served; draws the confusion matrix of the test rows and those
    that it is most wrong about into `report`.

    `accuracy_1000` is the accuracy on the first 1,000 test rows of CIFAR-10. Of the training rows as many are read as
    of the test.
    """
    served = Traced(serving_model(model))
    metrics = {}
    names = data.labels or CONTRACT.labels
    probabilities = np.zeros((0, len(names)), np.float32)
    seen = LabelledImages(data.train.images[: len(data.test.labels)], data.train.labels[: len(data.test.labels)])
    for name, split in (("train", seen), ("valid", data.valid), ("test", data.test)):
        probabilities = served.answers(split.images)["probabilities"]  # (n, classes)
        losses = keras.losses.sparse_categorical_crossentropy(split.labels, probabilities)
        metrics[name] = {
            "accuracy": float((probabilities.argmax(axis=1) == split.labels).mean()),
            "loss": float(np.mean(losses)),
            "rows": float(len(split.labels)),
        }
    labels, predicted = data.test.labels, probabilities.argmax(axis=1)
    if data.origin.source != "own":
        metrics["test"]["accuracy_1000"] = float((predicted == labels)[:FIRST_TEST_ROWS].mean())
    plots.confusion_matrix(labels, predicted, names, report / "confusion.png")
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(probabilities[wrong, labels[wrong]])][:MISTAKES]
    plots.images(
        data.test.images[worst],
        [f"{names[predicted[row]]}, not\n{names[labels[row]]}" for row in worst],
        "most wrong about these test rows",
        report / "mistakes.png",
    )
    return metrics


def measurement(data: ImageSplits) -> figures.Measurement:
    """The accuracy of the served graph on the test rows."""
    accuracy = figures.of_classes(lambda outputs: outputs["classes"], data.test.inputs, data.test.labels)
    return figures.Measurement(data.train.inputs, accuracy)


def serving_model(model: keras.Model) -> keras.Model:
    """The trained network behind the contract, in float32: `images` in; `probabilities` and `classes` out.

    "modern" averages what it says of each image and its mirror image (see `averaged`), "book" sees the central crop.
    """
    images = keras.Input((cifar10.SIDE, cifar10.SIDE, 3), dtype="uint8", name="images")
    network = precision.in_precision(model, "float32")
    if model.name == book.NAME:
        logits = network(_central(images, book.CROP), training=False)  # (n, classes)
    else:
        logits = modern.averaged(network, images)  # (n, classes)
    probabilities = keras.layers.Softmax()(logits)
    best = keras.ops.top_k(probabilities, k=1)[1][:, 0]  # (n,); Keras's argmax has no ONNX form
    classes = keras.ops.cast(best, "int64")
    return keras.Model(images, {"probabilities": probabilities, "classes": classes}, name="cifar10")


def training_batches(split: LabelledImages, config: Config, seed: int, first_epoch: int = 0) -> tf.data.Dataset:
    """From an epoch on, shuffled and distorted anew in each: images [batch, side, side, 3] and int64 [batch]."""
    rows = len(split.labels)
    steps = rows // config.batch
    images, labels = tf.constant(split.images), tf.constant(split.labels)
    mirrored_first = tf.constant(np.random.default_rng(seed).random(rows) < 0.5)

    def pick(places: Any, draw: Any) -> tuple[Any, Any]:
        chosen = tf.gather(images, places)
        if isinstance(config, book.Config):
            distorted = book.distort(chosen, config, draw)
        else:
            odd = draw[1] // steps % 2 == 1  # epoch: an image is mirrored in every other one
            distorted = modern.distort(chosen, tf.gather(mirrored_first, places) ^ odd, config, draw)
        return distorted, tf.gather(labels, places)

    order = row_order(rows, config.batch, seed, first_epoch, config.epochs)
    return order.map(pick, num_parallel_calls=2).prefetch(2)


def _central(images: Any, side: int) -> Any:
    """The central `side` x `side` pixels of [n, 32, 32, 3]."""
    margin = (cifar10.SIDE - side) // 2
    return images[:, margin : margin + side, margin : margin + side, :]


def _batches(images: cifar10.Images, labels: cifar10.Labels, side: int) -> tf.data.Dataset:
    crops = np.ascontiguousarray(_central(images, side))
    return tf.data.Dataset.from_tensor_slices((crops, labels)).batch(EVALUATION_BATCH).prefetch(2)
