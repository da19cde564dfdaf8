"""GET /openapi.json: the gateway's interface as an OpenAPI 3.1 document, made from the same limits that it enforces."""

import importlib.metadata
from typing import Any

from bookserve.serving.gateway import problems
from bookserve.serving.gateway.incoming import MAX_LABEL, MAX_VERSION

_PROBLEMS = {
    "400": "A value of the request is wrong; the problem names it.",
    "404": "No such model, version or label.",
    "408": "The body took too long to arrive.",
    "413": "More than a limit allows.",
    "415": "A media type that is not taken.",
    "502": "The model server failed, or its model keeps another contract.",
    "503": "The model server is away, or one of both servers is full.",
    "504": "The model server gave no answer in time.",
}
_CHOICE = [
    {
        "name": "version",
        "in": "query",
        "description": "This version instead of the newest.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_VERSION},
    },
    {
        "name": "label",
        "in": "query",
        "description": "The version that has this label.",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_LABEL},
    },
]


def document(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The document; `models` has the operations of each model's path, which get the shared parameters and answers."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bookserve",
            "version": importlib.metadata.version("bookserve"),
            "description": "Predictions of the models of 'TensorFlow for Deep Learning'.",
        },
        "paths": {
            **{path: {"post": _with_shared(item["post"])} for path, item in models.items()},
            "/api/v1/models": _get("listModels", "Every model, and whether it can answer."),
            "/api/v1/models/{name}": _get("showModel", "A model's versions, their states and figures.", "name"),
            "/healthz": _get("healthz", "Whether the gateway runs."),
            "/readyz": _get("readyz", "Whether the models can answer."),
        },
        "components": {
            "schemas": {
                "PixelRow": {
                    "type": "array",
                    "minItems": 28,
                    "maxItems": 28,
                    "items": {"type": "integer", "minimum": 0, "maximum": 255},
                },
                "Predictions": {
                    "type": "object",
                    "required": ["model", "version", "predictions"],
                    "properties": {
                        "model": {"type": "string"},
                        "version": {"type": "integer"},
                        "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/ClassProbabilities"}},
                    },
                },
                "ClassProbabilities": {
                    "type": "object",
                    "required": ["class", "probabilities"],
                    "properties": {
                        "class": {"type": "string"},
                        "probabilities": {"type": "object", "additionalProperties": {"type": "number"}},
                    },
                },
                "Problem": {
                    "type": "object",
                    "required": ["type", "title", "status", "detail", "request_id"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                        "field": {"type": "string"},
                        "expected": {"type": "string"},
                        "given": {"type": "string"},
                        "example": {"description": "A body that works, or a command that sends one."},
                        "request_id": {"type": "string"},
                    },
                },
            }
        },
    }


def _with_shared(operation: dict[str, Any]) -> dict[str, Any]:
    schema = {"schema": {"$ref": "#/components/schemas/Predictions"}}
    answers = {"200": {"description": "One prediction a picture.", "content": {"application/json": schema}}}
    return {**operation, "parameters": _CHOICE, "responses": {**answers, **_problem_answers(_PROBLEMS)}}


def _problem_answers(texts: dict[str, str]) -> dict[str, Any]:
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": text, "content": content} for status, text in texts.items()}


def _get(operation: str, summary: str, parameter: str | None = None) -> dict[str, Any]:
    parameters = (
        [{"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}] if parameter else []
    )
    answers = {"200": {"description": summary, "content": {"application/json": {"schema": {"type": "object"}}}}}
    texts = {"404": _PROBLEMS["404"], "503": _PROBLEMS["503"]} if parameter else {"503": _PROBLEMS["503"]}
    return {
        "get": {
            "operationId": operation,
            "tags": ["gateway"],
            "summary": summary,
            "parameters": parameters,
            "responses": {**answers, **_problem_answers(texts)},
        }
    }
