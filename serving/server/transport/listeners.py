"""The listening sockets of both ports: opened, and closed without resetting what a client has already made."""

import enum
import errno
import logging
import socket
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.wire.listening import BACKLOG, bound, drop_new_handshakes

log = logging.getLogger(__name__)

_MAX_PORT = 65535
_ANY = ("", "0.0.0.0", "::")  # addresses that stand for all
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)  # of a machine that is without
_ESTABLISHED, _CONNECTED = "01", "03"  # in /proc/net/tcp and /proc/net/unix


class Api(enum.Enum):
    """What is spoken on a port."""

    GRPC = "grpc"
    REST = "rest"


class Listeners:
    """The sockets, bound when this is made, so that a port that is taken is told before a model is loaded."""

    def __init__(self, flags: Flags, processes: int = 1) -> None:
        """With several `processes` each has TCP sockets of its own, among which the system spreads new connections.

        Raises ServingError where gRPC has no port, for one that no TCP has or that is taken, and for TLS on UNIX.
        """
        for name, port in (("port", flags.port), ("rest_api_port", flags.rest_api_port)):
            if not 0 <= port <= _MAX_PORT:
                raise invalid_argument(f"--{name}={port} is no port: it must be 0 to {_MAX_PORT}")
        if not flags.port and not flags.grpc_socket_path:
            raise invalid_argument(
                "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set."
            )
        if flags.grpc_socket_path and flags.grpc_tls:
            other = "--ssl_config_file" if flags.ssl_config_file else "--ssl_cert_file"
            raise invalid_argument(
                f"--grpc_socket_path={flags.grpc_socket_path} cannot have TLS: leave it or {other} out"
            )
        self.of_process: list[list[tuple[Api, socket.socket]]] = [[] for _ in range(processes)]
        self._flags = flags
        try:
            self._bind()
        except (OSError, ServingError) as error:
            self.close()
            if isinstance(error, ServingError):
                raise
            raise invalid_argument(f"Failed to BuildAndStart gRPC server: {error}") from error

    def _bind(self) -> None:
        flags = self._flags
        if flags.port:
            self._bind_port(Api.GRPC, flags.port)
        if flags.grpc_socket_path:
            self._bind_path(Path(flags.grpc_socket_path))
        if flags.rest_api_port and flags.rest_api_port == flags.port:
            log.error("--rest_api_port cannot be the same as --port: REST is off")
        elif flags.rest_api_port:
            self._bind_port(Api.REST, flags.rest_api_port)

    def _bind_path(self, path: Path) -> None:
        if path.exists() and not path.is_socket():
            raise invalid_argument(f"--grpc_socket_path={path} is there already, and is no socket")
        endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        for sockets in self.of_process:
            sockets.append((Api.GRPC, endpoint))
        endpoint.setblocking(False)
        try:
            path.unlink(missing_ok=True)  # left by a server that was killed
            endpoint.bind(str(path))
        except OSError as error:
            raise OSError(error.errno, f"--grpc_socket_path={path}: {error.strerror or error}") from error

    def _bind_port(self, api: Api, port: int) -> None:
        """On every address that the host's name has; without a name on all of IPv4, and of IPv6 where there is that."""
        host = self._flags.bind_address or None
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise OSError(error.errno, f"--bind_address={host}: {error.strerror}") from error
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                # With TLS, too, so that a `successor` can be bound beside it.
                shared = len(self.of_process) > 1 or (self._flags.grpc_tls if api is Api.GRPC else self._flags.rest_tls)
                if shared:  # with sockets that share theirs, too: without that, a port that is taken is noticed
                    bound(family, kind, protocol, address).close()
                for sockets in self.of_process:
                    sockets.append((api, bound(family, kind, protocol, address, shared=shared)))
            except OSError as error:
                if host is None and family == socket.AF_INET6 and error.errno in _NO_IPV6:
                    continue
                raise OSError(error.errno, f"{host or 'all addresses'}:{port}: {error.strerror}") from error

    def listen(self) -> None:
        """From now on clients may connect."""
        flags = self._flags
        for endpoint in self._all():
            endpoint.listen(BACKLOG)
        if flags.port:
            log.info("Running gRPC ModelServer at %s:%d ...", flags.bind_address or "0.0.0.0", flags.port)
        if flags.grpc_socket_path:
            log.info("Running gRPC ModelServer at unix:%s ...", flags.grpc_socket_path)
        if any(api is Api.REST for api, _ in self.of_process[0]):
            # As TensorFlow Serving writes it, and as log readers expect.
            shown = "localhost" if flags.bind_address in _ANY else flags.bind_address
            log.info("Exporting HTTP/REST API at:%s:%d ...", shown, flags.rest_api_port)

    def refuse_new(self) -> None:
        """Drops new handshakes, where the system can do that (Linux), so that the listeners can be closed.

        The kernel resets what waits to be accepted when a listener closes. A client repeats a handshake that was
        dropped after a second, and is refused then. A UNIX socket is taken away from its path instead.
        """
        self._unlink()
        if sys.platform.startswith("linux"):
            for endpoint in self._all():
                if endpoint.family != socket.AF_UNIX:
                    drop_new_handshakes(endpoint)

    def close(self) -> None:
        """Closes the sockets."""
        if any(endpoint.family == socket.AF_UNIX for endpoint in self._all()):
            self._unlink()
        for endpoint in self._all():
            endpoint.close()

    def _all(self) -> list[socket.socket]:
        return [endpoint for sockets in self.of_process for _, endpoint in sockets]

    def _unlink(self) -> None:
        if self._flags.grpc_socket_path:
            Path(self._flags.grpc_socket_path).unlink(missing_ok=True)


def connections(sockets: list[tuple[Api, socket.socket]]) -> Counter[Api]:
    """How many connections this process has that came in on these sockets, where the system tells it (Linux)."""
    if not sys.platform.startswith("linux"):
        return Counter()
    inodes = set()
    for number in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            link = str(number.readlink())
            if link.startswith("socket:["):
                inodes.add(link[8:-1])
    ports = {f"{endpoint.getsockname()[1]:04X}": api for api, endpoint in sockets if endpoint.family != socket.AF_UNIX}
    paths = {endpoint.getsockname(): api for api, endpoint in sockets if endpoint.family == socket.AF_UNIX}
    found: Counter[Api] = Counter()
    for name in ("tcp", "tcp6"):
        for row in _rows(f"/proc/net/{name}"):
            api = ports.get(row[1].rpartition(":")[2])
            if api is not None and row[3] == _ESTABLISHED and row[9] in inodes:
                found[api] += 1
    if paths:
        for row in _rows("/proc/net/unix"):
            if len(row) > 7 and row[5] == _CONNECTED and row[6] in inodes and row[7] in paths:
                found[paths[row[7]]] += 1
    return found


def _rows(name: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(name).read_text().splitlines()[1:]]
    except OSError:
        return []
