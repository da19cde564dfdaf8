"""Chapter 9's network for CIFAR-10 and how it is trained there.

Source: Krizhevsky's cuda-convnet as TensorFlow's CIFAR-10 tutorial has it: two convolutions with local response
normalisation, two dense layers held small by the loss, random 24 x 24 crops in changing light, plain descent in stairs,
and the running average of the weights as the result.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bookserve.training.datasets import cifar10
from bookserve.training.devices import precision
from bookserve.training.loop.averages import AveragedDescent

NAME = "book"
CROP = 24  # pixels of the side that the network sees
FULL_PRECISION = frozenset({"logits"})  # layers that are float32 always


@dataclass(frozen=True)
class Config:
    """The numbers of one training; "chapter 9" marks those of the book, which trains for 100,000 steps."""

    epochs: int
    train_rows: int | None = None  # rows to train on, None for all
    classes: int = cifar10.CLASSES  # of the images
    batch: int = 128  # rows a step, over all devices (chapter 9)
    learning_rate: float = 0.1  # of the first epochs (chapter 9)
    stair: int = 350  # epochs after which the rate falls (chapter 9)
    fall: float = 0.1  # the fraction of it that it falls to (chapter 9)
    weight_decay: float = 0.004  # times half of the squares of the dense layers' weights, in the loss (chapter 9)
    average: float = 0.9999  # fraction of the past in the running average of the weights, which is kept (chapter 9)
    brightness: float = 63.0  # largest change of all pixels of a training image, of 255 (chapter 9)
    contrast: float = 0.8  # largest change of the spread of its pixels, a fraction of it (chapter 9: 0.2 to 1.8)


def build_model(config: Config) -> keras.Model:
    """The untrained network: float32 crops [n, 24, 24, 3] of 0 to 255 in, float32 logits [n, classes] out."""
    layers, ops = keras.layers, keras.ops
    crops = keras.Input((CROP, CROP, 3), name="crops")
    x = crops - ops.mean(crops, axis=(1, 2, 3), keepdims=True)
    spread = ops.sqrt(ops.mean(ops.square(x), axis=(1, 2, 3), keepdims=True))
    x = x / ops.maximum(spread, 1 / np.sqrt(3 * CROP * CROP))  # mean 0 and variance 1 in each image
    x = _convolution(bias=0.0)(x)  # (n, 24, 24, 64)
    x = layers.MaxPooling2D(3, 2, padding="same")(x)  # (n, 12, 12, 64)
    x = local_response_normalisation(x)
    x = _convolution(bias=0.1)(x)
    x = local_response_normalisation(x)
    x = layers.MaxPooling2D(3, 2, padding="same")(x)  # (n, 6, 6, 64)
    x = layers.Flatten()(x)
    x = _dense(384, config.weight_decay)(x)
    x = _dense(192, config.weight_decay)(x)
    logits = layers.Dense(config.classes, kernel_initializer=_normal(1 / 192), name="logits")(x)
    return precision.in_precision(keras.Model(crops, logits, name=NAME), precision.fastest(), FULL_PRECISION)


def compile_model(model: keras.Model, config: Config, steps: int) -> None:
    """Give the network its loss and its optimizer; an epoch has `steps` steps."""
    rate = keras.optimizers.schedules.ExponentialDecay(
        config.learning_rate, config.stair * steps, config.fall, staircase=True
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=AveragedDescent(rate, config.average), loss=loss, metrics=["accuracy"])


def distort(images: Any, config: Config, seed: Any) -> Any:
    """Crop, mirror and recolour each image on its own: uint8 [n, 32, 32, 3] to float32 [n, 24, 24, 3]."""
    n = tf.shape(images)[0]
    seeds = tf.random.split(seed, 4)
    corner = tf.random.stateless_uniform([n, 2, 1], seeds[0], 0, cifar10.SIDE - CROP + 1, tf.int32)
    line = tf.range(CROP)
    mirrored = tf.random.stateless_uniform([n, 1], seeds[1]) < 0.5
    rows = corner[:, 0] + line  # (n, 24)
    columns = corner[:, 1] + tf.where(mirrored, CROP - 1 - line, line)  # (n, 24)
    flat = tf.reshape(images, [-1, cifar10.SIDE * cifar10.SIDE, 3])
    crops = tf.gather(flat, rows[:, :, None] * cifar10.SIDE + columns[:, None, :], batch_dims=1)  # (n, 24, 24, 3)
    brighter = tf.random.stateless_uniform([n, 1, 1, 1], seeds[2], -config.brightness, config.brightness)
    spread = tf.random.stateless_uniform([n, 1, 1, 1], seeds[3], 1 - config.contrast, 1 + config.contrast)
    light = tf.cast(crops, tf.float32) + brighter
    mean = tf.reduce_mean(light, axis=[1, 2], keepdims=True)  # of each colour
    return (light - mean) * spread + mean


def local_response_normalisation(x: Any) -> Any:
    """Each of the channels of x [n, height, width, channels] divided by the strength of the four on either side.

    The numbers of chapter 9: depth radius 4, bias 1, alpha 0.001 / 9, beta 0.75.
    """
    x = keras.ops.cast(x, "float32")
    channel = np.arange(x.shape[-1])
    near = (np.abs(channel[:, None] - channel) <= 4).astype(np.float32)  # (channels, channels)
    strength = 1.0 + (0.001 / 9.0) * keras.ops.matmul(keras.ops.square(x), near)
    root = keras.ops.sqrt(strength)
    return x / (root * keras.ops.sqrt(root))  # a power of 0.75, without its price


def _convolution(bias: float) -> keras.layers.Conv2D:
    start = keras.initializers.Constant(bias)
    return keras.layers.Conv2D(
        64, 5, padding="same", activation="relu", kernel_initializer=_normal(0.05), bias_initializer=start
    )


def _dense(units: int, weight_decay: float) -> keras.layers.Dense:
    return keras.layers.Dense(
        units,
        activation="relu",
        kernel_initializer=_normal(0.04),
        bias_initializer=keras.initializers.Constant(0.1),
        kernel_regularizer=keras.regularizers.L2(weight_decay / 2),
    )


def _normal(deviation: float) -> keras.initializers.Initializer:
    return keras.initializers.TruncatedNormal(stddev=deviation)
