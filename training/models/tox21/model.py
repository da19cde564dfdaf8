"""Toxicity in twelve assays (chapters 4 and 5): fingerprints, counts and descriptors to probabilities of activity.

Source: Ramsundar et al., "Massively Multitask Networks for Drug Discovery" (2015), in the book's form: rectified units,
dropout, positives weighted up. The networks see more than the book's: how often each part of a molecule occurs, and
RDKit's descriptors. Beside them stands a layer that knows the training molecules (`similarity`) and contributes to the
answer. Unlike the book's code every hidden layer reads the one before it, results that were not measured train nothing,
and `dropout` is the fraction that is dropped. The book's baseline, random forests (chapter 5), is trained on the
fingerprints of the same rows and stands beside the network in the figures.

The configuration "standard" trains all assays at once on a random split, "scaffold" the same on a split by scaffold.
"book" is chapter 4's network of one assay, once for each of the twelve; what `tune` finds for it is chapter 5's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from matplotlib.figure import Figure
from optuna.distributions import FloatDistribution
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    precision_recall_curve,
    roc_curve,
)

from bookserve.export import evaluation, figures
from bookserve.export.contracts import SIMILARITY, Contract, Descriptors, Fingerprint, Preprocessing, Tensor
from bookserve.training import plots
from bookserve.training.datasets import molecule_features, molecule_table, tox21
from bookserve.training.datasets.files import DataRequest
from bookserve.training.datasets.own_data import MoleculeTable
from bookserve.training.errors import TrainingError
from bookserve.training.loop.batches import row_order
from bookserve.training.loop.checkpoint import NO_CHECKPOINT, Checkpoint
from bookserve.training.loop.fit import fit
from bookserve.training.loop.small_data import for_rows
from bookserve.training.loop.traced import Traced
from bookserve.training.models import STANDARD, KeyMetric
from bookserve.training.models.tox21 import platt, similarity
from bookserve.training.tuning.search_space import Search, choice

CONTRACT = Contract(
    model="tox21",
    version=3,  # 1 had the fingerprint alone, 2 has no `nearest`
    task="molecules",
    inputs=(
        Tensor("fingerprint", "uint8", (None, 1024)),  # as deepchem's CircularFingerprint
        Tensor("counts", "uint8", (None, 2 * 1024 + 167)),
        Tensor("descriptors", "float32", (None, len(molecule_features.NAMES))),
    ),
    outputs=(  # the first of activity in each assay, each on its own
        Tensor("probabilities", "float32", (None, 12), unit="probability"),
        Tensor("nearest", "float32", (None,), unit=SIMILARITY),  # Tanimoto's, to the training molecule most like it
    ),
    labels=(
        *("NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD", "NR-PPAR-gamma"),
        *("SR-ARE", "SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53"),
    ),
    preprocessing=Preprocessing(
        "fingerprint",
        fingerprint=Fingerprint("morgan", radius=2, bits=1024),
        descriptors=Descriptors(
            *("counts", "descriptors"), molecule_features.NAMES, molecule_features.VERSION, molecule_features.digest()
        ),
    ),
)
KEY_METRIC = KeyMetric(name="auc", book=None)  # the book gives weighted accuracies of the first assay only
ASSAYS = CONTRACT.labels
NETWORKS, MEMORY, CALIBRATION = "networks", "memory", "calibration"  # the layers that part the model
WITHOUT_MEMORY = 2  # the contract of a model that does not know how near a molecule is
STANDARDISED = "standardised"  # the layer of the networks that knows mean and variance of what they see
FARTHEST = 6.0  # standard deviations from the mean; what is farther counts as so far
LEAST_VARIANCE = 1e-6  # of what is standardised
INPUTS = CONTRACT.inputs
BOOK_ASSAY = ASSAYS.index("NR-AR")  # the one that chapters 4 and 5 look at
EVALUATION_BATCH = 1_000
FOREST_TREES = 50  # of the baseline, for each assay (chapter 5)
FOREST_SEED = 0  # the baseline is the same whatever the seed of the run


MEMORY_PLACES = 8_000  # a memory of more molecules of a user's own would take hours
RESAMPLES = 200  # of the molecules, for an interval: twelve curves each


@dataclass(frozen=True)
class Config:
    """The numbers of one training; "chapter 4" and "chapter 5" mark those of the book."""

    epochs: int
    labels: tuple[str, ...] = ASSAYS  # that the molecules have
    members: int = 1  # networks that are trained side by side and whose answers are averaged
    assays: tuple[str, ...] = ASSAYS  # that the networks learn; of others only the memory knows something
    together: bool = True  # one network for all assays; else one for each (chapter 4)
    hidden: tuple[int, ...] = (512, 256)  # units of each hidden layer (chapter 4: one of 50)
    layers: int = 1  # times that the hidden layers stand one behind the other (chapter 5: 1 and 2)
    normalise: bool = True  # batch normalisation in front of each rectifier (chapter 4: none)
    batch: int = 128  # rows a step, over all devices (chapter 4: 100)
    described: bool = True  # networks see counts and descriptors instead of the fingerprint (chapter 4: it alone)
    input_dropout: float = 0.3  # fraction of what the networks see that is hidden in a step (chapter 4: none)
    dropout: float = 0.5  # fraction of hidden units dropped in a step (chapter 4)
    learning_rate: float = 1e-3  # of AdamW (chapter 4: 0.001)
    final_rate: float = 0.0  # fraction of the rate left at the end of a cosine; 1 is a constant rate (chapter 4)
    weight_decay: float = 1e-4  # pull of every weight towards 0 (chapter 4: none)
    balance: float = 0.5  # positives weigh (negatives / positives) to this power; chapter 5's weights are 1, none is 0
    memory: int = 6_400  # training molecules that `similarity` compares with, 0 for none (not in the book)
    memory_parts: int = 5  # the networks learn from what it says of each part when it knows only the other parts
    memory_share: float = 0.3  # of the answer that comes from it directly, the networks have the rest
    memory_penalty: float = 0.3  # its pull towards 0
    keep_best: bool = True  # the weights of the best epoch by validation AUC; else the last ones (chapter 4)
    patience: int = 6  # epochs without a better one before the training stops, where the best is kept
    train_rows: int | None = None  # rows to train on, None for all
    split: tox21.SplitKind = "random"  # named because libraries change their default
    split_seed: int = 0  # alone decides the random split


PROFILES: dict[str, Config] = {
    "smoke": Config(epochs=4, train_rows=2_000, batch=32, memory=2_000),
    "default": Config(epochs=14, members=4),
    "full": Config(epochs=14, members=16),
}
BOOK = Config(
    epochs=45,  # chapter 5
    together=False,
    hidden=(50,),
    normalise=False,
    batch=100,
    described=False,
    input_dropout=0.0,
    final_rate=1.0,
    weight_decay=0.0,
    balance=1.0,
    memory=0,
    keep_best=False,
)
CONFIGS: dict[str, dict[str, Config]] = {
    STANDARD: PROFILES,
    "scaffold": {profile: replace(config, split="scaffold") for profile, config in PROFILES.items()},
    "book": {"smoke": replace(BOOK, epochs=2, train_rows=2_000), "default": BOOK, "full": BOOK},
}
SEARCHES: dict[str, Search] = {
    STANDARD: Search(
        objective="val_auc",
        higher_is_better=True,
        space={
            "hidden": choice((512, 256), (1024,), (1024, 512), (512, 256, 128)),
            "learning_rate": FloatDistribution(3e-4, 3e-3, log=True),
            "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
            "dropout": FloatDistribution(0.3, 0.8),
            "input_dropout": FloatDistribution(0.0, 0.6),
            "balance": choice(0.0, 0.5, 1.0),
        },
    ),
    "book": Search(
        objective="val_nr_ar_accuracy",
        higher_is_better=True,
        epoch="last",
        space={
            "together": choice(False, True),  # what the assays have in common is learnt from all (Ramsundar et al.)
            "hidden": choice((50,), (100,), (400,), (50, 50)),  # chapter 5 tries sizes and depths
            "normalise": choice(False, True),
            "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
            "dropout": choice(0.25, 0.5, 0.75),
            "input_dropout": choice(0.0, 0.2, 0.4),
            "weight_decay": FloatDistribution(1e-3, 1.0, log=True),
            "balance": choice(0.5, 0.75, 1.0),
            "epochs": choice(15, 30),
            "members": choice(1, 4),
            "memory": choice(0, 6_400),
        },
        shortcut=lambda config: config if config.together else replace(config, assays=(ASSAYS[BOOK_ASSAY],)),
    ),
}


def load_data(config: Config, request: DataRequest, seed: int) -> tox21.Molecules:
    """Tox21, or the made-up molecules that stand in for it; or the molecules of a user's own table."""
    if isinstance(request.own, MoleculeTable):
        return molecule_table.read(request.own, seed, config.split, config.train_rows)
    return tox21.load(request, ASSAYS, config.split_seed, config.train_rows, config.split)


