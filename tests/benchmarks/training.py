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
MODES = {"exact": ("exact", False), "fast": ("fast", False), "fast, XLA": ("fast", True)}

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
    from bookserve.training.models.ptb import model as models

    def plain() -> Work:
        book = models.BOOK
        vectors = keras.layers.Embedding(VOCABULARY, book.units)
        layers = [keras.layers.LSTM(book.units, return_sequences=True) for _ in range(book.layers)]
        model = keras.Sequential([vectors, *layers, keras.layers.Dense(VOCABULARY)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(book.learning_rate, global_clipnorm=book.clip), loss)
        rows = _words(VOCABULARY, STEPS * book.batch * (book.steps + 1)).reshape(-1, book.steps + 1)
        inputs, targets = rows[:, :-1], rows[:, 1:]

        def work() -> int:
            model.fit(inputs, targets, batch_size=book.batch, verbose=0)
            return targets.size

        return work

    rows = {"the book's network by model.fit": plain()}
    rows["configuration book"] = _reading(models, models.BOOK)
    for profile in ("default", "full"):
        rows[f"configuration standard, profile {profile}"] = _reading(models, models.CONFIGS[STANDARD][profile])
    _print("words/s", rates(rows, seconds))


@bench.command()
@seconds_option
@threads_option
def tictactoe(seconds: float, threads: int) -> None:
    """Moves a second of the A3C training, replies and updates included: by boards a worker and by workers."""
    _start_tensorflow(threads)
    from bookserve.training.models import STANDARD
    from bookserve.training.models.tictactoe import model as models

    config = models.CONFIGS[STANDARD]["default"]
    rows = {
        f"workers: {workers}, boards of each: {boards}": _playing(models, config, boards, workers)
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

    table = Table("model", "batch", "input alone", "step alone", "both", "input / step", "both / step")
    module: Any
    for module in (mnist, cifar10, tox21):
        config = replace(module.CONFIGS[STANDARD]["default"], epochs=10**6)  # batches for as long as it takes
        figures = rates(parts(*_compiled(module, _rows(module, config, data, data_dir), config)), seconds)
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


@bench.command()
@click.argument("models", nargs=-1)
@data_option
@data_dir_option
@seconds_option
@threads_option
def modes(models: tuple[str, ...], data: Choice, data_dir: Path | None, seconds: float, threads: int) -> None:
    """Training steps exact, fast, and fast with XLA, of all models or of those that are named.

    Told are units a second of processor time, of all threads together: what runs beside them has little part in that.
    """
    _start_tensorflow(threads)
    from bookserve.training.models import MODELS, STANDARD
    from bookserve.training.run import book_model

    table = Table("model", *MODES, *(f"{mode} / exact" for mode in list(MODES)[1:]))
    for name in models or MODELS:
        module: Any = book_model(name)
        config = module.CONFIGS[STANDARD]["default"]
        rows = {}
        for mode, (switched, xla) in MODES.items():
            work = _steps(name, module, config, data, data_dir, xla)
            rows[mode] = _in_mode(switched, work)
        figures = rates(rows, seconds, time.process_time)
        first = figures["exact"]
        table.add_row(
            name,
            *(f"{figure:,.0f}" for figure in figures.values()),
            *(f"{figure / first:.2f}" for figure in list(figures.values())[1:]),
        )
    table.caption = "examples, words or moves in a second of processor time"
    Console().print(table)


def _steps(name: str, module: Any, config: Any, data: Choice, data_dir: Path | None, xla: bool) -> Work:
    """Training steps of a model, on one batch where its rows are independent."""
    if name == "ptb":
        return _reading(module, config, xla)
    if name == "tictactoe":
        return _playing(module, config, config.games, config.workers)
    config = replace(config, epochs=10**6)
    model, dataset = _compiled(module, _rows(module, config, data, data_dir), config)
    model.jit_compile = xla
    model.make_train_function(force=True)
    return parts(model, dataset)["step"]


def _in_mode(mode: str, work: Work) -> Work:
    """The work with or without TensorFlow's repeatable kernels, which the whole process has or has not."""
    from bookserve.training.devices import exactness

    def switched() -> int:
        exactness.switch(mode)
        return work()

    return switched


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


def _rows(module: Any, config: Any, data: Choice, data_dir: Path | None) -> Any:
    """The splits of a model's data."""
    try:
        return module.load_data(config, DataRequest(data, data_dir), 0)
    except DataError as error:
        raise click.ClickException(str(error)) from error


def _compiled(module: Any, rows: Any, config: Any) -> tuple[Any, Any]:
    """The part of a model that is fitted, compiled, and its batches."""
    name, model = module.CONTRACT.model, module.build_model(config)
    if name == "tox21":
        results = rows.train.results
        inputs = rows.train.inputs | {"remembered": np.zeros_like(results)}  # as good as what the memory would say
        packed = module.pack(results, module.assay_weights(results, config.balance))
        networks = module.compiled_networks(model, config, len(results) // config.batch)
        return networks, module.training_batches(inputs, packed, config, 0)
    if name in ("linear", "logistic"):
        module.train(model, rows, replace(config, epochs=1), 0, [])  # compiles
        return model, module.training_batches(rows.train)
    few = replace(rows, train=_first(rows.train, 2 * config.batch), valid=_first(rows.valid, config.batch))
    module.train(model, few, replace(config, epochs=1), 0, [])  # compiles
    return model, module.training_batches(rows.train, config, 0)


def _reading(module: Any, config: Any, xla: bool = False) -> Work:
    """Training steps over made-up words; with `xla` all of a step is compiled, otherwise the parts that always are."""
    import tensorflow as tf

    from bookserve.training.loop.callbacks import Watchers

    rng = np.random.default_rng(0)
    model = module.build_model(config)
    step = module.training_step(model, config, STEPS)
    if xla:
        step = tf.function(step.python_function, jit_compile=True)
    text = _words(config.vocabulary, STEPS * config.batch * config.steps + 1)

    def work() -> int:
        module.train_epoch(model, step, text, config, rng, Watchers())
        return len(text) - 1

    return work


def _words(vocabulary: int, count: int) -> npt.NDArray[np.int32]:
    """Word numbers, few of them frequent."""
    return np.minimum(np.random.default_rng(0).zipf(1.3, count) - 1, vocabulary - 1).astype(np.int32)


def _playing(module: Any, config: Any, boards: int, workers: int) -> Work:
    """Updates of the tic-tac-toe training by workers that have as many boards each."""
    from bookserve.training.models.tictactoe import a3c
    from bookserve.training.models.tictactoe.games import Games

    games = Games(boards, config.slips, config.opening)
    learner = a3c.A3C(module.build_model(config), config.algorithm, games, total_updates=10**9)
    rounds = UPDATES // workers
    moves = workers * rounds * boards * int(config.algorithm.steps)
    runs = count()

    def work() -> int:
        learner.run(workers, rounds, (0, next(runs)), lambda number, update: None)
        return moves

    return work


def _first(split: Any, rows: int) -> Any:
    """The first rows of the arrays of a split."""
    return replace(split, **{field.name: getattr(split, field.name)[:rows] for field in fields(split)})


def rates(rows: Mapping[str, Work], seconds: float, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Units a second of each row's work: the median of pieces that ran in turns, `seconds` for each row together."""
    for work in rows.values():
        work()  # compiles
    pieces: dict[str, list[float]] = {name: [] for name in rows}
    spent = 0.0
    while not spent or spent < seconds * len(rows):
        for name, work in rows.items():
            began = clock()
            units = work()
            took = clock() - began
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
