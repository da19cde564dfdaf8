"""Logistic regression (chapter 3): the line that parts two clouds of points, found by gradient descent.

As in the book: two weights, one bias, the cross-entropy, Adam, and every step on all points. Unlike the book's code the
loss is a mean, not a sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from matplotlib.figure import Figure
from optuna.distributions import FloatDistribution
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

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
    model="logistic",
    version=1,
    task="tabular",
    inputs=(Tensor("x", "float32", (None, 2)),),
    outputs=(
        Tensor("probability", "float32", (None,), unit="probability"),  # of class "1"
        Tensor("class", "int64", (None,)),
    ),
    labels=("0", "1"),
    columns=("x1", "x2"),
)
KEY_METRIC = KeyMetric(name="accuracy", book=1.0)  # chapter 3


@dataclass(frozen=True)
class Config:
    """The numbers of one training; "chapter 3" marks those of the book."""

    epochs: int
    steps: int = 25  # of gradient descent in an epoch, each on all points
    learning_rate: float = 0.1  # of Adam (chapter 3: 0.01)
    columns: int = 2  # numbers that the class is told from
    means: tuple[float, ...] = ()  # of each column of a user's own training rows, which are taken off
    deviations: tuple[float, ...] = ()  # of each column, which it is divided by


BOOK = Config(epochs=40, learning_rate=0.01)  # 1,000 steps (chapter 3)
CONFIGS: dict[str, dict[str, Config]] = {
    STANDARD: {"smoke": Config(epochs=10), "default": Config(epochs=20), "full": Config(epochs=40)},
    "book": {"smoke": replace(BOOK, epochs=10), "default": BOOK, "full": BOOK},
}
SPACE = Search(
    objective="val_loss",
    higher_is_better=False,
    epoch="last",
    space={
        "learning_rate": FloatDistribution(1e-3, 1.0, log=True),
        "steps": choice(5, 25, 100),
    },
)
SEARCHES: dict[str, Search] = {STANDARD: SPACE, "book": SPACE}


def load_data(config: Config, request: DataRequest, seed: int) -> toy.Points:
    """The two clouds, which are generated; or the rows of a user's own table."""
    if isinstance(request.own, PointTable):
        return point_table.read_classes(request.own, seed)
    return toy.clouds(seed)


def on_own_data(config: Config, data: toy.Points, name: str) -> tuple[Config, Contract]:
    """The numbers and the contract for a user's own table: its columns with their scale, and its two classes."""
    x = data.train.x.astype(np.float64)
    deviations = x.std(axis=0)
    config = replace(
        config,
        columns=len(data.columns),
        means=tuple(x.mean(axis=0).tolist()),
        deviations=tuple(np.where(deviations > 0, deviations, 1.0).tolist()),
    )
    inputs = (Tensor("x", "float32", (None, len(data.columns))),)
    contract = replace(CONTRACT, model=name, version=1, inputs=inputs, labels=data.labels, columns=data.columns)
    return config, contract


def build_model(config: Config) -> keras.Model:
    """A weight for each column and one bias, drawn at random: float32 [n, columns] in, float32 logits [n, 1] out."""
    x = keras.Input((config.columns,), dtype="float32", name="x")
    line = keras.layers.Dense(1, kernel_initializer="random_normal", bias_initializer="random_normal", name="line")
    scaled = x
    if config.means:
        scaled = (x - np.array(config.means, np.float32)) / np.array(config.deviations, np.float32)
    return keras.Model(x, line(scaled), name="logistic_regression")


def train(
    model: keras.Model,
    data: toy.Points,
    config: Config,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback],
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> dict[str, list[float]]:
    """Train in place. Returns figure -> epochs."""
    model.compile(
        optimizer=keras.optimizers.Adam(config.learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)],
    )
    points = training_batches(data.train)
    valid = tf.data.Dataset.from_tensors((data.valid.x, data.valid.y[:, None]))
    return fit(model, lambda _: points, config.epochs, config.steps, valid, callbacks, checkpoint)


def training_batches(split: toy.Split) -> tf.data.Dataset:
    """All points in every step: float32 [n, columns] and [n, 1]."""
    return tf.data.Dataset.from_tensors((split.x, split.y[:, None])).repeat()


