"""The next word on the Penn Treebank (chapter 7): a recurrent network over words.

Source: Zaremba, Sutskever, Vinyals, "Recurrent Neural Network Regularization" (2014), whose small network the book
trains; the word vectors serve as output weights too (Press and Wolf 2017). Unlike in the book's code the loss is the
mean over all words of a step, unknown words become `<unk>` instead of vanishing, and the vocabulary travels with the
version. While training, the softmax runs over a sample of the vocabulary; every reported perplexity is over all of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from bookserve.export.contracts import PTB
from bookserve.training import plots
from bookserve.training.checkpoint import NO_CHECKPOINT, Checkpoint
from bookserve.training.datasets import ptb
from bookserve.training.datasets.files import DataRequest
from bookserve.training.headline import Headline
from bookserve.training.models import STANDARD

CONTRACT = PTB
HEADLINE = Headline(metric="perplexity", book=115.9)  # the small network of chapter 7's script, after 13 epochs
EVALUATION_BATCH = 16  # streams read side by side
EVALUATION_STEPS = 50
EVALUATION_TRAIN_WORDS = 80_000  # of the training text, as many as the other splits have
TOP = 10  # words that the contract's `top_ids` names
PICTURE_ROWS = 8
PICTURE_WORDS = 12  # words that the network continues a row with

State = list[tuple[Any, Any]]  # of each layer: output and cell, float32 [batch, units]


@dataclass(frozen=True)
class Config:
    """The numbers of one training; "chapter 7" marks those of the book."""

    epochs: int  # (chapter 7: 13)
    train_words: int | None = None  # words to train on, None for all
    batch: int = 64  # streams that the text is cut into, over all devices (chapter 7: 20)
    steps: int = 35  # words through which gradients run back (chapter 7: 20)
    units: int = 224  # of a word vector and of each layer (chapter 7: 200)
    layers: int = 1  # (chapter 7: 2)
    dropout: float = 0.15  # share of a layer's inputs and of the outputs dropped in a step
    samples: int = 1_000  # words in the softmax of a training step, half of them the most frequent; 0 for all
    learning_rate: float = 4e-3  # the peak of the schedule (chapter 7: 1.0, halved each epoch, plain descent)
    warmup: float = 0.05  # share of the steps in which the rate rises; it then falls to 0 along a cosine
    clip: float = 1.0  # largest norm of all gradients together (chapter 7: 5 for a sum over 20 steps)
    init_scale: float = 0.1  # the first word vectors lie in this range around 0 (chapter 7)


PROFILES: dict[str, Config] = {
    "smoke": Config(epochs=1, train_words=60_000, batch=32, steps=20, units=64, samples=500, learning_rate=1e-2),
    "default": Config(epochs=4),
    "full": Config(
        epochs=39, batch=20, units=650, layers=2, dropout=0.5, samples=0, learning_rate=1e-3, clip=0.25, init_scale=0.05
    ),
}
CONFIGS: dict[str, dict[str, Config]] = {STANDARD: PROFILES}


def load_data(config: Config, request: DataRequest, seed: int) -> ptb.Text:
    """Penn Treebank, or Python's documentation; the text is never shuffled, so the seed decides nothing here."""
    return ptb.load(request, config.train_words)


def build_model(config: Config) -> keras.Model:
    """Word vectors and LSTM layers, untrained: int32 words [n, t] in, float32 logits [n, t, 10000] out.

    `ReversibleEmbedding` has no bias, so the one row of the layer "bias" is the bias of the output.
    """
    initial = keras.initializers.RandomUniform(-config.init_scale, config.init_scale)
    vectors = keras.layers.ReversibleEmbedding(
        ptb.VOCABULARY, config.units, embeddings_initializer=initial, name="vectors"
    )
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = vectors(tokens)  # (n, t, units)
    for number in range(config.layers):
        x = keras.layers.LSTM(config.units, return_sequences=True, name=f"lstm_{number + 1}")(x)
    bias = keras.layers.Embedding(1, ptb.VOCABULARY, embeddings_initializer="zeros", name="bias")
    logits = vectors(x, reverse=True) + bias(keras.ops.zeros_like(tokens[:, :1]))  # (n, t, vocabulary)
    return keras.Model(tokens, logits, name="next_word")


