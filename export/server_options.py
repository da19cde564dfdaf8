"""Which running servers a command that changes labels waits for: its options, and what they mean.

The servers of a store leave a file in it (`serving/wire/store_servers.py`); others are named by --server.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import grpc

from bookserve.export.errors import StoreError
from bookserve.export.served import Servers
from bookserve.export.store import ModelStore, UntilLoaded
from bookserve.serving.wire import store_servers
from bookserve.serving.wire.store_servers import TLS

NOBODY = "no server was asked: it takes effect when one starts, or reads models.config again (see --server, --wait)"
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass
class Asked:
    """The options, as they were given."""

    addresses: tuple[str, ...] = ()
    seconds: float = 0.0
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def servers(self, store: ModelStore) -> Servers:
        """The servers to wait for. Says of those that the store names which do not answer.

        Raises:
            StoreError: the options contradict each other.
        """
        if not self.seconds:
            return Servers([], 0.0)
        strange = [address for address in self.addresses if "://" in address and not address.startswith(TLS)]
        if strange:
            raise StoreError(f"--server {strange[0]}: HOST:PORT of gRPC, or {TLS}HOST:PORT with TLS")
        files = {"--ca": self.ca, "--cert": self.cert, "--key": self.key}
        given = [option for option, path in files.items() if path is not None]
        if given and self.addresses and not any(address.startswith(TLS) for address in self.addresses):
            raise StoreError(f"{given[0]} is for TLS, and no --server is {TLS}HOST:PORT")
        credentials = self._credentials()
        if self.addresses:
            return Servers(self.addresses, self.seconds, credentials)
        named = Servers([each.grpc for each in store_servers.servers(store.root)], self.seconds, credentials)
        found = named.answering()
        if str(found) != str(named):
            click.echo(f"warning: not all servers of this store answer: {named}{_remedy(str(named))}", err=True)
        return found

    def _credentials(self) -> grpc.ChannelCredentials:
        if (self.cert is None) != (self.key is None):
            raise StoreError("--cert and --key belong together: the client's certificate and its key")
        ca, cert, key = (None if path is None else path.read_bytes() for path in (self.ca, self.cert, self.key))
        return grpc.ssl_channel_credentials(ca, key, cert)


def _remedy(addresses: str) -> str:
    if TLS not in addresses:
        return ""
    return f" ({TLS} needs --ca where the system does not know its authority, and a --server of the certificate's name)"


pass_asked = click.make_pass_decorator(Asked, ensure=True)


def _note(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    setattr(context.ensure_object(Asked), str(parameter.name), value)


def _option(name: str, *others: str, **settings: Any) -> Callable[[Any], Any]:
    return click.option(name, *others, expose_value=False, callback=_note, **settings)


_OPTIONS = (
    _option(
        "--server",
        "addresses",
        multiple=True,
        metavar="HOST:PORT",
        help=f"gRPC address of a server to wait for, {TLS}HOST:PORT with TLS; by default those of ours that serve this"
        " store.",
    ),
    _option(
        "--wait",
        "seconds",
        type=click.FloatRange(min=0),
        default=60.0,
        show_default=True,
        help="Seconds for the servers to load and to serve what was asked; 0 does not wait.",
    ),
    _option("--ca", type=_FILE, help="PEM file of the authority that signed the servers' certificates."),
    _option("--cert", type=_FILE, help="PEM file of a client's certificate, for servers that demand one."),
    _option("--key", type=_FILE, help="PEM file of its key."),
)


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command that takes them as its first argument."""
    made: Callable[..., None] = pass_asked(command)
    for option in reversed(_OPTIONS):
        made = option(made)
    return made


def until_loaded(servers: Servers, model: str) -> UntilLoaded | None:
    """What a change of labels waits for: that these servers have loaded its versions; None where there are none."""
    return (lambda versions: servers.until_loaded(model, versions)) if servers else None
