"""Ten kinds of things on small colour pictures (chapter 9): convolutional networks on CIFAR-10, on one device or many.

Source: Krizhevsky's cuda-convnet as TensorFlow's CIFAR-10 tutorial has it: two convolutions with local response
normalisation, two dense layers, random 24 x 24 crops, averaged weights; the network "book". The network "lean" has
small filters and batch normalisation (Simonyan and Zisserman 2015; Ioffe and Szegedy 2015) and learns in minutes on a
processor what the other takes hours for. The batch is the global one: over many devices each takes its part, and the
loss is divided by the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from bookserve.export.contracts import CIFAR10
from bookserve.training import plots
from bookserve.training.checkpoint import NO_CHECKPOINT, Checkpoint
from bookserve.training.datasets import cifar10
from bookserve.training.datasets.files import DataRequest
from bookserve.training.headline import Headline
from bookserve.training.models import STANDARD

CONTRACT = CIFAR10
HEADLINE = Headline(metric="accuracy", book=0.86)  # chapter 9's script "achieves ~86% accuracy after 100K steps"
CROP = 24  # pixels of the side that the network sees (chapter 9)
EVALUATION_BATCH = 500
FIRST_TEST_ROWS = 1_000  # whose accuracy is a figure of its own: see the note on the test batch in datasets/cifar10.py


@dataclass(frozen=True)
class Config:
    """The numbers of one training; "chapter 9" marks those of the book."""

    epochs: int
    train_rows: int | None = None  # rows to train on, None for all
    batch: int = 128  # rows a step, over all devices (chapter 9)
    network: Literal["book", "lean"] = "lean"
    filters: tuple[int, ...] = (32, 64, 128, 128)  # of the 3 x 3 convolutions of "lean"; pooling after all but the last
    learning_rate: float = 4e-3  # the peak of the schedule (chapter 9: 0.1, plain descent; here Adam)
    warmup: float = 0.2  # share of the steps in which the rate rises; it then falls to 0 along a cosine
    weight_decay: float = 5e-3  # pull of every weight towards 0 (chapter 9: 0.004 on the dense layers, inside the loss)
    average: float = 0.99  # share of the past in the running average of the weights, which is kept (chapter 9: 0.9999)
    brightness: float = 0.15  # largest change of all pixels, share of the full scale (chapter 9: 63 of 255)
    contrast: float = 0.3  # largest change of the spread of the pixels, share (chapter 9: 0.2 to 1.8)


PROFILES: dict[str, Config] = {
    "smoke": Config(epochs=1, train_rows=5_000, batch=64, filters=(16, 32, 64), average=0.9),
    "default": Config(epochs=10),
    "full": Config(
        epochs=250, network="book", learning_rate=1e-3, average=0.999, weight_decay=2e-2, brightness=0.25, contrast=0.8
    ),
}
CONFIGS: dict[str, dict[str, Config]] = {STANDARD: PROFILES}


def load_data(config: Config, request: DataRequest, seed: int) -> cifar10.Pictures:
    """CIFAR-10, or the drawn shapes that stand in for it."""
    return cifar10.load(request, seed, config.train_rows)


def build_model(config: Config) -> keras.Model:
    """The network of the configuration, untrained: uint8 crops [n, 24, 24, 3] in, float32 logits [n, 10] out."""
    ops = keras.ops
    crops = keras.Input((CROP, CROP, 3), dtype="uint8", name="crops")
    x = ops.cast(crops, "float32")
    x = x - ops.mean(x, axis=(1, 2, 3), keepdims=True)
    spread = ops.sqrt(ops.mean(ops.square(x), axis=(1, 2, 3), keepdims=True))
    x = x / ops.maximum(spread, 1.0)  # (n, 24, 24, 3), mean 0 and variance 1 in each picture
    x = _book_network(x) if config.network == "book" else _lean_network(x, config.filters)
    return keras.Model(crops, keras.layers.Dense(cifar10.CLASSES, name="logits")(x), name=config.network)


def train(
    model: keras.Model,
    data: cifar10.Pictures,
    config: Config,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback],
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> dict[str, list[float]]:
    """Train in place; the running average of the weights is what is validated and kept. Returns figure -> epochs."""
    steps = config.epochs * (len(data.train.labels) // config.batch)
    warmup = int(steps * config.warmup)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=config.learning_rate, warmup_steps=warmup
    )
    optimizer = keras.optimizers.AdamW(
        rate, weight_decay=config.weight_decay, use_ema=True, ema_momentum=config.average
    )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        training_batches(data.train, config, seed),
        epochs=config.epochs,
        validation_data=_batches(data.valid),
        callbacks=[keras.callbacks.SwapEMAWeights(), *callbacks],
        shuffle=False,
        verbose=0,
    )
    return dict(history.history)


def evaluate(model: keras.Model, data: cifar10.Pictures, report: Path) -> dict[str, dict[str, float]]:
    """Split -> figure -> value, on the central crops; draws the confusion matrix of the test rows into `report`.

    `accuracy_1000` is the accuracy on the first 1,000 test rows. Of the training rows as many are read as of the test.
    """
    metrics = {}
    predicted = np.zeros(0, np.int64)
    seen = cifar10.Split(data.train.images[: len(data.test.labels)], data.train.labels[: len(data.test.labels)])
    for name, split in (("train", seen), ("valid", data.valid), ("test", data.test)):
        logits = model.predict(_batches(split), verbose=0)  # (n, 10)
        predicted = logits.argmax(axis=1)
        losses = keras.losses.sparse_categorical_crossentropy(split.labels, logits, from_logits=True)
        metrics[name] = {
            "accuracy": float((predicted == split.labels).mean()),
            "loss": float(np.mean(losses)),
            "rows": float(len(split.labels)),
        }
    right = predicted == data.test.labels
    metrics["test"]["accuracy_1000"] = float(right[:FIRST_TEST_ROWS].mean())
    plots.confusion_matrix(data.test.labels, predicted, CIFAR10.labels, report / "confusion.png")
    return metrics


def serving_model(model: keras.Model) -> keras.Model:
    """The trained network behind the contract: `images` in, cropped here; `probabilities` and `classes` out."""
    images = keras.Input((cifar10.SIDE, cifar10.SIDE, 3), dtype="uint8", name="images")
    probabilities = keras.layers.Softmax()(model(_central(images), training=False))  # (n, 10)
    best = keras.ops.top_k(probabilities, k=1)[1][:, 0]  # (n,); Keras's argmax has no ONNX form
    classes = keras.ops.cast(best, "int64")
    return keras.Model(images, {"probabilities": probabilities, "classes": classes}, name="cifar10")


def training_batches(split: cifar10.Split, config: Config, seed: int) -> tf.data.Dataset:
    """Shuffled, cropped, mirrored and recoloured anew each epoch: uint8 [batch, 24, 24, 3] and int64 [batch].

    The last short batch is left out.
    """
    rows = len(split.labels)
    order = tf.data.Dataset.range(rows).shuffle(rows, seed=seed).batch(config.batch, drop_remainder=True)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
    images, labels = tf.constant(split.images), tf.constant(split.labels)

    def pick(places: Any, draw: Any) -> tuple[Any, Any]:
        return _distort(tf.gather(images, places), config, draw), tf.gather(labels, places)

    return tf.data.Dataset.zip((order, seeds)).map(pick, num_parallel_calls=2).prefetch(2)


def _book_network(x: Any) -> Any:
    layers = keras.layers
    x = layers.Conv2D(64, 5, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D(3, 2, padding="same")(x)  # (n, 12, 12, 64)
    x = _local_response_normalisation(x)
    x = layers.Conv2D(64, 5, padding="same", activation="relu")(x)
    x = _local_response_normalisation(x)
    x = layers.MaxPooling2D(3, 2, padding="same")(x)  # (n, 6, 6, 64)
    x = layers.Flatten()(x)
    x = layers.Dense(384, activation="relu")(x)
    return layers.Dense(192, activation="relu")(x)


def _lean_network(x: Any, filters: tuple[int, ...]) -> Any:
    layers = keras.layers
    for number, count in enumerate(filters, start=1):
        x = layers.Conv2D(count, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
        if number < len(filters):
            x = layers.MaxPooling2D()(x)
    return layers.Flatten()(x)


def _local_response_normalisation(x: Any) -> Any:
    """Each of the channels of x [n, height, width, channels] divided by the strength of the four on either side.

    The numbers of chapter 9: depth radius 4, bias 1, alpha 0.001 / 9, beta 0.75.
    """
    channels = x.shape[-1]
    squares = keras.ops.pad(keras.ops.square(x), ((0, 0), (0, 0), (0, 0), (4, 4)))
    strength = sum(squares[..., shift : shift + channels] for shift in range(9))
    return x / keras.ops.power(1.0 + (0.001 / 9.0) * strength, 0.75)


def _central(images: Any) -> Any:
    """The central 24 x 24 pixels of [n, 32, 32, 3]."""
    margin = (cifar10.SIDE - CROP) // 2
    return images[:, margin : margin + CROP, margin : margin + CROP, :]


def _batches(split: cifar10.Split) -> tf.data.Dataset:
    crops = np.ascontiguousarray(_central(split.images))
    return tf.data.Dataset.from_tensor_slices((crops, split.labels)).batch(EVALUATION_BATCH).prefetch(2)


def _distort(images: Any, config: Config, seed: Any) -> Any:
    """Crop, mirror and recolour each image of a batch on its own: uint8 [n, 32, 32, 3] to [n, 24, 24, 3]."""
    n = tf.shape(images)[0]
    seeds = tf.random.split(tf.cast(seed, tf.int32), 4)
    room = cifar10.SIDE - CROP + 1
    corner = tf.random.stateless_uniform([n, 2], seeds[0], 0, room, tf.int32)
    line = tf.range(CROP)
    rows = corner[:, :1] + line  # (n, 24)
    mirrored = tf.random.stateless_uniform([n, 1], seeds[1]) < 0.5
    columns = corner[:, 1:] + tf.where(mirrored, CROP - 1 - line, line)  # (n, 24)
    crops = tf.gather(images, rows, batch_dims=1)  # (n, 24, 32, 3)
    crops = tf.gather(tf.transpose(crops, [0, 2, 1, 3]), columns, batch_dims=1)  # (n, 24 columns, 24 rows, 3)
    crops = tf.cast(tf.transpose(crops, [0, 2, 1, 3]), tf.float32)
    brighter = tf.random.stateless_uniform([n, 1, 1, 1], seeds[2], -1, 1) * (255 * config.brightness)
    spread = 1 + tf.random.stateless_uniform([n, 1, 1, 1], seeds[3], -1, 1) * config.contrast
    mean = tf.reduce_mean(crops, axis=[1, 2], keepdims=True)
    recoloured = (crops - mean) * spread + mean + brighter
    return tf.cast(tf.round(tf.clip_by_value(recoloured, 0.0, 255.0)), tf.uint8)
