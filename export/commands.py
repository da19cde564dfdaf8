"""The command `bookserve models`. It only parses, calls and prints."""

import json
import shlex
from pathlib import Path
from typing import Any

import click

from bookserve.export import add as adding
from bookserve.export import description, graph_contract, table
from bookserve.export import manifest as manifests
from bookserve.export.confined import Limits
from bookserve.export.contracts import TASKS, Contract, to_json
from bookserve.export.errors import ExportError, StoreError
from bookserve.export.life.commands import COMMANDS as LIFE_COMMANDS
from bookserve.export.life.transfer_commands import COMMANDS as TRANSFER_COMMANDS
from bookserve.export.manifest import Manifest
from bookserve.export.options import json_option, max_memory_option, max_seconds_option, models_dir_option
from bookserve.export.quantization.command import quantize
from bookserve.export.server_options import NOBODY, Asked, server_options, until_loaded
from bookserve.export.store import CONFIG, ModelStore
from bookserve.serving.wire import store_servers

_COLUMNS = ("MODEL", "VERSION", "PRECISION", "CONFIG", "PROFILE", "DATA", "TEST", "CREATED", "SERVED AS")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def models() -> None:
    """Add, list, verify, compare, label, move and remove what the model store holds."""


for command in (*LIFE_COMMANDS, *TRANSFER_COMMANDS):
    models.add_command(command)


@models.command("add")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--task",
    type=click.Choice(TASKS),
    default=None,
    help="What the model is for, if the file is silent.",
)
@click.option("--labels", type=_FILE, default=None, help="The names of the classes, one a line, in the outputs' order.")
@click.option(
    "--example",
    type=_FILE,
    default=None,
    help="Inputs to try it with: .npz, .json in the REST form, .csv or a picture. Without it they are drawn at random.",
)
@click.option(
    "--preprocessor",
    type=_FILE,
    default=None,
    help="How pictures become numbers, as Hugging Face's preprocessor_config.json says it: size, rescale_factor, "
    "image_mean, image_std. Without it their levels go from 0 to 1, of the central square.",
)
@click.option(
    "--trust",
    is_flag=True,
    help="Load a file that is a program, such as a pickle or a .pt2: its code runs with your rights.",
)
@click.option(
    "--rows-independent/--rows-dependent",
    "rows_independent",
    default=None,
    help="Declare whether requests of different clients may share a run, where no ONNX graph proves it.",
)
@click.option(
    "--evaluate",
    type=_FILE,
    default=None,
    metavar="DATA",
    help="Rows and right answers, .npz: an array for each input, and 'targets' or 'labels'. The figures are kept with "
    "the version.",
)
@click.option(
    "--require-better",
    is_flag=True,
    help="Refuse it where it is worse than the served version by more than chance, on the rows of --evaluate.",
)
@max_seconds_option
@max_memory_option
@models_dir_option
def add_model(
    name: str,
    path: Path,
    task: str | None,
    labels: Path | None,
    example: Path | None,
    preprocessor: Path | None,
    trust: bool,
    rows_independent: bool | None,
    evaluate: Path | None,
    require_better: bool,
    max_seconds: float,
    max_memory: int,
    models_dir: Path,
) -> None:
    """Make the next version of NAME from the model at PATH, made by anybody.

    \b
    PATH is one of
      a SavedModel folder (TensorFlow 1 and 2, Keras, Estimator, TFX)
      .onnx   .tflite   .keras   .h5   .pt2 (torch.export)
      .pkl, .joblib (scikit-learn, XGBoost, LightGBM)
      .json, .ubj (XGBoost)   .txt (LightGBM)
      a folder of MLflow, or one with config.json and model.onnx

    It is converted and tried in a process of its own. A version is published only if its graphs answer as the source
    does.
    """
    if require_better and evaluate is None:
        raise click.UsageError("--require-better compares on the rows of --evaluate, which is not given")
    store = ModelStore(models_dir)
    limits = Limits(max_seconds, max_memory << 20)
    try:
        wishes = adding.Wishes(task, labels, example, trust, rows_independent, evaluate, preprocessor, require_better)
        published = adding.add(store, name, path, wishes, limits, click.echo)
    except ExportError as error:
        raise click.ClickException(str(error)) from error
    for line in adding.missing(published.contract):
        click.echo(f"{name}: {line}")
    servers = store_servers.servers(store.root)
    for server in servers:
        click.echo(f"a server that runs loads it: {server.grpc}; the page of its gateway has it at /models/{name}")
    if not servers:
        click.echo(f"Serve it, with a page at http://127.0.0.1:8080/models/{name}:")
        click.echo(f"  {shlex.join(['bookserve', 'serve', '--models-dir', str(store.root)])}")
        click.echo("Or serve it alone, and ask it:")
        click.echo(f"  {adding.how_to_serve(store)}")
        servers = [adding.SERVED_ALONE]
    else:
        click.echo("Ask it:")
    for line in adding.how_to_ask(store, published, servers[0]):
        click.echo(f"  {line}")