def evaluate(model: keras.Model, data: toy.Points, report: Path) -> dict[str, dict[str, float]]:
    """Split -> figure -> value, and the parameters found; draws the separating line over the test points.

    `degrees_off` is the angle between the separating line found and the best one, x1 + x2 = 0, that chapter 3's clouds
    have; `offset` is how far it passes by the origin, which the best one meets. Of a user's own data there are the
    fraction of class 1 in the test rows and their confusion matrix instead. The length of the weights says nothing:
    the clouds do not overlap, so the loss falls for ever as it grows.
    """
    weights, (bias,) = model.get_layer("line").get_weights()
    weights = weights[:, 0]
    metrics = {}
    network = Traced(model)
    logits = np.zeros(0, np.float32)
    for name, split in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        logits = network.answers(split.x)[:, 0]
        losses = np.logaddexp(0.0, np.where(split.y == 1, -logits, logits))
        metrics[name] = {
            "accuracy": float(((logits > 0) == (split.y == 1)).mean()),
            "loss": float(losses.mean()),
            "rows": float(len(split.y)),
        }
    if data.origin.source == "own":
        metrics["test"]["fraction_of_class_1"] = float(data.test.y.mean())
        found = (logits > 0).astype(np.int64)
        plots.confusion_matrix(data.test.y.astype(np.int64), found, data.labels, report / "confusion.png")
        return metrics
    best = np.subtract(toy.CENTRES[1], toy.CENTRES[0])
    length = max(float(np.linalg.norm(weights)), 1e-30)
    cosine = weights @ best / (length * float(np.linalg.norm(best)))
    metrics["parameters"] = {
        "w1": float(weights[0]),
        "w2": float(weights[1]),
        "b": float(bias),
        "offset": abs(float(bias)) / length,
        "degrees_off": float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))),
    }
    _draw(data.test, network, report / "clouds.png")
    return metrics


def measurement(data: toy.Points) -> figures.Measurement:
    """The accuracy of the served graph on the test points."""
    accuracy = figures.of_classes(lambda outputs: outputs["class"], data.test.inputs, data.test.y)
    baseline = figures.Baseline("scikit-learn's logistic regression", lambda: _scikit_learn(data))
    return figures.Measurement(data.train.inputs, accuracy, baseline)


def _scikit_learn(data: toy.Points) -> dict[str, npt.NDArray[Any]]:
    """The classes [n] of the test points by the same model as scikit-learn fits it, on scaled columns."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
    return {"class": model.fit(data.train.x, data.train.y.astype(np.int64)).predict(data.test.x)}


def serving_model(model: keras.Model) -> keras.Model:
    """The trained network behind the contract: `x` in, `probability` of class 1 and the likelier `class` out."""
    x = keras.Input(model.input_shape[1:], dtype="float32", name="x")
    probability = keras.ops.sigmoid(model(x, training=False)[:, 0])  # (n,)
    likelier = keras.ops.cast(keras.ops.greater(probability, 0.5), "int64")
    return keras.Model(x, {"probability": probability, "class": likelier}, name="logistic")


def _draw(split: toy.Split, network: Traced, path: Path) -> None:
    figure = Figure(figsize=(5.0, 4.4), dpi=plots.DPI, layout="constrained")
    panel = figure.subplots()
    ticks = np.linspace(-2.5, 2.5, 101, dtype=np.float32)
    across, up = np.meshgrid(ticks, ticks)  # (101, 101) each
    grid = np.stack([across.ravel(), up.ravel()], axis=1)
    logits = network.answers(grid).reshape(across.shape)
    panel.contourf(across, up, 1 / (1 + np.exp(-np.clip(logits, -30, 30))), levels=10, cmap="coolwarm", alpha=0.35)
    panel.contour(across, up, logits, levels=[0.0], colors="black")
    for number, colour in enumerate(("tab:blue", "tab:red")):
        chosen = split.x[split.y == number]
        panel.scatter(chosen[:, 0], chosen[:, 1], s=14, color=colour, label=f"class {number}")
    panel.set(xlabel="x1", ylabel="x2", title="test points and the separating line")
    panel.legend()
    figure.savefig(path)
