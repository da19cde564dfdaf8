"""The gateway's port: granian in this process, with TLS from files that may change."""

import asyncio
import errno
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import structlog
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings

from bookserve.serving.gateway.bridge import Bridge
from bookserve.serving.wire.connections import affordable
from bookserve.serving.wire.embedded_http import EmbeddedHttp
from bookserve.serving.wire.file_stamps import Stamp, stamp
from bookserve.serving.wire.listening import BACKLOG, bound, successor

_CONNECTIONS = 4096  # more wait until one is closed
_HEADER_MILLISECONDS = 10_000
_LOOK_SECONDS = 1.0  # between looks at the files of certificates
_FIRST_REQUEST_SECONDS = 1.0  # that a connection has which the server of before has just accepted

_log = structlog.get_logger()


@dataclass(frozen=True)
class ListenerTls:
    """PEM files: of the gateway's own certificate, of its key, and of the authority of its clients' certificates, which
    they must then show.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """ValueError when the files are not what they should be."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # A password would be asked for on the terminal.
            context.load_cert_chain(self.cert, self.key, password="")
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except (OSError, ValueError) as error:
            files = ", ".join(str(path) for path in (self.cert, self.key, self.client_ca) if path is not None)
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise ValueError(f"not PEM files of a certificate with a key that fits: {files} ({reason})") from error

    def stamp(self) -> Stamp:
        """Another one when a file is replaced or written, also behind symbolic links."""
        return stamp((self.cert, self.key, self.client_ca))


def tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ListenerTls | None:
    """What the options --tls-cert, --tls-key and --tls-client-ca ask for; None is without TLS.

    ValueError when they do not go together, or the files are not what they should be.
    """
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise ValueError("--tls-cert and --tls-key belong together: the gateway's certificate and its key")
    found = ListenerTls(cert, key, client_ca)
    found.check()
    return found


def reserve(bind: str, port: int) -> socket.socket:
    """A bound socket that does not listen: it finds a free port for 0, and notices one that is taken.

    Beside it the socket that listens is bound, and ends earlier. With SO_REUSEPORT a port is shared with such only.
    """
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:  # without SO_REUSEPORT: fails when anyone listens
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((bind, port))
            address = probe.getsockname()
        return bound(family, socket.SOCK_STREAM, 0, address, shared=True, dual=True)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise click.ClickException(f"port {port} of {bind} is taken: choose another with --port") from error
        raise click.ClickException(f"cannot listen on {bind} port {port}: {error.strerror or error}") from error


class Listener:
    """Serves the requests of one port, until it is stopped."""

    def __init__(self, bridge: Bridge, reserved: socket.socket, tls: ListenerTls | None) -> None:
        self._bridge = bridge
        self._tls = tls
        self._seen = () if tls is None else tls.stamp()
        endpoint = bound(reserved.family, reserved.type, 0, reserved.getsockname(), shared=True, dual=True)
        self._endpoints = [endpoint]  # the last one has the new connections
        self._servers: list[tuple[EmbeddedHttp, asyncio.Task[None]]] = []  # so has the last one here

    @property
    def url(self) -> str:
        """Where it is asked."""
        host, port = self._endpoints[-1].getsockname()[:2]
        named = f"[{host}]" if ":" in host else host
        return f"{'http' if self._tls is None else 'https'}://{named}:{port}"

    async def start(self) -> None:
        """Returns when connections are accepted."""
        self._endpoints[-1].listen(BACKLOG)
        await self._serve(self._endpoints[-1])

    async def ended(self) -> None:
        """Returns when the library serves no more, and nobody has taken over."""
        while not self._servers[-1][1].done():
            await asyncio.wait([self._servers[-1][1]])

    async def follow_certificates(self) -> None:
        """For ever: when the files of TLS change, new connections get what they say.

        The library reads them once, so a new server of its takes over; that of before answers what is under way and
        ends. Files that cannot be used are logged once, and change nothing.
        """
        while self._tls is not None:
            await asyncio.sleep(_LOOK_SECONDS)
            now = self._tls.stamp()
            if now == self._seen:
                continue
            endpoint = None
            try:
                self._tls.check()
                endpoint = successor(self._endpoints[-1])
                await self._serve(endpoint or self._endpoints[-1])
            except Exception as error:  # of files, or of a library that does not take what Python's own TLS takes
                if endpoint is not None:
                    endpoint.close()
                if self._tls.stamp() == now:
                    self._seen = now
                    _log.warning("certificates", reason=f"{error}: those of before are kept")
                continue
            # When they were replaced meanwhile, the next look sees it.
            self._seen = now
            _log.info("certificates", reason="new files for the gateway's port")
            if endpoint is not None:
                self._endpoints.append(endpoint)
            await asyncio.sleep(_FIRST_REQUEST_SECONDS)
            before, serving = self._servers[0]
            before.stop()  # type: ignore[no-untyped-call]
            await asyncio.wait([serving])
            del self._servers[0]
            if endpoint is not None:
                self._endpoints.pop(0).close()

    async def stop(self) -> None:
        """Accepts nothing more, and returns when what is under way is answered."""
        for server, _ in self._servers:
            server.stop()  # type: ignore[no-untyped-call]
        for endpoint in self._endpoints:
            endpoint.close()  # the library's handle is the last one now, which it closes when it stops
        await asyncio.gather(*[serving for _, serving in self._servers])

    async def _serve(self, endpoint: socket.socket) -> None:
        server = self._made(endpoint)
        self._servers.append((server, await server.start()))

    def _made(self, endpoint: socket.socket) -> EmbeddedHttp:
        settings: dict[str, Any] = {
            "interface": Interfaces.RSGI,
            "http": HTTPModes.http1,
            "websockets": False,
            "backpressure": affordable(_CONNECTIONS, 1),
            "http1_settings": HTTP1Settings(header_read_timeout=_HEADER_MILLISECONDS),
            "log_enabled": False,
        }
        if self._tls is not None:
            settings |= {
                "ssl_cert": self._tls.cert,
                "ssl_key": self._tls.key,
                "ssl_protocol_min": SSLProtocols.tls12,
            }
            if self._tls.client_ca is not None:
                settings |= {"ssl_ca": self._tls.client_ca, "ssl_client_verify": True}
        return EmbeddedHttp(self._bridge, endpoint, BACKLOG, **settings)
