"""The server's two ports alone: real connections to loopback or a UNIX socket, served by a loop in a thread."""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvloop

from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.transport.grpc_call import GrpcCall, Handler, StreamHandler
from bookserve.serving.server.transport.http_exchange import Handler as RestHandler
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.transport.listeners import Api
from bookserve.serving.server.transport.ports import Activity, Ports

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def no_rest(exchange: HttpExchange) -> None:
    exchange.respond(404, b"nothing is here", "text/plain")


class Transport:
    """Runs `Ports` on listening sockets of its own: gRPC on `port`, or on the UNIX socket `path`, REST on `rest_port`.

    A refusal of REST has the message as its body.
    """

    def __init__(
        self,
        handlers: Mapping[bytes, Handler] | None = None,
        streams: Mapping[bytes, StreamHandler] | None = None,
        rest: RestHandler = no_rest,
        *,
        loop_factory: LoopFactory = uvloop.new_event_loop,
        path: str = "",
        host: str = "127.0.0.1",
        **flags: Any,
    ) -> None:
        self.loop = loop_factory()
        self._host = host
        self._sockets = [(Api.GRPC, _listening(path or host)), (Api.REST, _listening(host))]
        self.port = 0 if path else int(self._sockets[0][1].getsockname()[1])
        self.rest_port = int(self._sockets[1][1].getsockname()[1])
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        try:
            self.run(self._open(Flags(**flags), handlers or {}, streams or {}, rest))
        except BaseException:
            self._end()
            raise

    async def _open(
        self,
        flags: Flags,
        handlers: Mapping[bytes, Handler],
        streams: Mapping[bytes, StreamHandler],
        rest: RestHandler,
    ) -> None:
        self.ports = Ports(flags, handlers, streams, rest, str.encode)
        await self.ports.open(self._sockets)
        self._sweeping = self.loop.create_task(self.ports.sweep())
        self._following = self.loop.create_task(self.ports.follow_certificates())

    @property
    def target(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def calls(self) -> set[GrpcCall]:
        """The gRPC calls under way."""
        return self.ports._grpc.calls

    @property
    def idle(self) -> bool:
        """Whether nothing is under way on either port."""
        return self.ports._grpc.idle and self.ports._rest.idle

    @property
    def held(self) -> int:
        """Bytes of requests that have not come in whole."""
        return self.ports._grpc._unfinished._held

    def refused(self, api: Api = Api.GRPC) -> dict[str, int]:
        return dict(self.ports.refused[api])

    def run(self, work: Coroutine[Any, Any, Any], seconds: float = 30.0) -> Any:
        """Runs a coroutine on the loop; answers what it answers."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def on_loop(self, work: Callable[[], Any]) -> None:
        """Runs `work` in the loop's thread; what it raises is raised here."""

        async def run() -> None:
            work()

        self.run(run())

    def drain(self) -> Activity:
        """The first step of a stop: clients are told to go elsewhere."""
        found: list[Activity] = []
        self.on_loop(lambda: found.append(self.ports.drain()))
        return found[0]

    def start_to_finish(self, seconds: float = 10.0) -> "asyncio.Future[None]":
        """The last step of a stop, begun; the future ends with it."""
        return asyncio.run_coroutine_threadsafe(self.ports.finish(seconds), self.loop)  # type: ignore[return-value]

    def close(self) -> None:
        def drop() -> None:
            for call in list(self.calls):
                call.drop()
            for exchange in list(self.ports._rest._waiting):
                exchange.drop()

        self.on_loop(drop)
        self.run(self.ports.finish(2.0))
        self._end()

    def _end(self) -> None:
        async def cancel() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=5) if tasks else None

        self.run(cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        for _, endpoint in self._sockets:
            endpoint.close()


def _listening(where: str) -> socket.socket:
    """On a free port of a host, or on a UNIX socket's path."""
    if where.startswith("/"):
        endpoint = socket.socket(socket.AF_UNIX)
        endpoint.bind(where)
    else:
        endpoint = socket.socket(socket.AF_INET6 if ":" in where else socket.AF_INET)
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        endpoint.bind((where, 0))
    endpoint.setblocking(False)
    endpoint.listen(1024)
    return endpoint


@contextmanager
def serving(
    handlers: Mapping[bytes, Handler],
    streams: Mapping[bytes, StreamHandler] | None = None,
    **options: Any,
) -> Iterator[Transport]:
    """gRPC with `handlers` and `streams`; `options` are Transport's own and flags."""
    transport = Transport(handlers, streams, **options)
    try:
        yield transport
    finally:
        transport.close()


@contextmanager
def serving_rest(handler: RestHandler, **options: Any) -> Iterator[Transport]:
    """REST with `handler`; `options` are Transport's own and flags."""
    transport = Transport(rest=handler, **options)
    try:
        yield transport
    finally:
        transport.close()


def echo(call: GrpcCall, message: bytes) -> None:
    """A gRPC handler that answers what it was asked."""
    call.reply(message)
