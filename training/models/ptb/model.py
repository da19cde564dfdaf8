"""The next word on the Penn Treebank (chapter 7): a recurrent network over words.

Source: Zaremba, Sutskever, Vinyals, "Recurrent Neural Network Regularization" (2014), whose small network the book
trains. The loss that is descended is theirs and the book's: the sum over the steps, averaged over the streams. Unlike
in the book's code unknown words become `<unk>` instead of vanishing, and the vocabulary travels with the version.

The configuration "book" is that small network with the book's numbers; what differs is that matrix products are made in
bfloat16 where the machine is fast at it. In "standard" the word vectors serve as output weights too (Press and Wolf
2017); dropout is the same in all steps of a stream (Gal and Ghahramani 2016) and also leaves out whole words (Merity et
al. 2017); and while training, the softmax runs over a sample of the vocabulary. Every perplexity of the validation and
the test text is over all of it.

Beside the perplexities stand those with a continuous cache (`cache.py`). It is not in the served graph: it needs some
hundred words, and over the few of a request it makes answers worse.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from optuna.distributions import FloatDistribution

from bookserve.export import figures
from bookserve.export.contracts import Contract, Preprocessing, Tensor
from bookserve.training import plots
from bookserve.training.datasets import corpus, ptb
from bookserve.training.datasets.files import DataRequest
from bookserve.training.datasets.own_data import Corpus
from bookserve.training.devices import precision
from bookserve.training.loop.callbacks import Watchers
from bookserve.training.loop.checkpoint import NO_CHECKPOINT, Checkpoint, pack, unpack
from bookserve.training.loop.rates import warm_cosine
from bookserve.training.models import STANDARD, KeyMetric
from bookserve.training.models.ptb import cache
from bookserve.training.models.ptb.lstm import State, cudnn_pays, run_keras_lstm, run_lstm
from bookserve.training.tuning.search_space import Search, choice

CONTRACT = Contract(
    model="ptb",
    version=1,
    task="text",
    inputs=(Tensor("tokens", "int32", (None, None), free=("batch", "words")),),  # rows of the vocabulary
    outputs=(
        Tensor(  # of every word of the vocabulary as the next one
            "probabilities", "float32", (None, None), free=("batch", "vocabulary"), unit="probability"
        ),
        Tensor("top_ids", "int32", (None, 10), ranks="probabilities"),
        Tensor("top_probabilities", "float32", (None, 10), unit="probability"),
    ),
    assets=("vocabulary.txt",),  # one word a line, UTF-8; line number from 0 = the word's number in `tokens`
    preprocessing=Preprocessing("tokens", vocabulary="vocabulary.txt"),
)
KEY_METRIC = KeyMetric(name="perplexity", book=115.9)  # the small network of chapter 7's script, after 13 epochs
EVALUATION_BATCH = 16  # streams read side by side
EVALUATION_STEPS = 50
EVALUATION_TRAIN_WORDS = 80_000  # of the training text, as many as the other splits have
TOP = 10  # words that the contract's `top_ids` names
SHORT_TEXT_STEPS = 10  # of an epoch of a user's own text, at least
LEAST_STEPS, MOST_EPOCHS = 400, 60  # of a training on it
WINDOW, WINDOWS = 50, 2_000  # words before the one that the served graph is judged by, and how many are judged
PICTURE_ROWS = 8
PICTURE_WORDS = 12  # words that the network continues a row with


@dataclass(frozen=True)
class Config:
    """The numbers of one training; "chapter 7" marks those of the book."""

    epochs: int  # (chapter 7: 13)
    train_words: int | None = None  # words to train on, None for all
    vocabulary: int = ptb.VOCABULARY  # words that it knows
    batch: int = 64  # streams that the text is cut into, over all devices (chapter 7: 20)
    steps: int = 35  # words through which gradients run back (chapter 7: 20)
    units: int = 224  # of a word vector and of each layer (chapter 7: 200)
    layers: int = 1  # (chapter 7: 2)
    tied: bool = True  # word vectors are the output weights as well (chapter 7: not)
    init_scale: float = 0.1  # the first word vectors lie in this range around 0 (chapter 7)
    uniform: bool = False  # so do all other weights (chapter 7); else Keras's way, and the bias knows frequent words
    dropout: float = 0.15  # fraction of a layer's inputs and of the outputs dropped in a step (chapter 7: 0)
    recurrent_dropout: float = 0.0  # fraction of a layer's own outputs hidden from it
    word_dropout: float = 0.0  # fraction of the vocabulary that is not read in a step
    samples: int = 1_000  # words in the softmax of a training step, half of them the most frequent; 0 for all
    rotate: bool = True  # an epoch begins anywhere in the text (chapter 7: at its first word)
    learning_rate: float = 4e-3  # the peak of the schedule (chapter 7: 1.0)
    warmup: float = 0.05  # fraction of the steps in which the rate rises; it then falls to 0 along a cosine
    halve_after: int | None = None  # plain descent, its rate halved in each epoch after these (chapter 7: 4), not Adam
    clip: float = 35.0  # largest norm of all gradients together (chapter 7: 5)
    bfloat16: bool = True  # matrix products of a training step in bfloat16 where that is fast (chapter 7: float32)


BOOK = Config(
    epochs=13,
    batch=20,
    steps=20,
    units=200,
    layers=2,
    tied=False,
    uniform=True,
    dropout=0.0,
    samples=0,
    rotate=False,
    learning_rate=1.0,
    halve_after=4,
    clip=5.0,
)
CONFIGS: dict[str, dict[str, Config]] = {
    STANDARD: {
        "smoke": Config(epochs=1, train_words=60_000, batch=32, steps=20, units=64, samples=500, learning_rate=1e-2),
        "default": Config(epochs=7),
        "full": Config(
            epochs=16,
            batch=32,
            units=640,
            layers=2,
            init_scale=0.05,
            dropout=0.45,
            recurrent_dropout=0.15,
            word_dropout=0.05,
            samples=2_000,
            learning_rate=2e-3,
            clip=10.0,
        ),
    },
    "book": {
        "smoke": replace(BOOK, epochs=1, train_words=60_000),
        "default": BOOK,
        "full": BOOK,
    },
}
SEARCHES: dict[str, Search] = {
    STANDARD: Search(
        objective="val_perplexity",
        higher_is_better=False,
        space={
            "learning_rate": FloatDistribution(1e-3, 1e-2, log=True),
            "dropout": FloatDistribution(0.0, 0.5),
            "recurrent_dropout": FloatDistribution(0.0, 0.3),
            "word_dropout": FloatDistribution(0.0, 0.1),
            "units": choice(160, 224, 320),
            "layers": choice(1, 2),
        },
    ),
    "book": Search(
        objective="val_perplexity",
        higher_is_better=False,
        space={
            "learning_rate": FloatDistribution(0.3, 3.0, log=True),
            "dropout": choice(0.0, 0.25, 0.5),
            "init_scale": choice(0.05, 0.1),
            "halve_after": choice(4, 6, 8),
        },
    ),
}


def load_data(config: Config, request: DataRequest, seed: int) -> ptb.Text:
    """Penn Treebank, or Python's documentation; or a user's own text.

    The text is never shuffled: the seed only draws which parts of a user's text validate and test.
    """
    if isinstance(request.own, Corpus):
        return corpus.read(request.own, seed, config.train_words)
    return ptb.load(request, config.train_words)


def on_own_data(config: Config, data: ptb.Text, name: str) -> tuple[Config, Contract]:
    """The numbers and the contract for a user's own text: its vocabulary, few streams for a short text, more epochs.

    A training has at least 400 steps, in at most 60 epochs.
    """
    words, vocabulary = len(data.train), len(data.vocabulary)
    batch = max(1, min(config.batch, words // (config.steps * SHORT_TEXT_STEPS)))
    steps = max(1, (words - 1) // batch // config.steps)
    epochs = max(config.epochs, min(MOST_EPOCHS, -(-LEAST_STEPS // steps)))
    samples = config.samples if 2 * config.samples < vocabulary else 0  # of few words the softmax runs over all
    config = replace(config, batch=batch, epochs=epochs, vocabulary=vocabulary, samples=samples)
    return config, replace(CONTRACT, model=name, version=1)


def build_model(config: Config) -> keras.Model:
    """Word vectors and LSTM layers, untrained: int32 words [n, t] in, float32 logits [n, t, vocabulary] out.

    `ReversibleEmbedding` has no bias, so the one row of the layer "bias" is the bias of the output.
    """
    # an initializer with a generator gives other values to each weight
    initial = keras.initializers.RandomUniform(-config.init_scale, config.init_scale, seed=keras.random.SeedGenerator())
    vectors = keras.layers.ReversibleEmbedding(
        config.vocabulary, config.units, tie_weights=config.tied, embeddings_initializer=initial, name="vectors"
    )
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = vectors(tokens)  # (n, t, units)
    for number in range(config.layers):
        x = keras.layers.LSTM(
            config.units,
            kernel_initializer=initial if config.uniform else "glorot_uniform",
            recurrent_initializer=initial if config.uniform else "orthogonal",
            unit_forget_bias=not config.uniform,
            return_sequences=True,
            name=f"lstm_{number + 1}",
        )(x)
    bias = keras.layers.Embedding(
        1, config.vocabulary, embeddings_initializer=initial if config.uniform else "zeros", name="bias"
    )
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
    next one. `loss` and `perplexity` are those of the training steps, so with `samples` they are estimates.

    Raises:
        TrainingError: the checkpoint is damaged or of another network, or a callback found the loss not finite.
        OSError: a checkpoint cannot be written.
    """
    if not config.uniform:
        _, bias, _ = _parts(model)
        bias.embeddings.assign(np.log(_shares(data.train, config.vocabulary))[None, :])
    steps = epoch_steps(data.train, config)
    step, reading = training_step(model, config, steps), evaluation_step(model, _dtype(config))
    history: dict[str, list[float]] = {name: [] for name in ("loss", "perplexity", "val_loss", "val_perplexity")}
    best_weights, begin = model.get_weights(), 0
    saved = checkpoint.load()
    if saved is not None:
        begin, history, best_weights = saved.epoch, saved.notes["history"], unpack("best", saved.arrays)
        checkpoint.restore("state", _state(model), saved)
    watchers = Watchers(list(callbacks), model=model, epochs=config.epochs, steps=steps)
    watchers.on_train_begin()
    for epoch in range(begin, config.epochs):
        watchers.on_epoch_begin(epoch)
        rng = np.random.default_rng((seed, epoch))
        words = np.roll(data.train, rng.integers(len(data.train))) if config.rotate else data.train
        logs = _figures(train_epoch(model, step, words, config, rng, watchers))
        valid = _figures(mean_loss(model, reading, data.valid))
        logs |= {f"val_{name}": figure for name, figure in valid.items()}
        if logs["val_loss"] < min(history["val_loss"], default=np.inf):
            best_weights = model.get_weights()
        for name, figure in logs.items():
            history[name].append(figure)
        watchers.on_epoch_end(epoch, logs)
        arrays = pack("state", _state(model)) | pack("best", best_weights)
        checkpoint.save(epoch + 1, arrays, {"history": history})
    model.set_weights(best_weights)
    watchers.on_train_end()
    return history


