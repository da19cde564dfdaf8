"""`bookserve batch NAME INPUT OUTPUT`: predictions for a whole file or folder, which goes on after it was stopped."""

import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bookserve.clients import ask_server
from bookserve.clients.ask_server import Choice
from bookserve.clients.errors import PredictError
from bookserve.clients.grpc_client import GrpcClient
from bookserve.clients.inputs.words import VocabularyError
from bookserve.clients.rest_client import RestClient
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError, StoreError
from bookserve.serving.batch import chosen_version, input_file, results
from bookserve.serving.batch.local_model import LocalModel
from bookserve.serving.batch.model import Model, ModelLost, Pace, rows_of_a_run
from bookserve.serving.batch.parts import FORM, Done, Parts, PartsError, Plan
from bookserve.serving.batch.progress import ProgressBar
from bookserve.serving.batch.questions import Columns, Questions
from bookserve.serving.batch.ray_model import RayModel
from bookserve.serving.batch.records import MAX_ROW_BYTES, InputError, Source
from bookserve.serving.batch.results import Form
from bookserve.serving.batch.run import Run, TooManyBadRows
from bookserve.serving.batch.served_model import Client, ServedModel
from bookserve.serving.server.models import trial

_SUFFIXES = (".csv", ".ndjson", ".jsonl", ".parquet", ".pq")
_SOME_ARE_BAD = 3  # exit status
_CALLS = 16  # of a server under way at once
_ERRORS = (ExportError, StoreError, PredictError, InputError, PartsError, ModelLost, TooManyBadRows, VocabularyError)


@dataclass(frozen=True)
class _Wish:
    """What the command line asks for."""

    name: str
    input: Path
    output: Path
    choice: Choice
    server: str | None
    ray: str | None
    form: str | None
    columns: Columns
    top_k: int
    batch_size: int | None
    parallel: int | None
    rows_independent: bool
    call_seconds: float
    retry_seconds: float
    trial_seconds: float
    max_row_bytes: int
    max_errors: int | None
    restart: bool

    def pace(self, contract: Contract) -> Pace:
        """How a version with that contract is asked, if its rows are independent."""
        return Pace(self.batch_size or rows_of_a_run(contract), self.runs)

    @property
    def runs(self) -> int:
        """How many runs are under way at once, but on a Ray cluster."""
        return self.parallel or (_CALLS if self.server is not None else os.cpu_count() or 1)

    @property
    def where(self) -> str:
        """Where the model is asked."""
        return "on a server" if self.server is not None else "on a Ray cluster" if self.ray is not None else "here"

    @property
    def errors(self) -> Path:
        """Where bad rows go."""
        return self.output.with_name(f"{self.output.name}.errors.ndjson")


