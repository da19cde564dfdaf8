"""A modern small network for CIFAR-10 and how it is trained: about 94 % where chapter 9's reaches 86 %, for less.

Source: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024), which goes back to Page's ResNet for DAWNBench
(2018). The first layer whitens patches and is never trained; six 3 x 3 convolutions begin as the identity; the biases
of the batch normalisation learn fast; labels are smoothed; an image is mirrored every other epoch; the weights look
ahead; at the test, moved images and their mirror images can be asked about beside the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from bookserve.training.datasets import cifar10
from bookserve.training.devices import precision
from bookserve.training.loop.rates import warm_cosine

NAME, MOVED_NAME = "modern", "modern_moved"  # of networks that are asked for the image and its mirror image, for more
PATCH = 2  # pixels of the side of a whitened patch
WHITENING_ROWS = 5_000  # training rows whose patches are looked at
WHITENING_FLOOR = 5e-4  # added to the variances, so that faint directions are not blown up
LOOKAHEAD_PAST = 0.95**5  # of the slow weights, the fraction that stays at the last of their steps
LOGIT_SCALE = 1 / 9  # of the last layer's output
FULL_PRECISION = frozenset({"scaled", "whitening", "scores", "logits"})  # layers that are float32 always


@dataclass(frozen=True)
class Config:
    """The numbers of one training: Jordan's, brought to this batch and to Keras's way of weight decay."""

    epochs: int
    train_rows: int | None = None  # rows to train on, None for all
    classes: int = cifar10.CLASSES  # of the images
    batch: int = 512  # rows a step, over all devices
    widths: tuple[int, ...] = (64, 256, 256)  # filters of the pairs of convolutions
    learning_rate: float = 0.5  # the peak of the schedule
    warmup: float = 0.2  # fraction of the steps in which the rate rises from a fifth of it; a cosine follows
    momentum: float = 0.9  # in Nesterov's form
    bias_rate: float = 64.0  # how much faster than the rest the biases of the normalisation learn
    weight_decay: float = 0.0125  # pull of every weight towards 0, times the rate
    label_smoothing: float = 0.2  # fraction of the target that is spread over all classes
    shift: int = 2  # largest shift of a training image, pixels
    lookahead: int = 0  # steps from one step of the slow weights to the next, 0 for none
    moved: bool = False  # whether the served network also looks at the image moved by a pixel, up left and down right


class Descent(keras.optimizers.SGD):  # type: ignore[misc]
    """Nesterov's descent in which the biases of normalisation layers, named "beta", learn `bias_rate` times faster.

    With `lookahead`, slow weights follow: every so many of the `steps` of the training they take a step towards the
    weights, which go on from there. They keep a fraction of their past that rises with the third power of the time.
    Source: Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back" (2019), as Jordan uses it.
    """

    def __init__(
        self,
        learning_rate: Any,
        momentum: float,
        weight_decay: float,
        bias_rate: float,
        lookahead: int = 0,
        steps: int = 1,
    ) -> None:
        super().__init__(learning_rate, momentum=momentum, nesterov=True, weight_decay=weight_decay)
        self.bias_rate = bias_rate
        self.lookahead = lookahead
        self.steps = steps

    def build(self, variables: Sequence[Any]) -> None:
        """Note how fast each variable learns; in a step they come without the names that Keras gave them. Make the slow
        weights, which begin as the weights.
        """
        if not self.built and self.lookahead:
            super().build(variables)
            self.slow = self.add_optimizer_variables(variables, "slow")
            for slow, variable in zip(self.slow, variables, strict=True):
                slow.assign(variable)
        else:
            super().build(variables)
        self.rate_factors = [self.bias_rate if variable.name == "beta" else 1.0 for variable in variables]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One variable's step."""
        index = self._get_variable_index(variable)
        super().update_step(gradient, variable, learning_rate * self.rate_factors[index])
        if self.lookahead:
            slow, done = self.slow[index], self.iterations + 1
            past = LOOKAHEAD_PAST * (keras.ops.cast(done, "float32") / self.steps) ** 3
            met = past * slow + (1.0 - past) * variable
            due = keras.ops.equal(done % self.lookahead, 0)
            self.assign(slow, keras.ops.where(due, met, slow))
            self.assign(variable, keras.ops.where(due, met, variable))