def train(
    model: keras.Model,
    data: ptb.Text,
    config: Config,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback],
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> dict[str, list[float]]:
    """Train in place; the weights of the epoch with the best validation perplexity are kept. Returns figure -> epochs.

    Each stream is read from its start to its end in every epoch, and the state at the end of a step is the start of the
    next one. The network begins as one that knows how frequent each word is. `loss` and `perplexity` are those of the
    training steps, so with `samples` they are estimates.
    """
    _, bias, _ = _parts(model)
    bias.embeddings.assign(np.log(_shares(data.train))[None, :])
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    batch = -(-config.batch // replicas) * replicas
    inputs, targets = streams(data.train, batch)
    steps = max(1, len(inputs) // config.steps)
    warmup = int(config.epochs * steps * config.warmup)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, config.epochs * steps - warmup, warmup_target=config.learning_rate, warmup_steps=warmup
    )
    model.compile(optimizer=keras.optimizers.Adam(rate, beta_2=0.99, global_clipnorm=config.clip))
    model.optimizer.build(model.trainable_variables)
    step, reading = training_step(model, config), evaluation_step(model)
    rng = np.random.default_rng(seed)
    watchers = keras.callbacks.CallbackList(list(callbacks), model=model, epochs=config.epochs, steps=steps)
    history: dict[str, list[float]] = {name: [] for name in ("loss", "perplexity", "val_loss", "val_perplexity")}
    best, best_weights = np.inf, model.get_weights()
    watchers.on_train_begin()
    for epoch in range(config.epochs):
        watchers.on_epoch_begin(epoch)
        state = zero_state(model, batch // replicas)
        losses = []
        for number in range(steps):
            part = slice(number * config.steps, (number + 1) * config.steps)
            watchers.on_train_batch_begin(number)
            loss, state = step(
                tf.constant(inputs[part]),
                tf.constant(targets[part]),
                tf.constant(_sample_words(config, rng)),
                tf.constant(rng.integers(0, 2**31, 2, np.int32)),
                state,
            )
            losses.append(loss)
            watchers.on_train_batch_end(number)
        logs = _figures(float(np.mean([float(loss) for loss in losses])))
        logs |= {f"val_{name}": value for name, value in _figures(mean_loss(model, reading, data.valid)).items()}
        if logs["val_loss"] < best:
            best, best_weights = logs["val_loss"], model.get_weights()
        for name, value in logs.items():
            history[name].append(value)
        watchers.on_epoch_end(epoch, logs)
    model.set_weights(best_weights)
    watchers.on_train_end()
    return history


def evaluate(model: keras.Model, data: ptb.Text, report: Path) -> dict[str, dict[str, float]]:
    """Split -> figure -> value; draws how the network continues rows of the test text into `report`.

    `rows` counts words. Of the training text only the first 80,000 words are read.
    """
    metrics = {}
    reading = evaluation_step(model)
    for name, words in (("train", data.train[:EVALUATION_TRAIN_WORDS]), ("valid", data.valid), ("test", data.test)):
        metrics[name] = {**_figures(mean_loss(model, reading, words)), "rows": float(len(words))}
    _draw_continuations(model, data, report / "continuations.png")
    return metrics


def serving_model(model: keras.Model) -> keras.Model:
    """The trained network behind the contract: `tokens` in; `probabilities`, `top_ids` and `top_probabilities` out.

    A number outside the vocabulary is read as `<unk>`.
    """
    ops = keras.ops
    vectors, bias, layers = _parts(model)
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    known = ops.logical_and(tokens >= 0, tokens < ptb.VOCABULARY)
    x = vectors(ops.where(known, tokens, ops.full_like(tokens, ptb.UNKNOWN_ID)))
    for layer in layers:
        x = layer(x)  # (n, t, units)
    shift = bias(ops.zeros_like(tokens[:, 0]))  # (n, vocabulary)
    probabilities = ops.softmax(vectors(x[:, -1], reverse=True) + shift)  # (n, vocabulary)
    top_probabilities, top_ids = ops.top_k(probabilities, k=TOP)
    outputs = {
        "probabilities": probabilities,
        "top_ids": ops.cast(top_ids, "int32"),
        "top_probabilities": top_probabilities,
    }
    return keras.Model(tokens, outputs, name="ptb")


def streams(words: ptb.Words, batch: int) -> tuple[ptb.Words, ptb.Words]:
    """The text as `batch` contiguous streams side by side, and each word's successor: int32 [words / batch, batch]."""
    length = (len(words) - 1) // batch
    inputs = words[: length * batch].reshape(batch, length)
    targets = words[1 : length * batch + 1].reshape(batch, length)
    return np.ascontiguousarray(inputs.T), np.ascontiguousarray(targets.T)


def zero_state(model: keras.Model, batch: int) -> State:
    """The state before the first word."""
    _, _, layers = _parts(model)
    return [(tf.zeros([batch, layer.units]), tf.zeros([batch, layer.units])) for layer in layers]


def training_step(model: keras.Model, config: Config) -> Callable[..., tuple[Any, State]]:
    """One descent over int32 words and successors [steps, batch]; gives the mean loss of a word and the next state."""
    vectors, bias, layers = _parts(model)
    variables = model.trainable_variables

    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync

    def descend(inputs: Any, targets: Any, sample: Any, seed: Any, state: State) -> tuple[Any, State]:
        """One replica's streams, of which each has as many, and its share of the loss."""
        first = tf.distribute.get_replica_context().replica_id_in_sync_group
        inputs, targets = inputs[:, first::replicas], targets[:, first::replicas]
        with tf.GradientTape() as tape:
            table = tf.convert_to_tensor(vectors.embeddings)
            shift = tf.convert_to_tensor(bias.embeddings)[0]  # (vocabulary,)
            x = _dropout(tf.gather(table, inputs), config.dropout, seed)  # (steps, batch, units)
            after = []
            for number, (layer, before) in enumerate(zip(layers, state, strict=True)):
                x, end = run_layer(layer, x, before)
                x = _dropout(x, config.dropout, seed + number + 1)
                after.append(end)
            x = tf.reshape(x, [-1, config.units])  # (words, units)
            wanted = tf.reshape(targets, [-1])
            if config.samples:
                losses = sampled_loss(x, table, shift, wanted, sample)
            else:
                logits = tf.matmul(x, table, transpose_b=True) + shift
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(wanted, logits)
            loss = tf.reduce_mean(losses) / replicas
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
        model.optimizer.apply(gradients, variables)
        return loss, after

    @tf.function  # type: ignore[untyped-decorator]
    def step(inputs: Any, targets: Any, sample: Any, seed: Any, state: State) -> tuple[Any, State]:
        losses, after = strategy.run(descend, args=(inputs, targets, sample, seed, state))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None), after

    return step  # type: ignore[no-any-return]


def run_layer(layer: keras.layers.LSTM, x: Any, state: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
    """What `layer` computes, unrolled over float32 x [steps, batch, units] from a given state; on a CPU twice as fast.

    Returns all outputs, float32 [steps, batch, units], and the last state.
    """
    cell = layer.cell
    output, memory = state
    recurrent = tf.convert_to_tensor(cell.recurrent_kernel)
    driven = tf.einsum("tbi,ij->tbj", x, tf.convert_to_tensor(cell.kernel)) + tf.convert_to_tensor(cell.bias)
    outputs = []
    for part in tf.unstack(driven):
        # Keras's order: input gate, forget gate, candidate, output gate
        admit, keep, candidate, show = tf.split(part + tf.matmul(output, recurrent), 4, axis=1)
        memory = tf.sigmoid(keep) * memory + tf.sigmoid(admit) * tf.tanh(candidate)
        output = tf.sigmoid(show) * tf.tanh(memory)
        outputs.append(output)
    return tf.stack(outputs), (output, memory)


def sampled_loss(x: Any, table: Any, bias: Any, targets: Any, sample: Any) -> Any:
    """Cross-entropy [words] of outputs x [words, units] with the softmax's sum estimated from a sample of words.

    The first half of `sample` int32 [k] are the k/2 first words of the vocabulary; the other half were drawn from the
    rest without repetition and stand for all of it, each with the same weight. The target's own term is always exact.
    """
    half = sample.shape[0] // 2
    weight = np.log((table.shape[0] - half) / (sample.shape[0] - half))
    weights = np.concatenate([np.zeros(half), np.full(sample.shape[0] - half, weight)]).astype(np.float32)
    offsets = tf.gather(bias, sample) + weights
    logits = tf.matmul(x, tf.gather(table, sample), transpose_b=True) + offsets  # (words, k)
    itself = tf.cast(targets[:, None] == sample[None, :], tf.float32)
    target = tf.reduce_sum(x * tf.gather(table, targets), axis=1) + tf.gather(bias, targets)  # (words,)
    every = tf.concat([logits - 1e9 * itself, target[:, None]], axis=1)
    return tf.reduce_logsumexp(every, axis=1) - target


def evaluation_step(model: keras.Model) -> Callable[..., tuple[Any, State]]:
    """Reads int32 words, successors and float32 weights [steps, batch]; gives the weighted sum of the losses over the
    whole vocabulary and the next state.
    """
    vectors, bias, layers = _parts(model)

    @tf.function  # type: ignore[untyped-decorator]
    def step(inputs: Any, targets: Any, weights: Any, state: State) -> tuple[Any, State]:
        table = tf.convert_to_tensor(vectors.embeddings)
        x = tf.gather(table, inputs)
        after = []
        for layer, before in zip(layers, state, strict=True):
            x, end = run_layer(layer, x, before)
            after.append(end)
        logits = tf.einsum("tbi,vi->tbv", x, table) + tf.convert_to_tensor(bias.embeddings)[0]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
        return tf.reduce_sum(losses * weights), after

    return step  # type: ignore[no-any-return]


def mean_loss(model: keras.Model, step: Callable[..., tuple[Any, State]], words: ptb.Words) -> float:
    """The mean negative log-probability, in nats, of each word given those before it; `step` is `evaluation_step`'s."""
    inputs, targets = streams(words, EVALUATION_BATCH)
    state = zero_state(model, EVALUATION_BATCH)
    total = 0.0
    for start in range(0, len(inputs), EVALUATION_STEPS):
        count = len(inputs[start : start + EVALUATION_STEPS])
        missing = ((0, EVALUATION_STEPS - count), (0, 0))  # the last step is filled up with words of no weight
        part = [np.pad(array[start : start + count], missing) for array in (inputs, targets)]
        weights = np.pad(np.ones((count, EVALUATION_BATCH), np.float32), missing)
        loss, state = step(*(tf.constant(array) for array in (*part, weights)), state)
        total += float(loss)
    return total / inputs.size


def continue_rows(model: keras.Model, tokens: ptb.Words, count: int, seed: int) -> ptb.Words:
    """Rows int32 [n, t] with `count` words drawn after each, never `<unk>`: int32 [n, t + count]."""
    rng = np.random.default_rng(seed)
    served = serving_model(model)
    for _ in range(count):
        outputs = served(tokens, training=False)
        shares = np.asarray(outputs["top_probabilities"], np.float64)  # (n, 10)
        ids = np.asarray(outputs["top_ids"])
        shares = np.where(ids == ptb.UNKNOWN_ID, 0.0, shares)
        shares /= shares.sum(axis=1, keepdims=True)
        picks = (shares.cumsum(axis=1) > rng.random((len(ids), 1))).argmax(axis=1)
        tokens = np.concatenate([tokens, np.take_along_axis(ids, picks[:, None], axis=1)], axis=1)
    return tokens


def _parts(
    model: keras.Model,
) -> tuple[keras.layers.ReversibleEmbedding, keras.layers.Embedding, list[keras.layers.LSTM]]:
    """The word vectors, the bias of the output and the recurrent layers of a network of `build_model`."""
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.LSTM)]
    return model.get_layer("vectors"), model.get_layer("bias"), layers


