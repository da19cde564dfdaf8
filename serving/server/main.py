"""The command `bookserve model-server`: reads the flags, and runs the server (`model_server.py`) under its supervisor.

What the server needs is imported in the process that serves alone, so that the supervisor stays small.
"""

import logging
import sys
from collections.abc import Callable

import click

from bookserve.serving.server.settings import flags as flag_parser
from bookserve.serving.server.settings import server_log
from bookserve.serving.server.settings.flags import FlagError, Flags

log = logging.getLogger(__name__)


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(arguments: tuple[str, ...]) -> None:
    """Serve models over gRPC and REST, as tensorflow_model_server does."""
    try:
        flags, warnings = flag_parser.parse(arguments)
    except FlagError as error:
        click.echo(f"{error}\n\n{flag_parser.usage()}")
        sys.exit(255)
    server_log.configure(flags.log_format, flags.log_level)
    for warning in warnings:
        log.warning("%s", warning)
    if any(warning.startswith("unknown argument") for warning in warnings):
        click.echo("\n".join((*warnings, "", flag_parser.usage())))
    if flags.help:
        click.echo(flag_parser.usage())
    elif flags.version:
        _tell_versions()
    else:
        serves = _supervised(flags)
        from bookserve.serving.server import model_server

        model_server.serve(flags, serves)


def _supervised(flags: Flags) -> Callable[[], None]:
    """Goes on in a child process that is replaced when it crashes; what it returns is called once the server serves."""
    if sys.platform == "linux" and flags.supervise and flags.processes == 1:
        from bookserve.serving.server import supervisor

        return supervisor.supervise()
    return lambda: None


def _tell_versions() -> None:
    import importlib.metadata

    import onnxruntime

    try:
        tensorflow = importlib.metadata.version("tensorflow")  # without the seconds of an import
    except importlib.metadata.PackageNotFoundError:
        tensorflow = "not installed"
    click.echo(f"TensorFlow ModelServer: bookserve {importlib.metadata.version('bookserve')}")
    click.echo(f"TensorFlow Library: {tensorflow}")
    click.echo(f"ONNX Runtime: {onnxruntime.__version__}")
