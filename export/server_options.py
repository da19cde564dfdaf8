"""The options of commands that ask model servers, and the servers that they mean."""

import click

from bookserve.export.served import Servers
from bookserve.export.store import ModelStore, UntilLoaded
from bookserve.serving.wire import store_servers

NOBODY = "no server was asked: it takes effect when one starts, or reads models.config again (see --server, --wait)"
server_option = click.option(
    "--server",
    "addresses",
    multiple=True,
    metavar="HOST:PORT",
    help="gRPC address of a server to wait for; by default those of ours that serve this store.",
)
wait_option = click.option(
    "--wait",
    "seconds",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds for the servers to load and to serve what was asked; 0 does not wait.",
)


def servers_to_ask(store: ModelStore, addresses: tuple[str, ...], seconds: float) -> Servers:
    """The servers to wait for. Says of those that the store names which do not answer."""
    if not seconds:
        return Servers([], 0.0)
    if addresses:
        return Servers(addresses, seconds)
    named = Servers(store_servers.servers(store.root), seconds)
    found = named.answering()
    if str(found) != str(named):
        click.echo(f"warning: not all servers of this store answer without TLS: {named}", err=True)
    return found


def until_loaded(servers: Servers, model: str) -> UntilLoaded | None:
    """What a change of labels waits for: that these servers have loaded its versions; None where there are none."""
    return (lambda versions: servers.until_loaded(model, versions)) if servers else None
