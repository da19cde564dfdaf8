"""Messages between the processes of one server: calls by name with plain arguments, over a pair of stream sockets.

A message is its length and then, pickled, a number, a name and arguments; the number of a call that wants no answer is
0. Both ends are this program, run by the same user, so unpickling gives nobody what he does not have.
"""

import asyncio
import inspect
import itertools
import logging
import pickle
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire import tensorflow_error_pb2

log = logging.getLogger(__name__)

_LENGTH = struct.Struct("<I")
_ANSWER, _ERROR = "", "!"  # in place of a name


class Channel(asyncio.Protocol):
    """One end. Calls are taken in the order in which the other end made them; coroutines run beside what follows."""

    def __init__(self, handlers: Mapping[str, Callable[..., Any]]) -> None:
        """A handler's value, or that of the awaitable which it returns, is the answer to its call."""
        self.lost = asyncio.Event()  # set when the other end is gone, or this one closed
        self._handlers = handlers
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._transport: asyncio.Transport | None = None

    def tell(self, name: str, *arguments: Any) -> None:
        """Makes a call that wants no answer."""
        self._send(0, name, arguments)

    def ask(self, name: str, *arguments: Any) -> "asyncio.Future[Any]":
        """Makes a call, at once; the future brings the answer, the ServingError that the handler raised, or
        ConnectionError when the other end is gone.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._transport is None:
            future.set_exception(ConnectionResetError())
        else:
            number = next(self._numbers)
            self._asked[number] = future
            self._send(number, name, arguments)
        return future

    async def close(self) -> None:
        """Closes this end, once what has been said is sent."""
        if self._transport is not None:
            self._transport.close()
            await self.lost.wait()

    def _send(self, number: int, name: str, arguments: Any) -> None:
        if self._transport is not None:
            data = pickle.dumps((number, name, arguments), pickle.HIGHEST_PROTOCOL)
            self._transport.write(_LENGTH.pack(len(data)) + data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        for future in self._asked.values():
            if not future.done():
                future.set_exception(ConnectionResetError())
                future.exception()  # whoever asked may be gone
        self._asked.clear()
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        received = self._received
        received += data
        while len(received) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(received)[0]
            if len(received) < end:
                return
            message = pickle.loads(memoryview(received)[_LENGTH.size : end].tobytes())
            del received[:end]
            self._take(*message)

    def _take(self, number: int, name: str, arguments: Any) -> None:
        if name in (_ANSWER, _ERROR):
            future = self._asked.pop(number)
            if future.done():
                return  # nobody waits any more
            if name == _ANSWER:
                future.set_result(arguments)
            else:
                future.set_exception(ServingError(*arguments))
            return
        try:
            value = self._handlers[name](*arguments)
        except Exception as fault:
            self._answer_fault(number, name, fault)
            return
        if inspect.isawaitable(value):
            task = self._loop.create_task(self._answer_later(number, name, value))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        elif number:
            self._send(number, _ANSWER, value)

    async def _answer_later(self, number: int, name: str, value: Awaitable[Any]) -> None:
        try:
            answer = await value
        except Exception as fault:
            self._answer_fault(number, name, fault)
        else:
            if number:
                self._send(number, _ANSWER, answer)

    def _answer_fault(self, number: int, name: str, fault: Exception) -> None:
        if isinstance(fault, ServingError):
            code, text = fault.code, fault.message
        else:
            log.error("fault in the call '%s' of another process", name, exc_info=fault)
            code, text = tensorflow_error_pb2.UNKNOWN, f"{type(fault).__name__}: {fault}"
        if number:
            self._send(number, _ERROR, (int(code), text))
