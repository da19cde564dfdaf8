"""From granian to the WSGI application: bodies are read on the event loop, the application runs on threads.

A body is read under a size limit and a deadline before a thread is taken, so clients that send slowly cost a coroutine
each and no thread; and the number of requests that run or wait is bounded. What is refused here is a problem document,
as everywhere.
"""

import asyncio
import contextlib
import io
import socket
import sys
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from granian.rsgi import HTTPProtocol, Scope  # type: ignore[attr-defined]

from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.lines import MEDIA_TYPE
from bookserve.serving.gateway.metrics import Metrics
from bookserve.serving.gateway.problems import Problem, too_large
from bookserve.serving.wire.connections import RefusedClients

_log = structlog.get_logger()

# A chunk costs the same whatever its size, so beyond the first ones they must carry something.
_FREE_PIECES = 2048
_PIECE_BYTES = 128  # on average
# A browser reads no answer before it has sent its body, so one that is too large is taken and thrown away up to here.
_DISCARDED_BYTES = 64 << 20
_SEND_SECONDS = 60.0  # that a client may take to read a piece of an answer of many lines
_LOOK_SECONDS = 0.5  # between looks whether the gateway stops, and who must be gone
_AGAIN = {"Retry-After": "1"}

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_Answer = tuple[int, list[tuple[str, str]], bytes]  # status, headers, body


