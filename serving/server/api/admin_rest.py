"""The REST form of changing models: PUT and DELETE /v1/models/NAME, and GET /v1/config."""

import json
import re

from google.protobuf import json_format

from bookserve.serving.server.api.admin import Access, Admin
from bookserve.serving.server.api.rest_handlers import RestAnswer, RestCoroutines
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import invalid_argument
from bookserve.serving.wire import tensorflow_serving_pb2 as messages

_KEYS = ("base_path", "version_policy", "version_labels")
_EXAMPLE = '{"base_path": "/models/NAME", "version_policy": {"latest": {"num_versions": 1}}, "version_labels": {}}'


class AdminRest:
    """Answers what changes models, for callers with access. What is begun is seen through."""

    def __init__(self, admin: Admin, access: Access) -> None:
        self._admin = admin
        self._access = access
        self._coroutines = RestCoroutines()

    def config(self, exchange: HttpExchange, _: re.Match[str]) -> None:
        """GET /v1/config: the models as a ModelServerConfig."""

        async def answer() -> RestAnswer:
            self._access.check_http(exchange)
            return RestAnswer(_config_json(await self._admin.config()))

        self._coroutines.start(exchange, answer())

    def add_or_replace(self, exchange: HttpExchange, match: re.Match[str]) -> None:
        """PUT /v1/models/NAME."""

        async def answer() -> RestAnswer:
            self._access.check_http(exchange)
            await self._admin.add_or_replace(_model(_name(match), exchange.body))
            return RestAnswer(b"{}")

        self._coroutines.start(exchange, answer())

    def remove(self, exchange: HttpExchange, match: re.Match[str]) -> None:
        """DELETE /v1/models/NAME."""

        async def answer() -> RestAnswer:
            self._access.check_http(exchange)
            await self._admin.remove(_name(match))
            return RestAnswer(b"{}")

        self._coroutines.start(exchange, answer())


def _name(match: re.Match[str]) -> str:
    return match["name"]


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