def on_own_data(config: Config, data: tox21.Molecules, name: str) -> tuple[Config, Contract]:
    """The numbers and the contract for a user's own molecules: their labels, and a memory of all that train.

    There is no memory of more than 8,000 molecules.
    """
    rows = len(data.train.results)
    memory = rows if config.memory and rows <= MEMORY_PLACES else 0
    config = replace(for_rows(config, rows), labels=data.labels, assays=data.labels, memory=memory)
    outputs = (replace(CONTRACT.outputs[0], shape=(None, len(data.labels))), *CONTRACT.outputs[1:])
    return config, replace(CONTRACT, model=name, version=1, outputs=outputs, labels=data.labels)


def contract_of(config: Config, contract: Contract) -> Contract:
    """The contract that a model of these numbers keeps: without a memory it cannot tell what is near."""
    if config.memory:
        return contract
    outputs = tuple(tensor for tensor in contract.outputs if tensor.unit != SIMILARITY)
    return replace(contract, version=min(contract.version, WITHOUT_MEMORY), outputs=outputs)


def build_model(config: Config) -> keras.Model:
    """Networks, memory and calibration, untrained: the contract's inputs in, float32 logits [n, 12] out.

    The layer "calibration" scales and shifts the logits of each assay (see `platt`), before training by 1 and 0. The
    layer "memory" takes the squared similarities to the training molecules [n, molecules] and has logits [n, 12]. The
    layer "networks", which sees these beside the inputs and has logits [n, members, 12], is a model of its own.
    """
    given = {tensor.name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name) for tensor in INPUTS}
    inputs = dict(given)
    if config.memory:
        inputs["remembered"] = keras.Input((len(config.labels),), dtype="float32", name="remembered")
    network = _one_network if config.together else _network_an_assay
    seen = _seen(given, config)  # (n, features)
    members = [_among_all(network(seen, inputs.get("remembered"), config), config) for _ in range(config.members)]
    networks = keras.Model(inputs, keras.ops.stack(members, axis=1), name=NETWORKS)  # (n, members, 12)
    if not config.memory:
        return keras.Model(given, _calibrated(keras.ops.mean(networks(given), axis=1)), name="toxicity")
    bits = keras.ops.cast(given["fingerprint"], "float32")
    remembered = _memory(bits, config)
    learnt = keras.ops.mean(networks(given | {"remembered": remembered}), axis=1)
    logits = (1 - config.memory_share) * learnt + config.memory_share * remembered
    return keras.Model(given, _calibrated(logits), name="toxicity")


