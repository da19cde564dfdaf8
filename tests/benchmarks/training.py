"""`python tests/benchmarks/training.py SUBJECT`: how fast this project trains, one subcommand a subject.

What is compared runs in turns, so that a busy machine slows all of it alike: compare figures of one run.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from bookserve.export.silence_tensorflow import silence_tensorflow
from bookserve.training.commands import data_dir_option, data_option
from bookserve.training.datasets.files import Choice, DataError, DataRequest

WORKERS = (1, 2, 4)  # that play tic-tac-toe at the same time
BOARDS = (1, 64)  # of each of them
UPDATES = 48  # of the shared parameters in a piece of work, over all workers
STEPS = 20  # training steps, or batches, of a piece of work

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
    from bookserve.training.loop.callbacks import Watchers
    from bookserve.training.models import STANDARD
    from bookserve.training.models.ptb import model as models

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
        rows = words(STEPS * book.batch * (book.steps + 1)).reshape(-1, book.steps + 1)
        inputs, targets = rows[:, :-1], rows[:, 1:]

        def work() -> int:
            model.fit(inputs, targets, batch_size=book.batch, verbose=0)
            return targets.size

        return work

    def ours(config: models.Config) -> Work:
        model = models.build_model(config)
        step = models.training_step(model, config, STEPS)
        text = words(STEPS * config.batch * config.steps + 1)

        def work() -> int:
            models.train_epoch(model, step, text, config, rng, Watchers())
            return len(text) - 1

        return work

    rows = {"the book's network by model.fit": plain()}
    rows["configuration book"] = ours(models.BOOK)
    for profile in ("default", "full"):
        rows[f"configuration standard, profile {profile}"] = ours(models.CONFIGS[STANDARD][profile])
    _print("words/s", rates(rows, seconds))


@bench.command()
@seconds_option
@threads_option
def tictactoe(seconds: float, threads: int) -> None:
    """Moves a second of the A3C training, replies and updates included: by boards a worker and by workers."""
    _start_tensorflow(threads)
    from bookserve.training.models import STANDARD
    from bookserve.training.models.tictactoe import a3c
    from bookserve.training.models.tictactoe import model as models
    from bookserve.training.models.tictactoe.games import Games

    config = models.CONFIGS[STANDARD]["default"]

    def play(boards: int, workers: int) -> Work:
        games = Games(boards, config.slips, config.opening)
        learner = a3c.A3C(models.build_model(config), config.algorithm, games, total_updates=10**9)
        rounds = UPDATES // workers
        runs = count()

        def work() -> int:
            learner.run(workers, rounds, (0, next(runs)), lambda number, update: None)
            return workers * rounds * boards * config.algorithm.steps

        return work

    rows = {
        f"workers: {workers}, boards of each: {boards}": play(boards, workers)
        for boards in BOARDS
        for workers in WORKERS
    }
    _print("moves/s", rates(rows, seconds))


@bench.command("input")
@data_option
@data_dir_option
@seconds_option
@threads_option
def input_pipelines(data: Choice, data_dir: Path | None, seconds: float, threads: int) -> None:
    """Examples a second: the input pipelines alone, the training steps alone (on one batch), and both together."""
    _start_tensorflow(threads)
    from bookserve.training.models import STANDARD, mnist
    from bookserve.training.models.cifar10 import model as cifar10
    from bookserve.training.models.tox21 import model as tox21

    def images(module: Any, rows: Any, config: Any) -> tuple[Any, Any]:
        model = module.build_model(config)
        few = replace(rows, train=_first(rows.train, 2 * config.batch), valid=_first(rows.valid, config.batch))
        module.train(model, few, replace(config, epochs=1), 0, [])  # compiles
        return model, module.training_batches(rows.train, config, 0)

    def molecules(module: Any, rows: Any, config: Any) -> tuple[Any, Any]:
        results = rows.train.results
        inputs = rows.train.inputs | {"remembered": np.zeros_like(results)}  # as good as what the memory would say
        packed = module.pack(results, module.assay_weights(results, config.balance))
        networks = module.compiled_networks(module.build_model(config), config, len(results) // config.batch)
        return networks, module.training_batches(inputs, packed, config, 0)

    table = Table("model", "batch", "input alone", "step alone", "both", "input / step", "both / step")
    module: Any
    for module, prepare in ((mnist, images), (cifar10, images), (tox21, molecules)):
        config = replace(module.CONFIGS[STANDARD]["default"], epochs=10**6)  # batches for as long as it takes
        try:
            rows = module.load_data(config, DataRequest(data, data_dir), 0)
        except DataError as error:
            raise click.ClickException(str(error)) from error
        figures = rates(parts(*prepare(module, rows, config)), seconds)
        alone, step, both = figures.values()
        table.add_row(
            module.CONTRACT.model,
            str(config.batch),
            *(f"{figure:,.0f}" for figure in (alone, step, both)),
            f"{alone / step:.1f}",
            f"{both / step:.2f}",
        )
    table.caption = f"examples/s, {os.cpu_count()} cores"
    Console().print(table)


def parts(model: Any, dataset: Any) -> dict[str, Work]:
    """The input pipeline, the training step of a compiled model, and the two together."""
    stream: Iterator[Any] = iter(dataset)
    batch = next(stream)
    examples = STEPS * int(batch[1].shape[0])

    def read() -> int:
        for _ in range(STEPS):
            next(stream)
        return examples

    def learn(batches: Any) -> Work:
        def work() -> int:
            model.fit(batches, steps_per_epoch=STEPS, shuffle=False, verbose=0)
            return examples

        return work

    return {"input": read, "step": learn(dataset.from_tensors(batch).repeat()), "both": learn(dataset)}


def _first(split: Any, rows: int) -> Any:
    """The first rows of the arrays of a split."""
    return replace(split, **{field.name: getattr(split, field.name)[:rows] for field in fields(split)})


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
    with silence_tensorflow():
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
