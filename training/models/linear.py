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
from optuna.distributions import FloatDistribution

from bookserve.export import figures
from bookserve.export.contracts import Contract, Tensor
from bookserve.training import plots
from bookserve.training.datasets import point_table, toy
from bookserve.training.datasets.files import DataRequest
from bookserve.training.datasets.own_data import PointTable
from bookserve.training.loop.checkpoint import NO_CHECKPOINT, Checkpoint
from bookserve.training.loop.fit import fit
from bookserve.training.loop.traced import Traced
from bookserve.training.models import STANDARD, KeyMetric
from bookserve.training.tuning.search_space import Search, choice

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
class Scale:
    """What brings the training rows of a user's own data to mean 0 and deviation 1; numbers of any size are learnt."""

    x_means: tuple[float, ...]
    x_deviations: tuple[float, ...]
    y_mean: float
    y_deviation: float


@dataclass(frozen=True)
class Config:
    """The numbers of one training; "chapter 3" marks those of the book."""

    epochs: int
    steps: int = 25  # of gradient descent in an epoch, each on all points
    optimizer: Literal["descent", "adam"] = "descent"  # plain gradient descent (chapter 3: Adam)
    learning_rate: float = 0.5  # (chapter 3: 0.001)
    columns: int = 1  # numbers that y is told from
    scale: Scale | None = None  # of a user's own data; None leaves x and y as they are


BOOK = Config(epochs=40, steps=200, optimizer="adam", learning_rate=0.001)  # 8,000 steps (chapter 3)
CONFIGS: dict[str, dict[str, Config]] = {
    STANDARD: {"smoke": Config(epochs=10), "default": Config(epochs=20), "full": Config(epochs=40)},
    "book": {"smoke": replace(BOOK, epochs=2), "default": BOOK, "full": BOOK},
}
SPACE = Search(
    objective="val_loss",
    higher_is_better=False,
    epoch="last",
    space={
        "learning_rate": FloatDistribution(1e-3, 0.9, log=True),
        "optimizer": choice("descent", "adam"),
        "steps": choice(5, 25, 100),
    },
)
SEARCHES: dict[str, Search] = {STANDARD: SPACE, "book": SPACE}


def load_data(config: Config, request: DataRequest, seed: int) -> toy.Points:
    """The points around a line, which are generated; or the rows of a user's own table."""
    if isinstance(request.own, PointTable):
        return point_table.read_numbers(request.own, seed)
    return toy.line(seed)


def on_own_data(config: Config, data: toy.Points, name: str) -> tuple[Config, Contract]:
    """The numbers and the contract for a user's own table: its columns, their scale, and Adam at 0.05.

    Plain descent at the book's rate diverges where columns say the same.
    """
    scale = scale_of(data.train)
    columns = len(data.columns)
    contract = replace(
        CONTRACT, model=name, version=1, inputs=(Tensor("x", "float32", (None, columns)),), columns=data.columns
    )
    return replace(config, columns=columns, scale=scale, optimizer="adam", learning_rate=0.05), contract


def build_model(config: Config) -> keras.Model:
    """A weight for each column and one bias, drawn at random: float32 [n, columns] in, float32 values [n, 1] out."""
    x = keras.Input((config.columns,), dtype="float32", name="x")
    line = keras.layers.Dense(1, kernel_initializer="random_normal", bias_initializer="random_normal", name="line")
    if config.scale is None:
        return keras.Model(x, line(x), name="linear_regression")
    means, deviations = (np.array(values, np.float32) for values in (config.scale.x_means, config.scale.x_deviations))
    y = line((x - means) / deviations) * config.scale.y_deviation + config.scale.y_mean
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
    optimizer = optimizers[config.optimizer](config.learning_rate)
    unit = 1.0 if config.scale is None else config.scale.y_deviation
    model.compile(optimizer=optimizer, loss="mean_squared_error", loss_weights=[1 / unit**2])
    points = training_batches(data.train)
    valid = tf.data.Dataset.from_tensors((data.valid.x, data.valid.y[:, None]))
    return fit(model, lambda _: points, config.epochs, config.steps, valid, callbacks, checkpoint)


