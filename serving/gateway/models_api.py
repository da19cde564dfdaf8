"""GET /api/v1/models: which models there are, which versions the model server has, and how good they are."""

import dataclasses
from typing import Any

from flask import Blueprint, Response

from bookserve.clients import forms
from bookserve.export.contracts import Contract, Tensor, to_json
from bookserve.serving.gateway import headline
from bookserve.serving.gateway.caching import FRESH
from bookserve.serving.gateway.catalog import Catalog
from bookserve.serving.gateway.model_backend import ModelBackend, Readiness
from bookserve.serving.gateway.problems import Problem
from bookserve.serving.gateway.request_parsing import Choice
from bookserve.serving.gateway.responses import json_response
from bookserve.serving.gateway.server_metrics import ServerMetrics
from bookserve.serving.gateway.store import Store

PATH = "/api/v1/models"
_HISTORY = 20  # versions


class ModelsApi:
    """What the routes tell; without a store they list no models, tell no metrics and show no images."""

    def __init__(
        self, models: ModelBackend, catalog: Catalog, store: Store | None, live: ServerMetrics | None, rest: str
    ) -> None:
        self._models = models
        self._catalog = catalog
        self._store = store
        self._live = live
        self._rest = rest

    def routes(self) -> Blueprint:
        """The routes."""
        blueprint = Blueprint("models", __name__, url_prefix=PATH)

        @blueprint.get("")
        def list_models() -> Response:
            return json_response({"models": self._list()})

        @blueprint.get("/<model:name>")
        def show_model(name: str) -> Response:
            return json_response(self._model(self._known(name)))

        @blueprint.get("/<model:name>/state")
        def show_state(name: str) -> Response:
            contract = self._known(name)
            return json_response(self._now(contract))

        @blueprint.get("/<model:name>/versions/<int:version>/report/<picture>")
        def show_report_image(name: str, version: int, picture: str) -> Response:
            contract = self._known(name)
            content = self._store.report_image(contract.model, version, picture) if self._store else None
            if content is None:
                raise Problem(404, f"{name} version {version} has no report picture of that name")
            return Response(content, content_type="image/png", headers=FRESH)

        @blueprint.get("/<model:name>/versions/<int:version>/report/<picture>/small")
        def show_small_report_image(name: str, version: int, picture: str) -> Response:
            contract = self._known(name)
            content = self._store.small_report_image(contract.model, version, picture) if self._store else None
            if content is None:
                raise Problem(404, f"{name} version {version} has no report picture of that name")
            return Response(content, content_type="image/png", headers=FRESH)

        @blueprint.get("/<model:name>/versions/<int:version>/card")
        def show_card(name: str, version: int) -> Response:
            contract = self._known(name)
            text = self._store.card(contract.model, version) if self._store else None
            if text is None:
                raise Problem(404, f"{name} version {version} has no card")
            return Response(text, content_type="text/markdown; charset=utf-8", headers=FRESH)

        @blueprint.get("/<model:name>/versions/<int:version>/graph")
        def show_graph(name: str, version: int) -> Response:
            contract = self._known(name)
            found = self._store.graph(contract.model, version) if self._store else None
            if found is None:
                raise Problem(
                    404,
                    f"{name} version {version} has no graph in the store that is outlined: ONNX, SavedModel or LiteRT",
                )
            response = json_response(found)
            response.headers.update(FRESH)
            return response

        return blueprint

    def _known(self, name: str) -> Contract:
        """The contract of a model of the store, or of one that the model server has."""
        try:
            return self._catalog.contract(name, Choice())
        except Problem as problem:
            if name in self._catalog.names():
                return self._catalog.told(name)
            if problem.status == 404:
                raise Problem(404, _none(self._catalog)) from problem
            raise

    def _list(self) -> list[dict[str, Any]]:
        """Every model; where the model server is away it is asked once, and not once a model."""
        found, away = [], None
        for name in self._catalog.names():
            contract = self._catalog.told(name)
            readiness = away or self._models.readiness(contract)
            if readiness.away:
                away = readiness
            found.append({**self._state(contract, readiness), **self._judged(name, readiness.version)})
        return found

    def _now(self, contract: Contract) -> dict[str, Any]:
        """What of a model may change from one moment to the next."""
        name, readiness = contract.model, self._models.readiness(contract)
        tracked = [] if readiness.away else self._models.statuses(name)
        return {
            **self._state(contract, readiness),
            "stored": self._stored(name),
            "loaded": [status.version for status in tracked if status.state == "AVAILABLE"],
            "labels": self._store.labels(name) if self._store else {},
            "live": self._live.recent(name) if self._live else {"reason": _UNKNOWN_REST},
        }

    def _model(self, contract: Contract) -> dict[str, Any]:
        name, readiness = contract.model, self._models.readiness(contract)
        tracked = [] if readiness.away and self._store else self._models.statuses(name)
        states = {status.version: dataclasses.asdict(status) for status in tracked}
        for version in self._stored(name):
            states.setdefault(version, {"version": version, "state": None, "error": ""})
        labels = self._store.labels(name) if self._store else {}
        versions = [
            {
                **states[version],
                "labels": [label for label, number in labels.items() if number == version],
                **_from_store(self._store, name, version),
            }
            for version in sorted(states, reverse=True)
        ]
        return {
            **self._state(contract, readiness),
            **self._judged(name, readiness.version),
            **_tensors(contract),
            "example": self._example(name, readiness.version),
            "evaluation": self._evaluation(name, readiness.version),
            "addresses": {"grpc": self._models.address, "rest": self._rest or None},
            "versions": versions,
        }

    def _state(self, contract: Contract, readiness: Readiness) -> dict[str, Any]:
        return {
            "name": contract.model,
            "contract": contract.id if contract.version else None,
            "ready": readiness.ready,
            "version": readiness.version or None,
            "reason": readiness.reason or None,
            "away": readiness.away,
        }

    def _judged(self, name: str, version: int) -> dict[str, Any]:
        """Of the version that answers, or of the newest in the store: its task, figure, picture and origin."""
        versions = self._stored(name)
        chosen = version if version in versions else next(iter(versions), 0)
        if self._store is None or not chosen:
            return {"task": None, "headline": None, "picture": None, "history": [], "origin": None}
        manifest, images = self._store.manifest(name, chosen), self._store.report_images(name, chosen)
        figures = [(number, headline.of(self._store.manifest(name, number))) for number in versions[:_HISTORY]]
        contract = self._store.contracts.of_version(name, chosen)
        return {
            "task": contract.task if contract else None,
            "headline": headline.of(manifest),
            "picture": f"{PATH}/{name}/versions/{chosen}/report/{images[0]}" if images else None,
            "history": [[number, figure["value"]] for number, figure in reversed(figures) if figure],
            "origin": _origin(manifest),
        }

    def _stored(self, name: str) -> list[int]:
        return self._store.contracts.versions(name) if self._store else []

    def _evaluation(self, name: str, version: int) -> dict[str, Any] | None:
        """Of the version that answers, or of the newest in the store."""
        versions = self._stored(name)
        chosen = version if version in versions else next(iter(versions), 0)
        return self._store.evaluation(name, chosen) if self._store and chosen else None

    def _example(self, name: str, version: int) -> dict[str, Any] | None:
        """The inputs of the manifest's example."""
        for number in dict.fromkeys((version, *self._stored(name))):
            found = self._store.example(name, number) if self._store and number else None
            if found is not None:
                return found
        return None