def evaluate(model: keras.Model, data: ptb.Text, report: Path) -> dict[str, dict[str, float]]:
    """Split -> figure -> value; draws how the network continues rows of the test text into `report`.

    `rows` counts words. Of the training text only the first 80,000 words are read. `cache_…` are the figures with the
    words just read in a cache (see `cache`), whose numbers are chosen on the validation text.
    """
    metrics = {}
    step = evaluation_step(model, tf.float32)
    for name, words in (("train", data.train[:EVALUATION_TRAIN_WORDS]), ("valid", data.valid), ("test", data.test)):
        metrics[name] = {**_figures(mean_loss(model, step, words)), "rows": float(len(words))}
    reading = read(model, data.valid)
    cached = cache.search(reading)
    metrics["valid"] |= {"cache_perplexity": cache.perplexity(cached.likely(reading)), **cached.numbers}
    metrics["test"] |= cache.figures(cached, read(model, data.test))
    _draw_continuations(model, data, report / "continuations.png")
    return metrics


def measurement(data: ptb.Text) -> figures.Measurement:
    """The perplexity of the served graph for words of the test text, each after the 50 before it.

    The graph begins every row anew, so this is a little above the figure of the whole text.
    """
    rows, nexts = windows(data.test)

    def perplexity(outputs: Mapping[str, npt.NDArray[Any]], places: npt.NDArray[np.int64]) -> float:
        likely = outputs["probabilities"][places, nexts[places]].astype(np.float64)
        return float(np.exp(-np.log(np.maximum(likely, 1e-30)).mean()))

    calibration = {"tokens": windows(data.train)[0]}
    return figures.Measurement(
        calibration, figures.Figure("perplexity", {"tokens": rows}, perplexity, higher_is_better=False)
    )