models.add_command(quantize)


@models.command("list")
@json_option
@models_dir_option
def list_models(as_json: bool, models_dir: Path) -> None:
    """One line for every version of every model."""
    store = ModelStore(models_dir)
    rows: list[tuple[str, ...]] = [_COLUMNS]
    told: list[dict[str, Any]] = []
    for model in store.models():
        try:
            served = _served(store, model)
        except StoreError as error:
            served = {}
            click.echo(f"warning: {error}", err=True)
        for version in store.versions(model):
            names = served.get(version, [])
            known: dict[str, Any] = {"model": model, "version": version, "served_as": names}
            told.append(known)
            try:
                found = store.manifest(model, version)
            except StoreError as error:
                rows.append((model, str(version), *["?"] * (len(_COLUMNS) - 3), ", ".join(names)))
                known["error"] = str(error)
                click.echo(f"warning: {error}", err=True)
                continue
            made = (found.precision, found.configuration or "-", found.profile or "-", _data(found))
            known |= dict(zip(("precision", "configuration", "profile", "data"), made, strict=True))
            known |= {"task": found.contract.task, "metrics": found.metrics, "created": found.created}
            row = (model, str(version), *made, _figures(found) or "-", found.created, ", ".join(names))
            rows.append(row)
    for model, base_path in store.moved_from().items():
        text = f"warning: {CONFIG} has {model} in {base_path}, not in this store: 'bookserve models config' mends that"
        click.echo(text, err=True)
    _warn_of_what_is_not_told(store)
    if as_json:
        click.echo(json.dumps({"versions": told}))
        return
    if len(rows) == 1:
        raise click.ClickException(f"{store.root} holds no model: 'bookserve train-all' makes them")
    for line in table.lines(rows, table.terminal_width()):
        click.echo(line)


def _warn_of_what_is_not_told(store: ModelStore) -> None:
    try:
        if store.is_told() or store.moved_from():
            return
    except StoreError:
        return  # which was told above
    root = "" if (place := store.told_root()) is None else f" --root {place}"
    text = f"warning: {CONFIG} does not tell of all that is here: 'bookserve models config{root}' mends that"
    click.echo(text, err=True)


@models.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1), required=False)
@json_option
@models_dir_option
def show(name: str, version: int | None, as_json: bool, models_dir: Path) -> None:
    """Everything known of one version, by default the newest; fails when a file of it is missing or changed.

    A version without a manifest, made by hand or by TensorFlow, is read from its graph.
    """
    store = ModelStore(models_dir)
    try:
        folder = store.path(name, version)
        found = store.manifest(name, version) if (folder / manifests.LOCATION).exists() else None
        served = _served(store, name).get(int(folder.name), [])
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    unread = ""
    contract: Contract | None
    try:
        contract = graph_contract.of_version(folder, name, found)
    except ExportError as error:
        contract, unread = None if found is None else found.contract, str(error)
    changed = [] if found is None else manifests.changed_files(folder, found)
    if as_json:
        told = None if found is None else json.loads(found.to_json())
        tensors = None if contract is None else to_json(contract)
        answer = {"model": name, "version": int(folder.name), "folder": str(folder), "served_as": served}
        click.echo(json.dumps({**answer, "contract": tensors, "manifest": told, "changed_files": list(changed)}))
        if changed:
            raise SystemExit(1)
        return
    known = "no manifest" if found is None else f"contract {found.contract.id}"
    click.echo(table.folded(f"{name} version {folder.name}, {known}, in {folder}"))
    click.echo(f"served as {', '.join(served) or 'nothing: ask for it by its number, where it is loaded'}")
    for line in description.lines(contract) if contract is not None else ():
        click.echo(table.folded(line))
    if unread:
        click.echo(f"warning: its tensors are not known: {unread}", err=True)
    if found is None:
        return
    for line in description.origin(found):
        click.echo(table.folded(line))
    if changed:
        raise click.ClickException(f"{len(changed)} files are missing or changed: {', '.join(changed)}")
    click.echo(f"files     {len(found.files)}, all as published")


