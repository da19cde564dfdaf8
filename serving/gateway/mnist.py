"""POST /api/v1/mnist: handwritten digits, as picture files, as a raw body or as pixels, to ten probabilities."""

from typing import Any

from flask import Blueprint, Response, request

from bookserve.clients import outputs
from bookserve.clients.inputs import pictures
from bookserve.export.book_contracts import MNIST
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway import request_parsing
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.image_body import ImageBody
from bookserve.serving.gateway.responses import json_response

PATH = "/api/v1/mnist"
BODY = ImageBody(
    side=pictures.FIELD,
    channels=0,
    decode=pictures.digit,
    what="a picture of one digit",
    curl=f"curl -F file=@seven.png http://127.0.0.1:8080{PATH}",
)


def routes(dependencies: Dependencies) -> Blueprint:
    """The model's routes."""
    blueprint = Blueprint("mnist", __name__)

    @blueprint.post(PATH)
    def predict() -> Response:
        choice = request_parsing.choice(request)
        images = BODY.images(request, dependencies.limits)
        return json_response(
            outputs.classification(MNIST, dependencies.models.predict(MNIST, {"images": images}, choice))
        )

    return blueprint


def openapi(limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    item = schemas.struct({"class": {"enum": list(MNIST.labels)}, "probabilities": schemas.by_label(MNIST.labels)})
    text = "Pictures are turned into MNIST's form: light ground or dark, any size, one digit each."
    return {PATH: {"post": schemas.prediction("predictMnist", "Which digit is it?", text, BODY.openapi(limits), item)}}
