"""Handlers of gRPC methods that take their time: coroutines beside the event loop's other work."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from google.protobuf.message import Message

from bookserve.serving.server.api.admin import Access
from bookserve.serving.server.api.tensorflow_grpc import parse
from bookserve.serving.server.transport.grpc_call import GrpcCall, Handler
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire import tensorflow_error_pb2

log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)


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
                self._access.check(call.peer, call.authorization)
            call.reply((await answer(parse(request_type, data))).SerializeToString())
        except ServingError as error:
            call.fail(error.code, error.message)
        except Exception:
            log.exception("fault while answering a call of %s", call.path.decode("utf-8", "replace"))
            call.fail(tensorflow_error_pb2.INTERNAL, "internal error")
