"""What the Open Inference Protocol's REST API has beyond models and tensors: statistics, and the model repository."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from bookserve.serving.server.api import open_inference
from bookserve.serving.server.api.admin import Access, Admin
from bookserve.serving.server.api.open_inference_rest import model_and_version
from bookserve.serving.server.api.rest_handlers import RestAnswer, RestCoroutines
from bookserve.serving.server.models.catalog import Catalog
from bookserve.serving.server.observability import metrics
from bookserve.serving.server.observability.metrics import Snapshot
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import invalid_argument
from bookserve.serving.wire.json_text import JsonError, parse_object


class OpenInferenceRepository:
    """Answers such requests. Models are changed for callers with access, and what is begun is seen through."""

    def __init__(
        self, catalog: Catalog, admin: Admin, access: Access, snapshots: Callable[[], Awaitable[list[Snapshot]]]
    ) -> None:
        """`snapshots` are the metrics of all processes."""
        self._catalog = catalog
        self._admin = admin
        self._access = access
        self._snapshots = snapshots
        self._coroutines = RestCoroutines()

    def all_statistics(self, exchange: HttpExchange, _: re.Match[str]) -> None:
        """What was asked of every version of every model."""
        self._coroutines.start(exchange, self._statistics("", ""))

    def statistics(self, exchange: HttpExchange, match: re.Match[str]) -> None:
        """What was asked of a version; of every version of the model without one."""
        self._coroutines.start(exchange, self._statistics(*model_and_version(exchange, match)))

    async def _statistics(self, name: str, version: str) -> RestAnswer:
        versions = open_inference.loaded_versions(self._catalog, name, version)
        counts = metrics.merged(await self._snapshots())
        return RestAnswer(orjson.dumps({"model_stats": open_inference.statistics(versions, counts)}))

    def load(self, exchange: HttpExchange, match: re.Match[str]) -> None:
        """Adds a model, or tries it again."""
        self._coroutines.start(exchange, self._change(exchange, match, self._admin.load))

    def unload(self, exchange: HttpExchange, match: re.Match[str]) -> None:
        """Removes a model."""
        self._coroutines.start(exchange, self._change(exchange, match, self._admin.remove))

    async def _change(
        self, exchange: HttpExchange, match: re.Match[str], change: Callable[[str], Awaitable[None]]
    ) -> RestAnswer:
        self._access.check_http(exchange)
        open_inference.check_repository_request("", _parameters(exchange.body))
        await change(match["name"])
        return RestAnswer(b"{}")


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
