"""POST /api/v1/mnist: handwritten digits, as picture files, as a raw body or as pixels, to ten probabilities."""

from typing import Any

from flask import Blueprint, Response, request

from bookserve.clients import outputs
from bookserve.clients.inputs import pictures
from bookserve.export.contracts import MNIST
from bookserve.serving.gateway import incoming
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway.answers import json_response
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.picture_body import PictureBody
from bookserve.serving.gateway.services import Services

PATH = "/api/v1/mnist"
BODY = PictureBody(
    side=pictures.FIELD,
    channels=0,
    decode=pictures.digit,
    what="a picture of one digit",
    curl=f"curl -F file=@seven.png http://127.0.0.1:8080{PATH}",
)


def routes(services: Services) -> Blueprint:
    """The model's routes."""
    blueprint = Blueprint("mnist", __name__)

    @blueprint.post(PATH)
    def predict() -> Response:
        choice = incoming.choice(request)
        images = BODY.images(request, services.limits)
        return json_response(outputs.classification(MNIST, services.models.predict(MNIST, {"images": images}, choice)))

    return blueprint


def openapi(limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    item = schemas.struct({"class": {"enum": list(MNIST.labels)}, "probabilities": schemas.by_label(MNIST.labels)})
    text = "Pictures are turned into MNIST's form: light ground or dark, any size, one digit each."
    return {PATH: {"post": schemas.prediction("predictMnist", "Which digit is it?", text, BODY.openapi(limits), item)}}
