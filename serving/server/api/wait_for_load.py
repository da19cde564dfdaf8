"""Requests that wait for the version they need: with --lazy_loading a handler may raise LoadPending."""

import logging
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from bookserve.serving.server.batching.batcher import Owner
from bookserve.serving.server.models.manager import LoadPending
from bookserve.serving.server.types.errors import ServingError, internal

log = logging.getLogger(__name__)

Asker = TypeVar("Asker", bound=Owner)
More = TypeVarTuple("More")


def when_loaded(
    handler: Callable[[Asker, *More], None], fail: Callable[[Asker, ServingError], None]
) -> Callable[[Asker, *More], None]:
    """The handler, called again once what it waits for is loaded, if its client still waits.

    `fail` answers a fault of that second call.
    """

    def handle(asker: Asker, *more: *More) -> None:
        try:
            handler(asker, *more)
        except LoadPending as pending:
            pending.waiters.append(lambda: again(asker, *more))

    def again(asker: Asker, *more: *More) -> None:
        if not asker.open:
            return
        try:
            handle(asker, *more)
        except Exception:
            log.exception("fault while handling a request that waited for its model")
            fail(asker, internal())

    return handle
