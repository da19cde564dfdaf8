"""The gateway's Flask application: the routes, the pages, the probes, and what holds for every request.

`create_app` takes its settings and the client to the model server, so tests inject both.
"""

import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import flask
import structlog
from flask import Flask, Response, g, has_request_context, render_template, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from bookserve.serving.gateway import caching, cors, lines, openapi, pages, predictions
from bookserve.serving.gateway.api_keys import ApiKeys
from bookserve.serving.gateway.catalog import Catalog, ModelName
from bookserve.serving.gateway.config import GatewayConfig
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.metrics import CONTENT_TYPE, Metrics
from bookserve.serving.gateway.model_backend import ModelBackend, PredictClient
from bookserve.serving.gateway.models_api import ModelsApi
from bookserve.serving.gateway.molecule_pool import MoleculePool
from bookserve.serving.gateway.problems import Problem, too_large
from bookserve.serving.gateway.rate_limit import RateLimit
from bookserve.serving.gateway.responses import json_response
from bookserve.serving.gateway.server_metrics import ServerMetrics
from bookserve.serving.gateway.store import Store
from bookserve.serving.wire import hosts

if TYPE_CHECKING:
    from bookserve.serving.gateway.tracing import Tracing

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
        " form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_METHODS = ("GET", "HEAD", "OPTIONS", "POST")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

_MISSING = "Check the address. Each model has a page of its own."

_log = structlog.get_logger()


