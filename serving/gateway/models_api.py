"""GET /api/v1/models: which models there are, which versions the model server has, and how good they are."""

import dataclasses
from typing import Any

from flask import Blueprint, Response

from bookserve.export.book_contracts import CONTRACTS
from bookserve.export.contracts import Contract, Tensor
from bookserve.serving.gateway.model_backend import ModelBackend
from bookserve.serving.gateway.problems import Problem
from bookserve.serving.gateway.responses import json_response
from bookserve.serving.gateway.store import Store

PATH = "/api/v1/models"


def routes(models: ModelBackend, store: Store | None) -> Blueprint:
    """The routes; without a store they tell no metrics and show no images."""
    blueprint = Blueprint("models", __name__, url_prefix=PATH)

    @blueprint.get("")
    def list_models() -> Response:
        return json_response({"models": [_brief(models, contract) for contract in CONTRACTS.values()]})

    @blueprint.get("/<name>")
    def show_model(name: str) -> Response:
        contract = _contract(name)
        versions = [
            {**dataclasses.asdict(status), **_from_store(store, name, status.version)}
            for status in models.statuses(name)
        ]
        return json_response({**_brief(models, contract), **_tensors(contract), "versions": versions})

    @blueprint.get("/<name>/versions/<int:version>/report/<picture>")
    def show_report_image(name: str, version: int, picture: str) -> Response:
        contract = _contract(name)
        content = store.report_image(contract.model, version, picture) if store else None
        if content is None:
            raise Problem(404, f"{name} version {version} has no report picture of that name")
        return Response(content, content_type="image/png")

    return blueprint


def _contract(name: str) -> Contract:
    if name not in CONTRACTS:
        raise Problem(404, f"there is no such model; there are: {', '.join(CONTRACTS)}")
    return CONTRACTS[name]


def _brief(models: ModelBackend, contract: Contract) -> dict[str, Any]:
    readiness = models.readiness(contract)
    return {
        "name": contract.model,
        "contract": contract.id,
        "ready": readiness.ready,
        "version": readiness.version or None,
        "reason": readiness.reason or None,
    }


def _tensors(contract: Contract) -> dict[str, Any]:
    return {
        "inputs": [_tensor(tensor) for tensor in contract.inputs],
        "outputs": [_tensor(tensor) for tensor in contract.outputs],
        "labels": list(contract.labels),
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _from_store(store: Store | None, model: str, version: int) -> dict[str, Any]:
    if store is None:
        return {}
    report = f"{PATH}/{model}/versions/{version}/report/"
    return {
        "manifest": store.manifest(model, version),
        "report": [report + image for image in store.report_images(model, version)],
    }
