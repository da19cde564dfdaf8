"""The two ports of one process: library servers in front of the applications of gRPC and REST.

gRPC is served by h2corn (HTTP/2, and trailers, which gRPC needs), REST by granian (HTTP/1.0 and HTTP/1.1, limits of
time that a dripping client cannot stretch): see docs/adr/0001-transport.md. Nothing outside this folder names them.
"""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import h2corn
import h2corn._lib as h2corn_native
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings

from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.transport import lingering, tls
from bookserve.serving.server.transport.grpc_call import GrpcApplication, Handler, StreamHandler
from bookserve.serving.server.transport.http_exchange import Handler as RestHandler
from bookserve.serving.server.transport.http_exchange import RestApplication
from bookserve.serving.server.transport.limits import Limits, UnfinishedBytes, grpc_limits, rest_limits
from bookserve.serving.server.transport.listeners import Api, connections
from bookserve.serving.wire.connections import affordable
from bookserve.serving.wire.embedded_http import EmbeddedHttp
from bookserve.serving.wire.listening import BACKLOG, successor

log = logging.getLogger(__name__)

DRAIN_STEP_SECONDS = 0.02
_FRAME_BYTES = 1 << 20
# What the library reads of a REST connection at a time, beside the headers: 128 such pieces hold up the others.
_BUFFER_BYTES = 48 << 10
# How much larger than what a call may have the library's own limit is: beyond that the connection is ended, not a call.
_HEADER_MARGIN = 1 << 20
# How much later than the application the library ends a call in which nothing comes: with a reset, without a status.
_SILENCE_MARGIN_SECONDS = 1.0

_AGAIN_SECONDS = 1.0  # after the library has given up
# How long a client may take to close its connection when it has been told to go elsewhere.
_LINGER_SECONDS = 1.0
# Between looks at the files of TLS; until what has connected to a socket is accepted; and until its handshake is done.
_LOOK_SECONDS = 1.0
_ACCEPT_SECONDS = 0.05
_HANDSHAKE_SECONDS = 1.0

# The library has no setting for its banner, which would stand in the server's log.
h2corn_native.emit_banner = lambda config, tls: None


@dataclass(frozen=True)
class Activity:
    """What happens on all connections of a process, or of several."""

    requests: int  # that have come in
    idle: bool  # whether none is under way

    def __add__(self, other: "Activity") -> "Activity":
        return Activity(self.requests + other.requests, self.idle and other.idle)