def create_app(
    config: GatewayConfig,
    backend: PredictClient,
    molecule_pool: MoleculePool,
    metrics: Metrics | None = None,
    draining: Callable[[], bool] = lambda: False,
    server_metrics: ServerMetrics | None = None,
    tracing: "Tracing | None" = None,
) -> Flask:
    """Builds the application around a client to the model server and RDKit's processes.

    `metrics` are counted and shown; without them the application makes its own. `draining` tells whether the process is
    about to stop: the gateway is unready then, and closes its connections. `server_metrics` are the model server's;
    `tracing` follows the requests.
    Raises ApiKeysError.
    """
    metrics = metrics or Metrics()
    app = Flask("bookserve.gateway", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = config.limits.body_bytes
    app.url_map.converters["model"] = ModelName
    store = Store(config.models_dir, config.models_address) if config.models_dir else None
    contracts = store.contracts if store else None
    models = ModelBackend(backend, config.model_server, config.model_seconds, contracts)
    catalog = Catalog(models, contracts)
    rate_limit = RateLimit(config.requests_per_minute) if config.requests_per_minute else None
    dependencies = Dependencies(models, config.limits, store, molecule_pool, rate_limit=rate_limit)
    app.register_blueprint(predictions.routes(catalog, dependencies))
    app.register_blueprint(ModelsApi(models, catalog, store, server_metrics, config.model_server_rest).routes())
    app.register_blueprint(pages.routes())
    _add_probes(app, models, catalog, metrics, draining)

    @app.get("/openapi.json")
    def show_openapi() -> Response:
        response = json_response(
            openapi.document(predictions.operations(catalog, config.limits), config.api_keys is not None)
        )
        response.headers.update(caching.FRESH)
        return response

    _add_logging_and_headers(app, metrics, draining)
    if tracing is not None:
        tracing.add(app)
    _add_host_check(app, config)
    if config.cors_origins:
        cors.add(app, config.cors_origins)
    if config.api_keys is not None:
        _add_key_check(app, ApiKeys(config.api_keys))
    if rate_limit is not None:
        _add_rate_limit(app, rate_limit)
    _add_error_handlers(app, config)
    return app


def _add_probes(
    app: Flask, models: ModelBackend, catalog: Catalog, metrics: Metrics, draining: Callable[[], bool]
) -> None:
    @app.get("/healthz")
    def healthz() -> Response:
        return json_response({"status": "ok"})

    @app.get("/metrics")
    def show_metrics() -> Response:
        return Response(metrics.text(), content_type=CONTENT_TYPE)

    @app.get("/readyz")
    def readyz() -> Response:
        if draining():
            raise Problem(503, "the gateway is stopping")
        readiness = {name: models.readiness(catalog.told(name)) for name in catalog.names()}
        faults = [state.reason for state in readiness.values() if not (state.ready or state.absent)]
        if not faults and all(state.absent for state in readiness.values()):
            faults = [state.reason for state in readiness.values()] or catalog.without_models()
        if faults:
            raise Problem(503, "; ".join(dict.fromkeys(faults)))
        versions = {name: state.version for name, state in readiness.items() if state.ready}
        return json_response({"status": "ready", "models": versions})


def _add_logging_and_headers(app: Flask, metrics: Metrics, draining: Callable[[], bool]) -> None:
    @app.before_request
    def start() -> None:
        asked = request.headers.get("X-Request-ID", "")
        g.request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        g.started = time.perf_counter()

    @app.after_request
    def finish(response: Response) -> Response:
        caching.finish(request, response)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["X-Request-ID"] = g.request_id
        if draining():
            response.headers["Connection"] = "close"
        seconds = time.perf_counter() - g.started
        route = request.url_rule.rule.replace("<model:name>", "<name>") if request.url_rule else "unmatched"
        if "model" in g:  # there is one of that name, so its routes are counted apart
            route = route.replace("<model:model>", g.model)
        g.route = route
        # A method of a request is any token; those that no route has are counted together.
        method = request.method if request.method in _METHODS else "other"
        metrics.answered(method, route, response.status_code, seconds)
        _log.info(
            "request",
            request_id=g.request_id,
            method=request.method,
            path=request.path[:200],
            status=response.status_code,
            milliseconds=round(1000 * seconds, 2),
            **({"caller": g.caller} if g.get("caller") else {}),
        )
        return response


def _add_host_check(app: Flask, config: GatewayConfig) -> None:
    @app.before_request
    def check() -> None:
        host = request.headers.get("Host", "")
        if not hosts.is_expected(host, config.bind, config.allowed_hosts):
            raise Problem(
                403,
                f"the Host {host[:255]!r} is not expected here: use localhost or the address that the gateway listens"
                " on, or name it in --allowed-hosts",
            )


def _add_key_check(app: Flask, keys: ApiKeys) -> None:
    @app.before_request
    def check_key() -> None:
        g.caller = keys.check(request)


def _add_rate_limit(app: Flask, limit: RateLimit) -> None:
    @app.before_request
    def count() -> None:
        if request.method == "POST" and request.mimetype != lines.MEDIA_TYPE:  # whose lines count when they are asked
            limit.check(request)


def request_id_metadata() -> Sequence[tuple[str, str]]:
    """The request's id as the metadata of calls to the model server, whose log and trailers have it too."""
    return (("x-request-id", g.request_id),) if has_request_context() and "request_id" in g else ()


def _for_a_person() -> bool:
    """Whether a browser shows the answer to a person, who may have mistyped the address."""
    return "text/html" in request.headers.get("Accept", "") and request.method in ("GET", "HEAD")


def _add_error_handlers(app: Flask, config: GatewayConfig) -> None:
    @app.errorhandler(Problem)
    def problem(error: Problem) -> Response:
        if error.status >= 500:
            _log.warning("problem", request_id=g.request_id, status=error.status, detail=error.detail)
        if error.status == 404 and _for_a_person():
            return _missing_page()
        return error.response(g.request_id)

    @app.errorhandler(RequestEntityTooLarge)
    def too_large_body(_: RequestEntityTooLarge) -> Response:
        return too_large(config.limits.body_bytes).response(g.request_id)

    @app.errorhandler(HTTPException)
    def http_exception(error: HTTPException) -> Response:
        status = error.code or 500
        if 300 <= status < 400:
            return flask.make_response(error.get_response())
        if status == 404 and _for_a_person():
            return _missing_page()
        headers, text = {}, {404: "there is nothing here; GET /docs or /openapi.json lists what there is"}.get(status)
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            allowed = ", ".join(sorted(error.valid_methods))
            headers, text = {"Allow": allowed}, f"{request.method} does not work here; {allowed} does"
        return Problem(status, text or str(error.description), headers=headers).response(g.request_id)

    @app.errorhandler(Exception)
    def fault(error: Exception) -> Response:
        _log.error("fault", request_id=g.request_id, exc_info=error)
        return Problem(500, "a fault of the gateway: its log says more under this request's id").response(g.request_id)


def _missing_page() -> Response:
    page = render_template("missing.html", title="There is no page here", text=_MISSING)
    return Response(page, status=404, content_type="text/html; charset=utf-8")
