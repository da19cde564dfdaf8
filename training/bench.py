"""`make bench-training`: how fast this project trains beside plain Keras, one subcommand a subject.

What is compared runs in turns, so that a busy machine slows all of it alike: compare figures of one run.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from bookserve.export.quiet import quiet_start

PTB_STEPS = 20  # steps of a piece of work

Work = Callable[[], int]  # does a piece of work and tells how many units of it that was

seconds_option = click.option(
    "--seconds", type=click.FloatRange(min=0.0), default=20.0, show_default=True, help="How long each row is measured."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="Threads of TensorFlow; 0, the default: one a core."
)


@click.group()
def bench() -> None:
    """How fast the trainings are."""


@bench.command()
@seconds_option
@threads_option
def ptb(seconds: float, threads: int) -> None:
    """Words a second: the book's network by plain `model.fit`, and the training steps of the configurations."""
    _start_tensorflow(threads)
    import keras

    from bookserve.training.datasets.ptb import VOCABULARY
    from bookserve.training.models import STANDARD
    from bookserve.training.models import ptb as models

    rng = np.random.default_rng(0)

    def words(count: int) -> npt.NDArray[np.int32]:
        return np.minimum(rng.zipf(1.3, count) - 1, VOCABULARY - 1).astype(np.int32)

    def plain() -> Work:
        book = models.BOOK
        vectors = keras.layers.Embedding(VOCABULARY, book.units)
        layers = [keras.layers.LSTM(book.units, return_sequences=True) for _ in range(book.layers)]
        model = keras.Sequential([vectors, *layers, keras.layers.Dense(VOCABULARY)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(book.learning_rate, global_clipnorm=book.clip), loss)
        rows = words(PTB_STEPS * book.batch * (book.steps + 1)).reshape(-1, book.steps + 1)
        inputs, targets = rows[:, :-1], rows[:, 1:]

        def work() -> int:
            model.fit(inputs, targets, batch_size=book.batch, verbose=0)
            return targets.size

        return work

    def ours(config: models.Config) -> Work:
        model = models.build_model(config)
        step = models.training_step(model, config, PTB_STEPS)
        text = words(PTB_STEPS * config.batch * config.steps + 1)

        def work() -> int:
            models.train_epoch(model, step, text, config, rng, keras.callbacks.CallbackList())
            return len(text) - 1

        return work

    rows = {"the book's network by model.fit": plain()}
    rows["configuration book"] = ours(models.BOOK)
    for profile in ("default", "full"):
        rows[f"configuration standard, profile {profile}"] = ours(models.CONFIGS[STANDARD][profile])
    _print("words/s", rates(rows, seconds))


def rates(rows: Mapping[str, Work], seconds: float) -> dict[str, float]:
    """Units a second of each row's work: the median of pieces that ran in turns, `seconds` for each row together."""
    for work in rows.values():
        work()  # compiles
    pieces: dict[str, list[float]] = {name: [] for name in rows}
    spent = 0.0
    while not spent or spent < seconds * len(rows):
        for name, work in rows.items():
            began = time.perf_counter()
            units = work()
            took = time.perf_counter() - began
            pieces[name].append(units / took)
            spent += took
    return {name: statistics.median(each) for name, each in pieces.items()}


def _start_tensorflow(threads: int) -> None:
    with quiet_start():
        import tensorflow as tf
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)


def _print(unit: str, figures: Mapping[str, float]) -> None:
    """A table of the figures and how many times the first they are."""
    table = Table("what trains", unit, "times", caption=f"{os.cpu_count()} cores")
    first = next(iter(figures.values()))
    for name, figure in figures.items():
        table.add_row(name, f"{figure:,.0f}", f"{figure / first:.1f}")
    Console().print(table)


if __name__ == "__main__":
    bench()
