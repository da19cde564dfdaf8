"""The task `regression`: rows of numbers to what the model estimates for each."""

from typing import Any

from bookserve.export.contracts import Contract
from bookserve.serving.gateway import number_body
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.number_body import NumberBody

predict = number_body.predict


def openapi(contract: Contract, path: str, limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    named = " and ".join(contract.columns) or contract.inputs[0].name
    wanted = " and ".join(tensor.name for tensor in contract.outputs)
    summary, text = f"Which {wanted} is at {named}?", f"A row holds {', '.join(contract.columns) or named}."
    body = NumberBody.of(contract).openapi(limits)
    item = schemas.row(contract)
    return {path: {"post": schemas.prediction("predict", contract.model, summary, text, body, item)}}