def windows(words: ptb.Words) -> tuple[ptb.Words, ptb.Words]:
    """Rows from everywhere in a text, int32 [n, 50], and the word that follows each, int32 [n]."""
    places = np.linspace(0, len(words) - WINDOW - 1, min(WINDOWS, len(words) - WINDOW), dtype=np.int64)
    return words[places[:, None] + np.arange(WINDOW)], words[places + WINDOW]


def serving_model(model: keras.Model) -> keras.Model:
    """The trained network behind the contract: `tokens` in; `probabilities`, `top_ids` and `top_probabilities` out.

    A number outside the vocabulary is read as `<unk>`.
    """
    ops = keras.ops
    vectors, bias, layers = _parts(model)
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    known = ops.logical_and(tokens >= 0, tokens < vectors.input_dim)
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


def epoch_steps(words: ptb.Words, config: Config) -> int:
    """How many steps an epoch over the words has; the rest of the text, less than a step, is not read."""
    return max(1, (len(words) - 1) // _batch(config) // config.steps)


def zero_state(model: keras.Model, batch: int) -> list[State]:
    """Of each layer, the state before the first word."""
    _, _, layers = _parts(model)
    return [(tf.zeros([batch, layer.units]), tf.zeros([batch, layer.units])) for layer in layers]


def train_epoch(
    model: keras.Model,
    step: Callable[..., tuple[Any, list[State]]],
    words: ptb.Words,
    config: Config,
    rng: np.random.Generator,
    watchers: Watchers,
) -> float:
    """Read the words once with `step`, which is `training_step`'s; returns the mean loss of a word."""
    inputs, targets = streams(words, _batch(config))
    state = zero_state(model, _batch(config) // tf.distribute.get_strategy().num_replicas_in_sync)
    losses = []
    for number in range(epoch_steps(words, config)):
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
        watchers.on_train_batch_end(number, {"loss": loss})
    return float(np.mean([float(loss) for loss in losses]))


def training_step(model: keras.Model, config: Config, steps: int) -> Callable[..., tuple[Any, list[State]]]:
    """One descent over int32 words and successors [steps, batch]; gives the mean loss of a word and the next state.

    The model gets its optimizer, whose schedule counts on `steps` of these in an epoch.
    """
    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    # each replica clips its part of the whole gradient, and the optimizer adds the parts up
    model.compile(optimizer=optimizer(replace(config, clip=config.clip / replicas), steps))
    model.optimizer.build(model.trainable_variables)
    dtype = _dtype(config)
    vectors, bias, layers = _parts(model)
    variables = model.trainable_variables
    by_cudnn = cudnn_pays() and not config.recurrent_dropout  # which cuDNN has not

    def apply(gradients: Any) -> None:
        model.optimizer.apply(gradients, variables)

    if replicas == 1:  # one pass over all weights; XLA cannot fuse what passes between devices
        apply = tf.function(apply, jit_compile=True)

    def descend(inputs: Any, targets: Any, sample: Any, seed: Any, state: list[State]) -> tuple[Any, list[State]]:
        """One replica's streams, of which each has as many, and its part of the loss."""
        first = tf.distribute.get_replica_context().replica_id_in_sync_group
        inputs, targets = inputs[:, first::replicas], targets[:, first::replicas]
        batch = state[0][0].shape[0]
        seeds = iter(tf.unstack(tf.random.split(tf.random.fold_in(seed, first), 2 * len(layers) + 2)))
        kept = [_kept([1, batch, config.units], config.dropout, next(seeds)) for _ in range(len(layers) + 1)]
        with tf.GradientTape() as tape:
            x = tf.gather(tf.convert_to_tensor(vectors.embeddings), inputs) * kept[0]  # (steps, batch, units)
            x *= tf.gather(_kept([config.vocabulary, 1], config.word_dropout, next(seeds)), inputs)
            after = []
            for layer, before, mask in zip(layers, state, kept[1:], strict=True):
                own = _kept([batch, config.units], config.recurrent_dropout, next(seeds))
                if by_cudnn:
                    x, end = run_keras_lstm(layer, x, before)
                else:
                    x, end = run_lstm(layer, x, before, dtype, own)
                x *= mask
                after.append(end)
            x = tf.reshape(x, [-1, config.units])  # (words, units)
            wanted = tf.reshape(targets, [-1])
            table, shift = _output_weights(vectors), tf.convert_to_tensor(bias.embeddings)[0]
            if config.samples:
                losses = sampled_loss(x, table, shift, wanted, sample, dtype)
            else:
                losses = full_loss(x, table, shift, wanted, dtype)
            loss = tf.reduce_mean(losses) / replicas
            descended = loss * len(inputs)
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(descended, variables)]
        if replicas > 1:  # parts must be alike where they are clipped
            gradients = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
        apply(gradients)
        return loss, after

    @tf.function  # type: ignore[untyped-decorator]
    def step(inputs: Any, targets: Any, sample: Any, seed: Any, state: list[State]) -> tuple[Any, list[State]]:
        losses, after = strategy.run(descend, args=(inputs, targets, sample, seed, state))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None), after

    return step  # type: ignore[no-any-return]


