"""LeNet-5 on MNIST (chapter 6): 28 x 28 images to ten digits.

Source: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition" (1998), in the book's
form: rectified units, max pooling, dropout. Unlike the book's code the training rows are shuffled, the validation rows
are drawn at random, and the batch is free in the graph. The configuration "book" has the numbers of chapter 6: descent
with momentum, a rate that falls with each epoch, a penalty of the dense layers' weights, and the last weights are kept.

The profile "full" trains convolutions of 3 x 3 in LeNet-5's place: neither padded nor pooled, each normalised. Source:
An, Lee, Park, Yang, So, "An Ensemble of Simple Convolutional Neural Network Models for MNIST Digit Recognition" (2020);
here one of them has a stride, which saves most of the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from optuna.distributions import FloatDistribution

from bookserve.export import figures
from bookserve.export.contracts import Contract, Preprocessing, Tensor
from bookserve.training import plots
from bookserve.training.datasets import mnist, picture_folder
from bookserve.training.datasets.files import DataRequest
from bookserve.training.datasets.own_data import PictureFolder
from bookserve.training.datasets.splits import ImageSplits, LabelledImages
from bookserve.training.devices import precision
from bookserve.training.errors import TrainingError
from bookserve.training.loop.averages import AveragedAdamW, AveragedDescent, ValidateAverages, take_averages
from bookserve.training.loop.batches import row_order
from bookserve.training.loop.checkpoint import NO_CHECKPOINT, Checkpoint
from bookserve.training.loop.fit import fit
from bookserve.training.loop.rates import warm_cosine
from bookserve.training.loop.small_data import for_rows
from bookserve.training.loop.traced import Traced
from bookserve.training.models import STANDARD, KeyMetric
from bookserve.training.tuning.search_space import Search, choice

CONTRACT = Contract(
    model="mnist",
    version=1,
    task="image-classification",
    inputs=(Tensor("images", "uint8", (None, 28, 28), unit="grey level"),),  # white digit on black, as the data set
    outputs=(
        Tensor("probabilities", "float32", (None, 10), unit="probability"),
        Tensor("classes", "int64", (None,), ranks="probabilities"),
    ),
    labels=tuple("0123456789"),
    preprocessing=Preprocessing("images", size=(28, 28), colour="grey", resize="centred"),
)
DATA_SET = mnist
KEY_METRIC = KeyMetric(name="accuracy", book=0.993)  # chapter 6's script "should achieve a test error of 0.7%"
EVALUATION_BATCH = 500
FULL_PRECISION = frozenset({"scaled", "logits"})  # layers that are float32 always


@dataclass(frozen=True)
class Config:
    """The numbers of one training; "chapter 6" marks those of the book."""

    epochs: int
    train_rows: int | None = None  # rows to train on, None for all
    classes: int = mnist.CLASSES  # of the images
    batch: int = 128  # rows a step, over all devices (chapter 6 uses 64)
    filters_1: int = 32  # 5 x 5 filters of the first layer (chapter 6)
    filters_2: int = 64  # 5 x 5 filters of the second layer (chapter 6)
    kernel: int = 5  # side of a filter (chapter 6)
    convolutions: tuple[int, ...] | None = None  # filters of convolutions of 3 x 3 in LeNet-5's place; None is LeNet-5
    strided: int = 2  # which of these, from 0, has a stride of 2
    hidden: int = 512  # units of the fully connected layer (chapter 6)
    dropout: float = 0.5  # fraction of hidden units dropped in a step (chapter 6)
    learning_rate: float = 2e-3  # the peak of the schedule, or the first one where it decays (chapter 6: 0.01)
    momentum: float | None = None  # of plain gradient descent (chapter 6: 0.9); None is AdamW
    decay: float | None = (
        None  # what is left of the rate after each epoch (chapter 6: 0.95); None is the schedule below
    )
    warmup: float = 0.15  # fraction of the steps in which the rate rises; it then falls to 0 along a cosine
    weight_decay: float = 1e-3  # AdamW's pull of every weight towards 0 (chapter 6: none)
    penalty: float = 0.0  # times half the squared weights of the dense layers, inside the loss (chapter 6: 5e-4)
    spread: float | None = None  # deviation of the first weights, with biases of 0.1 (chapter 6: 0.1); None is Glorot's
    pixel_range: float = 2.0  # from black to white, 0 in the middle (chapter 6: 1)
    rotation: float = 0.0  # largest turn of a training image, degrees
    zoom: float = 0.0  # largest change of its size, a fraction of it
    shift: float = 0.0  # largest shift, pixels
    elastic: float = 0.0  # strength of the elastic bending (Simard et al. 2003), pixels
    average: float | None = None  # the fraction of the past in a running average of the weights, which is then kept
    keep_best: bool = True  # the weights of the best epoch by validation loss; else the last ones (chapter 6)
    patience: int = 10  # epochs without a better one before the training stops, where the best is kept


BOOK = Config(
    epochs=10,
    batch=64,
    learning_rate=0.01,
    momentum=0.9,
    decay=0.95,
    weight_decay=0.0,
    penalty=5e-4,
    spread=0.1,
    pixel_range=1.0,
    keep_best=False,
)
CONFIGS: dict[str, dict[str, Config]] = {
    STANDARD: {
        "smoke": Config(epochs=1, train_rows=12_000, batch=64),
        "default": Config(epochs=5),
        "full": Config(
            epochs=32,
            convolutions=(32, 40, 60, 80, 100, 120, 140),
            learning_rate=4e-3,
            rotation=15.0,
            zoom=0.15,
            shift=3.0,
            elastic=0.8,
            average=0.999,
        ),
    },
    "book": {"smoke": replace(BOOK, epochs=1, train_rows=12_000), "default": BOOK, "full": BOOK},
}
SEARCHES: dict[str, Search] = {
    STANDARD: Search(
        objective="val_loss",
        higher_is_better=False,
        space={
            "learning_rate": FloatDistribution(3e-4, 6e-3, log=True),
            "weight_decay": FloatDistribution(1e-4, 1e-1, log=True),
            "dropout": FloatDistribution(0.2, 0.8),
            "batch": choice(64, 128, 256),
            "hidden": choice(128, 256, 512),
        },
    )
}


def load_data(config: Config, request: DataRequest, seed: int) -> ImageSplits:
    """MNIST, or the drawn digits that stand in for it; or a user's own pictures, whose central square is taken."""
    if isinstance(request.own, PictureFolder):
        return picture_folder.read(request.own, (mnist.SIDE, mnist.SIDE), "grey", seed, config.train_rows)
    return mnist.load(request, seed, config.train_rows)


