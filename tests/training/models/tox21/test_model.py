import os
from dataclasses import replace
from pathlib import Path

import keras
import made_up_molecules
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console
from sklearn.metrics import roc_auc_score

from book_contracts import CONTRACTS, without_nearest
from bookserve.export import onnx_graph, parity, savedmodel
from bookserve.training import run
from bookserve.training.datasets import tox21 as tox21_data
from bookserve.training.datasets.files import DataRequest, Origin
from bookserve.training.datasets.tox21 import Molecules, Split
from bookserve.training.errors import DivergedError, TrainingError
from bookserve.training.loop.callbacks import StopOnNan
from bookserve.training.models.tox21 import model as tox21
from bookserve.training.models.tox21 import similarity

TINY = tox21.Config(
    epochs=4, members=2, hidden=(32, 16), batch=32, dropout=0.1, input_dropout=0.1, learning_rate=1e-2, memory=640
)


def made_up(rows: int, seed: int) -> Split:
    """Bits at random; bit k decides assay k, and a fifth of the results is not measured."""
    random = np.random.default_rng(seed)
    bits = (random.random((rows, 1024)) < 0.005).astype(np.uint8)
    bits[:, :12] = random.random((rows, 12)) < 0.3
    results = bits[:, :12].astype(np.float32)
    results[random.random(results.shape) < 0.2] = np.nan
    return made_up_molecules.split(bits, results)


@pytest.fixture(scope="module")
def molecules() -> Molecules:
    return Molecules(made_up(600, 0), made_up(100, 1), made_up(100, 2), Origin("sample", "made up", "0" * 64))


def test_every_layer_reads_the_one_before_it() -> None:
    networks = tox21.build_model(tox21.Config(epochs=1, members=1, hidden=(48, 24), memory=0)).get_layer("networks")
    kernels = [variable.shape for variable in networks.trainable_variables if len(variable.shape) == 2]
    assert kernels == [(2416, 48), (48, 24), (24, 12)]
    assert networks.output_shape == (None, 1, 12)