def optimizer(config: Config, steps: int) -> keras.optimizers.Optimizer:
    """Plain descent with the book's halving or Adam with a cosine, for `steps` steps an epoch."""
    if config.halve_after is not None:
        changes = range(config.halve_after, max(config.epochs, config.halve_after + 1))
        rates = [config.learning_rate * 0.5**power for power in range(len(changes) + 1)]
        boundaries = [epoch * steps - 1 for epoch in changes]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
        return keras.optimizers.SGD(rate, global_clipnorm=config.clip)
    rate = warm_cosine(config.learning_rate, config.epochs * steps, config.warmup)
    return keras.optimizers.Adam(rate, beta_2=0.99, global_clipnorm=config.clip)


def full_loss(x: Any, table: Any, bias: Any, targets: Any, dtype: tf.DType = tf.float32) -> Any:
    """Cross-entropy [words] of outputs x [words, units] with the softmax over table [vocabulary, units]."""
    logits = tf.matmul(tf.cast(x, dtype), tf.cast(table, dtype), transpose_b=True)  # (words, vocabulary)
    return _cross_entropy(logits, bias, targets)


def sampled_loss(x: Any, table: Any, bias: Any, targets: Any, sample: Any, dtype: tf.DType = tf.float32) -> Any:
    """Cross-entropy [words] of outputs x [words, units] with the softmax's sum estimated from a sample of words.

    The first half of `sample` int32 [k] are the k/2 first words of the vocabulary; the other half were drawn from the
    rest without repetition and stand for all of it, each with the same weight. The target's own term is always exact.
    """
    half = sample.shape[0] // 2
    weight = np.log((table.shape[0] - half) / (sample.shape[0] - half))
    weights = np.concatenate([np.zeros(half), np.full(sample.shape[0] - half, weight)]).astype(np.float32)
    offsets = tf.gather(bias, sample) + weights
    logits = tf.matmul(tf.cast(x, dtype), tf.cast(tf.gather(table, sample), dtype), transpose_b=True)  # (words, k)
    target = tf.reduce_sum(x * tf.gather(table, targets), axis=1) + tf.gather(bias, targets)  # (words,)
    return _sampled_cross_entropy(logits, offsets, sample, targets, target)


