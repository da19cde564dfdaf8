"""Toxicity in twelve assays (chapters 4 and 5): fingerprints of 1,024 bits to twelve probabilities of activity.

Source: Ramsundar et al., "Massively Multitask Networks for Drug Discovery" (2015), in the book's form: rectified units,
dropout, positives weighted up. Unlike the book's code every hidden layer reads the one before it, results that were not
measured train nothing, `dropout` is the share that is dropped, and all twelve assays are trained at once. The book's
baseline, random forests (chapter 5), is trained on the same rows and stands beside the network in the figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from matplotlib.figure import Figure
from sklearn.ensemble import RandomForestClassifier  # type: ignore[import-untyped]
from sklearn.metrics import roc_auc_score, roc_curve  # type: ignore[import-untyped]

from bookserve.export.contracts import TOX21
from bookserve.training import plots
from bookserve.training.checkpoint import NO_CHECKPOINT, Checkpoint
from bookserve.training.datasets import tox21
from bookserve.training.datasets.files import DataRequest
from bookserve.training.headline import Headline
from bookserve.training.models import STANDARD

CONTRACT = TOX21
HEADLINE = Headline(metric="auc", book=None)  # the book gives weighted accuracies of the first assay only
ASSAYS = TOX21.labels
EVALUATION_BATCH = 1_000
FOREST_TREES = 50  # of the baseline, for each assay (chapter 5)
FOREST_SEED = 0  # the baseline is the same whatever the seed of the run


@dataclass(frozen=True)
class Config:
    """The numbers of one training; "chapter 4" and "chapter 5" mark those of the book."""

    epochs: int
    members: int = 1  # networks that are trained side by side and whose answers are averaged
    hidden: tuple[int, ...] = (512, 256)  # units of each hidden layer (chapter 4: one of 50)
    batch: int = 128  # rows a step, over all devices (chapter 4: 100)
    input_dropout: float = 0.3  # share of the fingerprint's bits that are hidden in a step
    dropout: float = 0.5  # share of hidden units dropped in a step (chapter 4)
    learning_rate: float = 1e-3  # of AdamW, falling to 0 along a cosine (chapter 4: 0.001)
    weight_decay: float = 1e-4  # pull of every weight towards 0
    balance: float = 0.5  # positives weigh (negatives / positives) to this power; chapter 5's weights are 1, none is 0
    patience: int = 6  # epochs without a better validation AUC before the training stops
    train_rows: int | None = None  # rows to train on, None for all
    split: str = "random 80/10/10"  # the one there is; named because libraries change their default
    split_seed: int = 0  # alone decides the split


PROFILES: dict[str, Config] = {
    "smoke": Config(epochs=4, train_rows=2_000, batch=32),
    "default": Config(epochs=12, members=4),
    "full": Config(epochs=24, members=12),
}
CONFIGS: dict[str, dict[str, Config]] = {STANDARD: PROFILES}


def load_data(config: Config, request: DataRequest, seed: int) -> tox21.Molecules:
    """Tox21, or the made-up molecules that stand in for it."""
    return tox21.load(request, ASSAYS, config.split_seed, config.train_rows)


def build_model(config: Config) -> keras.Model:
    """The members, untrained: uint8 fingerprints [n, 1024] in, float32 logits [n, members, 12] out."""
    layers = keras.layers
    fingerprint = keras.Input(TOX21.inputs[0].shape[1:], dtype="uint8", name="fingerprint")
    bits = keras.ops.cast(fingerprint, "float32")
    members = []
    for _ in range(config.members):
        x = layers.Dropout(config.input_dropout)(bits)
        for units in config.hidden:
            x = layers.Dense(units, use_bias=False)(x)
            x = layers.BatchNormalization()(x)
            x = layers.Activation("relu")(x)
            x = layers.Dropout(config.dropout)(x)
        members.append(layers.Dense(len(ASSAYS))(x))  # (n, 12)
    return keras.Model(fingerprint, keras.ops.stack(members, axis=1), name="multitask")


def train(
    model: keras.Model,
    data: tox21.Molecules,
    config: Config,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback],
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> dict[str, list[float]]:
    """Train in place; the weights of the epoch with the best mean validation AUC are kept. Returns figure -> epochs."""
    steps = config.epochs * (len(data.train.results) // config.batch)
    rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, steps)
    model.compile(optimizer=keras.optimizers.AdamW(rate, weight_decay=config.weight_decay), loss=weighted_loss)
    weights = assay_weights(data.train.results, config.balance)
    stopping = keras.callbacks.EarlyStopping("val_auc", mode="max", patience=config.patience, restore_best_weights=True)
    history = model.fit(
        training_batches(data.train, weights, config.batch, seed),
        epochs=config.epochs,
        validation_data=_batches(data.valid, weights),
        callbacks=[AucOfEpoch(data), *callbacks, stopping],
        shuffle=False,
        verbose=0,
    )
    return dict(history.history)


def evaluate(model: keras.Model, data: tox21.Molecules, report: Path) -> dict[str, dict[str, float]]:
    """Split -> figure -> value, and the AUC of each assay on the test rows; draws the ROC curves of the test rows.

    `auc` is the area under the ROC curve, averaged over the assays; `forest_auc` is that of the baseline. Results that
    were not measured count nowhere.
    """
    forests = train_forests(data.train)
    metrics: dict[str, dict[str, float]] = {}
    aucs: dict[str, dict[str, float]] = {}
    probabilities = np.zeros((0, len(ASSAYS)))
    for name, split in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        probabilities = predict(model, split.fingerprints)
        aucs = {
            "auc": assay_aucs(split.results, probabilities),
            "forest_auc": assay_aucs(split.results, forest_probabilities(forests, split.fingerprints)),
        }
        metrics[name] = {
            **{figure: mean_auc(values) for figure, values in aucs.items()},
            "loss": log_loss(split.results, probabilities),
            "rows": float(len(split.results)),
        }
    metrics |= {f"test {figure}": values for figure, values in aucs.items()}
    _draw(data.test.results, probabilities, aucs["auc"], report / "roc.png")
    return metrics


def serving_model(model: keras.Model) -> keras.Model:
    """The members behind the contract: `fingerprint` in, the mean of their `probabilities` out."""
    fingerprint = keras.Input(TOX21.inputs[0].shape[1:], dtype="uint8", name="fingerprint")
    trained = keras.Model(model.inputs, model.outputs[0], name=model.name)  # without the loss, which export lacks
    probabilities = keras.ops.mean(keras.ops.sigmoid(trained(fingerprint, training=False)), axis=1)  # (n, 12)
    return keras.Model(fingerprint, {"probabilities": probabilities}, name="tox21")


class AucOfEpoch(keras.callbacks.Callback):  # type: ignore[misc]
    """Adds `val_auc`, and `auc` of as many training rows, to the figures of every epoch; must stand before the rest."""

    def __init__(self, data: tox21.Molecules) -> None:
        super().__init__()
        rows = len(data.valid.results)
        self._splits = {"auc": tox21.Split(data.train.fingerprints[:rows], data.train.results[:rows])}
        self._splits["val_auc"] = data.valid

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Predict and compare."""
        for name, split in self._splits.items():
            if logs is not None:
                logs[name] = mean_auc(assay_aucs(split.results, predict(self.model, split.fingerprints)))