@click.command()
@click.argument("name")
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUTPUT", type=click.Path(path_type=Path))
@click.option("--version", type=click.IntRange(1), help="Ask this version instead of the one that is served.")
@click.option("--label", help="Ask the version that has this label.")
@click.option(
    "--models-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The model store.  [default: models]",
)
@click.option(
    "--server",
    metavar="HOST:PORT",
    help="Ask a running model server over gRPC, or over REST where it is a URL such as http://127.0.0.1:8501.",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Ask copies of the version on the nodes of this Ray cluster, such as 10.0.0.1:6379.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(input_file.FORMATS)),
    help="What INPUT is. By default its name tells.",
)
@click.option(
    "--column",
    metavar="NAME",
    help="The column or field with the picture, SMILES, text or board.  [default: image, smiles, text, board]",
)
@click.option("--id-column", metavar="NAME", help="The column or field that OUTPUT repeats as `id`.  [default: id]")
@click.option(
    "--top-k", type=click.IntRange(1, 50), default=ask_server.TOP_K, show_default=True, help="Next words of a text."
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 65_536),
    help="Rows of a run, where the model's rows are independent; else each is a run of its own.  [default: 64 to 4096, "
    "by their size]",
)
@click.option(
    "--rows-independent",
    is_flag=True,
    help="The model's rows are independent, though neither its manifest nor its graph says so.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 1024),
    help=f"Runs, or calls of a server, under way at once.  [default: as many as cores here or on Ray; {_CALLS} calls]",
)
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Seconds for a call of --server."
)
@click.option(
    "--retry-seconds",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="How long a call is made again while the server of --server is away or full, or Ray has no free processor.",
)
@click.option(
    "--trial-seconds",
    type=click.FloatRange(min=1),
    default=60.0,
    show_default=True,
    help="For each step of the version's trial in a child process.",
)
@click.option(
    "--max-row-bytes",
    type=click.IntRange(1),
    default=MAX_ROW_BYTES,
    show_default=True,
    help="A row, or a picture's file, that is larger is a bad row.",
)
@click.option("--max-errors", type=click.IntRange(0), help="Stop when more rows are bad. By default none is too many.")
@click.option("--restart", is_flag=True, help="Begin anew: drop what an interrupted run left, and replace OUTPUT.")
def main(
    name: str,
    source: Path,
    output: Path,
    version: int | None,
    label: str | None,
    models_dir: Path | None,
    server: str | None,
    ray: str | None,
    form: str | None,
    column: str | None,
    id_column: str | None,
    top_k: int,
    batch_size: int | None,
    rows_independent: bool,
    parallel: int | None,
    timeout: float,
    retry_seconds: float,
    trial_seconds: float,
    max_row_bytes: int,
    max_errors: int | None,
    restart: bool,
) -> None:
    """Ask the model NAME for the prediction of every row of INPUT.

    INPUT is a file of rows, by the end of its name: .csv, .parquet, .ndjson, .smi (SMILES, and a name after each), .txt
    (a text, SMILES or board a line); or pictures: a folder or .zip. A row is what the model's contract says (bookserve
    models show NAME): a text, or numbers in the contract's columns, or tensors under the names of the inputs.

    OUTPUT is .csv, .ndjson or .parquet, in the order of INPUT: `line`, `id` where rows have names, and the answer. It
    appears when all is done. A row that cannot be asked is a line of OUTPUT.errors.ndjson, with the reason.

    A run that was stopped or killed left OUTPUT.parts: the same command goes on there, and no row is lost or doubled.

    Exit status: 0 all rows are answered, 3 all but bad rows, 1 it was stopped by an error, 130 by Ctrl-C or SIGTERM.
    """
    if version is not None and label is not None:
        raise click.UsageError("give one of --version and --label")
    if server is not None and ray is not None:
        raise click.UsageError("give one of --server and --ray")
    if output.suffix.lower() not in _SUFFIXES:
        raise click.UsageError(f"OUTPUT has to end in one of {', '.join(_SUFFIXES)}: '{output}' does not")
    if models_dir is None and Path("models").is_dir():
        models_dir = Path("models")
    if models_dir is None and server is None:
        raise click.UsageError("there is no folder models here: say where the model store is (--models-dir)")
    wish = _Wish(
        name,
        source,
        output,
        Choice(version, label, models_dir),
        server,
        ray,
        form,
        Columns(column, id_column),
        top_k,
        batch_size,
        parallel,
        rows_independent,
        timeout,
        retry_seconds,
        trial_seconds,
        max_row_bytes,
        max_errors,
        restart,
    )
    with contextlib.suppress(ValueError):  # not in the main thread: a program of Python's calls this function
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        done = _run(wish)
    except _ERRORS as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or source}: {error.strerror or error}") from error
    if done.bad:
        sys.exit(_SOME_ARE_BAD)


def _run(wish: _Wish) -> Done:
    with contextlib.ExitStack() as stack:
        # Before there are threads: what tries versions is forked.
        trials = trial.start() if wish.server is None else None
        if trials is not None:
            stack.callback(trials.close)
        source = input_file.open_source(wish.input, wish.form, wish.max_row_bytes)
        parts = stack.enter_context(Parts(wish.output))
        _look_at_what_is_there(wish, parts)
        model, folder = _served(wish, wish.server, stack) if wish.server is not None else _local(wish, trials)
        stack.callback(model.close)
        words = chosen_version.vocabulary(folder, model.contract)
        questions = Questions(model.contract, model.version, source, wish.columns, words, wish.top_k)
        form = _form(wish.output, questions)
        seen = _status(wish.input)
        done = parts.begin(_plan(wish, source, model))
        _say_what_is_done(wish, model, done)
        with ProgressBar(source.total, done) as bar:
            run = Run(source, questions, model, form, parts, wish.max_errors, bar.show)
            done = run.go_on(done)
            rate = bar.rate(done)
        if _status(wish.input) != seen:
            raise InputError(f"{wish.input} was changed while it was read: --restart asks all of it anew")
        _join(wish, form, parts, done)
        count = "1 bad row is" if done.bad == 1 else f"{done.bad:,} bad rows are"
        bad = f"; {count} in {wish.errors}" if done.bad else ""
        click.echo(f"{wish.output}: {done.answered:,} rows, {rate:,.0f} a second{bad}", err=True)
        return done