class Ports:
    """Both ports. `handlers` and `streams` answer gRPC calls, `rest` the REST requests."""

    def __init__(
        self,
        flags: Flags,
        handlers: Mapping[bytes, Handler],
        streams: Mapping[bytes, StreamHandler],
        rest: RestHandler,
        error_body: Callable[[str], bytes],
    ) -> None:
        """`error_body` makes the body of a REST answer from the transport's own message.

        Raises ServingError (INVALID_ARGUMENT) for TLS files that cannot be used.
        """
        self._flags = flags
        self._loop = asyncio.get_running_loop()
        self._grpc_limits, warnings = grpc_limits(flags)
        for warning in warnings:
            log.warning("%s", warning)
        self._rest_limits = rest_limits(flags)
        unfinished = UnfinishedBytes(flags.max_buffered_bytes)
        self._grpc = GrpcApplication(handlers, streams, self._grpc_limits, unfinished)
        self._rest = RestApplication(rest, error_body, self._rest_limits, unfinished)
        self._stream_paths = sorted(path.decode() for path in streams)
        self._tls = {}
        for api, config_file in ((Api.GRPC, flags.ssl_config_file), (Api.REST, flags.rest_ssl_config_file)):
            if (source := tls.source(flags, config_file)) is not None:
                self._tls[api] = tls.Followed(source)
        self._draining = False
        self._servers: list[_GrpcServer | _RestServer] = []
        self._sockets: list[tuple[Api, socket.socket]] = []

    @property
    def refused(self) -> dict[Api, Counter[str]]:
        """What the transport has refused by itself, by reason."""
        return {Api.GRPC: self._grpc.refused, Api.REST: self._rest.refused}

    async def open(self, sockets: list[tuple[Api, socket.socket]]) -> None:
        """Serves the connections of these listening sockets, which stay the caller's, in its list.

        There others may take their place: see `follow_certificates`.
        """
        self._sockets = sockets
        self._limit_connections()
        for api in Api:
            await self._open(api, self._endpoints(api))

    def _limit_connections(self) -> None:
        wanted = self._flags.max_connections
        # The library of gRPC has one limit for all its sockets, that of REST one for each.
        ports = len(self._endpoints(Api.REST)) + bool(self._endpoints(Api.GRPC))
        allowed = affordable(wanted, ports)
        if allowed < wanted:
            log.warning(
                "--max_connections=%d is more than the system's limit of open files allows (`ulimit -n`): %d for each"
                " port",
                wanted,
                allowed,
            )
            self._grpc_limits = replace(self._grpc_limits, connections=allowed)
            self._rest_limits = replace(self._rest_limits, connections=allowed)

    async def _open(self, api: Api, endpoints: list[socket.socket]) -> None:
        """Serves new connections of one port with its identity of now."""
        identity = self._tls[api].identity if api in self._tls else None
        servers: list[_GrpcServer | _RestServer]
        if api is Api.GRPC:
            seconds = self._flags.drain_seconds
            servers = [_GrpcServer(self._grpc, endpoints, self._grpc_limits, identity, self._stream_paths, seconds)]
        else:
            servers = [_RestServer(self._rest, endpoint, self._rest_limits, identity) for endpoint in endpoints]
        for server in servers:
            await server.start()
            self._servers.append(server)

    def connections(self) -> Counter[Api]:
        """How many connections this process has, by what is spoken on them."""
        return connections(self._sockets)

    async def sweep(self) -> None:
        """For ever: time-outs of requests, and the end of connections that were refused."""
        await self._rest.sweep(lambda: self._endpoints(Api.REST))

    async def follow_certificates(self) -> None:
        """For ever: when the files of TLS change, new connections get what they say, without a restart.

        The libraries read an identity once, so new servers of theirs take over. Those of before answer what is under
        way, and tell their clients to connect again: gRPC at once, REST with its next answer.
        """
        while self._tls:
            await asyncio.sleep(_LOOK_SECONDS)
            changed = [api for api, followed in self._tls.items() if followed.renewed()]
            await asyncio.gather(*[self._renew(api) for api in changed])

    async def _renew(self, api: Api) -> None:
        old, endpoints = self._of(api), self._endpoints(api)
        # Among several processes the system spreads new connections, so none of them can take all.
        fresh = [None if self._flags.processes > 1 else successor(endpoint) for endpoint in endpoints]
        await asyncio.sleep(_ACCEPT_SECONDS)
        # Those of before: on the new sockets none has been accepted yet.
        connections = lingering.kept(endpoints) if api is Api.GRPC else []
        try:
            await self._open(api, [new or endpoint for endpoint, new in zip(endpoints, fresh, strict=True)])
        except Exception as error:  # of a library that does not take what Python's own TLS takes
            log.error("the certificates of before are kept: %s cannot be used: %s", self._tls[api], error)
            for handle in [*connections, *filter(None, fresh)]:
                handle.close()
            return
        log.info("new certificates for %s, from %s", api.name, self._tls[api])
        retired = []
        for endpoint, new in zip(endpoints, fresh, strict=True):
            if new is not None:
                self._sockets[self._sockets.index((api, endpoint))] = api, new
                retired.append(endpoint)
        try:
            if api is Api.REST:
                self._rest.draining = True
            await asyncio.sleep(_HANDSHAKE_SECONDS)
            self._rest.draining = self._draining
            await self._stop(old, connections)
        finally:
            for handle in [*connections, *retired]:
                handle.close()
        self._servers = [server for server in self._servers if server not in old]

    def _of(self, api: Api) -> "list[_GrpcServer | _RestServer]":
        return [server for server in self._servers if server.api is api]

    def _endpoints(self, api: Api) -> list[socket.socket]:
        return [endpoint for other, endpoint in self._sockets if other is api]

    async def _stop(self, servers: "list[_GrpcServer | _RestServer]", connections: list[socket.socket]) -> None:
        """Returns when what these servers have under way is answered; the connections stay until clients close them."""
        await asyncio.gather(*[server.stop() for server in servers])
        await lingering.close(connections, _LINGER_SECONDS)

    def drain(self) -> Activity:
        """From now on clients of REST are told to go elsewhere; tells what happens."""
        self._draining = self._rest.draining = True
        return Activity(self._grpc.started + self._rest.started, self._grpc.idle and self._rest.idle)

    async def finish(self, seconds: float) -> None:
        """Accepts nothing more, and returns when what is under way is answered, or dropped after so many seconds.

        gRPC clients are told to go elsewhere at once. REST connections are closed once nothing has been asked for
        --drain_quiet_seconds: until then every answer closes its own.
        """
        end = self._loop.time() + seconds
        stopping = [asyncio.ensure_future(self._stop(self._of(Api.GRPC), lingering.kept(self._endpoints(Api.GRPC))))]
        await asyncio.sleep(0)  # clients are told to go elsewhere first, or they would call again here
        self._grpc.end_streams()
        await self._until_rest_is_quiet(end)
        stopping.append(asyncio.ensure_future(self._stop(self._of(Api.REST), [])))
        _, late = await asyncio.wait(stopping, timeout=max(0.0, end - self._loop.time()))
        if late:
            log.warning("connections are dropped after --drain_seconds=%g", self._flags.drain_seconds)

    async def _until_rest_is_quiet(self, end: float) -> None:
        quiet_since, requests = self._loop.time(), -1
        while self._loop.time() < min(end, quiet_since + self._flags.drain_quiet_seconds):
            if self._rest.started != requests or not self._rest.idle:
                requests, quiet_since = self._rest.started, self._loop.time()
            await asyncio.sleep(DRAIN_STEP_SECONDS)


