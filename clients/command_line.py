"""The command `bookserve`: one table of subcommands, each loaded from its own room only when it is asked for.

So `bookserve predict` never imports TensorFlow, and a command whose extra is not installed says which one it needs.
"""

import importlib
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

from bookserve.serving.wire import missing_package

# command -> (module and attribute of the click command, the extra that brings what it imports, one line of help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "train": ("bookserve.training.commands:train", "training", "Train one model into a run folder."),
    "export": ("bookserve.training.commands:export", "training", "Publish a run as the next version of its model."),
    "train-all": ("bookserve.training.commands:train_all", "training", "Train and export every model."),
    "tune": ("bookserve.training.commands:tune", "training", "Search for better numbers of a model."),
    "runs": ("bookserve.training.run_commands:runs", "training", "List, show and compare what was trained."),
    "clean-runs": ("bookserve.training.commands:clean_runs", "training", "Remove runs that were never finished."),
    "evaluate": ("bookserve.clients.evaluate:main", "clients", "Say how good a version is on labelled rows."),
    "models": ("bookserve.export.commands:models", "clients", "Add, verify, compare, label, move and remove versions."),
    "model-server": ("bookserve.serving.server.main:main", "serving", "Serve models over gRPC and REST."),
    "gateway": ("bookserve.serving.gateway.main:main", "serving", "Serve the domain API and the web page."),
    "serve": ("bookserve.serving.serve:main", "serving", "Model server and gateway together, on loopback."),
    "doctor": ("bookserve.clients.doctor:main", "clients", "Say what this machine has, and what is broken."),
    "batch": ("bookserve.serving.batch.command:main", "serving,batch", "Predictions for a whole file or folder."),
    "predict": ("bookserve.clients.predict:main", "clients", "Ask for one prediction."),
    "load": ("bookserve.clients.load:main", "clients", "Measure how fast a model server answers."),
    "completion": ("bookserve.clients.completion:main", "clients", "Complete commands and options in your shell."),
}


# What is kept of a stopped command, where that is not nothing.
_GOES_ON = {
    "batch": "what is done is kept; the same command goes on there",
    "export": "a version is published whole or not at all; the same command publishes one",
    "models": "what it changes is changed whole or not at all; 'bookserve models list' shows which",
}


class _LazyGroup(click.Group):
    """A group that imports a subcommand's module only when that subcommand runs.

    Ctrl-C ends every subcommand in one manner: with a line that says what was stopped and what the same command does
    next, and with the status 130. Notes of the KeyboardInterrupt (`add_note`) take that line's place.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            _explain(ctx.invoked_subcommand, error)
            raise
        except KeyboardInterrupt as stop:
            notes = getattr(stop, "__notes__", [_stopped(ctx.invoked_subcommand or "bookserve")])
            click.echo("\n".join(notes), err=True)
            raise SystemExit(130) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, _, help_text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The names of the commands, without importing any of them, and the group's own options."""
        names = [name for name in COMMANDS if name.startswith(incomplete)]
        return [
            *(CompletionItem(name, help=COMMANDS[name][2]) for name in names),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        target, _, _ = COMMANDS[cmd_name]
        module_name, attribute = target.split(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if ctx.resilient_parsing:  # a shell completes a command whose extra is not installed
                return None
            _explain(cmd_name, error)
            raise
        except KeyboardInterrupt as stop:  # click has not noted yet which command it is
            stop.add_note(_stopped(cmd_name))
            raise
        command = getattr(module, attribute)
        assert isinstance(command, click.Command)
        return command


def _stopped(command: str) -> str:
    return f"{command}: stopped; {_GOES_ON.get(command, 'the same command starts anew')}"


def _explain(command: str | None, error: ModuleNotFoundError) -> None:
    """Raises ClickException for a package that an extra brings; a module that is not there is another's fault."""
    if command in COMMANDS and error.name and not error.name.startswith("bookserve"):
        raise click.ClickException(
            f"'bookserve {command}' needs {missing_package.told(error, COMMANDS[command][1])}"
        ) from error


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bookserve")
def main() -> None:
    """The case studies of 'TensorFlow for Deep Learning', from data to a served prediction."""


if __name__ == "__main__":
    sys.exit(main())
