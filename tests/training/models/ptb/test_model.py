import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from rich.console import Console

from book_contracts import CONTRACTS
from bookserve.export import publish, run_reader
from bookserve.export.store import ModelStore
from bookserve.training import run
from bookserve.training.datasets import ptb as ptb_data
from bookserve.training.datasets.files import DataRequest, Origin
from bookserve.training.errors import DivergedError
from bookserve.training.loop.callbacks import StopOnNan
from bookserve.training.loop.checkpoint import Checkpoint
from bookserve.training.models import PROFILES, STANDARD
from bookserve.training.models.ptb import cache
from bookserve.training.models.ptb import model as ptb

TINY = ptb.Config(
    epochs=3,
    batch=8,
    steps=10,
    units=32,
    samples=200,
    learning_rate=3e-2,
    dropout=0.05,
    recurrent_dropout=0.05,
    word_dropout=0.01,
    bfloat16=False,
)

Trained = tuple[keras.Model, dict[str, list[float]]]  # a network and its history


@pytest.fixture(scope="module")
def text() -> ptb_data.Text:
    """Sentences of a fixed grammar: after each word only two others may follow."""
    rng = np.random.default_rng(0)
    words = [ptb_data.UNKNOWN, ptb_data.END]
    for _ in range(8_000):
        words.append(f"word{(7 * int(words[-1][4:] if words[-1][:4] == 'word' else 0) + rng.integers(1, 3)) % 50}")
    vocabulary = ptb_data.count_vocabulary(words)
    numbers = ptb_data.encode(words, vocabulary)
    parts = (numbers[:6_000], numbers[6_000:7_000], numbers[7_000:])
    return ptb_data.Text(*parts, vocabulary=vocabulary, origin=Origin("sample", "a grammar", ""))


@pytest.fixture(scope="module")
def trained(text: ptb_data.Text) -> Trained:
    run.make_repeatable(0)
    model = ptb.build_model(TINY)
    return model, ptb.train(model, text, TINY, seed=0, callbacks=[])


@pytest.mark.usefixtures("drawn")
def test_training_learns_the_grammar(trained: Trained, text: ptb_data.Text, tmp_path: Path) -> None:
    model, history = trained
    metrics = ptb.evaluate(model, text, tmp_path)
    assert set(history) == {"loss", "perplexity", "val_loss", "val_perplexity"}
    assert metrics["valid"]["perplexity"] == pytest.approx(min(history["val_perplexity"]), rel=1e-4)
    assert metrics["test"]["perplexity"] < 20  # 50 words, of which two may follow
    assert metrics["test"]["perplexity"] == pytest.approx(np.exp(metrics["test"]["loss"]))
    assert metrics["test"]["rows"] == len(text.test)
    assert (tmp_path / "continuations.png").read_bytes().startswith(b"\x89PNG")


def test_a_step_that_diverges_is_named(text: ptb_data.Text) -> None:
    wild = replace(TINY, learning_rate=1e38)
    run.make_repeatable(0)
    with pytest.raises(DivergedError, match=r"the loss became (nan|inf) in step \d+ of epoch 1"):
        ptb.train(ptb.build_model(wild), text, wild, seed=0, callbacks=[StopOnNan()])


class Killed(Exception):
    pass


class Killer(keras.callbacks.Callback):
    """Ends the training in the middle of its second epoch."""

    epoch = 0

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        if (self.epoch, batch) == (1, 5):
            raise Killed


@pytest.mark.slow
def test_a_training_that_was_killed_ends_as_if_it_had_run_through(
    trained: Trained, text: ptb_data.Text, tmp_path: Path
) -> None:
    expected, history = trained
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz")
    run.make_repeatable(0)
    with pytest.raises(Killed):
        ptb.train(ptb.build_model(TINY), text, TINY, 0, [Killer()], checkpoint)
    run.make_repeatable(7)  # nothing but the checkpoint may count
    model = ptb.build_model(TINY)
    assert ptb.train(model, text, TINY, 0, [], checkpoint) == history
    for found, wanted in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("by_cudnn", [False, True])  # where there is no GPU, the way to it ends in Keras's loop
