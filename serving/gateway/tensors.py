"""The task `tensors`: inputs in the REST form, for models whose contract says no more than their tensors."""

import math
from collections.abc import Mapping
from typing import Any

from flask import Request

from bookserve.clients import outputs
from bookserve.export import example_inputs
from bookserve.export.contracts import Contract
from bookserve.export.errors import ExportError
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway import request_parsing
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.problems import Problem, bad_value, shown
from bookserve.serving.gateway.request_parsing import Choice

_FIELDS = ("inputs", "instances")
_LONG = 1_000  # values of an example


def predict(request: Request, contract: Contract, choice: Choice, dependencies: Dependencies) -> dict[str, Any]:
    """The answer to one request."""
    example = _example(contract)
    if request_parsing.media_type(request) != request_parsing.JSON:
        raise _unknown(contract) or request_parsing.unsupported(
            request_parsing.media_type(request), (request_parsing.JSON,), example
        )
    body = request_parsing.read_json(request, dependencies.limits, example)
    given = [name for name in _FIELDS if name in body]
    if len(given) != 1 or len(body) > 1:
        raise _unknown(contract) or bad_value(
            "body", "inputs or instances as the only field", f"the fields {', '.join(body)[:80] or 'none'}", example
        )
    (name,) = given
    try:
        rows = example_inputs.fit(_inputs(contract, name, body[name]), contract, name)
    except (ExportError, KeyError, TypeError, ValueError) as error:
        text = str(error) if isinstance(error, ExportError) else shown(body[name])
        raise bad_value(name, f"the model's inputs, {', '.join(_types(contract))}", text, example) from error
    return outputs.tensors(contract, dependencies.models.predict(contract, rows, choice))


def openapi(contract: Contract, path: str, limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    text = f"It takes {', '.join(_types(contract))}." if contract.inputs else "The inputs of the model's signature."
    value = {"description": "An object with every input by name, or the value of the only input."}
    instances = {"description": "One item a row.", "type": "array"}
    body = schemas.json_choice({"inputs": value, "instances": instances}, _example(contract))
    item: dict[str, Any] = {"type": "object"}
    return {path: {"post": schemas.prediction("predict", contract.model, "What does it say?", text, body, item)}}


def _inputs(contract: Contract, field: str, value: Any) -> Mapping[str, Any]:
    """Input -> value. KeyError and TypeError where rows are not alike."""
    if field == "instances" and isinstance(value, list) and value and isinstance(value[0], dict):
        if "b64" not in value[0]:
            return {name: [row[name] for row in value] for name in value[0]}
    elif isinstance(value, dict) and "b64" not in value:
        return value
    return {contract.inputs[0].name if contract.inputs else "inputs": value}


def _unknown(contract: Contract) -> Problem | None:
    """Why something else than tensors is not taken, where no contract is known."""
    if contract.version:
        return None
    detail = f"the gateway knows no contract of {contract.model}, so it takes tensors only: start it with --models-dir"
    return Problem(503, f"{detail}, the folder of a model store in whose manifests the contracts stand")


def _types(contract: Contract) -> list[str]:
    return [f"{tensor.name}: {schemas.type_text(tensor)}" for tensor in contract.inputs]


def _example(contract: Contract) -> dict[str, Any] | None:
    """A body that has the inputs' forms: zeros, with 1 for every free size; None where that is long."""
    if not contract.inputs:
        return {"inputs": [[0.0]]}
    if sum(math.prod(size or 1 for size in tensor.shape) for tensor in contract.inputs) > _LONG:
        return None
    values = {tensor.name: _zeros(tensor.shape, tensor.dtype) for tensor in contract.inputs}
    return {"inputs": values if len(values) > 1 else next(iter(values.values()))}


def _zeros(shape: tuple[int | None, ...], dtype: str) -> Any:
    if not shape:
        return "text" if dtype == "object" else 0 if "int" in dtype else False if dtype == "bool" else 0.0
    return [_zeros(shape[1:], dtype)] * (1 if shape[0] is None else shape[0])