def _look_at_what_is_there(wish: _Wish, parts: Parts) -> None:
    """Raises InputError where OUTPUT would be lost."""
    if wish.restart:
        parts.drop()
    elif not parts.are_begun:
        for path in (wish.output, wish.errors):
            if path.exists():
                raise InputError(f"{path} is there already: give another OUTPUT, or --restart to replace it")


def _local(wish: _Wish, trials: trial.Trials | None) -> tuple[Model, Path]:
    assert wish.choice.models_dir is not None
    chosen = chosen_version.in_store(wish.choice.models_dir, wish.name, wish.choice.version, wish.choice.label)
    pace = wish.pace(chosen.contract)
    model = LocalModel(chosen.folder, chosen.contract, pace, wish.rows_independent, wish.trial_seconds, trials)
    if wish.ray is None:
        return model, chosen.folder
    model.close()
    independent, wait = wish.rows_independent, wish.retry_seconds
    return RayModel(wish.ray, chosen.folder, model, wish.parallel, independent, wait), chosen.folder


def _served(wish: _Wish, address: str, stack: contextlib.ExitStack) -> tuple[Model, Path | None]:
    client: Any = RestClient(address) if "://" in address else stack.enter_context(GrpcClient(address))
    asked = ask_server.find(client, wish.name, wish.choice)
    folder = None
    if not asked.doubt and wish.choice.models_dir is not None:
        folder = wish.choice.models_dir / wish.name / str(asked.version)
    independent = wish.rows_independent or (
        folder is not None and chosen_version.has_independent_rows(folder, asked.contract)
    )
    if asked.doubt:
        click.echo(f"note: INPUT is read as tensors, as {asked.doubt}", err=True)
    pace = wish.pace(asked.contract) if independent else Pace(1, wish.runs)
    served: Client = client
    return ServedModel(served, asked, pace, wish.call_seconds, wish.retry_seconds), folder


def _form(output: Path, questions: Questions) -> Form:
    match output.suffix.lower():
        case ".csv":
            return results.Csv(questions.has_names)
        case ".ndjson" | ".jsonl":
            return results.Ndjson(questions.has_names)
        case _:
            return results.Parquet(questions.has_names, questions.contract)


def _plan(wish: _Wish, source: Source, model: Model) -> Plan:
    """What decides the bytes of OUTPUT, in the words of messages."""
    return {
        "the model": wish.name,
        "the version": model.version,
        "its manifest or graph": model.identity,
        "the place of the model": wish.where,
        "the content of INPUT": source.digest(),
        "--format": source.kind,
        "--column": wish.columns.input,
        "--id-column": wish.columns.name,
        "--top-k": wish.top_k,
        "--max-row-bytes": wish.max_row_bytes,
        "--rows-independent": wish.rows_independent,
        "the suffix of OUTPUT": wish.output.suffix.lower(),
        "the form of its parts": FORM,
    }


def _say_what_is_done(wish: _Wish, model: Model, done: Done) -> None:
    where = f"on {wish.server or wish.ray}" if wish.server or wish.ray else "in this process"
    pace = f"{model.pace.rows} rows a run" if model.pace.rows > 1 else "one row a run"
    goes_on = f"; goes on behind {done.answered + done.bad:,} rows" if done.parts else ""
    click.echo(
        f"{wish.name} version {model.version} {where}, {pace}, {model.pace.runs} at once{goes_on}",
        err=True,
    )


def _join(wish: _Wish, form: Form, parts: Parts, done: Done) -> None:
    """The parts become OUTPUT and the file of errors; killed in between, the next run does it again."""
    if done.bad:
        with parts.whole_file(wish.errors) as stream:
            results.Ndjson(True).write(stream, parts.errors(done.parts), ())
    else:
        wish.errors.unlink(missing_ok=True)
    with parts.whole_file(wish.output) as stream:
        form.write(stream, parts.answers(done.parts), done.columns)
    parts.drop()


def _status(path: Path) -> tuple[int, int]:
    """What changes when a file is written to, or a folder gets other names."""
    status = path.stat()
    return (status.st_size, status.st_mtime_ns)