# XLA makes one pass over the logits where TensorFlow makes many
@tf.function(jit_compile=True)  # type: ignore[untyped-decorator]
def _cross_entropy(logits: Any, bias: Any, targets: Any) -> Any:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32) + bias)


@tf.function(jit_compile=True)  # type: ignore[untyped-decorator]
def _sampled_cross_entropy(logits: Any, offsets: Any, sample: Any, targets: Any, target: Any) -> Any:
    """Of the sample's logits [words, k] and the targets' own [words]; a target in the sample counts once."""
    logits = tf.where(targets[:, None] == sample[None, :], -1e9, tf.cast(logits, tf.float32) + offsets)
    largest = tf.stop_gradient(tf.maximum(tf.reduce_max(logits, axis=1), target))
    total = tf.reduce_sum(tf.exp(logits - largest[:, None]), axis=1) + tf.exp(target - largest)
    return tf.math.log(total) + largest - target


def evaluation_step(model: keras.Model, dtype: tf.DType) -> Callable[..., tuple[Any, list[State]]]:
    """Reads int32 words, successors and float32 weights [steps, batch]; gives the weighted sum of the losses over the
    whole vocabulary and the next state. `dtype` is that of the matrix products.
    """
    vectors, bias, layers = _parts(model)

    @tf.function  # type: ignore[untyped-decorator]
    def step(inputs: Any, targets: Any, weights: Any, state: list[State]) -> tuple[Any, list[State]]:
        x = tf.gather(tf.convert_to_tensor(vectors.embeddings), inputs)
        after = []
        for layer, before in zip(layers, state, strict=True):
            x, end = run_lstm(layer, x, before, dtype)
            after.append(end)
        x = tf.reshape(x, [-1, layers[-1].units])  # (words, units)
        table, shift = _output_weights(vectors), tf.convert_to_tensor(bias.embeddings)[0]
        losses = full_loss(x, table, shift, tf.reshape(targets, [-1]), dtype)
        return tf.reduce_sum(losses * tf.reshape(weights, [-1])), after

    return step  # type: ignore[no-any-return]


