"""The task `tabular`: rows of numbers to the class of each."""

from typing import Any

from bookserve.export.contracts import Contract
from bookserve.serving.gateway import number_body
from bookserve.serving.gateway import openapi as schemas
from bookserve.serving.gateway.config import Limits
from bookserve.serving.gateway.number_body import NumberBody

predict = number_body.predict


def openapi(contract: Contract, path: str, limits: Limits) -> dict[str, Any]:
    """The model's part of the OpenAPI document: its paths' operations, without the problems that all share."""
    text = f"A row holds {', '.join(contract.columns)}." if contract.columns else "Rows of numbers."
    body = NumberBody.of(contract).openapi(limits)
    item = schemas.row(contract)
    return {path: {"post": schemas.prediction("predict", contract.model, "Which class is it?", text, body, item)}}
