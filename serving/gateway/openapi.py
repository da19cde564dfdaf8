"""GET /openapi.json: the gateway's interface as an OpenAPI 3.1 document, made from the same limits that it enforces."""

import importlib.metadata
import re
from collections.abc import Iterable
from typing import Any

from bookserve.clients import forms
from bookserve.export.contracts import Contract, Tensor
from bookserve.serving.gateway import problems
from bookserve.serving.gateway.lines import MEDIA_TYPE as LINES
from bookserve.serving.gateway.request_parsing import MAX_LABEL, MAX_VERSION

_PROBLEMS = {
    "400": "A value of the request is wrong; the problem names it.",
    "401": "The gateway has API keys, and the request has none, or another.",
    "403": "The Host of the request is none that the gateway is asked by.",
    "404": "No such model, version or label.",
    "408": "The body took too long to arrive.",
    "413": "More than a limit allows.",
    "415": "A media type that is not taken.",
    "429": "More requests of one caller than the gateway's limit of a minute.",
    "502": "The model server failed, or its model keeps another contract.",
    "503": "The model server is away, or one of both servers is full.",
    "504": "The model server gave no answer in time.",
}
_LINES = (
    "With Content-Type application/x-ndjson the body has a JSON body a line, and the answer a line each as soon as it "
    "is there, however many there are. Read while you send. A line that is refused has its problem."
)
ETAG = {"description": "Of this content, for If-None-Match.", "schema": {"type": "string"}}
PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
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
_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "The name of a model.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$"},
}
_VERSION = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "A version of the store.",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_VERSION},
}
_PICTURE = {
    "name": "picture",
    "in": "path",
    "required": True,
    "description": "Its file name, as `report` of a version lists it.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,99}[.]png$"},
}
_METRICS = {
    "operationId": "metrics",
    "tags": ["gateway"],
    "summary": "Counts and durations of the answers, for Prometheus.",
    "responses": {"200": {"description": "The series.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
}


def document(models: Iterable[dict[str, dict[str, Any]]], keys: bool = False) -> dict[str, Any]:
    """The document; `models` has the operations of each model's paths, which get the problems that all can answer.

    `keys` is whether requests need an API key.
    """
    known: dict[str, int] = {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bookserve",
            "version": importlib.metadata.version("bookserve"),
            "description": "Predictions of every model of the store, and what is known of each.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "models", "description": "Predictions."},
            {"name": "gateway", "description": "Which models there are, and how they do."},
        ],
        "security": [{"bearer": []}, {"header": []}] if keys else [],
        "paths": {
            **{
                path: {method: _with_problems(_named(operation, known)) for method, operation in item.items()}
                for paths in models
                for path, item in paths.items()
            },
            "/api/v1/models": _get("listModels", "Every model, and whether it can answer."),
            "/api/v1/models/{name}": _get("showModel", "A model's versions, their states and figures.", "name"),
            "/api/v1/models/{name}/state": _get(
                "showState", "Whether a model can answer, its versions in the store, and its last minutes.", "name"
            ),
            "/api/v1/models/{name}/versions/{version}/graph": {
                "get": _file(
                    "showGraph", "The operations of a version's graph, counted.", "application/json", _NAME, _VERSION
                )
            },
            "/api/v1/models/{name}/versions/{version}/card": {
                "get": _file("showCard", "The model card of a version.", "text/markdown", _NAME, _VERSION)
            },
            "/api/v1/models/{name}/versions/{version}/report/{picture}": {
                "get": _file("showPicture", "A picture of a version's report.", "image/png", _NAME, _VERSION, _PICTURE)
            },
            "/api/v1/models/{name}/versions/{version}/report/{picture}/small": {
                "get": _file(
                    *("showSmallPicture", "The same picture, scaled down for a list.", "image/png"),
                    *(_NAME, _VERSION, _PICTURE),
                )
            },
            "/healthz": _get("healthz", "Whether the gateway runs."),
            "/metrics": {"get": _METRICS},
            "/readyz": _get("readyz", "Whether the models can answer."),
        },
        "components": {
            "schemas": {
                "Problem": {
                    "type": "object",
                    "required": ["type", "title", "status", "detail", "request_id"],
                    "properties": {
                        "type": {
                            "enum": problems.TYPES,
                            "description": " ".join(f"{kind}: {text}" for kind, text in problems.KINDS.items()),
                        },
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                        "field": {"type": "string"},
                        "expected": {"type": "string"},
                        "given": {"type": "string"},
                        "position": {
                            "type": "integer",
                            "minimum": 0,
                            "description": "The character of the text in field at which the fault is, from 0.",
                        },
                        "example": {"description": "A body that works, or a command that sends one."},
                        "request_id": {"type": "string"},
                    },
                },
                "Line": {
                    "type": "object",
                    "description": "The answer to a line: predictions, or a problem.",
                    "required": ["line"],
                    "properties": {
                        "line": {"type": "integer", "minimum": 1},
                        "model": {"type": "string"},
                        "version": {"type": "integer"},
                        "predictions": {"type": "array", "items": {"type": "object"}},
                        "problem": {"$ref": "#/components/schemas/Problem"},
                    },
                },
            },
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, where the gateway has some.",
                },
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same."},
            },
        },
    }


def with_lines(operation: dict[str, Any]) -> dict[str, Any]:
    """A model's POST at its other address, which also takes a body of many lines."""
    line = {"type": "string", "description": "A JSON body a line."}
    answer = {"description": "An answer a line.", "$ref": "#/components/schemas/Line"}
    body, good = operation["requestBody"], operation["responses"]["200"]
    return {
        **operation,
        "operationId": f"{operation['operationId']}Lines",
        "description": f"{operation['description']} {_LINES}",
        "requestBody": {**body, "content": {**body["content"], LINES: {"schema": line}}},
        "responses": {
            **operation["responses"],
            "200": {**good, "content": {**good["content"], LINES: {"schema": answer}}},
        },
    }


