"""POST /api/v1/mnist: handwritten digits, as picture files, as a raw body or as pixels, to ten probabilities."""

from typing import Any

import numpy as np
import numpy.typing as npt
from flask import Blueprint, Request, Response, request

from bookserve.clients import outputs
from bookserve.clients.inputs import pictures
from bookserve.export.contracts import MNIST
from bookserve.serving.gateway import incoming
from bookserve.serving.gateway.answers import json_response
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.model_server import ModelServer
from bookserve.serving.gateway.problems import Problem, bad_value, shown

PATH = "/api/v1/mnist"
SIDE = pictures.FIELD
CURL = f"curl -F file=@seven.png http://127.0.0.1:8080{PATH}"
EXAMPLE = {"pixels": [[0] * SIDE] * SIDE}

_JSON = "application/json"
_FORM = "multipart/form-data"


def routes(models: ModelServer, limits: Limits) -> Blueprint:
    """The model's routes."""
    blueprint = Blueprint("mnist", __name__)

    @blueprint.post(PATH)
    def predict() -> Response:
        choice = incoming.choice(request)
        images = _images(request, limits)
        prediction = models.predict(MNIST, {"images": images}, choice)
        return json_response(outputs.classification(MNIST, prediction))

    return blueprint


def openapi(limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its path's operations, without the answers that all share."""
    picture = {"type": "array", "minItems": SIDE, "maxItems": SIDE, "items": {"$ref": "#/components/schemas/PixelRow"}}
    return {
        "post": {
            "operationId": "predictMnist",
            "tags": ["models"],
            "summary": "Which digit is it?",
            "description": "Pictures are turned into MNIST's form: light ground or dark, any size, one digit each.",
            "requestBody": {
                "required": True,
                "content": {
                    _FORM: {
                        "schema": {
                            "type": "object",
                            "required": ["file"],
                            "properties": {
                                "file": {
                                    "type": "array",
                                    "minItems": 1,
                                    "maxItems": limits.items,
                                    "items": {"type": "string", "format": "binary"},
                                }
                            },
                        }
                    },
                    _JSON: {
                        "schema": {
                            "type": "object",
                            "required": ["pixels"],
                            "additionalProperties": False,
                            "properties": {
                                "pixels": {
                                    "description": f"[{SIDE}][{SIDE}] grey levels, white on black, or a list of them",
                                    "oneOf": [
                                        picture,
                                        {"type": "array", "minItems": 1, "maxItems": limits.items, "items": picture},
                                    ],
                                }
                            },
                        },
                        "example": EXAMPLE,
                    },
                    **{
                        media_type: {"schema": {"type": "string", "format": "binary"}}
                        for media_type in pictures.MEDIA_TYPES
                    },
                },
            },
        }
    }


def _images(request: Request, limits: Limits) -> npt.NDArray[np.uint8]:
    """The request's pictures as uint8 [n,28,28]."""
    media_type = incoming.media_type(request)
    if media_type == _JSON:
        body = incoming.read_json(request, limits, EXAMPLE)
        return _pixels(incoming.only_field(body, "pixels", EXAMPLE), limits)
    if media_type == _FORM:
        uploads = incoming.read_files(request, "file", limits, CURL)
        return np.stack([_digit(upload, f"file[{index}]") for index, upload in enumerate(uploads)])
    if media_type in pictures.MEDIA_TYPES:
        return _digit(request.get_data(cache=False), "body")[None]
    raise incoming.unsupported(media_type, (_FORM, _JSON, *pictures.MEDIA_TYPES), CURL)


def _digit(content: bytes, field: str) -> npt.NDArray[np.uint8]:
    try:
        return pictures.digit(content)
    except pictures.PictureTooLarge as error:
        raise Problem(413, f"{field}: {error}", field=field) from error
    except pictures.PictureError as error:
        given = f"{len(content)} bytes: {error}"
        raise bad_value(field, "a picture of one digit (PNG, JPEG, WebP or BMP)", given, CURL) from error


def _pixels(value: object, limits: Limits) -> npt.NDArray[np.uint8]:
    """Grey levels [28][28], or a list of such, as uint8 [n,28,28]."""
    _need_list(value, "pixels", f"a list of {SIDE} rows, or a list of pictures")
    assert isinstance(value, list)
    many = bool(value) and isinstance(value[0], list) and bool(value[0]) and isinstance(value[0][0], list)
    if not many:
        return _picture(value, "pixels")[None]
    if len(value) > limits.items:
        raise Problem(
            413, f"pixels: at most {limits.items} pictures a request are taken, got {len(value)}", field="pixels"
        )
    return np.stack([_picture(picture, f"pixels[{index}]") for index, picture in enumerate(value)])


def _picture(value: object, field: str) -> npt.NDArray[np.uint8]:
    rows = _need_list(value, field, f"a list of {SIDE} rows", SIDE)
    for y, row in enumerate(rows):
        for x, level in enumerate(_need_list(row, f"{field}[{y}]", f"a list of {SIDE} whole numbers", SIDE)):
            if type(level) is not int or not 0 <= level <= 255:
                raise bad_value(f"{field}[{y}][{x}]", "a whole number from 0 to 255", shown(level), EXAMPLE)
    return np.array(rows, dtype=np.uint8)


def _need_list(value: object, field: str, expected: str, size: int | None = None) -> list[Any]:
    if not isinstance(value, list) or not value or (size is not None and len(value) != size):
        raise bad_value(field, expected, shown(value), EXAMPLE)
    return value
