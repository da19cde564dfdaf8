"""All commands of `bookserve` by their whole names, such as "models show"."""

from collections.abc import Iterator

import click

from bookserve.clients.command_line import main


def leaves(
    command: click.Command, path: tuple[str, ...], context: click.Context
) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield " ".join(path), command
        return
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from leaves(found, (*path, name), click.Context(found, parent=context, info_name=name))


COMMANDS = dict(leaves(main, (), click.Context(main, info_name="bookserve")))