_UNKNOWN_REST = "the gateway does not know the model server's REST address: start it with --model-server-rest"


def _none(catalog: Catalog) -> str:
    return f"there is no such model; there are: {', '.join(catalog.names()) or 'none in a model store'}"


def _origin(manifest: dict[str, Any] | None) -> str | None:
    """Where a version comes from: "training", or the format of the file that it was made from."""
    source = (manifest or {}).get("source")
    if isinstance(source, dict):
        return str(source.get("format", ""))
    return "training" if manifest and manifest.get("data") else None


def _tensors(contract: Contract) -> dict[str, Any]:
    return {
        "task": contract.task,
        "form": forms.form(contract),
        "signature": contract.signature,
        "inputs": [_tensor(tensor) for tensor in contract.inputs],
        "outputs": [_tensor(tensor) for tensor in contract.outputs],
        "labels": list(contract.labels),
        "columns": list(contract.columns),
        "preprocessing": to_json(contract).get("preprocessing"),
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    told: dict[str, Any] = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    if tensor.unit:
        told["unit"] = tensor.unit
    return told


def _from_store(store: Store | None, model: str, version: int) -> dict[str, Any]:
    if store is None:
        return {}
    report = f"{PATH}/{model}/versions/{version}/report/"
    return {
        "manifest": store.manifest(model, version),
        "report": [report + image for image in store.report_images(model, version)],
        "graph": f"{PATH}/{model}/versions/{version}/graph" if store.has_graph(model, version) else None,
        "card": f"{PATH}/{model}/versions/{version}/card" if store.has_card(model, version) else None,
    }