def uncalibrated(model: keras.Model) -> keras.Model:
    """The model without its calibration."""
    return keras.Model(model.input, model.get_layer(CALIBRATION).input)


def train(
    model: keras.Model,
    data: tox21.Molecules,
    config: Config,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback],
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> dict[str, list[float]]:
    """Train in place; the weights of the epoch with the best mean validation AUC are kept, or the last ones.

    Then the logits are calibrated on the validation rows. Returns figure -> epochs.
    """
    steps = len(data.train.results) // config.batch
    networks = compiled_networks(model, config, steps)
    weights = assay_weights(data.train.results, config.balance)
    learnt = np.isin(config.labels, config.assays)
    train_inputs, valid_inputs = dict(data.train.inputs), dict(data.valid.inputs)
    if config.described:
        _standardise(model, data.train.inputs)
    if config.memory:
        train_inputs["remembered"] = _remember(model, data.train, weights, config)
        memory = keras.Model(model.input["fingerprint"], model.get_layer(MEMORY).output)
        valid_inputs["remembered"] = Traced(memory).answers(data.valid.fingerprints)
    train_packed, valid_packed = (pack(split.results, weights * learnt) for split in (data.train, data.valid))
    history = fit(
        networks,
        lambda first_epoch: training_batches(train_inputs, train_packed, config, seed, first_epoch),
        config.epochs,
        steps,
        tf.data.Dataset.from_tensor_slices((valid_inputs, valid_packed)).batch(EVALUATION_BATCH),
        [FiguresOfEpoch(model, data, learnt), *callbacks],
        checkpoint,
        best="val_auc" if config.keep_best else None,
        higher_is_better=True,
        patience=config.patience if config.keep_best else None,
    )
    _calibrate(model, data.valid, np.where(learnt, weights[1] / weights[0], 1.0))
    return history


