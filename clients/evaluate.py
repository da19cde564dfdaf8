"""The command `bookserve evaluate`: how good a version is on labelled rows, asked in its own engine or on a server.

The rows are the test rows of the training that made the version, or a file of the user's.
"""

import dataclasses
import json
from pathlib import Path

import click
import numpy as np

from bookserve.clients.errors import PredictError
from bookserve.clients.grpc_client import GrpcClient
from bookserve.export import confined, contracts, drift, evaluation, labelled_rows, table
from bookserve.export.confined import Limits
from bookserve.export.contracts import Contract
from bookserve.export.errors import ConfinedError, ExportError, StoreError
from bookserve.export.evaluation_trial import ROWS, batches
from bookserve.export.figures import Measurement, Rows
from bookserve.export.manifest import LOCATION, Manifest
from bookserve.export.options import max_memory_option, models_dir_option, runs_dir_option
from bookserve.export.silence_tensorflow import silence_tensorflow
from bookserve.export.store import ModelStore

_CALL_SECONDS = 60.0


@click.command()
@click.argument("name")
@click.option("--version", type=click.IntRange(min=1), help="By default the newest one.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Rows and right answers: .npz with an array for each input and one of targets, or a table in .csv. By default "
    "the test rows of the training that made the version.",
)
@click.option(
    "--targets",
    metavar="ARRAY",
    help="The array or column of --data with the right answers: classes, labels or numbers; by default 'targets' or "
    "'labels'.",
)
@click.option(
    "--engine",
    type=click.Choice(sorted(labelled_rows.GRAPHS)),
    help="Which graph of the version is asked; by default the one that bookserve's model server takes.",
)
@click.option("--server", metavar="HOST:PORT", help="Ask a running model server over gRPC instead of the files.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    envvar="DATA_DIR",
    help="A folder with the data files of the book's models, looked into first.  [env: DATA_DIR]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "--max-seconds", type=click.FloatRange(min=1), default=1800.0, show_default=True, help="The graph may take."
)
@max_memory_option
@models_dir_option
@runs_dir_option
def main(
    name: str,
    version: int | None,
    data: Path | None,
    targets: str | None,
    engine: str | None,
    server: str | None,
    data_dir: Path | None,
    as_json: bool,
    max_seconds: float,
    max_memory: int,
    models_dir: Path,
    runs_dir: Path,
) -> None:
    """Say how good version VERSION of NAME is on rows whose right answers are known.

    Shown are the figure with its 95 % interval, and for classes also precision, recall and specificity of each class,
    which class is taken for which, and how honest the probabilities are. Where the version keeps how its training rows
    were spread, it is also shown how far these rows are from them.

    --json has these, where they apply:

    \b
    figure, value, rows   what was measured, and on how many rows
    interval              of 95 %
    cutoff                the probability from which a label counts as yes
    classes               each class or label against the others
    confusion, labels     rows by their class and the one that was seen
    calibration           ece, brier, and the bins of a reliability diagram
    doubt                 below this probability half or more of the classes
                          were wrong
    unlike                below this similarity to the nearest training row a
                          row is unlike those; one of ten of these rows is
    baseline              a simpler model on the same rows
    drift                 how far the rows are from those of the training
    """
    if server is not None and engine is not None:
        raise click.UsageError("--server and --engine exclude each other: a server has its own engine")
    if targets is not None and data is None:
        raise click.UsageError("--targets names an array of --data, which is not given")
    store = ModelStore(models_dir)
    limits = Limits(max_seconds, max_memory << 20)
    try:
        folder = store.path(name, version)
        described = store.manifest(name, int(folder.name)) if (folder / LOCATION).is_file() else None
        contract = _contract(folder, described, limits)
        measured = (
            Measurement({}, labelled_rows.figure(contract, data, targets))
            if data is not None
            else _trained(described, data_dir, runs_dir)
        )
        rows = measured.figure.rows
        if server is not None:
            outputs = _from_server(server, contract, int(folder.name), rows)
        else:
            outputs = labelled_rows.answers(folder, engine, contract, rows, limits)
        card = None if described is None else described.data_card
        strayed = [] if card is None else drift.drifts(contract, card.distributions, rows)
        found = evaluation.beside(evaluation.evaluate(measured.figure, outputs, contract), measured, outputs)
    except (ExportError, StoreError, PredictError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        told = {"model": name, "version": int(folder.name), **found.to_json()}
        click.echo(json.dumps(told | {"drift": [dataclasses.asdict(one) for one in strayed]}, indent=2))
        return
    asked = server if server is not None else folder
    click.echo(f"{name} version {folder.name}, {asked}:\n")
    width = table.terminal_width()
    lines = [*evaluation.text(found, width), "", *drift.text(strayed, width)]
    click.echo("\n".join(table.folded(line, 0) for line in lines).rstrip())


def _contract(folder: Path, described: Manifest | None, limits: Limits) -> Contract:
    """That of the manifest, or what the graph tells."""
    if described is not None and described.contract.whole:
        return described.contract
    job = {"folder": str(folder), "model": folder.parent.name}
    try:
        return contracts.from_json(confined.call("bookserve.export.graph_contract:read", job, limits))
    except ConfinedError as error:
        raise ExportError(f"{folder}: {error}") from error


def _trained(described: Manifest | None, data_dir: Path | None, runs_dir: Path) -> Measurement:
    """The figure of the model's own test rows, and its baseline."""
    if described is None or described.data is None:
        raise ExportError("nothing tells what data the version was trained with: give rows with --data")
    with silence_tensorflow():
        from bookserve.training.datasets.files import DataError
        from bookserve.training.errors import TrainingError
        from bookserve.training.held_out_rows import measurement
    try:
        return measurement(described, data_dir, runs_dir)
    except (DataError, TrainingError) as error:
        raise ExportError(str(error)) from error


def _from_server(server: str, contract: Contract, version: int, rows: Rows) -> Rows:
    step = contract.inputs[0].shape[0] or ROWS
    with GrpcClient(server) as client:
        parts = [
            client.predict(
                contract.model, part, version=version, signature=contract.signature, timeout=_CALL_SECONDS
            ).outputs
            for part in batches(rows, step)
        ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
