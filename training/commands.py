"""The commands `bookserve train`, `train-all`, `export`, `tune` and `clean-runs`. They only parse, call and print."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from bookserve.export import confined, replacement, run_format, run_reader
from bookserve.export import publish as publishing
from bookserve.export.errors import ExportError, NoGainError, StoreError
from bookserve.export.figures import Figure
from bookserve.export.manifest import Manifest
from bookserve.export.options import models_dir_option, runs_dir_option
from bookserve.export.quantization import half
from bookserve.export.quantization.command import max_loss_option, min_speed_up_option
from bookserve.export.quantization.demands import Demands
from bookserve.export.silence_tensorflow import silence_tensorflow
from bookserve.export.store import ModelStore
from bookserve.training import run_writer
from bookserve.training.datasets.files import CHOICES, Choice, DataError, DataRequest
from bookserve.training.datasets.picture_folder import holds_pictures
from bookserve.training.errors import TrainingError
from bookserve.training.models import MODELS, OWN_DATA, PROFILES, STANDARD, contract, names_book_data
from bookserve.training.own_data_options import OwnDataOptions, own_data_options
from bookserve.training.own_data_options import chosen as chosen_data
from bookserve.training.own_data_options import run_name as name_of_run
from bookserve.training.settings import changed as changed_settings
from bookserve.training.settings import grid as grid_of

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "int8", *half.PRECISIONS)
TRACKERS = ("mlflow",)
SAMPLERS = ("tpe", "random", "grid")

profile_option = click.option(
    "--profile",
    type=click.Choice(PROFILES),
    default="default",
    show_default=True,
    help="smoke: seconds; default: a good model in minutes; full: the headline figures.",
)
data_option = click.option(
    "--data",
    type=click.Choice(CHOICES),
    default="auto",
    show_default=True,
    help="auto: the real data, else the sample; real: fail without the real data; sample: what needs no network.",
)
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    callback=lambda _, __, folder: folder and folder.expanduser(),  # not every shell does it in DATA_DIR=~/data
    envvar="DATA_DIR",
    default=None,
    help="A folder with the data files, looked into first.  [env: DATA_DIR]",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Same seed, same figures."
)
precision_option = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=PRECISIONS[0],
    show_default=True,
    help="int8: one more version, whose graph is int8, calibrated on training rows and judged on test rows. float16, "
    "bfloat16: one more version, whose graph is that, for GPUs.",
)
fresh_option = click.option(
    "--fresh", is_flag=True, help="Start anew, even where a training of the same settings was stopped halfway."
)
exact_option = click.option(
    "--exact/--fast",
    default=True,
    show_default=True,
    help="exact: the same seed gives the same bits on the same machine. fast: any kernels, and XLA on a GPU.",
)
track_option = click.option(
    "--track",
    type=click.Choice(TRACKERS),
    default=None,
    help="Tell MLflow at MLFLOW_TRACKING_URI, too: parameters, metrics of every epoch, paths. Needs bookserve[mlflow].",
)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a training as Ctrl-C does."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _or_from_file(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A value, or what the file holds that it names with @, so that no list of processes shows it."""
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise click.BadParameter(f"{value[1:]} cannot be read: {reason}") from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """Around a command: Ctrl-C and SIGTERM end it with one line, and with the status that shells expect of them."""
    kept = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        line = f"{click.get_current_context().info_name}: stopped; the same command starts anew"
        click.echo("\n".join(getattr(stop, "__notes__", [line])), err=True)
        number = signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT
        raise SystemExit(128 + number) from None
    finally:
        signal.signal(signal.SIGTERM, kept)