def mean_loss(model: keras.Model, step: Callable[..., tuple[Any, list[State]]], words: ptb.Words) -> float:
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


def read(model: keras.Model, words: ptb.Words) -> cache.Reading:
    """The text as the network reads it from its first word to its last, in float32 and as one stream."""
    vectors, bias, layers = _parts(model)

    @tf.function  # type: ignore[untyped-decorator]
    def step(inputs: Any, targets: Any, state: list[State]) -> tuple[Any, Any, list[State]]:
        x = tf.gather(tf.convert_to_tensor(vectors.embeddings), inputs)  # (steps, 1, units)
        after = []
        for layer, before in zip(layers, state, strict=True):
            x, end = run_lstm(layer, x, before)
            after.append(end)
        x = tf.reshape(x, [-1, layers[-1].units])  # (steps, units)
        losses = full_loss(x, _output_weights(vectors), tf.convert_to_tensor(bias.embeddings)[0], targets)
        return x, tf.exp(-losses), after

    count = len(words) - 1
    padded = np.pad(words, (0, -count % EVALUATION_STEPS))  # the last step is filled up with words that nobody asks
    state = zero_state(model, 1)
    outputs, likely = [], []
    for start in range(0, count, EVALUATION_STEPS):
        part = padded[start : start + EVALUATION_STEPS + 1]
        x, fractions, state = step(tf.constant(part[:-1, None]), tf.constant(part[1:]), state)
        outputs.append(x.numpy())
        likely.append(fractions.numpy())
    return cache.Reading(np.concatenate(outputs)[:count], words[1:], np.concatenate(likely)[:count])


