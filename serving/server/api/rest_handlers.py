"""REST requests whose answers take their time: coroutines beside the event loop's other work."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from bookserve.serving.server.api.rest_errors import fail
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import ServingError
from bookserve.serving.wire import tensorflow_error_pb2

log = logging.getLogger(__name__)


class RestCoroutines:
    """Runs them. What is begun is seen through, whether the caller is still there or not."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, exchange: HttpExchange, work: Coroutine[Any, Any, bytes]) -> None:
        """Answers a request with the JSON that `work` makes, or with the ServingError that it raises."""
        task = asyncio.get_running_loop().create_task(self._answer(exchange, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, exchange: HttpExchange, work: Coroutine[Any, Any, bytes]) -> None:
        try:
            exchange.respond(200, await work)
        except ServingError as error:
            fail(exchange, error)
        except Exception:
            log.exception("fault while answering %s", exchange.path.decode("utf-8", "replace"))
            fail(exchange, ServingError(tensorflow_error_pb2.INTERNAL, "internal error"))
