"""Linear regression (chapter 3): the line through points, found by gradient descent.

As in the book: one weight, one bias, the squared error, and every step on all points. Unlike the book's code the loss
is a mean, not a sum, so that the learning rate does not depend on the number of points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from matplotlib.figure import Figure

from bookserve.export import figures
from bookserve.export.contracts import Contract, Tensor
from bookserve.training import plots
from bookserve.training.datasets import toy
from bookserve.training.datasets.files import DataRequest
from bookserve.training.loop.checkpoint import NO_CHECKPOINT, Checkpoint
from bookserve.training.loop.fit import fit
from bookserve.training.models import STANDARD, KeyMetric

CONTRACT = Contract(
    model="linear",
    version=1,
    task="regression",
    inputs=(Tensor("x", "float32", (None, 1)),),
    outputs=(Tensor("y", "float32", (None,)),),
    columns=("x",),
)
KEY_METRIC = KeyMetric(name="r2", book=0.994)  # squared Pearson correlation, chapter 3


@dataclass(frozen=True)
class Config:
    """The numbers of one training; "chapter 3" marks those of the book."""

    epochs: int
    steps: int = 25  # of gradient descent in an epoch, each on all points
    optimizer: Literal["descent", "adam"] = "descent"  # plain gradient descent (chapter 3: Adam)
    learning_rate: float = 0.5  # (chapter 3: 0.001)


BOOK = Config(epochs=40, steps=200, optimizer="adam", learning_rate=0.001)  # 8,000 steps (chapter 3)
CONFIGS: dict[str, dict[str, Config]] = {
    STANDARD: {"smoke": Config(epochs=10), "default": Config(epochs=20), "full": Config(epochs=40)},
    "book": {"smoke": replace(BOOK, epochs=2), "default": BOOK, "full": BOOK},
}


def load_data(config: Config, request: DataRequest, seed: int) -> toy.Points:
    """The points around a line, whatever the request: they are generated."""
    return toy.line(seed)


def build_model(config: Config) -> keras.Model:
    """One weight and one bias, drawn at random: float32 points [n, 1] in, float32 heights [n, 1] out."""
    x = keras.Input((1,), dtype="float32", name="x")
    y = keras.layers.Dense(1, kernel_initializer="random_normal", bias_initializer="random_normal", name="line")(x)
    return keras.Model(x, y, name="linear_regression")


def train(
    model: keras.Model,
    data: toy.Points,
    config: Config,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback],
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> dict[str, list[float]]:
    """Train in place. Returns figure -> epochs."""
    optimizers = {"descent": keras.optimizers.SGD, "adam": keras.optimizers.Adam}
    model.compile(optimizer=optimizers[config.optimizer](config.learning_rate), loss="mean_squared_error")
    points = tf.data.Dataset.from_tensors((data.train.x, data.train.y[:, None])).repeat()
    valid = tf.data.Dataset.from_tensors((data.valid.x, data.valid.y[:, None]))
    return fit(model, lambda _: points, config.epochs, config.steps, valid, callbacks, checkpoint)


def evaluate(model: keras.Model, data: toy.Points, report: Path) -> dict[str, dict[str, float]]:
    """Split -> figure -> value; the parameters found stand beside the true ones. Draws the line over the test points.

    `w_noise` and `b_noise` are the standard errors of least squares: how far the best line through the training points
    is from the true one, as the noise of the points has it.
    `r2` is the squared Pearson correlation of predicted and true heights, as in the book: it does not see a line that
    is off by a constant or a factor. `rmse` does, in units of y.
    """
    weight, bias = (float(values.reshape(())) for values in model.get_layer("line").get_weights())
    metrics = {}
    for name, split in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        predicted = model.predict(split.x, batch_size=len(split.x), verbose=0)[:, 0]
        metrics[name] = {
            "r2": pearson_r2(split.y, predicted),
            "rmse": float(np.sqrt(np.mean((split.y - predicted) ** 2))),
            "rows": float(len(split.y)),
        }
    x = data.train.x[:, 0]
    w_noise = toy.NOISE / float(np.sqrt(np.sum((x - x.mean()) ** 2)))
    metrics["parameters"] = {
        **{"w": weight, "w_true": toy.SLOPE, "w_noise": w_noise},
        **{"b": bias, "b_true": toy.INTERCEPT, "b_noise": w_noise * float(np.sqrt(np.mean(x**2)))},
    }
    _draw(data.test, weight, bias, report / "line.png")
    return metrics


def measurement(data: toy.Points) -> figures.Measurement:
    """R² of the served graph on the test points, as `evaluate` has it."""

    def r2(outputs: Mapping[str, npt.NDArray[Any]], places: npt.NDArray[np.int64]) -> float:
        return pearson_r2(data.test.y[places], outputs["y"][places])

    return figures.Measurement(data.train.inputs, figures.Figure("r2", data.test.inputs, r2))


def serving_model(model: keras.Model) -> keras.Model:
    """The trained line behind the contract: `x` in, `y` out."""
    x = keras.Input((1,), dtype="float32", name="x")
    return keras.Model(x, {"y": model(x, training=False)[:, 0]}, name="linear")


def pearson_r2(true: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> float:
    """The square of the Pearson correlation of two float arrays [n]; 0 where one of them is constant."""
    if np.ptp(true) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return float(np.corrcoef(true, predicted)[0, 1] ** 2)


def _draw(split: toy.Split, weight: float, bias: float, path: Path) -> None:
    figure = Figure(figsize=(5.0, 4.0), dpi=plots.DPI, layout="constrained")
    panel = figure.subplots()
    panel.scatter(split.x[:, 0], split.y, s=14, label="test points")
    ends = np.array([0.0, 1.0])
    panel.plot(ends, weight * ends + bias, color="black", label=f"found: y = {weight:.3f} x + {bias:.3f}")
    truth = f"true: y = {toy.SLOPE:g} x + {toy.INTERCEPT:g}"
    panel.plot(ends, toy.SLOPE * ends + toy.INTERCEPT, color="tab:red", linestyle="--", label=truth)
    panel.set(xlabel="x", ylabel="y", title="the line and the points")
    panel.legend()
    figure.savefig(path)