@click.command()
@click.argument("model", type=click.Choice(list(MODELS)))
@click.option(
    "--config",
    "configuration",
    default=STANDARD,
    show_default=True,
    help="Which numbers: 'standard', another configuration of the model, such as 'book', or a study of 'tune'.",
)
@profile_option
@data_option
@data_dir_option
@own_data_options
@click.option(
    "--name",
    "run_name",
    default=None,
    help="What the run and the model in the store are called; by default MODEL, or as your own data is.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another value for a number of the configuration, such as learning_rate=1e-3; may be given several times.",
)
@click.option(
    "--find-rate",
    is_flag=True,
    help="Keep no training: raise the learning rate from step to step, and say which one to set.",
)
@click.option("--histograms", is_flag=True, help="For TensorBoard, keep how the weights of every epoch are spread.")
@runs_dir_option
@seed_option
@exact_option
@track_option
@fresh_option
@_stoppable()
def train(
    own_options: OwnDataOptions,
    model: str,
    configuration: str,
    profile: str,
    data: Choice,
    data_dir: Path | None,
    run_name: str | None,
    settings: tuple[str, ...],
    find_rate: bool,
    histograms: bool,
    runs_dir: Path,
    seed: int,
    exact: bool,
    track: str | None,
    fresh: bool,
) -> None:
    """Train the network of one model into a run folder, on the book's data or on your own.

    Your own pictures: --data-dir with a folder for each class. Your own text: --text. Your own table: --data-file, and
    which columns are meant. The model that comes of it has the classes, columns or words of your data.

    A training that was stopped goes on from its last complete epoch when it is started again with the same options.
    All GPUs of this host train; where TF_CONFIG names many hosts, start the same command on each of them.
    """
    with silence_tensorflow():
        from bookserve.training.run import train_model
        from bookserve.training.tuning.search import config_of
    console = _console()
    try:
        config = config_of(model, configuration, profile, runs_dir)
        own = chosen_data(model, own_options, _own_pictures(model, data, data_dir))
        name = name_of_run(model, run_name, own)
        request = DataRequest(data, data_dir, own)
        if find_rate:
            _check_alone("train --find-rate")
            _find_rate(model, name, request, config, changed_settings(config, settings), seed, runs_dir)
            return
        result = train_model(
            model,
            request,
            runs_dir,
            console,
            configuration,
            profile,
            seed,
            fresh,
            config,
            name,
            changed_settings(config, settings),
            histograms,
            _mode(exact),
            _tracker(track, console),
        )
    except (DataError, TrainingError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{name}: test {', '.join(result.test_figures)} in {result.seconds:.0f} s, {result.folder}")
    if own is not None:
        click.echo(f"publish it with: bookserve export {name}")


def _find_rate(
    model: str, name: str, request: DataRequest, config: Any, settings: dict[str, Any], seed: int, runs_dir: Path
) -> None:
    """Print and draw the losses of rising learning rates, and say which rate to set.

    Raises:
        DataError, TrainingError: as `rate_finder.find`.
    """
    from bookserve.training import plots, rate_finder

    curve = rate_finder.find(model, request, config, settings, seed)
    path = runs_dir / name / "learning_rate.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        plots.learning_rates(curve.rates, curve.losses, curve.smooth, curve.suggested, path)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror or error}") from error
    click.echo("learning rate  loss")
    for rate, loss in curve.rows:
        click.echo(f"{rate:13.1e}  {loss:.4f}")
    click.echo(f"{name}: the loss is lowest at {curve.lowest:.1e}; the curve is in {path}")
    click.echo(f"train with a tenth of it: --set learning_rate={curve.suggested:g}")


def _own_pictures(model: str, data: Choice, data_dir: Path | None) -> Path | None:
    """The folder of --data-dir or DATA_DIR if it is a user's own: it has pictures, or stands on the command line.

    In a folder with a file of the book's data set the book's data is meant, and so it is with --data real or sample.
    """
    if OWN_DATA.get(model) != "pictures" or data != "auto" or data_dir is None or not data_dir.is_dir():
        return None
    typed = click.get_current_context().get_parameter_source("data_dir") is ParameterSource.COMMANDLINE
    try:
        if names_book_data(model, data_dir):
            return None
        return data_dir if typed or holds_pictures(data_dir) else None
    except OSError as error:
        raise DataError(f"{data_dir} cannot be read: {error.strerror or error}") from error


