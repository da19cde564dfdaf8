"""The commands `bookserve runs list`, `show` and `compare`: what was trained, with what, and how well."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from bookserve.export import description, run_format, run_reader, table
from bookserve.export.errors import ExportError
from bookserve.export.options import json_option, runs_dir_option
from bookserve.export.run_reader import TrainingRun
from bookserve.training import run_writer


@click.group()
def runs() -> None:
    """List, show and compare what was trained."""


@runs.command("list")
@click.argument("names", metavar="[MODELS]...", nargs=-1)
@json_option
@runs_dir_option
def list_runs(names: tuple[str, ...], as_json: bool, runs_dir: Path) -> None:
    """One line for every run, oldest first; unfinished ones are marked."""
    known = _known(runs_dir)
    unknown = [name for name in names if name not in known]
    if unknown or not known:
        raise _no_runs(runs_dir, known, unknown)
    rows: list[tuple[str, ...]] = [("RUN", "CONFIG", "PROFILE", "SEED", "DATA", "TEST")]
    told: list[dict[str, Any]] = []
    for name in names or known:
        for folder in _folders(runs_dir, name):
            label = f"{name}/{folder.name}"
            if folder.name.endswith(run_format.UNFINISHED):
                rows.append((label, "", "", "", "", "unfinished"))
                told.append({"run": label, "finished": False})
                continue
            try:
                run = run_reader.read(folder, name)
            except ExportError as error:
                rows.append((label, "?", "?", "?", "?", "?"))
                told.append({"run": label, "error": str(error)})
                click.echo(f"warning: {error}", err=True)
                continue
            data = f"own: {run.data.name}" if run.data.source == "own" else run.data.source
            rows.append((label, run.configuration, run.profile, str(run.seed), data, _test(run)))
            told.append(_told(run))
    if as_json:
        click.echo(json.dumps({"runs": told}))
    else:
        _print(rows)


@runs.command()
@click.argument("run", metavar="RUN")
@json_option
@runs_dir_option
def show(run: str, as_json: bool, runs_dir: Path) -> None:
    """Everything known of a RUN: a model for its newest one, or MODEL/TIME as 'runs list' has it."""
    found = _read(run, runs_dir)
    if as_json:
        click.echo(json.dumps(_told(found)))
        return
    click.echo(table.folded(f"{found.contract.model}: {found.folder}"))
    for line in description.lines(found.contract):
        click.echo(table.folded(line))
    click.echo(table.folded(f"data      {found.data.source}: {found.data.name}, SHA-256 {found.data.sha256}"))
    for line in description.data_card(found.data_card) if found.data_card is not None else ():
        click.echo(table.folded(f"rows      {line}"))
    if found.own_data is not None:
        click.echo(table.folded(f"read from {json.dumps(found.own_data)}"))
    network = f"the network of {found.network_of}, " if found.network_of != found.contract.model else ""
    chosen = f"{network}configuration {found.configuration}, profile {found.profile}, seed {found.seed}"
    click.echo(table.folded(f"trained   {chosen}"))
    changed = {name: found.config.get(name) for name in found.settings}
    if changed:
        click.echo(table.folded(f"--set     {_pairs(changed)}"))
    click.echo(table.folded(f"numbers   {_pairs(found.config)}"))
    for split, figures in found.metrics.items():
        click.echo(table.folded(f"{split:<9} " + "  ".join(f"{name} {value:.6g}" for name, value in figures.items())))
    made_with = "  ".join(f"{library} {number}" for library, number in found.made_with.items())
    click.echo(table.folded(f"made with {made_with}"))
    click.echo(table.folded(f"curves    tensorboard --logdir {found.folder / run_format.TENSORBOARD}"))


@runs.command()
@click.argument("names", metavar="RUN RUN...", nargs=-1, required=True)
@json_option
@runs_dir_option
def compare(names: tuple[str, ...], as_json: bool, runs_dir: Path) -> None:
    """Runs side by side: what is different in their settings, and all of their metrics.

    A RUN is a model, for its newest run, or MODEL/TIME as 'runs list' has it.
    """
    if len(names) < 2:
        raise click.ClickException("two runs at least are compared: 'bookserve runs list' names them")
    found = [_read(name, runs_dir) for name in names]
    if as_json:
        click.echo(json.dumps({"runs": [_told(run) for run in found]}))
        return
    columns = [_facts(run) for run in found]
    facts = dict.fromkeys(name for column in columns for name in column)
    rows = [("", *(f"{run.contract.model}/{run.folder.name}" for run in found))]
    for name in facts:
        cells = [column.get(name, "-") for column in columns]
        if len(set(cells)) > 1:
            rows.append((name, *cells))
    if len(rows) == 1:
        click.echo("the settings are the same")
    figures = [_figures(run) for run in found]
    for name in dict.fromkeys(name for column in figures for name in column):
        rows.append((name, *(column.get(name, "-") for column in figures)))
    _print(rows)


def _no_runs(runs_dir: Path, known: list[str], missing: Sequence[str] = ()) -> click.ClickException:
    of = f" of {', '.join(missing)}" if missing else ""
    there = f"; it has runs of {', '.join(known)}" if known else ""
    return click.ClickException(f"{runs_dir} has no runs{of}{there}: 'bookserve train' makes them")


def _known(runs_dir: Path) -> list[str]:
    """The models that have runs."""
    return [name for name in run_writer.names(runs_dir) if _folders(runs_dir, name)]


def _folders(runs_dir: Path, name: str) -> list[Path]:
    """The run folders of a model, oldest first; its studies are none."""
    return sorted(
        path for path in (runs_dir / name).iterdir() if path.is_dir() and (path / run_format.CONFIG).is_file()
    )


def _read(name: str, runs_dir: Path) -> TrainingRun:
    """The run with that name: a model's newest one, or the one of a time.

    Raises:
        ClickException: there is none, or it cannot be read.
    """
    model, _, time = name.partition("/")
    known = _known(runs_dir)
    if model not in known:
        raise _no_runs(runs_dir, known, [model])
    times = [folder.name for folder in _folders(runs_dir, model)]
    if time and time not in times:
        raise click.ClickException(f"{model} has no run '{time}'; it has {', '.join(times)}")
    try:
        return run_reader.read(runs_dir / model / time if time else run_reader.latest(runs_dir, model), model)
    except ExportError as error:
        raise click.ClickException(str(error)) from error


def _facts(run: TrainingRun) -> dict[str, str]:
    """What decides the metrics of a run, and what it ran on."""
    card = run.data_card
    return {
        "network": run.network_of,
        "configuration": run.configuration,
        "profile": run.profile,
        "seed": str(run.seed),
        "data": f"{run.data.source}: {run.data.name} {run.data.sha256[:12]}",
        "rows": "" if card is None else ", ".join(f"{split} {card.rows[split]}" for split in card.splits),
        **{name: _value(value) for name, value in run.config.items()},
        **run.made_with,
    }


def _figures(run: TrainingRun) -> dict[str, str]:
    return {
        f"{split} {name}": f"{value:.6g}" for split, values in run.metrics.items() for name, value in values.items()
    }


def _test(run: TrainingRun) -> str:
    test = run.metrics.get("test", {})
    return "  ".join(f"{name} {value:.4g}" for name, value in test.items() if name not in ("rows", "loss"))


def _pairs(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{name}={_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, list) and not any(isinstance(each, list | dict) for each in value):
        return ",".join(str(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value)


def _print(rows: list[tuple[str, ...]]) -> None:
    for line in table.lines(rows, table.terminal_width()):
        click.echo(line)


def _told(run: TrainingRun) -> dict[str, Any]:
    """A run for --json: its settings, its data and all of its metrics."""
    return {
        "run": f"{run.contract.model}/{run.folder.name}",
        "folder": str(run.folder),
        "finished": True,
        "network": run.network_of,
        "configuration": run.configuration,
        "profile": run.profile,
        "seed": run.seed,
        "data": dataclasses.asdict(run.data),
        "own_data": run.own_data,
        "data_card": None if run.data_card is None else dataclasses.asdict(run.data_card),
        "config": run.config,
        "settings": run.settings,
        "metrics": run.metrics,
        "made_with": run.made_with,
    }