class _GrpcServer:
    """h2corn over the listening sockets of gRPC."""

    api = Api.GRPC

    def __init__(
        self,
        application: GrpcApplication,
        sockets: list[socket.socket],
        limits: Limits,
        identity: tls.Identity | None,
        stream_paths: list[str],
        drain_seconds: float,
    ) -> None:
        self._application = application
        self._identity = identity
        self._stopping = False
        stall = limits.stalled_seconds
        policies = [_policy(path, 0.0, stall) for path in stream_paths]
        policies.append(_policy("/*", limits.request_seconds + _SILENCE_MARGIN_SECONDS, stall))
        self._settings: dict[str, Any] = {
            "bind": tuple(f"fd://{endpoint.fileno()}" for endpoint in sockets),
            "grpc": True,
            "http1": False,
            "access_log": False,
            "lifespan": "off",
            "date_header": False,
            "request_policies": tuple(policies),
            "limit_connections": limits.connections,
            "max_concurrent_streams": limits.streams,
            "limit_request_fields": 0,
            "h2_max_header_list_size": limits.header_bytes + _HEADER_MARGIN,
            "h2_max_header_block_size": limits.header_bytes + _HEADER_MARGIN,
            "h2_max_inbound_frame_size": _FRAME_BYTES,
            "timeout_handshake": limits.handshake_seconds,
            "timeout_keep_alive": limits.idle_seconds,
            "timeout_request_header": limits.request_seconds,
            "h2_timeout_response_stall": stall,
            "h2_timeout_write": stall,
            "timeout_graceful_shutdown": drain_seconds,
        }

    async def start(self) -> None:
        await self._begin()
        self._kept = asyncio.create_task(self._keep())

    async def _begin(self) -> None:
        with ExitStack() as stack:
            if self._identity is not None:
                files = stack.enter_context(self._identity.files())
                self._settings |= {"certfile": files.certificates, "keyfile": files.key}
                if self._identity.authorities:
                    self._settings |= {"ca_certs": files.authorities, "cert_reqs": "required"}
            self._server = h2corn.Server(cast(Any, self._application), h2corn.Config(**self._settings))
            self._serving = asyncio.create_task(self._server.serve())
            await self._server.wait_started()

    async def _keep(self) -> None:
        """Begins again where the library gives up because the system refuses it a connection; until `stop`."""
        while not self._stopping:
            try:
                await self._serving
            except OSError as error:
                log.error("gRPC takes no connections for %g s: %s", _AGAIN_SECONDS, error)
                await asyncio.sleep(_AGAIN_SECONDS)
                if not self._stopping:
                    with suppress(OSError):
                        await self._begin()
            else:
                return

    async def stop(self) -> None:
        self._stopping = True
        self._server.shutdown()
        await self._kept


def _policy(path: str, idle_seconds: float, stalled_seconds: float) -> h2corn.RequestPolicy:
    """How long a client may be silent within a request, and not read an answer; sizes are the application's affair."""
    return h2corn.RequestPolicy(
        path=path,
        max_request_body_size=0,
        timeout_request_body_idle=idle_seconds,
        h2_timeout_response_stall=stalled_seconds,
    )


class _RestServer:
    """granian over one listening socket of REST."""

    api = Api.REST

    def __init__(
        self, application: RestApplication, endpoint: socket.socket, limits: Limits, identity: tls.Identity | None
    ) -> None:
        self._application = application
        self._endpoint = endpoint
        self._identity = identity
        # The library has one limit for the headers of a request and for the wait for the next one.
        seconds = min(limits.request_seconds, limits.idle_seconds)
        self._settings: dict[str, Any] = {
            "interface": Interfaces.RSGI,
            "http": HTTPModes.http1,
            "websockets": False,
            "backpressure": limits.connections,
            "http1_settings": HTTP1Settings(
                header_read_timeout=round(seconds * 1000), max_buffer_size=limits.header_bytes + _BUFFER_BYTES
            ),
            "log_enabled": False,
        }

    async def start(self) -> None:
        with ExitStack() as stack:
            if self._identity is not None:
                files = stack.enter_context(self._identity.files())
                self._settings |= {
                    "ssl_cert": files.certificates,
                    "ssl_key": files.key,
                    "ssl_protocol_min": SSLProtocols.tls12,
                }
                if self._identity.authorities:
                    self._settings |= {"ssl_ca": files.authorities, "ssl_client_verify": True}
            self._server = EmbeddedHttp(self._application, self._endpoint, BACKLOG, **self._settings)
            self._serving = await self._server.start()

    async def stop(self) -> None:
        self._server.stop()  # type: ignore[no-untyped-call]
        await self._serving
