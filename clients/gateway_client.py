"""Asks the gateway, whose domain API takes pictures, molecules, texts, boards and numbers, and tensors of any model.

Blocking (`GatewayClient`) and asyncio (`AsyncGatewayClient`), with the methods of `gateway_methods`.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from bookserve.clients import errors
from bookserve.clients.async_exchange import AsyncServer
from bookserve.clients.gateway_methods import DEFAULT_TIMEOUT, GatewayMethods, Request, json_body, query
from bookserve.clients.http_exchange import Answer, Server
from bookserve.clients.retries import AGAIN, Retry

DEFAULT_URL = "http://127.0.0.1:8080"
_LINES, _LINES_BYTES = 256, 128 << 10  # of a request: what is sent fits into buffers, so that nobody waits to be read
_MODELS = Request("GET", "/api/v1/models")


class GatewayClient(GatewayMethods[dict[str, Any]]):
    """The blocking client; it keeps no connection and may be shared by threads.

    Methods raise a `PredictError` whose message is the gateway's own: InvalidArgument names the faulty field, NotFound
    an unknown model, version or label, Unavailable says who does not answer. ValueError for a `url` that is none. `key`
    is an API key, `retry` says whether a request that nobody answered is made again.
    """

    def __init__(self, url: str = DEFAULT_URL, *, key: str = "", retry: Retry = AGAIN) -> None:
        self._server = Server.at(url)
        self._key = key
        self._retry = retry

    def models(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[dict[str, Any]]:
        """Every model that the gateway knows, with its version and whether it can answer."""
        models: list[dict[str, Any]] = self._ask(_MODELS, timeout)["models"]
        return models

    def lines(
        self,
        model: str,
        bodies: Iterable[Mapping[str, Any]],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Iterator[dict[str, Any]]:
        """The answer to each of many JSON bodies in turn, such as {"x": 1.5}: {"line", "version", "predictions"}, or
        {"line", "problem"} for one that is refused. `line` counts from 1.

        `bodies` may be of any length: so many as fit into a request are in memory. `timeout` is that of a request.
        """
        part = _Part(model, version, label)
        for body in bodies:
            if part.is_full_with(line := json_body(body) + b"\n"):
                yield from part.answers(self._exchange(part.take(), timeout))
            part.add(line)
        if part.holds_any:
            yield from part.answers(self._exchange(part.take(), timeout))

    def _ask(self, request: Request, timeout: float) -> dict[str, Any]:
        return _document(self._exchange(request, timeout))

    def _exchange(self, request: Request, timeout: float) -> Answer:
        def ask(seconds: float) -> Answer:
            return _good(self._server.exchange(**vars(request), key=self._key, timeout=seconds))

        return self._retry.call(ask, timeout)


class AsyncGatewayClient(GatewayMethods[Awaitable[dict[str, Any]]]):
    """The asyncio client: the same methods and errors as `GatewayClient`, to be awaited. It keeps its connections.

    Make it inside a running event loop. Use it as an asynchronous context manager, or await `close`. ImportError
    without httpx2.
    """

    def __init__(self, url: str = DEFAULT_URL, *, key: str = "", retry: Retry = AGAIN) -> None:
        self._server = AsyncServer(url)
        self._key = key
        self._retry = retry

    async def models(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[dict[str, Any]]:
        """As `GatewayClient.models`."""
        models: list[dict[str, Any]] = (await self._ask(_MODELS, timeout))["models"]
        return models

    async def lines(
        self,
        model: str,
        bodies: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AsyncIterator[dict[str, Any]]:
        """As `GatewayClient.lines`, to be read by `async for`; `bodies` may be asynchronous, too."""
        part = _Part(model, version, label)
        async for body in _each(bodies):
            if part.is_full_with(line := json_body(body) + b"\n"):
                for answer in part.answers(await self._exchange(part.take(), timeout)):
                    yield answer
            part.add(line)
        if part.holds_any:
            for answer in part.answers(await self._exchange(part.take(), timeout)):
                yield answer

    async def close(self) -> None:
        """Closes the connections."""
        await self._server.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, request: Request, timeout: float) -> dict[str, Any]:
        return _document(await self._exchange(request, timeout))

    async def _exchange(self, request: Request, timeout: float) -> Answer:
        async def ask(seconds: float) -> Answer:
            return _good(await self._server.exchange(**vars(request), key=self._key, timeout=seconds))

        return await self._retry.call_async(ask, timeout)


class _Part:
    """The lines that go into one request, and where they stand among all."""

    def __init__(self, model: str, version: int | None, label: str | None) -> None:
        self._path = f"/api/v1/models/{quote(model, safe='')}:predict{query(version, label)}"
        self._lines: list[bytes] = []
        self._size = 0
        self._before = 0

    @property
    def holds_any(self) -> bool:
        return bool(self._lines)

    def is_full_with(self, line: bytes) -> bool:
        return self.holds_any and (len(self._lines) >= _LINES or self._size + len(line) > _LINES_BYTES)

    def add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)

    def take(self) -> Request:
        """The request; the lines after it are of the next one."""
        body = b"".join(self._lines)
        self._taken, self._lines, self._size = len(self._lines), [], 0
        return Request("POST", self._path, body, "application/x-ndjson")

    def answers(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """The answers to the lines of the request taken last. Raises BadAnswer for what is not NDJSON."""
        try:
            found = [json.loads(line) for line in answer.body.splitlines()]
        except ValueError as error:
            raise errors.BadAnswer("the server answered something other than NDJSON: is this the gateway?") from error
        before, self._before = self._before, self._before + self._taken
        for one in found:
            yield {**one, "line": before + one["line"]}


async def _each(
    bodies: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
) -> AsyncIterator[Mapping[str, Any]]:
    if isinstance(bodies, AsyncIterable):
        async for body in bodies:
            yield body
    else:
        for body in bodies:
            yield body


def _good(answer: Answer) -> Answer:
    """The answer, if its status is 200. Raises what its problem document says."""
    if answer.status == 200:
        return answer
    content = _json(answer)
    if content is None:
        text = f"the server answered {answer.status}: is this the gateway?"
    else:
        text = str(content.get("detail") or content.get("title") or answer.status)
    raise errors.from_http(answer.status, text, answer.retry_after)


def _document(answer: Answer) -> dict[str, Any]:
    content = _json(answer)
    if content is None:
        raise errors.BadAnswer("the server answered something other than JSON: is this the gateway?")
    return content


def _json(answer: Answer) -> dict[str, Any] | None:
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
