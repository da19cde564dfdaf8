"""`bookserve completion SHELL`: the script by which a shell completes commands, options and names of models."""

from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from bookserve.clients.store_contracts import StoreContracts

_PROGRAM = "bookserve"


def model_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The models of the store that --models-dir names, or of `models` in this folder."""
    root = Path(context.params.get("models_dir") or "models")
    return [CompletionItem(name) for name in StoreContracts(root).models() if name.startswith(incomplete)]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def main(context: click.Context, shell: str) -> None:
    """Print the script by which SHELL completes commands, options and names of models.

    \b
    bash   eval "$(bookserve completion bash)"    in ~/.bashrc
    zsh    eval "$(bookserve completion zsh)"     in ~/.zshrc, after compinit
    fish   bookserve completion fish | source     in ~/.config/fish/config.fish
    """
    made = get_completion_class(shell)
    assert made is not None
    root = context.find_root().command
    click.echo(made(root, {}, _PROGRAM, f"_{_PROGRAM.upper()}_COMPLETE").source())