def prediction(
    verb: str,
    model: str,
    summary: str,
    description: str,
    body: dict[str, Any],
    item: dict[str, Any],
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A model's POST: `body` has a schema for each media type, `item` is the schema of one prediction.

    `more` are the schemas of what the answer has beside its predictions.
    """
    answer = struct(
        {
            "model": {"type": "string"},
            "version": {"type": "integer"},
            "predictions": {"type": "array", "items": item},
            **(more or {}),
        }
    )
    content = {"application/json": {"schema": answer}}
    return {
        "operationId": verb + "".join(part[:1].upper() + part[1:] for part in re.split("[^A-Za-z0-9]", model)),
        "tags": ["models"],
        "summary": summary,
        "description": description,
        "parameters": _CHOICE,
        "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": "The predictions, in the request's order.", "content": content}},
    }


def json_body(
    required: dict[str, Any], example: object, optional: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """A JSON request body with these fields and no others."""
    schema = struct({**required, **(optional or {})}, tuple(required))
    content = {"schema": {**schema, "additionalProperties": False}}
    return {"application/json": content if example is None else {**content, "example": example}}


def json_choice(fields: dict[str, Any], example: object) -> dict[str, dict[str, Any]]:
    """A JSON request body that has one of these fields."""
    choices = [{**struct({name: value}), "additionalProperties": False} for name, value in fields.items()]
    content: dict[str, Any] = {"schema": {"oneOf": choices}}
    return {"application/json": content if example is None else {**content, "example": example}}


def struct(properties: dict[str, Any], required: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The schema of an object; without `required` every property is."""
    return {
        "type": "object",
        "required": list(properties if required is None else required),
        "properties": properties,
    }


def one_or_many(item: dict[str, Any], limit: int, description: str) -> dict[str, Any]:
    """The schema of a value or a list of such."""
    many = {"type": "array", "minItems": 1, "maxItems": limit, "items": item}
    return {"description": description, "oneOf": [item, many]}


def list_of(item: dict[str, Any], size: int) -> dict[str, Any]:
    """The schema of a list of exactly `size` items."""
    return {"type": "array", "minItems": size, "maxItems": size, "items": item}


def by_label(labels: tuple[str, ...], number: dict[str, Any]) -> dict[str, Any]:
    """The schema of a number for each label."""
    return struct(dict.fromkeys(labels, number))


def number_of(tensor: Tensor) -> dict[str, Any]:
    """The schema of one number of an output."""
    return PROBABILITY if tensor.unit == "probability" else {"type": "number"}


def row(contract: Contract) -> dict[str, Any]:
    """The schema of one prediction as `clients.outputs.rows` makes it."""
    classes = forms.classes(contract)
    fields: dict[str, Any] = {} if classes is None else {"class": {"enum": list(contract.labels)}}
    for tensor in contract.outputs:
        if tensor is not classes:
            fields[tensor.name] = _value(tensor, contract.labels)
    return struct(fields)


def type_text(tensor: Tensor) -> str:
    """A text such as "uint8 [n,28,28]"."""
    return forms.type_text(tensor.dtype, tensor.shape)


def _value(tensor: Tensor, labels: tuple[str, ...]) -> dict[str, Any]:
    if not tensor.dtype.startswith("float") or len(tensor.shape) > 2:
        return {}
    sizes = tensor.shape[1:]
    if labels and sizes == (len(labels),):
        return by_label(labels, number_of(tensor))
    return number_of(tensor) if sizes in ((), (1,)) else {}


def _named(operation: dict[str, Any], known: dict[str, int]) -> dict[str, Any]:
    """The operation with an id of its own: two models may have names that differ in a sign only."""
    name = operation["operationId"]
    known[name] = known.get(name, 0) + 1
    return operation if known[name] == 1 else {**operation, "operationId": f"{name}_{known[name]}"}


def _with_problems(operation: dict[str, Any]) -> dict[str, Any]:
    return {**operation, "responses": {**operation["responses"], **_problem_answers(_PROBLEMS)}}


def _problem_answers(texts: dict[str, str]) -> dict[str, Any]:
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": text, "content": content} for status, text in texts.items()}


def _get(operation: str, summary: str, name: str = "") -> dict[str, Any]:
    """GET of a JSON object, of a model where `name` is given."""
    answers = {"200": {"description": summary, "content": {"application/json": {"schema": {"type": "object"}}}}}
    known = ("401", "403", "404", "503") if name else ("401", "403", "503")
    return {
        "get": {
            "operationId": operation,
            "tags": ["gateway"],
            "summary": summary,
            "parameters": [_NAME] if name else [],
            "responses": {**answers, **_problem_answers({status: _PROBLEMS[status] for status in known})},
        }
    }


def _file(operation: str, summary: str, media_type: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    """GET of a file of a version, with an ETag."""
    kind = {"application/json": {"type": "object"}}.get(media_type, {"type": "string"})
    schema = {} if media_type.startswith("image/") else {"schema": kind}
    known = {status: _PROBLEMS[status] for status in ("401", "403", "404", "503")}
    return {
        "operationId": operation,
        "tags": ["gateway"],
        "summary": summary,
        "parameters": list(parameters),
        "responses": {
            "200": {"description": summary, "headers": {"ETag": ETAG}, "content": {media_type: schema}},
            "304": {"description": "It is what If-None-Match names."},
            **_problem_answers(known),
        },
    }
