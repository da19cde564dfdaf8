"""The REST port: one table of its addresses, and how a request finds its handler.

A HEAD request is handled as a GET; the transport leaves the body out. Under /v1 a request that no address takes is
answered as TensorFlow Serving answers it, elsewhere with 404 or, where the address takes other methods, with 405.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from bookserve.serving.server.api.admin import Access, Admin
from bookserve.serving.server.api.admin_rest import AdminRest
from bookserve.serving.server.api.open_inference_repository import OpenInferenceRepository
from bookserve.serving.server.api.open_inference_rest import OpenInferenceRest
from bookserve.serving.server.api.rest_handlers import RestAnswer, RestCoroutines, error_body, fail
from bookserve.serving.server.api.tensorflow_rest import BareError, TensorFlowRest
from bookserve.serving.server.models.catalog import Catalog
from bookserve.serving.server.observability import metrics
from bookserve.serving.server.observability.metrics import Snapshot
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import (
    HTTP_STATUS,
    ServingError,
    invalid_argument,
    not_found,
    unimplemented,
)

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT")
# Under /v1 letters of both cases are the same, but in the verb.
_V1_VERSION = r"(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
_V1_NAME = r"(?i:/v1/models/(?P<name>[^/:]+))"
_V1_MODEL = rf"(?i:/v1/models/(?P<name>[^/:]+){_V1_VERSION})"
_V1_NAMELESS = rf"(?i:/v1/models{_V1_VERSION}(?:/metadata)?)"
_V2_MODEL = r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?"
_CORS = [
    ("access-control-allow-origin", "*"),
    ("access-control-allow-methods", "POST, GET"),
    ("access-control-allow-headers", "Content-Type"),
]


class Route(NamedTuple):
    """One address."""

    method: str
    pattern: str  # that the whole path matches
    handle: Callable[[HttpExchange, re.Match[str]], None]
    private: bool = False  # whether pages of other origins may not read the answer, whatever `cors` says


class RestApi:
    """Answers the requests of all REST connections; `draining` turns readiness off."""

    def __init__(
        self,
        catalog: Catalog,
        admin: Admin,
        access: Access,
        snapshots: Callable[[], Awaitable[list[Snapshot]]],
        *,
        cors: bool = False,
        metrics_path: str | None = None,
    ) -> None:
        """`snapshots` are the metrics of all processes, which `metrics_path` shows.

        `cors` says whether browsers may let pages of other origins read what is under /v1.
        """
        self.draining = False
        self._catalog = catalog
        self._snapshots = snapshots
        self._cors = cors
        self._coroutines = RestCoroutines()
        tensorflow = TensorFlowRest(catalog)
        open_inference = OpenInferenceRest(catalog, lambda: self.ready)
        repository = OpenInferenceRepository(catalog, admin, access, snapshots)
        changes = AdminRest(admin, access)
        page = re.escape(metrics_path) if metrics_path is not None else ""
        # The first route that fits is taken.
        self._routes = [
            Route("POST", _V1_MODEL + r":predict", tensorflow.predict),
            Route("POST", _V1_MODEL + r":classify", tensorflow.classify),
            Route("POST", _V1_MODEL + r":regress", tensorflow.regress),
            *[Route(method, page, self._metrics) for method in _METHODS if page],  # any, as in TensorFlow Serving
            Route("GET", r"(?i:/v1/models)", tensorflow.models),
            Route("GET", _V1_MODEL + r"(?i:/metadata)", tensorflow.metadata),
            Route("GET", _V1_MODEL, tensorflow.status),
            Route("GET", _V1_NAMELESS, tensorflow.nameless),
            Route("OPTIONS", r"(?is:/v1/.*)", tensorflow.preflight),
            Route("PUT", _V1_NAME, changes.add_or_replace, private=True),
            Route("DELETE", _V1_NAME, changes.remove, private=True),
            Route("GET", r"(?i:/v1/config)", changes.config, private=True),
            Route("POST", _V2_MODEL + r"/infer", open_inference.infer),
            Route("GET", r"/v2/models/stats", repository.all_statistics),  # whatever a model's name is, as in Triton
            Route("GET", _V2_MODEL + r"/stats", repository.statistics),
            Route("GET", _V2_MODEL + r"/ready", open_inference.model_ready),
            Route("GET", _V2_MODEL, open_inference.metadata),
            Route("POST", r"/v2/repository/index", open_inference.index),
            Route("POST", r"/v2/repository/models/(?P<name>[^/]+)/load", repository.load),
            Route("POST", r"/v2/repository/models/(?P<name>[^/]+)/unload", repository.unload),
            Route("GET", r"/v2/health/live", open_inference.live),
            Route("GET", r"/v2/health/ready", open_inference.ready),
            Route("GET", r"/v2/?", open_inference.server),
            Route("GET", r"/healthz", self._healthz),
            Route("GET", r"/readyz", self._readyz),
        ]
        self._by_method = {
            method: [(re.compile(route.pattern), route) for route in self._routes if route.method == method]
            for method in _METHODS
        }
        self._by_method["HEAD"] = self._by_method["GET"]

    @property
    def ready(self) -> bool:
        """Whether the server should be asked: what can be served is, and goes on being served."""
        return self._catalog.ready and not self.draining

    def handle(self, exchange: HttpExchange) -> None:
        """Answers one request, now or from a callback."""
        path = exchange.path
        try:
            for pattern, route in self._by_method.get(exchange.method, ()):
                if match := pattern.fullmatch(path):
                    if self._cors and not route.private:
                        _let_pages_read(exchange)
                    route.handle(exchange, match)
                    return
            if self._cors:
                _let_pages_read(exchange)
            self._refuse(exchange)
        except BareError as error:
            exchange.respond(HTTP_STATUS[error.code], b"")
        except ServingError as error:
            fail(exchange, error)

    def _refuse(self, exchange: HttpExchange) -> None:
        """Answers what no route takes. Raises ServingError."""
        method, path = exchange.method, exchange.path
        if method not in _METHODS:
            raise unimplemented(f"there is no method {method[:80]} here")
        if _is_v1(path):
            raise invalid_argument(f"Malformed request: {method} {path}")
        allowed = [
            method for method, routes in self._by_method.items() if any(pair[0].fullmatch(path) for pair in routes)
        ]
        if not allowed:
            version = "v2" if path.startswith("/v2") else "v1"
            raise not_found(f"nothing is served at {path}: the models are under /{version}/models")
        text = f"{path} takes {' or '.join(allowed)}, not {method}"
        exchange.respond(405, error_body(text), headers=(("allow", ", ".join(allowed)),))

    def _metrics(self, exchange: HttpExchange, _: re.Match[str]) -> None:
        self._coroutines.start(exchange, self._metrics_page())

    async def _metrics_page(self) -> RestAnswer:
        snapshots = await self._snapshots()
        page = await asyncio.to_thread(metrics.render, snapshots)  # 20 ms for a hundred models
        return RestAnswer(page, metrics.CONTENT_TYPE)

    def _healthz(self, exchange: HttpExchange, _: re.Match[str]) -> None:
        exchange.respond(200, b"ok\n", "text/plain")

    def _readyz(self, exchange: HttpExchange, _: re.Match[str]) -> None:
        if self.draining:
            exchange.respond(503, b"draining\n", "text/plain")
        elif not self._catalog.ready:
            exchange.respond(503, b"loading\n", "text/plain")
        else:
            exchange.respond(200, b"ready\n", "text/plain")


def _is_v1(path: str) -> bool:
    return path[:4].lower() == "/v1/"


def _let_pages_read(exchange: HttpExchange) -> None:
    """Lets a browser show the answer to a page of another origin, under /v1; once, though a request may come twice."""
    if _is_v1(exchange.path) and _CORS[0] not in exchange.answer_headers:
        exchange.answer_headers += _CORS
