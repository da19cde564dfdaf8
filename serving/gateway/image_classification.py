"""The task `image-classification`: pictures, as files, as a raw body or as pixels, to the class of each.

`POST /api/v1/NAME/preview` makes a PNG of a picture for the page: in a format that a browser cannot show, such as HEIC,
or, with `?given=true`, as the model is given it.
"""

from typing import Any

from flask import Request, Response

from bookserve.clients import forms, outputs
from bookserve.clients.inputs import pictures
from bookserve.export.contracts import Contract
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway import request_parsing
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.image_body import ImageBody
from bookserve.serving.gateway.prepared_pictures import PreparedPictures
from bookserve.serving.gateway.request_parsing import Choice

_PREVIEW = 512  # pixels
_CURL = "curl -F file=@{file} http://127.0.0.1:8080{path}"


def predict(request: Request, contract: Contract, choice: Choice, dependencies: Dependencies) -> dict[str, Any]:
    """The answer to one request."""
    means, tensor = contract.preprocessing, contract.inputs[0]
    assert means is not None
    levels = _body(contract, request.path, dependencies.prepared).images(request, dependencies.limits)
    inputs = {tensor.name: pictures.tensor(levels, means, tensor)}
    return outputs.rows(contract, dependencies.models.predict(contract, inputs, choice))


def preview(request: Request, contract: Contract, dependencies: Dependencies) -> Response:
    """One picture of a form as a small PNG."""
    given = request_parsing.truth(request, "given")
    body = _body(contract, request.path.removesuffix("/preview"), dependencies.prepared)
    png = body.preview(request, dependencies.limits, _PREVIEW, given=given)
    return Response(png, content_type="image/png", headers={"Cache-Control": "no-store"})


def openapi(contract: Contract, path: str, limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    means, scores = contract.preprocessing, forms.scores(contract)
    assert means is not None
    assert means.size is not None
    assert scores is not None
    labels = contract.labels
    numbers = schemas.by_label(labels, schemas.number_of(scores)) if labels else {"type": "array"}
    item = schemas.struct({"class": {"enum": list(labels)} if labels else {"type": "string"}, scores.name: numbers})
    size = f"{means.size[0]} by {means.size[1]} pixels"
    text = {
        "centred": f"Pictures of any size, light or dark, one {_sign(contract)} each, which is scaled and centred.",
        "crop": f"Pictures of any size: the central square is cut out and scaled to {size}.",
        "stretch": f"Pictures of any size, scaled to {size}.",
    }[means.resize]
    body = _body(contract, path, PreparedPictures()).openapi(limits)
    one = {"type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "string", "format": "binary"}}
    shown = {
        "operationId": "previewPicture",
        "tags": ["models"],
        "summary": f"A picture as a PNG of at most {_PREVIEW} pixels, for what cannot show its format.",
        "parameters": [
            {
                "name": "given",
                "in": "query",
                "description": f"true: as the model is given it, {size}.",
                "schema": {"enum": ["true", "false"]},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {request_parsing.FORM: {"schema": schemas.struct({"file": one})}},
        },
        "responses": {"200": {"description": "The picture.", "content": {"image/png": {}}}},
    }
    return {
        path: {"post": schemas.prediction("predict", contract.model, "What does it show?", text, body, item)},
        f"{path}/preview": {"post": shown},
    }


def _body(contract: Contract, path: str, prepared: PreparedPictures) -> ImageBody:
    means = contract.preprocessing
    assert means is not None
    assert means.size is not None
    centred = means.resize == "centred"
    return ImageBody(
        height=means.size[0],
        width=means.size[1],
        channels=3 if means.colour == "rgb" else 0,
        decode=lambda content: prepared.levels(content, means),
        show=lambda content, side: prepared.preview(content, side, means),
        what=f"a picture of one {_sign(contract)}" if centred else "a picture",
        curl=_CURL.format(file="seven.png" if centred else "ship.png", path=path),
    )


def _sign(contract: Contract) -> str:
    return "digit" if all(label.isdigit() for label in contract.labels) else "sign"
