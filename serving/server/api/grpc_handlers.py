"""How a gRPC call is answered: at once, from a callback, or by a coroutine beside the event loop's other work."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from bookserve.serving.server.api.admin import Access
from bookserve.serving.server.transport.grpc_call import GrpcCall, Handler
from bookserve.serving.server.types.errors import ServingError, internal, invalid_argument, out_of_memory

log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)


def parse(request_type: type[Request], data: bytes) -> Request:
    """The message in `data`. Raises ServingError (INVALID_ARGUMENT) when it is none of that type."""
    try:
        return request_type.FromString(data)
    except DecodeError:
        raise not_a(request_type) from None


def not_a(request_type: type[Message]) -> ServingError:
    """The answer to bytes that are none of that message."""
    return invalid_argument(f"the message is no {request_type.DESCRIPTOR.full_name}")


def fail(call: GrpcCall, error: ServingError) -> None:
    """Answers a call with an error."""
    call.fail(error.code, error.message)


def answer_with(call: GrpcCall, encode: Callable[[Any], bytes]) -> Callable[[Any], None]:
    """What answers a call, once, with a result that `encode` can write or with an error.

    `encode` may raise ServingError.
    """

    def done(result: Any) -> None:
        if not call.open:
            return
        if isinstance(result, ServingError):
            fail(call, result)
            return
        try:
            answer = encode(result)
        except ServingError as error:
            fail(call, error)
        except MemoryError:
            fail(call, out_of_memory())
        except Exception:
            log.exception("fault while encoding an answer to %s", call.path.decode("utf-8", "replace"))
            fail(call, internal())
        else:
            call.reply(answer)

    return done


def unary(request_type: type[Request], answer: Callable[[Request], Message]) -> Handler:
    """The handler of a method that is answered at once; a ServingError that `answer` raises becomes the status."""

    def handle(call: GrpcCall, data: bytes) -> None:
        try:
            call.reply(answer(parse(request_type, data)).SerializeToString())
        except ServingError as error:
            fail(call, error)

    return handle


def queued(request_type: type[Request], start: Callable[[Request, GrpcCall, Callable[[Any], None]], None]) -> Handler:
    """The handler of a method whose response comes from a callback, as a complete message."""

    def handle(call: GrpcCall, data: bytes) -> None:
        try:
            start(parse(request_type, data), call, answer_with(call, _serialized))
        except ServingError as error:
            fail(call, error)

    return handle


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


class Coroutines:
    """Makes handlers of coroutines. What is begun is seen through, whether the caller is still there or not."""

    def __init__(self, access: Access | None = None) -> None:
        """With `access` callers without it are refused."""
        self._access = access
        self._tasks: set[asyncio.Task[None]] = set()

    def unary(self, request_type: type[Request], answer: Callable[[Request], Coroutine[Any, Any, Message]]) -> Handler:
        """The handler of a method; a ServingError that `answer` raises becomes the status."""

        def handle(call: GrpcCall, data: bytes) -> None:
            task = asyncio.get_running_loop().create_task(self._answer(call, data, request_type, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return handle

    async def _answer(
        self,
        call: GrpcCall,
        data: bytes,
        request_type: type[Request],
        answer: Callable[[Request], Coroutine[Any, Any, Message]],
    ) -> None:
        try:
            if self._access is not None:
                self._access.check_grpc(call)
            call.reply((await answer(parse(request_type, data))).SerializeToString())
        except ServingError as error:
            fail(call, error)
        except Exception:
            log.exception("fault while answering a call of %s", call.path.decode("utf-8", "replace"))
            fail(call, internal())