@click.command("train-all")
@click.argument("names", metavar="[MODELS]...", nargs=-1, type=click.Choice(list(MODELS)))
@profile_option
@data_option
@data_dir_option
@models_dir_option
@runs_dir_option
@seed_option
@exact_option
@track_option
@fresh_option
@precision_option
@max_loss_option
@min_speed_up_option
@_stoppable()
def train_all(
    names: tuple[str, ...],
    profile: str,
    data: Choice,
    data_dir: Path | None,
    models_dir: Path,
    runs_dir: Path,
    seed: int,
    exact: bool,
    track: str | None,
    fresh: bool,
    precision: str,
    max_loss: float,
    min_speed_up: float,
) -> None:
    """Train and export every model, or those that are named; one that fails does not stop the others.

    One that was stopped halfway goes on from its last complete epoch; all others are trained anew. With --precision
    int8 each model gets a second version, whose graph is int8, where that is within --max-loss and faster.
    """
    with silence_tensorflow():
        from bookserve.training.quantized import publish_int8
        from bookserve.training.run import train_model
    _check_alone("train-all")
    demands = Demands(max_loss=max_loss, min_speed_up=min_speed_up)
    console = _console()
    table = Table("model", "data", "test figure", "the book's", "minutes", "version")
    failures = {}
    chosen = [model for model in MODELS if not names or model in names]
    for place, name in enumerate(chosen):
        began = time.monotonic()
        trained = False
        try:
            request, mode, tracker = DataRequest(data, data_dir), _mode(exact), _tracker(track, console)
            result = train_model(
                name,
                request,
                runs_dir,
                console,
                profile=profile,
                seed=seed,
                fresh=fresh,
                mode=mode,
                tracker=tracker,
            )
            trained = True
            store = ModelStore(models_dir)
            run = run_reader.read(result.folder, name)
            published = publishing.publish(run, store, click.echo)
            version = str(published.version)
            if precision != PRECISIONS[0]:
                try:
                    if precision == "int8":
                        smaller = publish_int8(run, published, store, data_dir, demands, click.echo)
                    else:
                        smaller = _publish_half(run, published, store, precision)
                    version += f", {smaller.version} ({precision})"
                except NoGainError as error:
                    click.echo(f"{name}: {error}")
                    version += f" ({precision} does not gain)"
        except KeyboardInterrupt as stop:
            if trained:
                stop.add_note(f"{name}: trained, but not published; 'bookserve export {name}' publishes it")
            if place:
                rest = " ".join(chosen[place:])
                stop.add_note(f"'bookserve train-all {rest}', with the same options, leaves out what is done")
            raise
        except Exception as error:  # whatever is wrong with one model must not cost the others
            expected = isinstance(error, DataError | TrainingError | ExportError)
            failures[name] = str(error) if expected else f"{type(error).__name__}: {error}"
            logger.error("%s: %s", name, failures[name], exc_info=not expected)
            table.add_row(name, "", "failed", "", _minutes(began), "")
            continue
        book = result.key_metric.book
        table.add_row(
            name,
            result.origin.source,
            "\n".join(result.test_figures),
            "" if book is None else f"{book:.4g}",
            _minutes(began),
            version,
        )
    console.print(table)
    if failures:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in failures.items())
        raise click.ClickException(f"{len(failures)} of {table.row_count} models failed:{reasons}")