def compiled_networks(model: keras.Model, config: Config, steps: int) -> keras.Model:
    """The part of the model that is fitted, with its loss and its optimizer; an epoch has `steps` steps.

    It shares its weights with the layer "networks", which goes without the loss into the saved model: export lacks it.
    """
    layer = model.get_layer(NETWORKS)
    networks = keras.Model(layer.input, layer.outputs[0])
    rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, config.epochs * steps, config.final_rate)
    networks.compile(optimizer=keras.optimizers.AdamW(rate, weight_decay=config.weight_decay), loss=weighted_loss)
    return networks


def evaluate(model: keras.Model, data: tox21.Molecules, report: Path) -> dict[str, dict[str, float]]:
    """Split -> figure -> value, and figures of each assay on the test rows; draws curves and a table of the test rows.

    `auc` is the area under the ROC curve and `precision` the average precision, both averaged over the assays;
    `nr_ar_accuracy` is the book's figure, see `weighted_accuracy`; `forest_` is before those of the baseline. `ece` is
    the calibration error and `loss` the cross-entropy, both of probabilities as they are served; `uncalibrated_ece` is
    that before the calibration, whose numbers are in "calibration scale" and "calibration shift". `auc_over_forest` of
    the test rows is what `over_forest` tells. Results that were not measured count nowhere. A user's own data has
    labels instead of assays, and no `nr_ar_accuracy`.
    """
    forests, whole, bare = train_forests(data.train), Traced(model), Traced(uncalibrated(model))
    names = data.labels or ASSAYS
    balance = assay_weights(data.train.results, 1.0)
    metrics: dict[str, dict[str, float]] = {}
    scores: dict[str, npt.NDArray[np.float64]] = {}
    for name, split in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        scores = {
            "": probabilities(bare, split.inputs),
            "forest_": forest_probabilities(forests, split.fingerprints),
        }
        metrics[name] = {}
        for kind, found in scores.items():
            metrics[name] |= {
                f"{kind}auc": mean_auc(assay_aucs(split.results, found, names)),
                f"{kind}precision": mean_precision(assay_precisions(split.results, found, names)),
            }
            if names == ASSAYS:
                accuracy = weighted_accuracy(split.results, found, balance, BOOK_ASSAY)
                metrics[name][f"{kind}nr_ar_accuracy"] = accuracy
        served = probabilities(whole, split.inputs)
        metrics[name] |= {
            "loss": log_loss(split.results, served),
            "ece": calibration_error(split.results, served),
            "uncalibrated_ece": calibration_error(split.results, scores[""]),
            "rows": float(len(split.results)),
        }
    for kind, found in scores.items():
        metrics[f"test {kind}auc"] = assay_aucs(data.test.results, found, names)
        metrics[f"test {kind}precision"] = assay_precisions(data.test.results, found, names)
    metrics["test"] |= over_forest(data.test.results, scores[""], scores["forest_"], names)
    for what, numbers in zip(("scale", "shift"), model.get_layer(CALIBRATION).get_weights(), strict=False):
        metrics[f"calibration {what}"] = dict(zip(names, numbers.astype(float).tolist(), strict=True))
    _draw_roc(data.test.results, scores[""], metrics["test auc"], names, report / "roc.png")
    _draw_precision(data.test.results, scores[""], metrics["test precision"], names, report / "precision_recall.png")
    _draw_table(data.test.results, metrics, names, report / "assays.png")
    return metrics


def measurement(data: tox21.Molecules) -> figures.Measurement:
    """The mean AUC of the served graph on the test molecules."""

    def auc(outputs: Mapping[str, npt.NDArray[Any]], places: npt.NDArray[np.int64]) -> float:
        scores = outputs["probabilities"][places].astype(np.float64)
        return mean_auc(assay_aucs(data.test.results[places], scores, data.labels or ASSAYS))

    figure = figures.Figure("auc", data.test.inputs, auc, resamples=RESAMPLES, truth=data.test.results)

    def forest() -> figures.Rows:
        return {"probabilities": forest_probabilities(train_forests(data.train), data.test.fingerprints)}

    return figures.Measurement(data.train.inputs, figure, figures.Baseline("the book's random forest", forest))


