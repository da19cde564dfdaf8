"""The REST form of changing models: PUT and DELETE /v1/models/NAME, and GET /v1/config."""

import json
import re

from google.protobuf import json_format

from bookserve.serving.server.api.admin import Access, Admin
from bookserve.serving.server.api.rest_handlers import RestCoroutines
from bookserve.serving.server.transport.http_exchange import Handler, HttpExchange
from bookserve.serving.server.types.errors import invalid_argument
from bookserve.serving.wire import tensorflow_serving_pb2 as messages

_MODEL = re.compile(rb"/v1/models/([^/:]+)", re.IGNORECASE)
_CONFIG = re.compile(rb"/v1/config", re.IGNORECASE)
_KEYS = ("base_path", "version_policy", "version_labels")
_EXAMPLE = '{"base_path": "/models/mnist", "version_policy": {"latest": {"num_versions": 1}}, "version_labels": {}}'


class AdminApi:
    """Answers what changes models, for callers with access, and leaves every other request to `next_handler`."""

    def __init__(self, admin: Admin, access: Access, next_handler: Handler) -> None:
        self._admin = admin
        self._access = access
        self._next = next_handler
        self._coroutines = RestCoroutines()

    def handle(self, exchange: HttpExchange) -> None:
        """Answers one request, now or later."""
        method, path = exchange.method, exchange.path
        if (method in (b"PUT", b"DELETE") and _MODEL.fullmatch(path)) or (method == b"GET" and _CONFIG.fullmatch(path)):
            self._coroutines.start(exchange, self._answer(exchange))
        else:
            self._next(exchange)

    async def _answer(self, exchange: HttpExchange) -> bytes:
        self._access.check_http(exchange)
        match = _MODEL.fullmatch(exchange.path)
        if match is None:
            return _config_json(await self._admin.config())
        name = match[1].decode("utf-8", "replace")
        if exchange.method == b"DELETE":
            await self._admin.remove(name)
        else:
            await self._admin.add_or_replace(_model(name, exchange.body))
        return b"{}"


def _model(name: str, body: bytes) -> messages.ModelConfig:
    """The ModelConfig of a PUT. Raises ServingError (INVALID_ARGUMENT)."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid_argument(f"JSON Parse error: {error}. A body that works: {_EXAMPLE}") from error
    if not isinstance(content, dict) or not isinstance(content.get("base_path"), str):
        raise invalid_argument(f"the body must be a JSON object with a 'base_path'. A body that works: {_EXAMPLE}")
    unknown = sorted(content.keys() - set(_KEYS))
    if unknown:
        raise invalid_argument(f"unknown key {unknown[0]!r}: those known are {', '.join(_KEYS)}")
    fields = {"model_version_policy" if key == "version_policy" else key: value for key, value in content.items()}
    try:
        return json_format.ParseDict(fields | {"name": name, "model_platform": "tensorflow"}, messages.ModelConfig())
    except json_format.ParseError as error:
        raise invalid_argument(f"{error}. A body that works: {_EXAMPLE}") from error


def _config_json(config: messages.ModelServerConfig) -> bytes:
    return json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True), indent=1).encode()