def test_a_step_of_the_book_is_its_plain_descent(by_cudnn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against Keras's layers: the loss summed over the steps, the gradient cut to a norm, the rate times that."""
    monkeypatch.setattr(ptb, "cudnn_pays", lambda: by_cudnn)
    run.make_repeatable(0)
    config = replace(ptb.BOOK, batch=4, steps=3, units=5, clip=0.5, bfloat16=False)
    model = ptb.build_model(config)
    words = np.random.default_rng(0).integers(0, 10_000, 4 * 3 + 1).astype(np.int32)
    inputs, targets = ptb.streams(words, 4)
    with tf.GradientTape() as tape:
        losses = keras.losses.sparse_categorical_crossentropy(targets.T, model(inputs.T), from_logits=True)
        loss = tf.reduce_sum(tf.reduce_mean(losses, axis=0))
    before = model.get_weights()
    gradients = [tf.convert_to_tensor(each) for each in tape.gradient(loss, model.trainable_variables)]
    clipped, norm = tf.clip_by_global_norm(gradients, config.clip)
    step = ptb.training_step(model, config, steps=10)
    mean, _ = step(inputs, targets, np.zeros(0, np.int32), np.zeros(2, np.int32), ptb.zero_state(model, 4))
    assert norm > config.clip
    assert 3 * float(mean) == pytest.approx(float(loss), rel=1e-5)
    for old, gradient, new in zip(before, clipped, model.get_weights(), strict=True):
        np.testing.assert_allclose(new, old - gradient, rtol=1e-4, atol=1e-6)


def test_the_book_s_network_begins_uniform_and_no_two_weights_alike() -> None:
    weights = ptb.build_model(replace(ptb.BOOK, units=6)).get_weights()
    firsts = {float(weight.flat[0]) for weight in weights if weight.any()}
    assert len(firsts) == sum(weight.any() for weight in weights) == len(weights) - 2  # the layers' biases are 0
    assert all(np.abs(weight).max() <= 0.1 for weight in weights)


def test_the_book_s_rate_is_halved_in_each_epoch_after_the_fourth() -> None:
    optimizer = ptb.optimizer(ptb.BOOK, steps=100)
    rates = []
    for step in (0, 399, 400, 499, 500, 1_299):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    assert rates == [1, 1, 0.5, 0.5, 0.25, 0.5**9]


def test_the_figures_are_those_of_the_network_itself(trained: Trained, text: ptb_data.Text) -> None:
    """The unrolled layers and the carried state against Keras's own layers over each whole stream."""
    model, _ = trained
    inputs, targets = ptb.streams(text.valid, ptb.EVALUATION_BATCH)
    logits = model(inputs.T, training=False)  # (streams, words, vocabulary)
    expected = keras.losses.sparse_categorical_crossentropy(targets.T, logits, from_logits=True)
    assert ptb.mean_loss(model, ptb.evaluation_step(model, tf.float32), text.valid) == pytest.approx(
        float(np.mean(expected)), rel=1e-5
    )


def test_a_text_is_read_as_one_stream_as_the_network_itself_reads_it(trained: Trained, text: ptb_data.Text) -> None:
    model, _ = trained
    words = text.valid[:130]  # no multiple of the words of a step
    reading = ptb.read(model, words)
    logits = np.asarray(model(words[None, :-1], training=False))[0]  # (words, vocabulary)
    expected = np.asarray(keras.ops.softmax(logits))[np.arange(129), words[1:]]
    np.testing.assert_allclose(reading.likely, expected, rtol=1e-4)
    np.testing.assert_array_equal(reading.nexts, words[1:])
    last = keras.Model(model.input, model.get_layer("lstm_1").output)
    np.testing.assert_allclose(reading.outputs, np.asarray(last(words[None, :-1]))[0], atol=1e-5)


@pytest.mark.slow
def test_the_cache_is_chosen_on_the_validation_text_and_judged_on_the_test_text(
    trained: Trained, text: ptb_data.Text, tmp_path: Path
) -> None:
    model, _ = trained
    text = replace(text, train=text.train[:200], valid=text.valid[:400], test=text.test[:400])
    metrics = ptb.evaluate(model, text, tmp_path)
    valid, test = metrics["valid"], metrics["test"]
    chosen = cache.Cache(int(valid["cache_size"]), valid["cache_sharpness"], valid["cache_share"])
    assert chosen == cache.search(ptb.read(model, text.valid))
    assert valid["cache_perplexity"] == cache.perplexity(chosen.likely(ptb.read(model, text.valid)))
    assert test["cache_perplexity"] == cache.perplexity(chosen.likely(ptb.read(model, text.test)))


def test_streams_are_contiguous_and_targets_are_the_next_words() -> None:
    inputs, targets = ptb.streams(np.arange(11, dtype=np.int32), 2)
    assert inputs.T.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert (targets == inputs + 1).all()


def test_a_sample_of_all_words_is_the_exact_loss_and_a_part_estimates_it() -> None:
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(500, 8)), tf.float32)
    table = tf.constant(rng.normal(size=(60, 8)) * 0.5, tf.float32)
    bias = tf.constant(rng.normal(size=60), tf.float32)
    targets = tf.constant(rng.integers(0, 60, 500), tf.int32)
    logits = tf.matmul(x, table, transpose_b=True) + bias
    exact = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits).numpy()
    every = ptb.sampled_loss(x, table, bias, targets, tf.range(60)).numpy()
    np.testing.assert_allclose(every, exact, rtol=1e-4)
    samples = [np.concatenate([np.arange(15), 15 + rng.choice(45, 15, replace=False)]) for _ in range(100)]
    estimates = [ptb.sampled_loss(x, table, bias, targets, tf.constant(s, tf.int32)).numpy() for s in samples]
    assert np.mean(estimates) == pytest.approx(exact.mean(), abs=0.1)