def weighted_loss(packed: Any, logits: Any) -> Any:
    """The cross-entropy of logits [n, members, 12], averaged over assays and members: float32 [n].

    `packed` float32 [n, 2, 12] holds the results, and the weight of each one, which is 0 where it was not measured.
    """
    results, weights = packed[:, :1], packed[:, 1:]  # (n, 1, 12) each
    losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.broadcast_to(results, tf.shape(logits)), logits)
    return tf.reduce_mean(losses * weights, axis=(1, 2))


def assay_weights(results: npt.NDArray[np.float32], balance: float) -> npt.NDArray[np.float32]:
    """The weight of an inactive and of an active result in each assay: float32 [2, 12], 1 on the average of all rows.

    An active weighs (inactives / actives) ** `balance` times an inactive: 0 weighs all alike, 1 gives both classes the
    same sum.
    """
    active, inactive = (results == 1).sum(axis=0), (results == 0).sum(axis=0)
    ratio = (np.maximum(inactive, 1) / np.maximum(active, 1)) ** balance
    average = (active * ratio + inactive) / np.maximum(active + inactive, 1)
    return np.stack([np.ones_like(ratio), ratio] / np.where(average > 0, average, 1)).astype(np.float32)


def pack(results: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Results [n, 12] and `assay_weights` as `weighted_loss` takes them: float32 [n, 2, 12]."""
    weight = np.where(np.isnan(results), 0, np.where(results == 1, weights[1], weights[0]))
    return np.stack([np.nan_to_num(results), weight], axis=1).astype(np.float32)


def training_batches(split: tox21.Split, weights: npt.NDArray[np.float32], batch: int, seed: int) -> tf.data.Dataset:
    """Shuffled anew each epoch: uint8 [batch, 1024] and float32 [batch, 2, 12]; the last short batch is left out."""
    dataset = tf.data.Dataset.from_tensor_slices((split.fingerprints, pack(split.results, weights)))
    return dataset.shuffle(len(split.results), seed=seed).batch(batch, drop_remainder=True).prefetch(2)


def predict(model: keras.Model, fingerprints: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The mean probability of the members: float64 [n, 12] for uint8 [n, 1024]."""
    dataset = tf.data.Dataset.from_tensor_slices(fingerprints).batch(EVALUATION_BATCH)
    logits = model.predict(dataset, verbose=0).astype(np.float64)  # (n, members, 12)
    return np.asarray((1 / (1 + np.exp(-logits))).mean(axis=1))


def train_forests(split: tox21.Split) -> list[RandomForestClassifier]:
    """The baseline of chapter 5: for each assay a random forest on the rows that were measured."""
    forests = []
    for assay in range(len(ASSAYS)):
        measured = ~np.isnan(split.results[:, assay])
        forest = RandomForestClassifier(FOREST_TREES, class_weight="balanced", random_state=FOREST_SEED, n_jobs=-1)
        forests.append(forest.fit(split.fingerprints[measured], split.results[measured, assay].astype(int)))
    return forests


def forest_probabilities(
    forests: Sequence[RandomForestClassifier], fingerprints: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """The forests' probabilities of activity: float64 [n, 12]; 0 for an assay that had no active training row."""
    columns = [forest.predict_proba(fingerprints) @ (forest.classes_ == 1) for forest in forests]
    return np.stack(columns, axis=1)


def assay_aucs(results: npt.NDArray[np.float32], scores: npt.NDArray[np.float64]) -> dict[str, float]:
    """Assay -> area under its ROC curve, of the measured results; assays without both classes are left out."""
    aucs = {}
    for assay, name in enumerate(ASSAYS):
        measured = ~np.isnan(results[:, assay])
        true = results[measured, assay]
        if 0 < true.sum() < len(true):
            aucs[name] = float(roc_auc_score(true, scores[measured, assay]))
    return aucs


def mean_auc(aucs: dict[str, float]) -> float:
    """The mean over the assays; 0.5, which is chance, where there are none."""
    return float(np.mean(list(aucs.values()))) if aucs else 0.5


def log_loss(results: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float64]) -> float:
    """The mean cross-entropy of the measured results, none weighing more than another."""
    measured = ~np.isnan(results)
    right = np.where(results == 1, probabilities, 1 - probabilities)[measured]
    return float(-np.log(np.maximum(right, 1e-12)).mean())


def _batches(split: tox21.Split, weights: npt.NDArray[np.float32]) -> tf.data.Dataset:
    packed = pack(split.results, weights)
    return tf.data.Dataset.from_tensor_slices((split.fingerprints, packed)).batch(EVALUATION_BATCH)


def _draw(
    results: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float64], aucs: dict[str, float], path: Path
) -> None:
    figure = Figure(figsize=(7.6, 5.4), dpi=plots.DPI, layout="constrained")
    panel = figure.subplots()
    for name, auc in aucs.items():
        assay = ASSAYS.index(name)
        measured = ~np.isnan(results[:, assay])
        wrong, right, _ = roc_curve(results[measured, assay], probabilities[measured, assay])
        style = "-" if name.startswith("NR") else "--"
        panel.plot(wrong, right, style, linewidth=1.2, label=f"{name}  {auc:.3f}")
    panel.plot([0, 1], [0, 1], color="grey", linestyle=":")
    panel.set(xlabel="share of inactives called active", ylabel="share of actives found")
    panel.set_title(f"test rows: mean area under the curve {mean_auc(aucs):.3f}")
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path)
