"""The options that several commands share: where runs and models lie, what a trial may take, and --json."""

import re
from pathlib import Path

import click

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of which Path keeps one of two slashes


def local_folder(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """The value of an option; an address such as s3://bucket is refused, which would become a folder `s3:` here."""
    if value is not None and _URL.match(str(value)):
        raise click.BadParameter(f"'{value}' is the address of a remote store: give a local folder, or mount it")
    return value


models_dir_option = click.option(
    "--models-dir",
    callback=local_folder,
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("models"),
    show_default=True,
    help="The model store.",
)
runs_dir_option = click.option(
    "--runs-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where trainings leave their run folders.",
)
max_seconds_option = click.option(
    "--max-seconds", type=click.FloatRange(min=1), default=600.0, show_default=True, help="The model's trial may take."
)
max_memory_option = click.option(
    "--max-memory", type=click.IntRange(min=64), default=8192, show_default=True, help="MiB that the trial may use."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