def build_model(config: Config) -> keras.Model:
    """The untrained network: uint8 images [n, 32, 32, 3] in, float32 logits [n, classes] out; `whiten` completes it."""
    layers = keras.layers
    images = keras.Input((cifar10.SIDE, cifar10.SIDE, 3), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 64, offset=-1.9, name="scaled")(images)  # mean about 0, variance about 1
    x = layers.Conv2D(2 * 3 * PATCH * PATCH, PATCH, name="whitening")(x)  # (n, 31, 31, 24)
    x = keras.ops.gelu(x, approximate=True)
    for width in config.widths:
        x = _convolution(width)(x)
        x = layers.MaxPooling2D()(x)  # (n, 15, 15, 64), (n, 7, 7, 256), (n, 3, 3, 256)
        x = layers.BatchNormalization(scale=False, momentum=0.6, epsilon=1e-5)(x)
        x = keras.ops.gelu(x, approximate=True)
        x = _convolution(width)(x)
        x = layers.BatchNormalization(scale=False, momentum=0.6, epsilon=1e-5)(x)
        x = keras.ops.gelu(x, approximate=True)
    x = layers.GlobalMaxPooling2D()(x)  # (n, 256)
    x = layers.Dense(config.classes, use_bias=False, kernel_initializer=_uniform(), name="scores")(x)
    logits = layers.Rescaling(LOGIT_SCALE, name="logits")(x)
    network = keras.Model(images, logits, name=MOVED_NAME if config.moved else NAME)
    model = precision.in_precision(network, precision.fastest(), FULL_PRECISION)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.name != "whitening":
            layer.kernel.assign(_identity(np.array(layer.kernel)))
    model.get_layer("whitening").kernel.trainable = False
    return model


def whiten(model: keras.Model, images: cifar10.Images) -> None:
    """Set the filters of the first layer so that its outputs on patches of `images` [n, 32, 32, 3] are uncorrelated
    and of variance 1: the eigenvectors of the patches, and their negatives.
    """
    scaled = np.asarray(model.get_layer("scaled")(images[:WHITENING_ROWS]))  # (n, 32, 32, 3)
    patches = np.lib.stride_tricks.sliding_window_view(scaled, (PATCH, PATCH), axis=(1, 2))  # (n, 31, 31, 3, 2, 2)
    rows = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 3 * PATCH * PATCH)
    variances, directions = np.linalg.eigh(rows.T @ rows / len(rows))
    filters = (directions / np.sqrt(variances + WHITENING_FLOOR)).reshape(PATCH, PATCH, 3, -1)
    model.get_layer("whitening").kernel.assign(np.concatenate([filters, -filters], axis=-1))


def compile_model(model: keras.Model, config: Config, steps: int) -> None:
    """Give the network its loss and its optimizer; an epoch has `steps` steps."""
    rate = warm_cosine(config.learning_rate, config.epochs * steps, config.warmup, start=0.2)

    def loss(labels: Any, logits: Any) -> Any:
        targets = keras.ops.one_hot(labels, config.classes)
        return keras.losses.categorical_crossentropy(
            targets, logits, from_logits=True, label_smoothing=config.label_smoothing
        )

    optimizer = Descent(
        rate, config.momentum, config.weight_decay, config.bias_rate, config.lookahead, config.epochs * steps
    )
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])


def distort(images: Any, mirrored: Any, config: Config, seed: Any) -> Any:
    """Shift each image on its own, and mirror those that are `mirrored`, bool [n]: uint8 [n, 32, 32, 3] in and out.

    What a shift uncovers is a reflection of what is next to it.
    """
    last = cifar10.SIDE - 1
    offsets = tf.random.stateless_uniform([tf.shape(images)[0], 2, 1], seed, -config.shift, config.shift + 1, tf.int32)
    places = last - tf.abs(last - tf.abs(offsets + tf.range(cifar10.SIDE)))  # (n, 2, 32)
    rows, columns = places[:, 0], tf.where(mirrored[:, None], tf.reverse(places[:, 1], [1]), places[:, 1])
    flat = tf.reshape(images, [-1, cifar10.SIDE * cifar10.SIDE, 3])
    return tf.gather(flat, rows[:, :, None] * cifar10.SIDE + columns[:, None, :], batch_dims=1)


def averaged(network: keras.Model, images: Any) -> Any:
    """Logits float32 [n, classes] of uint8 images [n, 32, 32, 3] and their mirror images, averaged. Where the network
    is to be asked for moved images, too, those have half of the weight.
    """
    logits = _with_mirror_image(network, images)
    if network.name != MOVED_NAME:
        return logits
    ops = keras.ops
    wide = ops.concatenate([images[:, 1:2], images, images[:, -2:-1]], axis=1)  # what is moved in is a reflection
    wide = ops.concatenate([wide[:, :, 1:2], wide, wide[:, :, -2:-1]], axis=2)  # (n, 34, 34, 3)
    moved = _with_mirror_image(network, wide[:, :-2, :-2]) + _with_mirror_image(network, wide[:, 2:, 2:])
    return logits / 2 + moved / 4


def _with_mirror_image(network: keras.Model, images: Any) -> Any:
    columns = list(reversed(range(images.shape[2])))  # `take`: `flip` takes three times as long in ONNX
    mirrored = keras.ops.take(images, columns, axis=2)
    return (network(images, training=False) + network(mirrored, training=False)) / 2


def _convolution(width: int) -> keras.layers.Conv2D:
    return keras.layers.Conv2D(width, 3, padding="same", use_bias=False, kernel_initializer=_uniform())


def _uniform() -> keras.initializers.Initializer:
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


def _identity(kernel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The kernel [3, 3, inputs, outputs] with its first filters replaced so that each passes on one of the inputs."""
    inputs, outputs = kernel.shape[2:]
    same = np.arange(min(inputs, outputs))
    kernel[..., same] = 0.0
    kernel[1, 1, same, same] = 1.0
    return kernel
