"""POST /api/v1/linear: numbers on the fitted line."""

from typing import Any

from flask import Blueprint, Response, request

from bookserve.clients import outputs
from bookserve.export.book_contracts import LINEAR
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway import request_parsing
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.number_body import NumberBody
from bookserve.serving.gateway.responses import json_response

PATH = "/api/v1/linear"
BODY = NumberBody(width=1, example={"x": [0.5, 1.5]})


def routes(dependencies: Dependencies) -> Blueprint:
    """The model's routes."""
    blueprint = Blueprint("linear", __name__)

    @blueprint.post(PATH)
    def predict() -> Response:
        choice = request_parsing.choice(request)
        rows = BODY.rows(request, dependencies.limits)
        return json_response(outputs.linear(dependencies.models.predict(LINEAR, {"x": rows}, choice)))

    return blueprint


def openapi(limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    item = schemas.struct({"y": {"type": "number"}})
    text = "The line that linear regression fitted, at each x."
    return {PATH: {"post": schemas.prediction("predictLinear", "Which y is at x?", text, BODY.openapi(limits), item)}}