def serving_model(model: keras.Model) -> keras.Model:
    """The trained model behind the contract: its inputs in, `probabilities` and, where it has a memory, `nearest` out.

    What the memory computes for its logits is also what tells the nearest molecule, so that costs next to nothing.
    """
    given = {tensor.name: keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name) for tensor in INPUTS}
    told = {"logits": model.output}
    if any(layer.name == MEMORY for layer in model.layers):
        told["alike"] = model.get_layer(MEMORY).input
    found = keras.Model(model.input, told)(given, training=False)
    outputs = {"probabilities": keras.ops.sigmoid(found["logits"])}  # (n, 12)
    if "alike" in found:
        outputs["nearest"] = keras.ops.sqrt(keras.ops.max(found["alike"], axis=1))  # (n,)
    return keras.Model(given, outputs, name="tox21")


class FiguresOfEpoch(keras.callbacks.Callback):  # type: ignore[misc]
    """Adds AUC and NR-AR's weighted accuracy to the figures of every epoch; must stand before the other callbacks.

    Of the validation rows (`val_auc`, `val_nr_ar_accuracy`) and of as many training rows; AUC is the mean of the assays
    that are `learnt`, bool [12].
    """

    def __init__(self, whole: keras.Model, data: tox21.Molecules, learnt: npt.NDArray[np.bool_]) -> None:
        super().__init__()
        self._whole = Traced(whole)  # of which the model that is fitted is a part
        self._names = data.labels or ASSAYS
        rows = len(data.valid.results)
        self._balance = assay_weights(data.train.results, 1.0)
        self._splits = {
            kind: tox21.Split(_first(split.inputs, rows), np.where(learnt, split.results[:rows], np.nan))
            for kind, split in (("", data.train), ("val_", data.valid))
        }

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Predict and compare."""
        for kind, split in self._splits.items():
            if logs is not None:
                scores = probabilities(self._whole, split.inputs)
                logs[f"{kind}auc"] = mean_auc(assay_aucs(split.results, scores, self._names))
                if self._names == ASSAYS:
                    logs[f"{kind}nr_ar_accuracy"] = weighted_accuracy(split.results, scores, self._balance, BOOK_ASSAY)


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


def training_batches(
    inputs: Mapping[str, npt.NDArray[Any]],
    packed: npt.NDArray[np.float32],
    config: Config,
    seed: int,
    first_epoch: int = 0,
) -> tf.data.Dataset:
    """From an epoch on, shuffled anew in each: ({name: [batch, …]} of `inputs`, [batch, 2, 12])."""
    arrays = ({name: tf.constant(array) for name, array in inputs.items()}, tf.constant(packed))
    order = row_order(len(packed), config.batch, seed, first_epoch, config.epochs)
    return order.map(lambda rows, _: tf.nest.map_structure(lambda array: tf.gather(array, rows), arrays)).prefetch(2)


def predict(model: keras.Model, inputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """The probabilities of activity: float64 [n, 12]."""
    return probabilities(Traced(model), inputs)


def probabilities(network: Traced, inputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """The same of a network that is asked more than once."""
    return np.asarray(expit(logits(network, inputs)))


def logits(network: Traced, inputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """What the network says: float64 [n, 12]."""
    return np.asarray(network.answers(dict(inputs)), np.float64)


def train_forests(split: tox21.Split) -> list[RandomForestClassifier]:
    """The baseline of chapter 5: for each assay a random forest on the rows that were measured.

    They are grown on all cores, but each answers on one: many add their trees up in an order that is never the same.
    """
    forests = []
    for assay in range(split.results.shape[1]):
        measured = ~np.isnan(split.results[:, assay])
        forest = RandomForestClassifier(FOREST_TREES, class_weight="balanced", random_state=FOREST_SEED, n_jobs=-1)
        forest.fit(split.fingerprints[measured], split.results[measured, assay].astype(int))
        forests.append(forest.set_params(n_jobs=1))
    return forests


def forest_probabilities(
    forests: Sequence[RandomForestClassifier], fingerprints: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """The forests' probabilities of activity: float64 [n, 12]; 0 for an assay that had no active training row."""
    columns = [forest.predict_proba(fingerprints) @ (forest.classes_ == 1) for forest in forests]
    return np.stack(columns, axis=1)


