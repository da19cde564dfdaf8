"""POST /api/v1/cifar10: photographs, as picture files, as a raw body or as pixels, to what of ten things they show."""

from typing import Any

from flask import Blueprint, Response, request

from bookserve.clients import outputs
from bookserve.clients.inputs import pictures
from bookserve.export.book_contracts import CIFAR10
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway import request_parsing
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.image_body import ImageBody
from bookserve.serving.gateway.responses import json_response

PATH = "/api/v1/cifar10"
BODY = ImageBody(
    side=pictures.PHOTO,
    channels=3,
    decode=pictures.photo,
    what="a picture",
    curl=f"curl -F file=@ship.png http://127.0.0.1:8080{PATH}",
)


def routes(dependencies: Dependencies) -> Blueprint:
    """The model's routes."""
    blueprint = Blueprint("cifar10", __name__)

    @blueprint.post(PATH)
    def predict() -> Response:
        choice = request_parsing.choice(request)
        images = BODY.images(request, dependencies.limits)
        prediction = dependencies.models.predict(CIFAR10, {"images": images}, choice)
        return json_response(outputs.classification(CIFAR10, prediction))

    return blueprint


def openapi(limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    item = schemas.struct({"class": {"enum": list(CIFAR10.labels)}, "probabilities": schemas.by_label(CIFAR10.labels)})
    text = "Pictures of any size: the central square is cut out and scaled to 32 by 32 pixels."
    return {
        PATH: {
            "post": schemas.prediction("predictCifar10", "What does it show?", text, BODY.openapi(limits), item),
        }
    }