def test_the_serving_model_keeps_the_contract(trained: Trained, text: ptb_data.Text) -> None:
    model, _ = trained
    served = ptb.serving_model(model)
    for length in (1, 2, 9):
        tokens = text.test[: 4 * length].reshape(4, length)
        outputs = {name: np.asarray(value) for name, value in served(tokens).items()}
        assert set(outputs) == {tensor.name for tensor in CONTRACTS["ptb"].outputs}
        expected = keras.ops.softmax(model(tokens)[:, -1]).numpy()
        np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-6)
        np.testing.assert_array_equal(outputs["top_ids"], np.argsort(-expected, kind="stable")[:, :10])
        assert outputs["top_ids"].dtype == np.int32
        picked = np.take_along_axis(outputs["probabilities"], outputs["top_ids"], axis=1)
        np.testing.assert_array_equal(outputs["top_probabilities"], picked)


def test_numbers_outside_the_vocabulary_are_read_as_unk(
    trained: Trained,
) -> None:
    served = ptb.serving_model(trained[0])
    strange = served(np.array([[3, -1], [3, 10_000], [3, 2**31 - 1]], np.int32))["probabilities"]
    plain = served(np.array([[3, ptb_data.UNKNOWN_ID]] * 3, np.int32))["probabilities"]
    np.testing.assert_array_equal(strange, plain)


def test_a_continuation_keeps_the_row_and_has_no_unknown_word(trained: Trained, text: ptb_data.Text) -> None:
    rows = text.test[:30].reshape(3, 10)
    made = ptb.continue_rows(trained[0], rows, 5, seed=1)
    np.testing.assert_array_equal(made[:, :10], rows)
    assert made.shape == (3, 15)
    assert (made[:, 10:] != ptb_data.UNKNOWN_ID).all()
    np.testing.assert_array_equal(made, ptb.continue_rows(trained[0], rows, 5, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_version_carries_the_vocabulary_and_takes_rows_of_any_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: ptb_data.Text, tied: bool
) -> None:
    monkeypatch.setattr(ptb, "load_data", lambda *_: replace(text, train=text.train[:1_000]))
    tiny = ptb.Config(epochs=1, batch=8, steps=10, units=8, samples=0, tied=tied)
    monkeypatch.setitem(ptb.CONFIGS[STANDARD], "smoke", tiny)
    result = run.train_model("ptb", DataRequest("sample"), tmp_path / "runs", Console(quiet=True), profile="smoke")
    store = ModelStore(tmp_path / "models")
    made = publish.publish(run_reader.read(result.folder, "ptb"), store, lambda _: None)
    folder = store.path("ptb", made.version)
    assert tuple((folder / "assets" / "vocabulary.txt").read_text().splitlines()) == text.vocabulary
    assert "assets/vocabulary.txt" in made.files
    session = onnxruntime.InferenceSession(folder / "assets.extra" / "model.onnx")
    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    for shape in ((1, 1), (3, 7), (2, 60)):
        tokens = np.resize(text.test, shape)
        tokens[0, 0] = 2**31 - 1
        probabilities, top_ids, top_probabilities = session.run(None, {"tokens": tokens})
        expected = signature(tokens=tf.constant(tokens))
        np.testing.assert_allclose(probabilities, expected["probabilities"].numpy(), atol=1e-5)
        assert (top_ids.shape, top_probabilities.shape) == ((shape[0], 10), (shape[0], 10))


SPLIT = """
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from bookserve.training import run
from bookserve.training.datasets.ptb import Text
from bookserve.training.models.ptb import model as ptb
words = np.random.default_rng(0).integers(0, 30, 4000).astype(np.int32)
text = Text(words[:3000], words[3000:3500], words[3500:], (), None)
config = ptb.Config(epochs=2, batch=8, steps=5, units=8, samples=100, dropout=0.0, bfloat16=False, clip=0.1)
losses = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    run.make_repeatable(0)
    with strategy.scope():
        history = ptb.train(ptb.build_model(config), text, config, 0, [])
    losses.append(history["loss"] + history["val_loss"])
assert np.allclose(*losses, rtol=0, atol=5e-5), losses
print("replicas", strategy.num_replicas_in_sync)
"""


@pytest.mark.slow
def test_two_replicas_train_as_one_does() -> None:
    done = subprocess.run([sys.executable, "-c", SPLIT], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("replicas 2")


def test_every_profile_has_its_numbers() -> None:
    for profiles in ptb.CONFIGS.values():
        assert tuple(profiles) == PROFILES
        assert profiles["smoke"].epochs < profiles["default"].epochs <= profiles["full"].epochs


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif("DATA_DIR" not in os.environ, reason="needs the real data in DATA_DIR")
@pytest.mark.parametrize(("configuration", "perplexity"), [(STANDARD, 105), ("book", 120)])
def test_default_reaches_its_perplexity_on_the_real_test_text(
    tmp_path: Path, configuration: str, perplexity: float
) -> None:
    config = ptb.CONFIGS[configuration]["default"]
    data = ptb.load_data(config, DataRequest("real", Path(os.environ["DATA_DIR"])), seed=0)
    run.make_repeatable(0)
    model = ptb.build_model(config)
    ptb.train(model, data, config, seed=0, callbacks=[])
    assert ptb.evaluate(model, data, tmp_path)["test"]["perplexity"] <= perplexity