def assay_aucs(
    results: npt.NDArray[np.float32], scores: npt.NDArray[np.float64], names: Sequence[str] = ASSAYS
) -> dict[str, float]:
    """Assay -> area under its ROC curve, of the measured results; assays without both classes are left out."""
    aucs = {}
    for assay, name in enumerate(names):
        measured = ~np.isnan(results[:, assay])
        true = results[measured, assay]
        actives = int(true.sum())
        if 0 < actives < len(true):
            # Mann and Whitney's form: scikit-learn's function takes twenty times as long for some hundred rows.
            above = rankdata(scores[measured, assay])[true == 1].sum() - actives * (actives + 1) / 2
            aucs[name] = float(above / (actives * (len(true) - actives)))
    return aucs


def mean_auc(aucs: dict[str, float]) -> float:
    """The mean over the assays; 0.5, which is chance, where there are none."""
    return float(np.mean(list(aucs.values()))) if aucs else 0.5


def over_forest(
    results: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float64],
    baseline: npt.NDArray[np.float64],
    names: Sequence[str] = ASSAYS,
) -> dict[str, float]:
    """How far the mean AUC of `scores` is above the baseline's, and the 95 % interval, `_low` to `_high`.

    The same molecules are drawn anew for both, so the interval is that of the difference (paired bootstrap).
    """

    def difference(rows: npt.NDArray[np.int64]) -> float:
        ours, theirs = (mean_auc(assay_aucs(results[rows], said[rows], names)) for said in (scores, baseline))
        return ours - theirs

    chance, count = np.random.default_rng(0), len(results)
    drawn = [difference(chance.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    whole = difference(np.arange(count))
    return {"auc_over_forest": whole, "auc_over_forest_low": float(low), "auc_over_forest_high": float(high)}


def assay_precisions(
    results: npt.NDArray[np.float32], scores: npt.NDArray[np.float64], names: Sequence[str] = ASSAYS
) -> dict[str, float]:
    """Assay -> average precision, of the measured results; assays without an active are left out."""
    precisions = {}
    for assay, name in enumerate(names):
        measured = ~np.isnan(results[:, assay])
        if results[measured, assay].any():
            precisions[name] = float(average_precision_score(results[measured, assay], scores[measured, assay]))
    return precisions


def mean_precision(precisions: dict[str, float]) -> float:
    """The mean over the assays; 0 where there are none."""
    return float(np.mean(list(precisions.values()))) if precisions else 0.0


def weighted_accuracy(
    results: npt.NDArray[np.float32],
    probabilities: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float32],
    assay: int,
) -> float:
    """The figure of chapters 4 and 5: scikit-learn's accuracy of one assay, each row with the weight of its class.

    `weights` [2, 12] are those of the training rows with balance 1, as deepchem's BalancingTransformer gives them to
    all splits: actives as a whole count about as much as inactives. More than 0.5 is called active. 0.5, which is
    chance, where nothing was measured.
    """
    measured = ~np.isnan(results[:, assay])
    true = results[measured, assay].astype(int)
    if not len(true):
        return 0.5
    called = (probabilities[measured, assay] > 0.5).astype(int)
    return float(accuracy_score(true, called, sample_weight=weights[true, assay]))


def calibration_error(results: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float64]) -> float:
    """How far probabilities are from what was measured (ECE), all assays together."""
    measured = ~np.isnan(results)
    return evaluation.calibration(probabilities[measured], results[measured] == 1, 0.0).ece


def log_loss(results: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float64]) -> float:
    """The mean cross-entropy of the measured results, none weighing more than another."""
    measured = ~np.isnan(results)
    right = np.where(results == 1, probabilities, 1 - probabilities)[measured]
    return float(-np.log(np.maximum(right, 1e-12)).mean())


def _among_all(logits: Any, config: Config) -> Any:
    """Logits [n, 12] from those of the assays that are learnt; 0 for the others."""
    if config.assays == config.labels:
        return logits
    return keras.ops.matmul(
        logits, np.array([[assay == name for name in config.labels] for assay in config.assays], "float32")
    )


def _first(inputs: Mapping[str, npt.NDArray[Any]], rows: int) -> dict[str, npt.NDArray[Any]]:
    return {name: array[:rows] for name, array in inputs.items()}


