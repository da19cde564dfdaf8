"""POST /api/v1/logistic: points of the plane to the probability of class "1"."""

from typing import Any

from flask import Blueprint, Response, request

from bookserve.clients import outputs
from bookserve.export.book_contracts import LOGISTIC
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway import request_parsing
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.number_body import NumberBody
from bookserve.serving.gateway.responses import json_response

PATH = "/api/v1/logistic"
BODY = NumberBody(width=2, example={"x": [[0.2, 0.8], [-1.0, -1.5]]})


def routes(dependencies: Dependencies) -> Blueprint:
    """The model's routes."""
    blueprint = Blueprint("logistic", __name__)

    @blueprint.post(PATH)
    def predict() -> Response:
        choice = request_parsing.choice(request)
        rows = BODY.rows(request, dependencies.limits)
        return json_response(outputs.logistic(dependencies.models.predict(LOGISTIC, {"x": rows}, choice)))

    return blueprint


def openapi(limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    item = schemas.struct({"class": {"enum": list(LOGISTIC.labels)}, "probability": schemas.PROBABILITY})
    text = 'The probability is that of class "1", which is answered from a half on.'
    return {
        PATH: {"post": schemas.prediction("predictLogistic", "Which class is it?", text, BODY.openapi(limits), item)}
    }