@models.command()
@click.argument("name")
@click.argument("label")
@click.argument("version", type=click.IntRange(min=1))
@server_options
@models_dir_option
def label(asked: Asked, name: str, label: str, version: int, models_dir: Path) -> None:
    """Have LABEL name a VERSION, whatever it named before.

    Clients then ask for the label instead of a number, such as /v1/models/NAME/labels/stable:predict. Labels stay
    where they are when a version is published.

    The servers load the version first, then the label moves; the command ends when it has. A server notices it when it
    reads models.config anew: 'bookserve serve' within a second, others when they were started with
    --model_config_file_poll_wait_seconds. Labelled versions are kept loaded. A version that no server loads gets no
    label: nothing is changed then.
    """
    store = ModelStore(models_dir)
    try:
        servers = asked.servers(store)
        store.label(name, label, version, until_loaded(servers, name))
        click.echo(f"{name}: '{label}' is version {version}")
        servers.until_named(name, {label: version})
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"served by {servers}" if servers else NOBODY)


@models.command()
@click.argument("name")
@click.argument("label")
@server_options
@models_dir_option
def unlabel(asked: Asked, name: str, label: str, models_dir: Path) -> None:
    """Forget a LABEL; the version that it named stays in the store.

    The command ends when the servers no longer know the label; see 'bookserve models label'.
    """
    store = ModelStore(models_dir)
    try:
        servers = asked.servers(store)
        store.unlabel(name, label)
        click.echo(f"{name}: '{label}' is no label any more")
        servers.until_named(name, {label: None})
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"not known by {servers}" if servers else NOBODY)


@models.command()
@click.argument("name")
@click.option(
    "--to",
    "version",
    type=click.IntRange(min=1),
    default=None,
    help="The version to serve; by default the one before the version served now.",
)
@server_options
@models_dir_option
def rollback(asked: Asked, name: str, version: int | None, models_dir: Path) -> None:
    """Serve an older version by default, without a new publish.

    No version above it stays loaded, and labels on such versions move to it. Nothing is deleted. The next version that
    is published is served again; '--to' the newest version ends the rollback at once (labels stay where they are).

    The servers load the version first, then the others go; the command ends when they have. A server notices it when
    it reads models.config anew: 'bookserve serve' within a second, others when they were started with
    --model_config_file_poll_wait_seconds. Where a server cannot load the version, nothing is changed.
    """
    store = ModelStore(models_dir)
    try:
        servers = asked.servers(store)
        served, moved = store.roll_back(name, version, until_loaded(servers, name))
        for moved_label in moved:
            click.echo(f"{name}: '{moved_label}' is version {served}")
        click.echo(f"{name}: version {served} is the default{'' if _is_newest(store, name, served) else _UNTIL}")
        servers.until_named(name, dict.fromkeys(moved, served), served)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"served by {servers}" if servers else NOBODY)


@models.command()
@models_dir_option
@click.option(
    "--root",
    metavar="PATH",
    help="Where servers have the store, such as /models in a container: what base paths begin with, also after later "
    "changes of the store.  [default: where the store is]",
)
def config(models_dir: Path, root: str | None) -> None:
    """Write models.config anew, as after a copy of the store to another place."""
    store = ModelStore(models_dir)
    try:
        if not store.models():
            raise StoreError(f"{store.root} holds no model: 'bookserve train-all' makes them")
        store.write_config(root)
        place = store.told_root()
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    below = "" if place is None else f" below {place}"
    click.echo(f"{store.root / CONFIG} names {', '.join(store.models())}{below}")


_UNTIL = ", until the next one is published"


def _is_newest(store: ModelStore, model: str, version: int) -> bool:
    return version == store.versions(model)[-1]


def _served(store: ModelStore, model: str) -> dict[int, list[str]]:
    """Version -> by what names it is served: "default" where a request names none, and its labels."""
    names = {store.default_version(model): ["default"]}
    for name, version in store.release(model).labels.items():
        names.setdefault(version, []).append(name)
    return names


def _data(found: Manifest) -> str:
    """Where a version came from, in a word: "real" or "sample" data, or the format of a model made elsewhere."""
    if found.data is not None:
        return found.data.source
    return "-" if found.source is None else found.source.format


def _figures(found: Manifest) -> str:
    test = found.metrics.get("test", {})
    return "  ".join(f"{name} {value:.4g}" for name, value in test.items() if name not in ("rows", "loss"))