def training_batches(split: toy.Split) -> tf.data.Dataset:
    """All points in every step: float32 [n, columns] and [n, 1]."""
    return tf.data.Dataset.from_tensors((split.x, split.y[:, None])).repeat()


def evaluate(model: keras.Model, data: toy.Points, report: Path) -> dict[str, dict[str, float]]:
    """Split -> figure -> value; the parameters found stand beside the true ones. Draws the line over the test points.

    Of a user's own data `parameters` has what a unit of each column adds, and what stands against what was predicted.
    `w_noise` and `b_noise` are the standard errors of least squares: how far the best line through the training points
    is from the true one, as the noise of the points has it.
    `r2` is the squared Pearson correlation of predicted and true heights, as in the book: it does not see a line that
    is off by a constant or a factor. `rmse` does, in units of y.
    """
    metrics: dict[str, dict[str, float]] = {}
    predicted = np.zeros(0, np.float32)
    network = Traced(model)
    weights, bias = model.get_layer("line").get_weights()
    for name, split in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        predicted = network.answers(split.x)[:, 0]
        metrics[name] = {
            "r2": pearson_r2(split.y, predicted),
            "rmse": float(np.sqrt(np.mean((split.y - predicted) ** 2))),
            "rows": float(len(split.y)),
        }
    plots.predicted(data.test.y, predicted, report / "predicted.png")  # figure 3-12
    if data.origin.source == "own":
        metrics["parameters"] = _unscaled(weights, bias, data)
        return metrics
    weight, bias = float(weights.reshape(())), float(bias.reshape(()))
    x = data.train.x[:, 0]
    w_noise = toy.NOISE / float(np.sqrt(np.sum((x - x.mean()) ** 2)))
    metrics["parameters"] = {
        **{"w": weight, "w_true": toy.SLOPE, "w_noise": w_noise},
        **{"b": bias, "b_true": toy.INTERCEPT, "b_noise": w_noise * float(np.sqrt(np.mean(x**2)))},
    }
    _draw(data.test, weight, bias, report / "line.png")
    return metrics


def measurement(data: toy.Points) -> figures.Measurement:
    """R² of the served graph on the test points, as `evaluate` has it, beside the line of least squares."""

    def r2(outputs: Mapping[str, npt.NDArray[Any]], places: npt.NDArray[np.int64]) -> float:
        return pearson_r2(data.test.y[places], outputs["y"][places])

    baseline = figures.Baseline("least squares", lambda: {"y": _least_squares(data)})
    return figures.Measurement(data.train.inputs, figures.Figure("r2", data.test.inputs, r2), baseline)


def serving_model(model: keras.Model) -> keras.Model:
    """The trained line behind the contract: `x` in, `y` out."""
    x = keras.Input(model.input_shape[1:], dtype="float32", name="x")
    return keras.Model(x, {"y": model(x, training=False)[:, 0]}, name="linear")


def scale_of(split: toy.Split) -> Scale:
    """The means and deviations of rows; a deviation is 1 where a column is constant."""
    x, y = split.x.astype(np.float64), split.y.astype(np.float64)
    deviations = x.std(axis=0)
    return Scale(
        tuple(x.mean(axis=0).tolist()),
        tuple(np.where(deviations > 0, deviations, 1.0).tolist()),
        float(y.mean()),
        float(y.std()) or 1.0,
    )


def _least_squares(data: toy.Points) -> npt.NDArray[np.float64]:
    """The heights [n] of the test points by the line of least squares through the training points."""
    rows, heights = (np.column_stack([split.x, np.ones(len(split.x))]) for split in (data.train, data.test))
    found: npt.NDArray[np.float64] = heights @ np.linalg.lstsq(rows, data.train.y.astype(np.float64))[0]
    return found


def _unscaled(weights: npt.NDArray[Any], bias: npt.NDArray[Any], data: toy.Points) -> dict[str, float]:
    """Column -> what one unit of it adds to y, and the "(constant)", from the weights of scaled columns."""
    scale = scale_of(data.train)
    slopes = weights[:, 0].astype(np.float64) * scale.y_deviation / np.array(scale.x_deviations)
    constant = float(bias[0]) * scale.y_deviation + scale.y_mean - float(slopes @ np.array(scale.x_means))
    return dict(zip(data.columns, slopes.tolist(), strict=True)) | {"(constant)": constant}


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
