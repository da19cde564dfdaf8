"""What the Open Inference Protocol's REST API has beyond models and tensors: statistics, and the model repository."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from bookserve.serving.server.api import open_inference
from bookserve.serving.server.api.admin import Access, Admin
from bookserve.serving.server.api.rest_handlers import RestCoroutines
from bookserve.serving.server.models.catalog import Models
from bookserve.serving.server.observability import metrics
from bookserve.serving.server.observability.metrics import Snapshot
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import invalid_argument
from bookserve.serving.wire.json_text import JsonError, parse_object


class OipExtensions:
    """Answers such requests, once `OipRest` has found what they ask for."""

    def __init__(
        self, models: Models, admin: Admin, access: Access, snapshots: Callable[[], Awaitable[list[Snapshot]]]
    ) -> None:
        """`snapshots` are the metrics of all processes."""
        self._models = models
        self._admin = admin
        self._access = access
        self._snapshots = snapshots
        self._coroutines = RestCoroutines()

    def statistics(self, exchange: HttpExchange, name: str, version: str) -> None:
        """What was asked of a version; of every version of the model without one, of every model without a name."""
        self._coroutines.start(exchange, self._statistics(name, version))

    async def _statistics(self, name: str, version: str) -> bytes:
        versions = open_inference.loaded_versions(self._models, name, version)
        return orjson.dumps(
            {"model_stats": open_inference.statistics(versions, metrics.merged(await self._snapshots()))}
        )

    def load_or_unload(self, exchange: HttpExchange, name: str, verb: bytes) -> None:
        """Adds or removes a model, for callers with access."""
        self._coroutines.start(exchange, self._load_or_unload(exchange, name, verb))

    async def _load_or_unload(self, exchange: HttpExchange, name: str, verb: bytes) -> bytes:
        self._access.check_http(exchange)
        open_inference.check_repository_request("", _parameters(exchange.body))
        await (self._admin.load(name) if verb == b"load" else self._admin.remove(name))
        return b"{}"


def _parameters(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        parameters = parse_object(body).get("parameters")
    except JsonError as error:
        raise invalid_argument(str(error)) from error
    if not isinstance(parameters, dict | None):
        raise invalid_argument("the request: 'parameters' must be an object")
    return parameters or {}