def _sample_words(config: Config, rng: np.random.Generator) -> ptb.Words:
    """Word numbers as `sampled_loss` takes them, int32 [samples]."""
    half = config.samples // 2
    drawn = half + rng.choice(ptb.VOCABULARY - half, config.samples - half, replace=False)
    return np.concatenate([np.arange(half), drawn]).astype(np.int32)


def _shares(words: ptb.Words) -> npt.NDArray[np.float32]:
    """How often each word of the vocabulary occurs, as a share of all, float32 [vocabulary]; none is 0."""
    counts = np.bincount(words, minlength=ptb.VOCABULARY) + 0.5
    return np.asarray(counts / counts.sum(), np.float32)


def _dropout(x: Any, share: float, seed: Any) -> Any:
    return tf.nn.experimental.stateless_dropout(x, share, seed=seed) if share else x


def _figures(loss: float) -> dict[str, float]:
    return {"loss": loss, "perplexity": float(np.exp(min(loss, 700.0)))}


def _draw_continuations(model: keras.Model, data: ptb.Text, path: Path) -> None:
    """A table: the beginning of a row of the test text, what follows there, and what the network makes of it."""
    rows = data.examples["tokens"]
    rows = rows[:: max(1, len(rows) // PICTURE_ROWS)][:PICTURE_ROWS]
    given = rows.shape[1] - PICTURE_WORDS
    made = continue_rows(model, rows[:, :given], PICTURE_WORDS, seed=0)
    cells = []
    for row, answer in zip(rows, made, strict=True):
        parts = (row[:given], row[given:], answer[given:])
        cells.append([" ".join(data.vocabulary[number] for number in part) for part in parts])
    plots.text_table(("the test text begins", "and goes on", "the network goes on"), cells, path)