class Bridge:
    """The RSGI application that granian calls, around a WSGI application."""

    def __init__(
        self, app: WsgiApp, limits: Limits, metrics: Metrics, draining: Callable[[], bool] = lambda: False
    ) -> None:
        self._draining = draining
        self._streams = 0
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(limits.concurrent, thread_name_prefix="gateway")
        self._running = 0
        self._refused_clients = RefusedClients()

    async def sweep(self, endpoint: socket.socket) -> None:
        """For ever: ends refused connections of this socket's address whose clients go on sending."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._refused_clients.cut_off([endpoint])

    def close(self) -> None:
        """Ends the threads, after the requests that they are answering."""
        self._threads.shutdown()

    async def __rsgi__(self, scope: Scope, exchange: HTTPProtocol) -> None:
        """Answers one request."""
        self._refused_clients.returned(scope.client)
        try:
            if _has_lines(scope):
                await self._stream(scope, exchange)
                return
            status, headers, body = await self._answer(scope, exchange)
        except Problem as problem:
            status, headers, body = self._refusal(scope, problem)
        except Exception as error:
            _log.error("fault", exc_info=error)
            status, headers, body = self._refusal(scope, Problem(500, "a fault of the gateway: its log says more"))
        # HTTP/1 writes names in lower case as well; HTTP/2 needs it.
        exchange.response_bytes(status, [(name.lower(), value) for name, value in headers], body)

    async def _answer(self, scope: Scope, exchange: HTTPProtocol) -> _Answer:
        body = await self._body(scope, exchange)
        if self._running >= self._limits.concurrent + self._limits.waiting:
            raise Problem(503, "the gateway is full: try again", headers=_AGAIN)
        self._running += 1
        try:
            environ = _environ(scope, body)
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._call, environ)
        finally:
            self._running -= 1

    async def _stream(self, scope: Scope, exchange: HTTPProtocol) -> None:
        """Answers a request of many lines while it arrives; it keeps a thread as long as it lasts."""
        if self._streams >= self._limits.streams:
            raise Problem(503, "the gateway has too many streams (--max-streams): try again", headers=_AGAIN)
        self._streams += 1
        loop = asyncio.get_running_loop()
        environ = _environ(scope, b"")
        del environ["CONTENT_LENGTH"]
        environ["wsgi.input"] = _Incoming(exchange, loop, self._limits.body_seconds, self._draining)
        try:
            await loop.run_in_executor(self._threads, self._send, environ, exchange, loop)
        finally:
            self._streams -= 1

    def _send(self, environ: dict[str, Any], exchange: HTTPProtocol, loop: asyncio.AbstractEventLoop) -> None:
        """Runs the application on this thread, and sends what it gives piece by piece."""
        started: list[tuple[int, list[tuple[str, str]]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            started[:] = [(int(status.split(" ", 1)[0]), headers)]

        pieces = self._app(environ, start_response)
        status, headers = started[0]
        headers = [(name.lower(), value) for name, value in headers]

        async def begin() -> Any:
            return exchange.response_stream(status, headers)

        try:
            transport = asyncio.run_coroutine_threadsafe(begin(), loop).result()
            for piece in pieces:
                if piece:
                    asyncio.run_coroutine_threadsafe(_send_piece(transport, piece), loop).result(_SEND_SECONDS)
        except Exception as error:  # the client went away, mostly; there is nobody to tell
            _log.info("broken off", path=environ["PATH_INFO"][:200], reason=repr(error)[:200])
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()

    async def _body(self, scope: Scope, exchange: HTTPProtocol) -> bytes:
        limit = self._limits.body_bytes
        declared = scope.headers.get("content-length", "0")
        if not declared.isdigit():
            raise Problem(400, "Content-Length is no number")
        if int(declared) > limit:
            if int(declared) <= limit + _DISCARDED_BYTES and "expect" not in scope.headers:
                await self._discard(exchange)
            raise too_large(limit)
        if declared == "0" and "transfer-encoding" not in scope.headers:
            return b""
        pieces, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for piece in exchange:
                    size += len(piece)
                    if size > limit:
                        raise too_large(limit)
                    pieces.append(piece)
                    if len(pieces) > _FREE_PIECES and size < _PIECE_BYTES * len(pieces):
                        raise Problem(400, "the body comes in needlessly small chunks: send it in larger ones")
        except TimeoutError:
            seconds = self._limits.body_seconds
            raise Problem(408, f"the body did not arrive within {seconds:g} s (--body-seconds)") from None
        return b"".join(pieces)

    async def _discard(self, exchange: HTTPProtocol) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.body_seconds):
                async for _ in exchange:
                    pass

    def _call(self, environ: dict[str, Any]) -> _Answer:
        started: list[tuple[int, list[tuple[str, str]]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            started[:] = [(int(status.split(" ", 1)[0]), headers)]

        pieces = self._app(environ, start_response)
        try:
            body = b"".join(pieces)
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        return (*started[0], body)

    def _refusal(self, scope: Scope, problem: Problem) -> _Answer:
        self._refused_clients.add(scope.client)
        request_id = uuid.uuid4().hex
        self._metrics.refused(problem.status)
        _log.info("refused", request_id=request_id, status=problem.status, detail=problem.detail)
        response = problem.response(request_id)
        # The rest of the body is not read, so the connection cannot carry another request.
        return problem.status, [*response.headers.items(), ("Connection", "close")], response.get_data()


class _Incoming:
    """The body of a request that is answered while it arrives, read by the application's thread."""

    def __init__(
        self, exchange: HTTPProtocol, loop: asyncio.AbstractEventLoop, seconds: float, draining: Callable[[], bool]
    ) -> None:
        self._pieces = exchange.__aiter__()
        self._loop = loop
        self._seconds = seconds
        self._draining = draining

    def read(self, size: int = -1) -> bytes:
        """The next bytes as they come, whatever the size; none at the end. Raises Problem 408 and 503."""
        return asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()

    async def _next(self) -> bytes:
        task = asyncio.ensure_future(_piece(self._pieces))
        waited = 0.0
        while not (await asyncio.wait({task}, timeout=_LOOK_SECONDS))[0]:
            waited += _LOOK_SECONDS
            if self._draining() or waited >= self._seconds:
                task.cancel()
            if self._draining():
                raise Problem(503, "the gateway is stopping: send what is left again", headers=_AGAIN)
            if waited >= self._seconds:
                raise Problem(408, f"no line came within {self._seconds:g} s (--body-seconds)")
        return task.result()


async def _piece(pieces: Any) -> bytes:
    try:
        return bytes(await anext(pieces))
    except StopAsyncIteration:
        return b""


async def _send_piece(transport: Any, piece: bytes) -> None:
    await transport.send_bytes(piece)


def _has_lines(scope: Scope) -> bool:
    kind = scope.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == MEDIA_TYPE and scope.method == "POST" and scope.path.endswith(":predict")


def _environ(scope: Scope, body: bytes) -> dict[str, Any]:
    """The WSGI environment (PEP 3333) of a request whose body is read."""
    host, _, port = scope.server.rpartition(":")
    environ = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": scope.path.encode().decode("latin-1"),  # granian has decoded the percent signs
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": host,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": scope.client.rpartition(":")[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in scope.headers.items():
        key = name.upper().replace("-", "_")
        # X_Request_ID must not pass for X-Request-ID, and the body has no transfer encoding any more.
        if "_" not in name and key != "TRANSFER_ENCODING":
            environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
    environ["CONTENT_LENGTH"] = str(len(body))
    return environ