def continue_rows(model: keras.Model, tokens: ptb.Words, count: int, seed: int) -> ptb.Words:
    """Rows int32 [n, t] with `count` words drawn after each, never `<unk>`: int32 [n, t + count]."""
    rng = np.random.default_rng(seed)
    served = serving_model(model)
    for _ in range(count):
        outputs = served(tokens, training=False)
        fractions = np.asarray(outputs["top_probabilities"], np.float64)  # (n, 10)
        ids = np.asarray(outputs["top_ids"])
        fractions = np.where(ids == ptb.UNKNOWN_ID, 0.0, fractions)
        fractions /= fractions.sum(axis=1, keepdims=True)
        picks = (fractions.cumsum(axis=1) > rng.random((len(ids), 1))).argmax(axis=1)
        tokens = np.concatenate([tokens, np.take_along_axis(ids, picks[:, None], axis=1)], axis=1)
    return tokens


def _parts(
    model: keras.Model,
) -> tuple[keras.layers.ReversibleEmbedding, keras.layers.Embedding, list[keras.layers.LSTM]]:
    """The word vectors, the bias of the output and the recurrent layers of a network of `build_model`."""
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.LSTM)]
    return model.get_layer("vectors"), model.get_layer("bias"), layers


def _output_weights(vectors: keras.layers.ReversibleEmbedding) -> Any:
    """What the softmax multiplies outputs with, float32 [vocabulary, units]."""
    if vectors.tie_weights:
        return tf.convert_to_tensor(vectors.embeddings)
    return tf.transpose(tf.convert_to_tensor(vectors.reverse_embeddings))


def _batch(config: Config) -> int:
    """Streams, as many on each replica."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    batch: int = -(-config.batch // replicas) * replicas
    return batch


def _dtype(config: Config) -> tf.DType:
    return tf.bfloat16 if config.bfloat16 and precision.fast_bfloat16() else tf.float32


def _state(model: keras.Model) -> list[Any]:
    return [*model.variables, *model.optimizer.variables]


def _sample_words(config: Config, rng: np.random.Generator) -> ptb.Words:
    """Word numbers as `sampled_loss` takes them, int32 [samples]."""
    half = config.samples // 2
    drawn = half + rng.choice(config.vocabulary - half, config.samples - half, replace=False)
    return np.concatenate([np.arange(half), drawn]).astype(np.int32)


def _shares(words: ptb.Words, vocabulary: int) -> npt.NDArray[np.float32]:
    """How often each word of the vocabulary occurs, as a fraction of all, float32 [vocabulary]; none is 0."""
    counts = np.bincount(words, minlength=vocabulary) + 0.5
    return np.asarray(counts / counts.sum(), np.float32)


def _kept(shape: Sequence[int], dropped: float, seed: Any) -> Any:
    """Float32: 0 for the fraction that is dropped, else what keeps the mean at 1."""
    if not dropped:
        return tf.ones(shape)
    return tf.cast(tf.random.stateless_uniform(shape, seed) >= dropped, tf.float32) / (1 - dropped)


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