def _seen(given: Mapping[str, Any], config: Config) -> Any:
    """What the networks see: float32 [n, features].

    Logarithms of the counts, and those of the descriptors, which keep their sign and are standardised.
    """
    if not config.described:
        return keras.ops.cast(given["fingerprint"], "float32")
    fixed = keras.layers.BatchNormalization(
        center=False, scale=False, epsilon=LEAST_VARIANCE, trainable=False, name=STANDARDISED
    )
    standardised = keras.ops.clip(fixed(_squashed(given["descriptors"])), -FARTHEST, FARTHEST)
    counts = keras.ops.log(keras.ops.cast(given["counts"], "float32") + 1)
    return keras.ops.concatenate([counts, standardised], axis=1)


def _squashed(descriptors: Any) -> Any:
    return keras.ops.sign(descriptors) * keras.ops.log(keras.ops.abs(descriptors) + 1)  # ONNX has no log1p


def _standardise(model: keras.Model, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
    """Tell the networks mean and variance of the training rows' descriptors."""
    squashed = np.asarray(_squashed(inputs["descriptors"].astype(np.float64)))
    model.get_layer(NETWORKS).get_layer(STANDARDISED).set_weights([squashed.mean(axis=0), squashed.var(axis=0)])


def _one_network(seen: Any, remembered: Any, config: Config) -> Any:
    """Logits [n, assays] of one network on float32 [n, features] and, where there is a memory, its logits [n, 12]."""
    x = _hidden_in_part(seen, remembered, config)
    for units in config.hidden * config.layers:
        x = _rectified(keras.layers.Dense(units, use_bias=not config.normalise)(x), config)
    return keras.layers.Dense(len(config.assays))(x)


def _network_an_assay(seen: Any, remembered: Any, config: Config) -> Any:
    """The same of a network for each assay, which share nothing, each with the hidden layers of `config`."""
    x = _hidden_in_part(seen, remembered, config)
    assays = len(config.assays)
    x = keras.layers.Dense(assays * config.hidden[0], use_bias=not config.normalise)(x)
    for units in (config.hidden * config.layers)[1:]:
        x = _side_by_side(_rectified(x, config), assays, units)
    return _side_by_side(_rectified(x, config), assays, 1)


def _hidden_in_part(seen: Any, remembered: Any, config: Config) -> Any:
    """What the first layer takes: a part of what is seen is hidden in a step of the training, and no memory."""
    x = keras.layers.Dropout(config.input_dropout)(seen)
    return x if remembered is None else keras.ops.concatenate([x, remembered], axis=1)


def _side_by_side(x: Any, assays: int, units: int) -> Any:
    """A dense layer for each assay: [n, assays * inputs] to [n, assays * units]."""
    fair = keras.initializers.VarianceScaling(assays, "fan_avg", "uniform")  # Keras counts the assays as inputs, too
    x = keras.layers.Reshape((assays, x.shape[1] // assays))(x)
    x = keras.layers.EinsumDense("nai,aio->nao", (assays, units), bias_axes="ao", kernel_initializer=fair)(x)
    return keras.layers.Reshape((assays * units,))(x)


def _rectified(x: Any, config: Config) -> Any:
    """What follows a hidden layer."""
    if config.normalise:
        x = keras.layers.BatchNormalization()(x)
    return keras.layers.Dropout(config.dropout)(keras.layers.Activation("relu")(x))


def _calibrated(logits: Any) -> Any:
    """Logits [n, 12], scaled and shifted by assay: batch normalisation whose numbers `_calibrate` sets, untrained."""
    return keras.layers.BatchNormalization(epsilon=0.0, trainable=False, name=CALIBRATION)(logits)


def _calibrate(model: keras.Model, split: tox21.Split, ratios: npt.NDArray[np.float32]) -> None:
    """Fit the calibration to rows that trained nothing; `ratios` [12] is the weight of an active, of an inactive."""
    scales, shifts = platt.fit(logits(Traced(uncalibrated(model)), split.inputs), split.results, ratios)
    model.get_layer(CALIBRATION).set_weights([scales, shifts, np.zeros_like(shifts), np.ones_like(scales)])


def _memory(bits: Any, config: Config) -> Any:
    """Logits [n, 12] from the similarity of float32 bits [n, 1024] to molecules that `_remember` puts in.

    The squared similarity is (shared bits / all bits) ** 2, as in `similarity.kernel`. Places that stay empty have
    similarity 0 to everything.
    """
    layers, molecules = keras.layers, config.memory
    shared = layers.Dense(molecules, use_bias=False, kernel_initializer="zeros", name="shared")(bits)
    size = keras.ops.sum(bits, axis=1, keepdims=True)  # (n, 1)
    sizes = layers.Dense(molecules, kernel_initializer="ones", name="sizes")(size)  # of the two together
    alike = keras.ops.square(shared / keras.ops.maximum(sizes - shared, 1.0))  # (n, molecules)
    return layers.Dense(len(config.labels), kernel_initializer="zeros", name=MEMORY)(alike)


def _remember(
    model: keras.Model, split: tox21.Split, weights: npt.NDArray[np.float32], config: Config
) -> npt.NDArray[np.float32]:
    """Fit the memory to the training rows, and return what it says of each without knowing it: float32 [n, 12].

    Raises:
        TrainingError: there are more rows than the memory has places.
    """
    rows = len(split.results)
    if rows > config.memory:
        raise TrainingError(
            f"{rows} training molecules do not go into a memory of {config.memory}: raise Config.memory"
        )
    fingerprints, packed = split.fingerprints, pack(split.results, weights)
    coefficients, bias = similarity.fit(fingerprints, packed[:, 0], packed[:, 1], config.memory_penalty)
    empty = config.memory - rows
    model.get_layer("shared").set_weights([np.pad(fingerprints, ((0, empty), (0, 0))).T])
    sizes = np.pad(fingerprints.sum(axis=1, dtype=np.float32), (0, empty))
    model.get_layer("sizes").set_weights([np.ones((1, config.memory), np.float32), sizes])
    model.get_layer(MEMORY).set_weights([np.pad(coefficients, ((0, empty), (0, 0))), bias])
    return similarity.left_out(fingerprints, packed[:, 0], packed[:, 1], config.memory_penalty, config.memory_parts)


def _draw_roc(
    results: npt.NDArray[np.float32],
    probabilities: npt.NDArray[np.float64],
    aucs: dict[str, float],
    names: Sequence[str],
    path: Path,
) -> None:
    figure = Figure(figsize=(7.6, 5.4), dpi=plots.DPI, layout="constrained")
    panel = figure.subplots()
    for name, auc in aucs.items():
        assay = names.index(name)
        measured = ~np.isnan(results[:, assay])
        wrong, right, _ = roc_curve(results[measured, assay], probabilities[measured, assay])
        style = "-" if name.startswith("NR") else "--"
        panel.plot(wrong, right, style, linewidth=1.2, label=f"{name}  {auc:.3f}")
    panel.plot([0, 1], [0, 1], color="grey", linestyle=":")
    panel.set(xlabel="fraction of inactives called active", ylabel="fraction of actives found")
    panel.set_title(f"test rows: mean area under the curve {mean_auc(aucs):.3f}")
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path)


def _draw_precision(
    results: npt.NDArray[np.float32],
    probabilities: npt.NDArray[np.float64],
    precisions: dict[str, float],
    names: Sequence[str],
    path: Path,
) -> None:
    figure = Figure(figsize=(7.6, 5.4), dpi=plots.DPI, layout="constrained")
    panel = figure.subplots()
    for name, precision in precisions.items():
        assay = names.index(name)
        measured = ~np.isnan(results[:, assay])
        right, found, _ = precision_recall_curve(results[measured, assay], probabilities[measured, assay])
        style = "-" if name.startswith("NR") else "--"
        panel.plot(found, right, style, linewidth=1.2, label=f"{name}  {precision:.3f}")
    panel.set(xlabel="fraction of actives found", ylabel="fraction of right ones among those called active")
    panel.set_title(f"test rows: mean average precision {mean_precision(precisions):.3f}")
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path)


def _draw_table(
    results: npt.NDArray[np.float32], metrics: dict[str, dict[str, float]], names: Sequence[str], path: Path
) -> None:
    figures = {"AUC": "auc", "forest": "forest_auc", "precision": "precision", "forest ": "forest_precision"}
    rows = []
    for assay, name in enumerate(names):
        column = results[:, assay]
        values = [metrics[f"test {figure}"].get(name) for figure in figures.values()]
        counts = [str(int((~np.isnan(column)).sum())), str(int(np.nansum(column)))]
        rows.append([name, *counts, *("" if value is None else f"{value:.3f}" for value in values)])
    rows.append(["mean", "", "", *(f"{metrics['test'][figure]:.3f}" for figure in figures.values())])
    plots.text_table(["assay", "measured", "active", *figures], rows, path, width=14)
