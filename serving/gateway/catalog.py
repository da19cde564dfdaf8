"""Which models there are, and which contract a request is read with: that of the version that is going to answer.

A contract stands in the manifest of its version in the model store. Where the store has none, a model takes tensors,
those of the signature that the model server tells.
"""

import threading
from collections.abc import Callable
from typing import Any

from werkzeug.routing import BaseConverter

from bookserve.clients import forms
from bookserve.clients.store_contracts import StoreContracts
from bookserve.export.contracts import Contract
from bookserve.serving.gateway.model_backend import ContractChanged, ModelBackend
from bookserve.serving.gateway.problems import Problem
from bookserve.serving.gateway.request_parsing import Choice

_SIGNATURES = 256  # kept at once

Ask = Callable[[Contract], dict[str, Any]]


class ModelName(BaseConverter):
    """A part of an address that may name a model. "models" has addresses of its own."""

    regex = r"(?!models\Z)[A-Za-z0-9][A-Za-z0-9_.-]{0,199}"


def unknown(model: str) -> Contract:
    """The contract of a model of which only the name is known."""
    return Contract(model, 0, (), ())


class Catalog:
    """The models of a store, and of the model server where there is no store. Shared by the gateway's threads."""

    def __init__(self, models: ModelBackend, contracts: StoreContracts | None) -> None:
        self._models = models
        self._contracts = contracts
        # Which version answered last, for the model and label whose version is not the newest of the store.
        self._moved: dict[tuple[str, str | None], Contract] = {}
        # Of models without a contract in the store: the version that was last asked for its signature, and its tensors.
        self._signatures: dict[tuple[str, Choice], tuple[int, Contract]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The models of the store, sorted."""
        return self._contracts.models() if self._contracts else []

    def without_models(self) -> list[str]:
        """Why nothing can be answered where no model is in the store: there is a store, or nobody answers."""
        if self._contracts:
            return [f"{self._contracts.name} holds no version of a model yet"]
        return [reason for reason in (self._models.reachable().reason,) if reason]

    def told(self, model: str) -> Contract:
        """The contract of a model's newest version in the store; one without tensors where it has none."""
        found = self._contracts.of_model(model) if self._contracts else None
        return unknown(model) if found is None else found

    def contract(self, model: str, choice: Choice) -> Contract:
        """The contract to read a request with. Problem where the model server has to tell it and cannot."""
        found = self._stored(model, choice)
        return self._of_signature(model, choice) if found is None else found

    def answer(self, model: str, choice: Choice, ask: Ask) -> dict[str, Any]:
        """What `ask` gives with the contract of the version that answers.

        Versions may have different contracts, and which one is going to answer is the model server's to say: where the
        first guess was wrong, `ask` is called once more with the right one. Raises Problem as `ask`.
        """
        contract = self._stored(model, choice)
        if contract is None:
            return self._answer_tensors(model, choice, ask)
        try:
            return ask(contract)
        except ContractChanged as change:
            right = change.contract
        except Problem:
            other = self._other(model, choice, contract)
            if other is None:
                raise
            right = other
        if choice.version is None:
            with self._lock:
                self._moved[model, choice.label] = right
        try:
            return ask(right)
        except ContractChanged as change:
            detail = f"{model} is being replaced by a version of another contract: try again"
            raise Problem(503, detail, headers={"Retry-After": "1"}) from change

    def _answer_tensors(self, model: str, choice: Choice, ask: Ask) -> dict[str, Any]:
        """The same without a contract in the store: a signature is asked for once a version, and not once a request."""
        with self._lock:
            known = self._signatures.get((model, choice))
        if known is None:
            return ask(self._of_signature(model, choice))
        version, contract = known
        try:
            answer = ask(contract)
        except Problem:
            right = self._changed(model, choice, contract)
            if right is None:
                raise
            return ask(right)
        right = None if answer["version"] == version else self._changed(model, choice, contract)
        return answer if right is None else ask(right)

    def _changed(self, model: str, choice: Choice, used: Contract) -> Contract | None:
        """The tensors of the version that a choice comes to now, where they are not those that were used."""
        with self._lock:
            self._signatures.pop((model, choice), None)
        try:
            found = self._of_signature(model, choice)
        except Problem:
            return None
        return None if found == used else found

    def _stored(self, model: str, choice: Choice) -> Contract | None:
        """The contract in the store of the version that a choice is thought to come to; None where it has none."""
        with self._lock:
            moved = self._moved.get((model, choice.label))
        if moved is not None and choice.version is None:
            return moved
        return self._contracts.of_model(model, choice.version) if self._contracts else None

    def _other(self, model: str, choice: Choice, used: Contract) -> Contract | None:
        """The contract of the version that a choice comes to, where that is not the one that was used."""
        if self._contracts is None or not self._contracts.differ(model):
            return None
        try:
            version = self._models.metadata(used, choice).version
        except (Problem, ContractChanged):
            return None
        found = self._contracts.of_model(model, version)
        return None if found == used else found

    def _of_signature(self, model: str, choice: Choice) -> Contract:
        metadata = self._models.metadata(unknown(model), choice)
        signatures = metadata.signatures
        name = next((key for key in (unknown(model).signature, *signatures) if key in signatures), "")
        if not name:
            raise Problem(502, f"{model} version {metadata.version} has no signature that can be asked")
        contract = forms.from_signature(model, name, signatures[name])
        with self._lock:
            if len(self._signatures) >= _SIGNATURES:
                self._signatures.clear()
            self._signatures[model, choice] = metadata.version, contract
        return contract