def on_own_data(config: Config, data: ImageSplits, name: str) -> tuple[Config, Contract]:
    """The numbers and the contract for a user's own pictures: their classes, and "crop" where digits are "centred"."""
    classes = len(data.labels)
    outputs = (replace(CONTRACT.outputs[0], shape=(None, classes)), *CONTRACT.outputs[1:])
    preprocessing = Preprocessing("images", size=(mnist.SIDE, mnist.SIDE), colour="grey", resize="crop")
    contract = replace(
        CONTRACT, model=name, version=1, outputs=outputs, labels=data.labels, preprocessing=preprocessing
    )
    return replace(for_rows(config, len(data.train.labels)), classes=classes), contract


def build_model(config: Config) -> keras.Model:
    """LeNet-5, or convolutions alone, untrained: uint8 images [n, 28, 28] in, float32 logits [n, classes] out; on GPUs
    in their fastest precision.
    """
    layers = keras.layers
    images = keras.Input((mnist.SIDE, mnist.SIDE), dtype="uint8", name="images")
    x = layers.Rescaling(config.pixel_range / 255, offset=-config.pixel_range / 2, name="scaled")(images)
    x = layers.Reshape((mnist.SIDE, mnist.SIDE, 1))(x)  # (n, 28, 28, 1)
    logits = _convolutions(x, config, config.convolutions) if config.convolutions else _lenet5(x, config)
    network = keras.Model(images, logits, name="convolutions" if config.convolutions else "lenet5")
    policy = precision.fastest_on_gpus()
    return network if policy == "float32" else precision.in_precision(network, policy, FULL_PRECISION)


