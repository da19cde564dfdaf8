"""GET /api/v1/models: which models there are, which versions the model server has, and how good they are."""

import dataclasses
from typing import Any

from flask import Blueprint, Response

from bookserve.clients import forms
from bookserve.clients.store_contracts import is_name
from bookserve.export.contracts import Contract, Tensor, to_json
from bookserve.serving.gateway.catalog import Catalog
from bookserve.serving.gateway.model_backend import ModelBackend
from bookserve.serving.gateway.problems import Problem
from bookserve.serving.gateway.request_parsing import Choice
from bookserve.serving.gateway.responses import json_response
from bookserve.serving.gateway.store import Store

PATH = "/api/v1/models"


def routes(models: ModelBackend, catalog: Catalog, store: Store | None) -> Blueprint:
    """The routes; without a store they list no models, tell no metrics and show no images."""
    blueprint = Blueprint("models", __name__, url_prefix=PATH)

    @blueprint.get("")
    def list_models() -> Response:
        return json_response({"models": [_brief(models, catalog.told(name)) for name in catalog.names()]})

    @blueprint.get("/<name>")
    def show_model(name: str) -> Response:
        contract = known(name)
        versions = [
            {**dataclasses.asdict(status), **_from_store(store, name, status.version)}
            for status in models.statuses(name)
        ]
        return json_response({**_brief(models, contract), **_tensors(contract), "versions": versions})

    @blueprint.get("/<name>/versions/<int:version>/report/<picture>")
    def show_report_image(name: str, version: int, picture: str) -> Response:
        contract = known(name)
        content = store.report_image(contract.model, version, picture) if store else None
        if content is None:
            raise Problem(404, f"{name} version {version} has no report picture of that name")
        return Response(content, content_type="image/png")

    def known(name: str) -> Contract:
        """The contract of a model of the store, or of one that the model server has."""
        if not is_name(name):
            raise Problem(404, _none(catalog))
        try:
            return catalog.contract(name, Choice())
        except Problem as problem:
            if name in catalog.names():
                return catalog.told(name)
            if problem.status == 404:
                raise Problem(404, _none(catalog)) from problem
            raise

    return blueprint


def _none(catalog: Catalog) -> str:
    return f"there is no such model; there are: {', '.join(catalog.names()) or 'none in a model store'}"


def _brief(models: ModelBackend, contract: Contract) -> dict[str, Any]:
    readiness = models.readiness(contract)
    return {
        "name": contract.model,
        "contract": contract.id if contract.version else None,
        "ready": readiness.ready,
        "version": readiness.version or None,
        "reason": readiness.reason or None,
    }


def _tensors(contract: Contract) -> dict[str, Any]:
    return {
        "task": contract.task,
        "form": forms.form(contract),
        "inputs": [_tensor(tensor) for tensor in contract.inputs],
        "outputs": [_tensor(tensor) for tensor in contract.outputs],
        "labels": list(contract.labels),
        "columns": list(contract.columns),
        "preprocessing": to_json(contract).get("preprocessing"),
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