@click.command()
@click.argument("name")
@click.option(
    "--run",
    "run_folder",
    type=click.Path(path_type=Path),
    default=None,
    help="The run folder to publish; by default the newest complete one.",
)
@click.option(
    "--formats",
    type=click.Choice(publishing.FORMATS),
    multiple=True,
    help="What the version has besides the SavedModel and the ONNX graph: tflite, for LiteRT.",
)
@click.option(
    "--require-better",
    is_flag=True,
    help="Refuse the run where it is worse than the served version by more than chance, on the run's test rows.",
)
@models_dir_option
@runs_dir_option
@precision_option
@max_loss_option
@min_speed_up_option
@data_dir_option
def export(
    name: str,
    run_folder: Path | None,
    formats: tuple[str, ...],
    require_better: bool,
    models_dir: Path,
    runs_dir: Path,
    precision: str,
    max_loss: float,
    min_speed_up: float,
    data_dir: Path | None,
) -> None:
    """Publish a run as the next version of its model.

    Every graph must answer as the SavedModel does, which TensorFlow 1's loader and LiteRT's converter read, too. The
    same run gives the same files each time.

    With --require-better the served version and the run are asked the run's test rows, which are read once more. Where
    the whole 95 % interval of the difference is on the worse side, the run is not published, and the status is 1.

    With --precision int8 the version after it is the same with an int8 graph. An int8 graph that loses more than
    --max-loss of the model's own figure, or is not faster, is not published: the command ends with status 1 then. It
    reads the run's data once more.
    """
    try:
        with silence_tensorflow():
            run = run_reader.read(run_folder or run_reader.latest(runs_dir, name), name, contract)
        store = ModelStore(models_dir)
        judge = None
        if require_better:
            _say_what_the_served_may_know(run, store)
            judge = replacement.judge(store, lambda _: _test_rows(run, data_dir), confined.NONE, click.echo)
        published = publishing.publish(run, store, click.echo, formats, judge)
        if precision == "int8":
            with silence_tensorflow():
                from bookserve.training.quantized import publish_int8
            demands = Demands(max_loss=max_loss, min_speed_up=min_speed_up)
            publish_int8(run, published, store, data_dir, demands, click.echo)
        elif precision in half.PRECISIONS:
            _publish_half(run, published, store, precision)
    except (DataError, TrainingError, ExportError) as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.argument("name", type=click.Choice(list(MODELS)))
@click.option(
    "--study",
    "study_name",
    default=None,
    help="Its name, by which 'train --config' finds its best numbers; by default configuration and sampler.",
)
@click.option(
    "--config",
    "configuration",
    default=STANDARD,
    show_default=True,
    help="The configuration of which some numbers are varied.",
)
@profile_option
@click.option(
    "--sampler",
    type=click.Choice(SAMPLERS),
    default=SAMPLERS[0],
    show_default=True,
    help="tpe: where good settings lie; random: anywhere; grid: every combination of a few values.",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=None,
    help="Settings that the study shall have tried in the end; by default 20, or the whole grid.",
)
@click.option(
    "--grid",
    "grid_texts",
    multiple=True,
    metavar="NAME=VALUE,VALUE...",
    help="Values of a number, such as dropout=0,0.5; all combinations are tried instead of the model's own space.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trainings of a setting; the mean counts.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trainings side by side, each a process.",
)
@click.option(
    "--storage",
    metavar="URL",
    default=None,
    callback=_or_from_file,
    help="Keep the study in this database, such as postgresql://user:password@host/name: every machine that runs the "
    "same command searches with the others. @FILE reads the URL from a file, such as a mounted secret.",
)
@data_option
@data_dir_option
@runs_dir_option
@seed_option
@_stoppable()
def tune(
    name: str,
    study_name: str | None,
    configuration: str,
    profile: str,
    sampler: str,
    trials: int | None,
    grid_texts: tuple[str, ...],
    repeats: int,
    workers: int,
    storage: str | None,
    data: Choice,
    data_dir: Path | None,
    runs_dir: Path,
    seed: int,
) -> None:
    """Search for better numbers of a model, judged on validation rows.

    Ctrl-C keeps every setting that is finished; the same command goes on from there, and a larger --trials adds some.
    """
    with silence_tensorflow():
        from bookserve.training.run import book_model, named_config
        from bookserve.training.tuning import search
    _check_alone("tune")
    console = _console()
    sampler = "grid" if grid_texts else sampler
    study = study_name or f"{configuration}-{sampler}"
    try:
        grid = grid_of(named_config(book_model(name), configuration, profile), grid_texts)
        plan = search.Plan(configuration, profile, sampler, trials, repeats, workers, seed, grid, storage)
        report = search.tune(name, study, plan, DataRequest(data, data_dir), runs_dir, console)
    except (DataError, TrainingError) as error:
        raise click.ClickException(str(error)) from error
    failed = len(report.trials) - len(report.ranked)
    if report.ranked:
        console.print(search.table(report))
    click.echo(f"{len(report.trials)} trials, {failed} of them failed; all of them in {report.folder / search.TABLE}")
    if not report.ranked:
        raise click.ClickException("no trial succeeded; the table says why")
    click.echo(f"train the best one with: bookserve train {name} --config {study} --profile {profile}")