def train(
    model: keras.Model,
    data: ImageSplits,
    config: Config,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback],
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> dict[str, list[float]]:
    """Train in place; the weights of the epoch with the best validation loss are kept, or the last ones, or their
    running average.

    Returns figure -> epochs.
    """
    steps = len(data.train.labels) // config.batch
    model.compile(
        optimizer=_optimizer(config, steps),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    keep_best = config.keep_best and config.average is None
    if config.average is not None:
        callbacks = [ValidateAverages(), *callbacks]
    history = fit(
        model,
        lambda first_epoch: training_batches(data.train, config, seed, first_epoch),
        config.epochs,
        steps,
        _batches(data.valid),
        callbacks,
        checkpoint,
        best="val_loss" if keep_best else None,
        patience=config.patience if keep_best else None,
    )
    if config.average is not None:
        take_averages(model)
    return history


def evaluate(model: keras.Model, data: ImageSplits, report: Path) -> dict[str, dict[str, float]]:
    """Split -> figure -> value, for all three splits; draws the confusion matrix of the test rows into `report`."""
    metrics = {}
    network = Traced(model)
    predicted = np.zeros(0, np.int64)
    for name, split in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        logits = network.answers(split.images)  # (n, classes)
        predicted = logits.argmax(axis=1)
        losses = keras.losses.sparse_categorical_crossentropy(split.labels, logits, from_logits=True)
        metrics[name] = {
            "accuracy": float((predicted == split.labels).mean()),
            "loss": float(np.mean(losses)),
            "rows": float(len(split.labels)),
        }
    plots.confusion_matrix(data.test.labels, predicted, data.labels or CONTRACT.labels, report / "confusion.png")
    return metrics


def measurement(data: ImageSplits) -> figures.Measurement:
    """The accuracy of the served graph on the test rows."""
    accuracy = figures.of_classes(lambda outputs: outputs["classes"], data.test.inputs, data.test.labels)
    return figures.Measurement(data.train.inputs, accuracy)


def serving_model(model: keras.Model) -> keras.Model:
    """The trained network behind the contract, in float32: `images` in, `probabilities` and `classes` out."""
    images = keras.Input((mnist.SIDE, mnist.SIDE), dtype="uint8", name="images")
    network = precision.in_precision(model, "float32")
    probabilities = keras.layers.Softmax()(network(images, training=False))  # (n, classes)
    best = keras.ops.top_k(probabilities, k=1)[1][:, 0]  # (n,); Keras's argmax has no ONNX form
    classes = keras.ops.cast(best, "int64")
    return keras.Model(images, {"probabilities": probabilities, "classes": classes}, name="mnist")


def training_batches(split: LabelledImages, config: Config, seed: int, first_epoch: int = 0) -> tf.data.Dataset:
    """From an epoch on, shuffled and distorted anew in each: uint8 [batch, 28, 28] and int64 [batch]."""
    images, labels = tf.constant(split.images), tf.constant(split.labels)

    def pick(rows: Any, draw: Any) -> tuple[Any, Any]:
        chosen = tf.gather(images, rows)
        if config.rotation or config.zoom or config.shift or config.elastic:
            chosen = _distort(chosen, config, draw)
        return chosen, tf.gather(labels, rows)

    order = row_order(len(split.labels), config.batch, seed, first_epoch, config.epochs)
    return order.map(pick, num_parallel_calls=2).prefetch(2)


def _lenet5(x: Any, config: Config) -> Any:
    """The logits of pictures float32 [n, 28, 28, 1]."""
    layers = keras.layers
    x = layers.Conv2D(config.filters_1, config.kernel, padding="same", activation="relu", **_start(config, bias=0.0))(x)
    x = layers.MaxPooling2D()(x)  # (n, 14, 14, 32)
    x = layers.Conv2D(config.filters_2, config.kernel, padding="same", activation="relu", **_start(config))(x)
    x = layers.MaxPooling2D()(x)  # (n, 7, 7, 64)
    x = layers.Flatten()(x)
    x = layers.Dense(config.hidden, activation="relu", **_start(config), **_penalty(config))(x)
    x = layers.Dropout(config.dropout)(x)
    return layers.Dense(config.classes, name="logits", **_start(config), **_penalty(config))(x)


def _convolutions(x: Any, config: Config, filters: tuple[int, ...]) -> Any:
    """The same by convolutions of 3 x 3 and one layer over what they see."""
    layers = keras.layers
    for place, count in enumerate(filters):
        strides = 2 if place == config.strided else 1
        if min(x.shape[1:3]) < 3:
            raise TrainingError(
                f"convolutions: after {place} of {len(filters)} nothing is left of the picture to look at"
            )
        x = layers.Conv2D(count, 3, strides=strides, use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
        x = layers.Activation("relu")(x)
    x = layers.Dense(config.classes, use_bias=False)(layers.Flatten()(x))  # (n, 3, 3, 140) to (n, classes)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name="logits")(x)


def _optimizer(config: Config, steps: int) -> keras.optimizers.Optimizer:
    """AdamW along the schedule, or descent with momentum at a rate that falls after every epoch of `steps` steps; with
    averages of the weights, or without."""
    rate: Any = warm_cosine(config.learning_rate, config.epochs * steps, config.warmup)
    if config.decay is not None:
        rate = keras.optimizers.schedules.ExponentialDecay(config.learning_rate, steps, config.decay, staircase=True)
    if config.momentum is not None and config.average is not None:
        return AveragedDescent(rate, config.average, config.momentum)
    if config.momentum is not None:
        return keras.optimizers.SGD(rate, momentum=config.momentum)
    if config.average is not None:
        return AveragedAdamW(rate, config.weight_decay, config.average)
    return keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)


def _start(config: Config, bias: float = 0.1) -> dict[str, Any]:
    """What a layer's weights begin with: Keras's default, or the book's truncated normal weights and biases."""
    if config.spread is None:
        return {}
    return {
        "kernel_initializer": keras.initializers.TruncatedNormal(stddev=config.spread),
        "bias_initializer": keras.initializers.Constant(bias),
    }


def _penalty(config: Config) -> dict[str, Any]:
    """What a dense layer adds to the loss."""
    squares = keras.regularizers.L2(config.penalty / 2) if config.penalty else None
    return {"kernel_regularizer": squares, "bias_regularizer": squares}


def _batches(split: LabelledImages) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((split.images, split.labels)).batch(EVALUATION_BATCH).prefetch(2)


def _distort(images: Any, config: Config, seed: Any) -> Any:
    """Turn, zoom, shift and bend each image of a batch on its own: uint8 [n, 28, 28] in and out.

    Every pixel is read from where the inverse distortion puts it, with bilinear interpolation; outside is black.
    """
    n, side = tf.shape(images)[0], mnist.SIDE
    seeds = tf.random.split(seed, 4)
    angle = tf.random.stateless_uniform([n, 1, 1], seeds[0], -1, 1) * (config.rotation * np.pi / 180)
    zoom = 1 + tf.random.stateless_uniform([n, 1, 1, 2], seeds[1], -1, 1) * config.zoom
    shift = tf.random.stateless_uniform([n, 1, 1, 2], seeds[2], -1, 1) * config.shift
    # a coarse field of random pulls, made smooth by enlarging it
    pulls = tf.image.resize(tf.random.stateless_normal([n, 5, 5, 2], seeds[3]), [side, side], "bicubic")
    line = tf.range(side, dtype=tf.float32) - (side - 1) / 2
    rows, columns = tf.meshgrid(line, line, indexing="ij")  # (28, 28) each
    turned = tf.stack(
        [tf.cos(angle) * rows - tf.sin(angle) * columns, tf.sin(angle) * rows + tf.cos(angle) * columns], axis=-1
    )  # (n, 28, 28, 2)
    places = turned * zoom + shift + pulls * config.elastic + (side - 1) / 2
    return _read(tf.cast(images, tf.float32), places)


def _read(images: Any, places: Any) -> Any:
    """Bilinear reading of float32 [n, 28, 28] at the fractional (row, column) places [n, 28, 28, 2]: uint8."""
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1]])  # black frame: whatever lies outside reads as 0
    places = tf.clip_by_value(places + 1.0, 0.0, mnist.SIDE + 0.999)
    corner = tf.cast(tf.floor(places), tf.int32)
    fraction = places - tf.floor(places)
    row, column = corner[..., 0], corner[..., 1]
    down, right = fraction[..., 0], fraction[..., 1]
    width = mnist.SIDE + 2
    flat = tf.reshape(padded, [tf.shape(images)[0], width * width])
    # (n, 28, 28) flat positions in each padded image

    def at(down_by: int, right_by: int) -> Any:
        return tf.gather(flat, (row + down_by) * width + column + right_by, batch_dims=1)

    top = at(0, 0) * (1 - right) + at(0, 1) * right
    bottom = at(1, 0) * (1 - right) + at(1, 1) * right
    return tf.cast(tf.round(top * (1 - down) + bottom * down), tf.uint8)
