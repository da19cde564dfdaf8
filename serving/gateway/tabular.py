"""The task `tabular`: rows of numbers to the class of each."""

from typing import Any

from flask import Request

from bookserve.clients import outputs
from bookserve.export.contracts import Contract
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.dependencies import Dependencies
from bookserve.serving.gateway.number_body import NumberBody
from bookserve.serving.gateway.request_parsing import Choice


def predict(request: Request, contract: Contract, choice: Choice, dependencies: Dependencies) -> dict[str, Any]:
    """The answer to one request."""
    rows = NumberBody.of(contract).rows(request, dependencies.limits)
    inputs = {contract.inputs[0].name: rows.astype(contract.inputs[0].dtype)}
    return outputs.rows(contract, dependencies.models.predict(contract, inputs, choice))


def openapi(contract: Contract, path: str, limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    text = f"A row holds {', '.join(contract.columns)}." if contract.columns else "Rows of numbers."
    body = NumberBody.of(contract).openapi(limits)
    item = schemas.row(contract)
    return {path: {"post": schemas.prediction("predict", contract.model, "Which class is it?", text, body, item)}}