@click.command("clean-runs")
@click.argument("names", metavar="[MODELS]...", nargs=-1)
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=None,
    help="Remove complete runs, too, but the newest N of each model; by default all of them stay.",
)
@runs_dir_option
def clean_runs(names: tuple[str, ...], keep: int | None, runs_dir: Path) -> None:
    """Remove unfinished runs, but those that are under way: what was stopped halfway is then trained anew.

    With --keep 3 the three newest complete runs of each model stay, and older ones go. Published versions and studies
    stay; 'evaluate' needs --data for a version of your own data whose run is gone.
    """
    folder = runs_dir
    known = run_writer.names(runs_dir)
    unknown = [name for name in names if name not in known and name not in MODELS]
    if unknown:
        there = f"; it has runs of {', '.join(known)}" if known else ""
        raise click.ClickException(f"{runs_dir} has no runs of {', '.join(unknown)}{there}")
    removed = 0
    try:
        for name in names or known:
            for folder in run_writer.dead(runs_dir, name):
                if run_writer.remove(folder):
                    click.echo(f"removed {folder}")
                    removed += 1
            for folder in run_writer.complete(runs_dir, name)[: -keep if keep else 0]:
                run_writer.remove_complete(folder)
                click.echo(f"removed {folder}")
                removed += 1
    except OSError as error:
        raise click.ClickException(f"cannot remove {folder}: {error.strerror or error}") from error
    if not removed:
        click.echo(f"no unfinished run lies in {runs_dir}" + (f", nor more than {keep} complete ones" if keep else ""))


def _test_rows(run: run_reader.TrainingRun, data_dir: Path | None) -> Figure:
    """The run's test rows and the model's own figure of them."""
    with silence_tensorflow():
        from bookserve.training.held_out_rows import of_run
    return of_run(run, data_dir).figure


def _say_what_the_served_may_know(run: run_reader.TrainingRun, store: ModelStore) -> None:
    """A warning where the served version was trained on another split, and so perhaps on these test rows."""
    name = run.contract.model
    try:
        served = store.manifest(name, store.default_version(name)) if store.versions(name) else None
    except StoreError:
        return  # not one that was trained here
    if served is not None and (served.data != run.data or served.seed != run.seed):
        click.echo(
            f"{name}: version {served.version} was trained with other data or another seed: where splits are drawn by "
            "the seed, it may know some of the test rows",
            err=True,
        )


def _publish_half(run: run_reader.TrainingRun, published: Manifest, store: ModelStore, precision: str) -> Manifest:
    """The version of 16 bits of `published`, the float version of `run`, compared on its test rows."""
    rows = run.folder / run_format.EXAMPLES
    return half.halve(store, published.model, published.version, precision, rows, confined.NONE, click.echo)


def _check_alone(command: str) -> None:
    """Refuse a command that trains on one host where TF_CONFIG names many."""
    from bookserve.training.devices.hosts import cluster

    try:
        alone = cluster() is None
    except TrainingError as error:
        raise click.ClickException(str(error)) from error
    if not alone:
        raise click.ClickException(f"TF_CONFIG names many hosts: '{command}' is for one; 'train NAME' trains on all")


def _mode(exact: bool) -> str:
    from bookserve.training.devices import exactness

    return exactness.EXACT if exact else exactness.FAST


def _tracker(track: str | None, console: Console) -> Any:
    """What is told of the trainings; None where --track is not given.

    Raises:
        TrainingError: MLflow's client is not installed, or its store cannot be used.
    """
    if track is None:
        return None
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it when it is imported
    try:
        from bookserve.training.tracking import Tracking
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise TrainingError(
            f"--track {track} needs the package '{package}': pip install 'bookserve[mlflow]'"
        ) from error
    return Tracking(console)


def _minutes(began: float) -> str:
    return f"{(time.monotonic() - began) / 60:.1f}"


def _console() -> Console:
    """The terminal, with the project's own warnings on standard error."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_time=False, show_path=False)],
    )
    return Console()
