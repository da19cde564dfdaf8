"""How a REST request is answered later: from a callback, or by a coroutine beside the event loop's other work."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

from bookserve.serving.server.api.rest_errors import fail
from bookserve.serving.server.transport.http1 import HttpExchange
from bookserve.serving.server.types.errors import ServingError, internal, invalid_argument
from bookserve.serving.wire.json_text import JsonError

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class RestAnswer(NamedTuple):
    """The answer to a request that succeeded."""

    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


def answer_with(
    exchange: HttpExchange, encode: Callable[[Result], RestAnswer]
) -> Callable[[Result | ServingError], None]:
    """What answers a request, once, with a result that `encode` can write or with an error.

    `encode` may raise ServingError, and JsonError for what JSON cannot carry.
    """

    def done(result: Result | ServingError) -> None:
        if not exchange.open:
            return
        if isinstance(result, ServingError):
            fail(exchange, result)
            return
        try:
            exchange.respond(200, *encode(result))
        except JsonError as error:
            fail(exchange, invalid_argument(str(error)))
        except ServingError as error:
            fail(exchange, error)
        except Exception:
            log.exception("fault while encoding an answer to %s", exchange.path.decode("utf-8", "replace"))
            fail(exchange, internal())

    return done


class RestCoroutines:
    """Runs them. What is begun is seen through, whether the caller is still there or not."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, exchange: HttpExchange, work: Coroutine[Any, Any, RestAnswer]) -> None:
        """Answers a request with what `work` makes, or with the ServingError that it raises."""
        task = asyncio.get_running_loop().create_task(self._answer(exchange, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, exchange: HttpExchange, work: Coroutine[Any, Any, RestAnswer]) -> None:
        try:
            exchange.respond(200, *await work)
        except ServingError as error:
            fail(exchange, error)
        except Exception:
            log.exception("fault while answering %s", exchange.path.decode("utf-8", "replace"))
            fail(exchange, internal())
