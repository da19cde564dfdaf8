"""POST /api/v1/NAME: one address a model, whose task says what a request holds. One file of this folder a task."""

from collections.abc import Callable
from typing import Any, Protocol

from flask import Blueprint, Response, g, request

from bookserve.clients import forms
from bookserve.export.contracts import Contract
from bookserve.serving.gateway import (
    board,
    image_classification,
    molecules,
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


class Task(Protocol):
    """A task's file of this folder."""

    predict: Callable[..., dict[str, Any]]  # (request, contract, choice, dependencies)
    openapi: Callable[..., dict[str, Any]]  # (contract, path, limits)


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

    @blueprint.post("/<model:model>")
    def predict(model: str) -> Response:
        choice = request_parsing.choice(request)
        request.get_data()  # kept, as it may be read twice

        def ask(contract: Contract) -> dict[str, Any]:
            g.model = model
            return TASKS[forms.form(contract)].predict(request, contract, choice, dependencies)

        return json_response(catalog.answer(model, choice, ask))

    @blueprint.post("/<model:model>/generate")
    def generate(model: str) -> Response:
        choice = request_parsing.choice(request)
        request.get_data()  # kept, as it may be read twice

        def ask(contract: Contract) -> dict[str, Any]:
            g.model = model
            _need(contract, forms.TEXT, "generates no text")
            return text.generate(request, contract, choice, dependencies)

        return json_response(catalog.answer(model, choice, ask))

    @blueprint.get("/<model:model>/drawing")
    def draw(model: str) -> Response:
        _need(catalog.contract(model, Choice()), forms.MOLECULES, "draws nothing")
        g.model = model
        return molecules.draw(request, dependencies.molecule_pool)

    return blueprint


def operations(catalog: Catalog, limits: Limits) -> list[dict[str, Any]]:
    """Each model's part of the OpenAPI document."""
    contracts = [catalog.told(name) for name in catalog.names()]
    return [TASKS[forms.form(contract)].openapi(contract, f"{PATH}/{contract.model}", limits) for contract in contracts]


def _need(contract: Contract, task: str, what: str) -> None:
    if forms.form(contract) != task:
        raise Problem(404, f"{contract.model} {what}: its task is {contract.task}")