@pytest.mark.parametrize("together", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_one_assay_alone(together: bool, molecules: Molecules) -> None:
    config = replace(TINY, assays=("NR-AhR",), together=together, hidden=(6, 4), memory=0, epochs=8, described=False)
    keras.utils.set_random_seed(0)
    model = tox21.build_model(config)
    kernels = [tuple(variable.shape) for variable in model.trainable_variables if variable.name == "kernel"]
    assert sorted(set(kernels)) == ([(4, 1), (6, 4), (1024, 6)] if together else [(1, 4, 1), (1, 6, 4), (1024, 6)])
    history = tox21.train(model, molecules, config, 0, [])
    probabilities = tox21.predict(model, molecules.valid.inputs)
    others = [number for number, assay in enumerate(tox21.ASSAYS) if assay != "NR-AhR"]
    assert (np.ptp(probabilities[:, others], axis=0) == 0).all()
    aucs = tox21.assay_aucs(molecules.valid.results, probabilities)
    assert max(history["val_auc"]) == pytest.approx(aucs["NR-AhR"], abs=1e-6)
    assert aucs["NR-AhR"] > 0.8


def test_networks_of_one_assay_share_nothing() -> None:
    config = replace(tox21.BOOK, hidden=(6, 4), normalise=True)
    networks = tox21.build_model(config).get_layer("networks")
    assert [layer.kernel.shape for layer in networks.layers if hasattr(layer, "kernel")] == [
        *((1024, 72), (12, 6, 4), (12, 4, 1))
    ]
    bits = np.random.default_rng(0).integers(0, 2, (5, 1024), np.uint8)
    rows = made_up_molecules.features(bits).inputs(slice(None))
    with tf.GradientTape() as tape:
        nr_ahr = tf.reduce_sum(tf.square(networks(rows, training=False)[:, 0, 2]))
    first, *others = (
        np.abs(gradient.numpy())
        for layer, gradient in zip(
            [layer for layer in networks.layers if hasattr(layer, "kernel")],
            tape.gradient(nr_ahr, [layer.kernel for layer in networks.layers if hasattr(layer, "kernel")]),
            strict=True,
        )
    )
    assert set(np.flatnonzero(first.max(axis=0)) // 6) == {2}
    for gradient in others:
        assert np.flatnonzero(gradient.max(axis=(1, 2))).tolist() == [2]


def test_the_memory_in_the_graph_is_the_kernel(molecules: Molecules) -> None:
    model = tox21.build_model(TINY)
    weights = tox21.assay_weights(molecules.train.results, 0.5)
    unseen = tox21._remember(model, molecules.train, weights, TINY)
    packed = tox21.pack(molecules.train.results, weights)
    known = molecules.train.fingerprints
    coefficients, bias = similarity.fit(known, packed[:, 0], packed[:, 1], TINY.memory_penalty)
    asked = np.concatenate([molecules.test.fingerprints[:8], np.zeros((1, 1024), np.uint8)])
    expected = similarity.kernel(asked, known) @ coefficients + bias
    memory = keras.Model(model.input["fingerprint"], model.get_layer("memory").output)
    np.testing.assert_allclose(memory(asked), expected, atol=1e-4)
    left_out = similarity.left_out(known, packed[:, 0], packed[:, 1], TINY.memory_penalty, TINY.memory_parts)
    np.testing.assert_array_equal(unseen, left_out)  # what the networks learn from
    with pytest.raises(TrainingError, match="600 training molecules do not go into a memory of 500"):
        tox21._remember(model, molecules.train, weights, replace(TINY, memory=500))


def test_the_served_model_tells_the_similarity_to_the_nearest_training_molecule(molecules: Molecules) -> None:
    model = tox21.build_model(TINY)
    tox21._remember(model, molecules.train, tox21.assay_weights(molecules.train.results, 0.5), TINY)
    asked = {name: np.concatenate([rows[:6], np.zeros_like(rows[:1])]) for name, rows in molecules.test.inputs.items()}
    for name, rows in molecules.train.inputs.items():
        asked[name][0] = rows[3]
    nearest = tox21.serving_model(model)(asked)["nearest"].numpy()
    known = molecules.train.fingerprints
    expected = np.sqrt(similarity.kernel(asked["fingerprint"], known).max(axis=1))
    np.testing.assert_allclose(nearest, expected, atol=1e-6)
    assert (nearest[0], nearest[-1]) == (1, 0)
    assert len(set(nearest.tolist())) > 3


def test_only_a_model_with_a_memory_tells_a_similarity() -> None:
    alone = replace(TINY, memory=0)
    contract = tox21.contract_of(alone, CONTRACTS["tox21"])
    assert contract == without_nearest()
    assert tox21.contract_of(alone, replace(CONTRACTS["tox21"], model="mine", version=1)).version == 1
    assert tox21.contract_of(TINY, CONTRACTS["tox21"]) == CONTRACTS["tox21"]
    assert set(tox21.serving_model(tox21.build_model(alone)).output) == {"probabilities"}


@pytest.mark.usefixtures("drawn")
def test_training_learns_and_keeps_its_best_epoch(
    molecules: Molecules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tox21, "FOREST_TREES", 5)
    monkeypatch.setattr(tox21, "RESAMPLES", 40)
    run.make_repeatable(0)
    model = tox21.build_model(TINY)
    before = tox21.mean_auc(tox21.assay_aucs(molecules.test.results, tox21.predict(model, molecules.test.inputs)))
    history = tox21.train(model, molecules, TINY, seed=0, callbacks=[])
    assert set(history) == {"loss", "val_loss", "auc", "val_auc", "nr_ar_accuracy", "val_nr_ar_accuracy"}
    metrics = tox21.evaluate(model, molecules, tmp_path)
    assert before < 0.65
    assert list(metrics["calibration scale"]) == list(metrics["calibration shift"]) == list(CONTRACTS["tox21"].labels)
    assert metrics["valid"]["ece"] < metrics["valid"]["uncalibrated_ece"]
    assert metrics["test"]["auc"] > 0.85
    assert metrics["valid"]["auc"] == pytest.approx(max(history["val_auc"]))
    assert metrics["test"]["auc"] == pytest.approx(np.mean(list(metrics["test auc"].values())))
    assert list(metrics["test auc"]) == list(metrics["test forest_auc"]) == list(CONTRACTS["tox21"].labels)
    assert 0.5 < metrics["test"]["forest_auc"] < 1
    assert metrics["test"]["precision"] == pytest.approx(np.mean(list(metrics["test precision"].values())))
    assert 0.5 < metrics["test"]["nr_ar_accuracy"] <= 1
    assert metrics["test"]["rows"] == 100
    gain = metrics["test"]["auc"] - metrics["test"]["forest_auc"]
    assert metrics["test"]["auc_over_forest"] == pytest.approx(gain)
    assert metrics["test"]["auc_over_forest_low"] < gain < metrics["test"]["auc_over_forest_high"]
    for name in ("roc.png", "precision_recall.png", "assays.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_calibration_changes_no_order_and_brings_probabilities_to_what_is_true(molecules: Molecules) -> None:
    config = replace(TINY, balance=1.0)
    run.make_repeatable(0)
    model = tox21.build_model(config)
    tox21.train(model, molecules, config, seed=0, callbacks=[])
    results, rows = molecules.test.results, molecules.test.inputs
    before, after = tox21.predict(tox21.uncalibrated(model), rows), tox21.predict(model, rows)
    assert np.isfinite(after).all()
    assert tox21.assay_aucs(results, after) == tox21.assay_aucs(results, before)
    assert tox21.log_loss(results, after) < tox21.log_loss(results, before)
    served = tox21.serving_model(model)(rows)["probabilities"].numpy()
    np.testing.assert_allclose(served, after, atol=1e-6)
    valid = molecules.valid
    said = tox21.predict(model, valid.inputs)
    measured = ~np.isnan(valid.results)
    for assay in range(12):
        known = measured[:, assay]
        assert said[known, assay].mean() == pytest.approx(valid.results[known, assay].mean(), abs=0.03)


def test_a_last_step_of_an_epoch_that_diverges_is_an_error_of_one_line(molecules: Molecules) -> None:
    wild = replace(TINY, batch=600, normalise=False, learning_rate=1e38)  # one step an epoch, of a loss that is finite
    run.make_repeatable(0)
    with pytest.raises(DivergedError, match="the validation loss became nan in epoch 1"):
        tox21.train(tox21.build_model(wild), molecules, wild, 0, [StopOnNan()])


def test_the_book_network_keeps_its_last_weights(molecules: Molecules) -> None:
    config = replace(tox21.BOOK, epochs=3, batch=32, learning_rate=1e-2)
    run.make_repeatable(0)
    model = tox21.build_model(config)
    history = tox21.train(model, molecules, config, seed=0, callbacks=[])
    assert len(history["val_auc"]) == 3
    balance = tox21.assay_weights(molecules.train.results, 1.0)
    scores = tox21.predict(tox21.uncalibrated(model), molecules.valid.inputs)
    accuracy = tox21.weighted_accuracy(molecules.valid.results, scores, balance, 0)
    assert accuracy == pytest.approx(history["val_nr_ar_accuracy"][-1])
    assert accuracy > 0.7


def test_the_weighted_accuracy_of_the_book() -> None:
    results = np.full((6, 12), np.nan, np.float32)
    results[:5, 0] = [1, 0, 0, 0, 0]
    scores = np.zeros((6, 12))
    scores[:, 0] = [0.4, 0.9, 0.1, 0.1, 0.1, 0.9]
    weights = np.ones((2, 12), np.float32)
    assert tox21.weighted_accuracy(results, scores, weights, 0) == pytest.approx(3 / 5)
    weights[1] = 4  # deepchem's weights: all actives together count as much as all inactives
    assert tox21.weighted_accuracy(results, scores, weights, 0) == pytest.approx(3 / 8)
    scores[0, 0] = 0.6
    assert tox21.weighted_accuracy(results, scores, weights, 0) == pytest.approx(7 / 8)
    assert tox21.weighted_accuracy(results, scores, weights, 1) == 0.5


def test_what_was_not_measured_trains_nothing_and_counts_nowhere(molecules: Molecules) -> None:
    logits = tf.Variable(np.random.default_rng(0).normal(size=(100, 2, 12)).astype(np.float32))
    results = molecules.test.results
    packed = tox21.pack(results, tox21.assay_weights(results, 0.5))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tox21.weighted_loss(packed, logits))
    gradient = np.abs(tape.gradient(loss, logits).numpy()).max(axis=1)
    np.testing.assert_array_equal(gradient == 0, np.isnan(results))
    scores = np.random.default_rng(1).random((100, 12))
    changed = np.where(np.isnan(results), 1 - scores, scores)
    assert tox21.assay_aucs(results, scores) == tox21.assay_aucs(results, changed)
    assert tox21.log_loss(results, scores) == tox21.log_loss(results, changed)


def test_weights_balance_the_classes_of_each_assay() -> None:
    results = np.full((100, 12), np.nan, np.float32)
    results[:80] = 0
    results[:8] = 1
    results[:, 1] = 0
    for balance, ratio in ((0.0, 1.0), (0.5, 3.0), (1.0, 9.0)):
        inactive, active = tox21.assay_weights(results, balance)[:, 0]
        assert active / inactive == pytest.approx(ratio)
        assert 72 * inactive + 8 * active == pytest.approx(80)
    assert np.isfinite(tox21.assay_weights(results, 1.0)).all()


def test_a_gain_over_the_baseline_is_of_the_same_molecules(molecules: Molecules) -> None:
    results = molecules.test.results
    scores = np.random.default_rng(0).random(results.shape) + np.nan_to_num(results)
    same = tox21.over_forest(results, scores, scores)
    assert set(same.values()) == {0.0}
    noise = tox21.over_forest(results, scores, scores + np.random.default_rng(1).normal(size=scores.shape) * 0.3)
    assert noise["auc_over_forest_low"] < noise["auc_over_forest"] < noise["auc_over_forest_high"]


@pytest.mark.parametrize("values", [4, 1000])
def test_the_auc_is_that_of_scikit_learn_with_ties_too(values: int) -> None:
    random = np.random.default_rng(values)
    results = random.choice(np.array([0, 0, 1, np.nan], np.float32), (200, 12))
    scores = random.integers(0, values, results.shape) / values + np.nan_to_num(results) / 4
    for assay, auc in enumerate(tox21.assay_aucs(results, scores).values()):
        measured = ~np.isnan(results[:, assay])
        assert auc == pytest.approx(roc_auc_score(results[measured, assay], scores[measured, assay]), abs=1e-12)


def test_assays_without_both_classes_have_no_auc() -> None:
    results = np.full((4, 12), np.nan, np.float32)
    results[:, 0] = [0, 0, 1, 1]
    results[:, 1] = 0
    scores = np.tile(np.array([0.1, 0.6, 0.5, 0.9])[:, None], (1, 12))
    assert tox21.assay_aucs(results, scores) == {"NR-AR": 0.75}
    assert tox21.mean_auc({}) == 0.5
    assert tox21.assay_precisions(results, scores) == {"NR-AR": pytest.approx(5 / 6)}
    assert tox21.mean_precision({}) == 0.0


@pytest.mark.slow
def test_a_forest_always_says_the_same() -> None:
    random = np.random.default_rng(0)
    bits = np.zeros((1_500, 1024), np.uint8)
    bits[:, :9] = random.random((1_500, 9)) < 0.3  # many rows alike, of which some are active: answers are fractions
    split = made_up_molecules.split(bits, (random.random((1_500, 12)) < 0.3).astype(np.float32))
    forests = tox21.train_forests(split)[:1]
    assert len({tox21.forest_probabilities(forests, bits).tobytes() for _ in range(20)}) == 1


def test_a_forest_without_an_active_row_says_never(molecules: Molecules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tox21, "FOREST_TREES", 3)
    results = molecules.train.results.copy()
    results[:, 4] = 0
    forests = tox21.train_forests(Split(molecules.train.inputs, results))
    probabilities = tox21.forest_probabilities(forests, molecules.test.fingerprints)
    assert probabilities.shape == (100, 12)
    assert not probabilities[:, 4].any()
    assert probabilities[:, 3].any()


@pytest.mark.slow
def test_the_run_is_served_alike_by_both_engines(
    molecules: Molecules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tox21, "FOREST_TREES", 3)
    monkeypatch.setitem(tox21.PROFILES, "smoke", TINY)
    monkeypatch.setattr(tox21_data, "load", lambda *_: molecules)
    result = run.train_model("tox21", DataRequest("sample"), tmp_path, Console(quiet=True), profile="smoke")
    network = keras.models.load_model(result.folder / "model.keras", compile=False)
    expected = network({name: rows[:9] for name, rows in molecules.test.inputs.items()})["probabilities"].numpy()
    assert expected.shape == (9, 12)
    assert ((expected > 0) & (expected < 1)).all()
    servable = savedmodel.load(result.folder / "model.keras", CONTRACTS["tox21"])
    savedmodel.save(servable, tmp_path / "1")
    onnx_graph.convert(servable, CONTRACTS["tox21"], tmp_path / "1" / onnx_graph.LOCATION)
    differences = parity.check(tmp_path / "1", CONTRACTS["tox21"], molecules.test.inputs)
    assert differences["probabilities"] < 1e-5
    assert differences["nearest"] < 1e-5
    assert result.metrics["served"]["unlike"] == pytest.approx(
        np.quantile(network(molecules.test.inputs)["nearest"], 0.1)
    )


def test_every_configuration_has_its_numbers() -> None:
    smoke, default, full = tox21.CONFIGS["standard"].values()
    assert smoke.members < default.members < full.members
    for profile, config in tox21.CONFIGS["standard"].items():
        assert config.split == "random"
        assert tox21.CONFIGS["scaffold"][profile] == replace(config, split="scaffold")
    book = tox21.CONFIGS["book"]["default"]
    assert (book.together, book.hidden, book.dropout, book.learning_rate, book.batch) == (False, (50,), 0.5, 0.001, 100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif("DATA_DIR" not in os.environ, reason="needs the real data in DATA_DIR")
def test_default_beats_the_forests_on_the_real_test_rows(tmp_path: Path) -> None:
    config = tox21.CONFIGS["standard"]["default"]
    data = tox21.load_data(config, DataRequest("real", Path(os.environ["DATA_DIR"])), seed=0)
    run.make_repeatable(0)
    model = tox21.build_model(config)
    tox21.train(model, data, config, seed=0, callbacks=[])
    metrics = tox21.evaluate(model, data, tmp_path)
    test = metrics["test"]
    assert metrics["valid"]["auc"] >= 0.875
    assert test["auc"] >= 0.85  # the mean of three seeds is in README.md
    assert test["ece"] < 0.02 < test["uncalibrated_ece"]
    assert test["auc_over_forest_low"] > 0
    assert test["auc"] > test["forest_auc"]
