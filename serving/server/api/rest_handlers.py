"""How a REST request is answered: with an error, or later, from a callback or a coroutine beside the loop's work."""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import HTTP_STATUS, ServingError, internal, invalid_argument, out_of_memory
from bookserve.serving.wire import tensorflow_error_pb2
from bookserve.serving.wire.json_text import JsonError

log = logging.getLogger(__name__)

_MANY_VALUES = 1 << 14  # which take the event loop some milliseconds
_WRITERS = ThreadPoolExecutor(2, thread_name_prefix="answers")


class RestAnswer(NamedTuple):
    """The answer to a request that succeeded."""

    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


def error_body(message: str) -> bytes:
    """The body of every error: TensorFlow Serving's JSON object with the one key `error`."""
    return b'{\n    "error": ' + json.dumps(message).encode() + b"\n}"


def fail(exchange: HttpExchange, error: ServingError) -> None:
    """Answers a request with an error."""
    if exchange.record is not None:
        exchange.record.error = error
    headers = (("retry-after", "1"),) if error.code == tensorflow_error_pb2.RESOURCE_EXHAUSTED else ()
    exchange.respond(HTTP_STATUS[error.code], error_body(error.message), headers=headers)


def answer_with(
    exchange: HttpExchange, encode: Callable[[Any], RestAnswer], values: Callable[[Any], int] = lambda result: 0
) -> Callable[[Any], None]:
    """What answers a request, once, with a result that `encode` can write or with an error.

    `encode` may raise ServingError, and JsonError for what JSON cannot carry. `values` tells how many numbers it will
    write: many are written by a thread, as the event loop would answer nobody meanwhile.
    """

    def done(result: Any) -> None:
        if not exchange.open:
            return
        if isinstance(result, ServingError):
            fail(exchange, result)
        elif values(result) > _MANY_VALUES:
            writing = asyncio.get_running_loop().run_in_executor(_WRITERS, encode, result)
            writing.add_done_callback(lambda written: finish(written.result))
        else:
            finish(lambda: encode(result))

    def finish(outcome: Callable[[], RestAnswer]) -> None:
        try:
            exchange.respond(200, *outcome())
        except JsonError as error:
            fail(exchange, invalid_argument(str(error)))
        except ServingError as error:
            fail(exchange, error)
        except MemoryError:
            fail(exchange, out_of_memory())
        except Exception:
            log.exception("fault while encoding an answer to %s", exchange.path)
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
            log.exception("fault while answering %s", exchange.path)
            fail(exchange, internal())
