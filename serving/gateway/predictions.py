"""POST /api/v1/NAME: one address a model, whose task says what a request holds. One file of this folder a task."""

from collections.abc import Callable
from typing import Any, Protocol

import structlog
from flask import Blueprint, Request, Response, g, request, stream_with_context
from werkzeug.test import EnvironBuilder

from bookserve.clients import forms
from bookserve.export.contracts import Contract
from bookserve.serving.gateway import (
    board,
    image_classification,
    lines,
    molecules,
    openapi,
    regression,
    request_parsing,
    tabular,
    tensors,
    text,
)
from bookserve.serving.gateway.catalog import Catalog
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.problems import Problem
from bookserve.serving.gateway.request_parsing import Choice
from bookserve.serving.gateway.responses import json_response

PATH = "/api/v1"
_log = structlog.get_logger()
_PIECE = 1 << 16  # bytes read at once of a request of many lines


Answer = Callable[..., dict[str, Any]]  # of (request, contract, choice, dependencies)


class Task(Protocol):
    """A task's file of this folder."""

    predict: Answer
    openapi: Callable[..., dict[str, Any]]  # (contract, path, limits)


# Of these the gateway asks without a part; what is left out of the others a client can leave out itself.
EXPLAINED: dict[str, Answer] = {forms.MOLECULES: molecules.explain, forms.BOARD: board.explain}

TASKS: dict[str, Task] = {
    "regression": regression,
    "tabular": tabular,
    "molecules": molecules,
    "image-classification": image_classification,
    "text": text,
    "board": board,
    "tensors": tensors,
}


def routes(catalog: Catalog, dependencies: Dependencies) -> Blueprint:
    """The routes of all models."""
    blueprint = Blueprint("predictions", __name__, url_prefix=PATH)

    def answer(model: str, answer_of: Callable[[Contract], Answer]) -> Response:
        choice = request_parsing.choice(request)
        request.get_data()  # kept, as it may be read twice

        def ask(contract: Contract) -> dict[str, Any]:
            g.model = model
            return answer_of(contract)(request, contract, choice, dependencies)

        return json_response(catalog.answer(model, choice, ask))

    @blueprint.post("/<model:model>")
    def predict(model: str) -> Response:
        return answer(model, lambda contract: TASKS[forms.form(contract)].predict)

    @blueprint.post("/models/<model:model>:predict")
    def predict_model(model: str) -> Response:
        if request.mimetype == lines.MEDIA_TYPE:
            return predict_lines(model)
        return predict(model)

    def predict_lines(model: str) -> Response:
        choice, path, limits = request_parsing.choice(request), request.path, dependencies.limits
        catalog.contract(model, choice)  # a model that is not there is a 404, not a problem a line

        def ask_line(body: bytes) -> dict[str, Any]:
            if dependencies.rate_limit is not None:
                dependencies.rate_limit.check(request)
            alone = Request(
                EnvironBuilder(path, method="POST", data=body, content_type=request_parsing.JSON).get_environ()
            )
            alone.get_data()

            def ask(contract: Contract) -> dict[str, Any]:
                g.model = model
                return TASKS[forms.form(contract)].predict(alone, contract, choice, dependencies)

            return _or_problem(lambda: catalog.answer(model, choice, ask))

        def read() -> bytes:
            return bytes(request.environ["wsgi.input"].read(_PIECE))

        answers = lines.answers(read, ask_line, limits.items, limits.json_bytes, g.request_id)
        return Response(stream_with_context(answers), content_type=lines.MEDIA_TYPE)

    @blueprint.post("/<model:model>/generate")
    def generate(model: str) -> Response:
        return answer(model, _generated)

    @blueprint.post("/<model:model>/explain")
    def explain(model: str) -> Response:
        return answer(model, _explained)

    @blueprint.post("/<model:model>/preview")
    def preview(model: str) -> Response:
        contract = catalog.contract(model, Choice())
        _need(contract, forms.PICTURES, "takes no pictures")
        g.model = model
        return image_classification.preview(request, contract, dependencies)

    @blueprint.get("/<model:model>/drawing")
    def draw(model: str) -> Response:
        _need(catalog.contract(model, Choice()), forms.MOLECULES, "draws nothing")
        g.model = model
        return molecules.draw(request, dependencies.molecule_pool)

    return blueprint


def operations(catalog: Catalog, limits: Limits) -> list[dict[str, Any]]:
    """Each model's part of the OpenAPI document."""
    found = []
    for name in catalog.names():
        contract, path = catalog.told(name), f"{PATH}/{name}"
        paths = TASKS[forms.form(contract)].openapi(contract, path, limits)
        found.append({**paths, f"{PATH}/models/{name}:predict": {"post": openapi.with_lines(paths[path]["post"])}})
    return found


def _or_problem(answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer to a line of many; a fault is logged, and a problem of this line alone."""
    try:
        return answer()
    except Problem:
        raise
    except Exception as error:
        _log.error("fault", request_id=g.request_id, exc_info=error)
        raise Problem(500, "a fault of the gateway: its log says more under this request's id") from error


def _generated(contract: Contract) -> Answer:
    _need(contract, forms.TEXT, "generates no text")
    return text.generate


def _explained(contract: Contract) -> Answer:
    answer = EXPLAINED.get(forms.form(contract))
    if answer is None:
        raise Problem(404, f"{contract.model} explains nothing: its task is {contract.task}. Ask it without a part")
    return answer


def _need(contract: Contract, task: str, what: str) -> None:
    if forms.form(contract) != task:
        raise Problem(404, f"{contract.model} {what}: its task is {contract.task}")
