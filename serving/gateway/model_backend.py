"""The model server as the gateway sees it: predictions of versions that keep their contract, and no others.

Between the tasks' files of this folder and the client that is injected. A version is checked once, when it first
answers: versions are never rewritten. Everything that goes wrong here is a `Problem`, but for a version that answers
with another contract than the one asked with: `ContractChanged`.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from bookserve.clients import errors, forms
from bookserve.clients.answers import Array, ModelMetadata, Prediction, VersionStatus, joined, shape_text
from bookserve.clients.store_contracts import StoreContracts
from bookserve.export.contracts import Contract
from bookserve.serving.gateway.problems import Problem, from_model_server
from bookserve.serving.gateway.request_parsing import Choice

_T = TypeVar("_T")
_NOBODY = "bookserve-nobody"  # a name that no model has
_STATE_SECONDS = 2.0  # after which a model server that does not tell its state counts as away


class PredictClient(Protocol):
    """What the gateway needs of a client; `clients.grpc_client.GrpcClient` and `clients.rest_client.RestClient` fit."""

    def predict(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
        timeout: float = ...,
    ) -> Prediction:
        """One prediction."""

    def metadata(
        self, model: str, *, version: int | None = None, label: str | None = None, timeout: float = ...
    ) -> ModelMetadata:
        """The signatures of one version."""

    def status(self, model: str, *, timeout: float = ...) -> list[VersionStatus]:
        """The states of all versions."""


@dataclass(frozen=True)
class Readiness:
    """Whether one model can answer.

    `version` is the one that answers, 0 for none. `reason` says why the model cannot answer; a model that the model
    server was never given is `absent`, which is no fault. `away` means that the model server answers nothing.
    """

    ready: bool
    version: int
    reason: str
    absent: bool = False
    away: bool = False


class ContractChanged(Exception):
    """The version that answered has `contract`, and not the one that it was asked with."""

    def __init__(self, contract: Contract) -> None:
        super().__init__(contract.id)
        self.contract = contract


class ModelBackend:
    """Asks `backend` for predictions and checks contracts. Shared by the gateway's threads.

    `contracts` are those of the model store; without them a version has the contract that it is asked with.
    """

    def __init__(
        self, backend: PredictClient, address: str, timeout: float, contracts: StoreContracts | None = None
    ) -> None:
        self.address = address
        self._backend = backend
        self._timeout = timeout
        self._contracts = contracts
        self._checked: dict[tuple[str, int], Contract] = {}
        self._lock = threading.Lock()

    def predict(self, contract: Contract, inputs: Mapping[str, Array], choice: Choice) -> Prediction:
        """Runs `inputs`, which are of the contract's shapes and dtypes; the outputs are of them too, and finite, but
        for a contract of no more than tensors.

        Raises Problem: 404 for an unknown version or label, 502 for a version that breaks its contract, 503 and 504
        when the model server is away, full or late. Raises ContractChanged. A model that takes one row at a time is
        asked as often as there are rows.
        """
        found: list[Prediction] = []
        for part in forms.requests(contract, inputs):
            found.append(self._predict(contract, part, Choice(version=found[0].version) if found else choice))
        return joined(found)

    def _predict(self, contract: Contract, inputs: Mapping[str, Array], choice: Choice) -> Prediction:
        try:
            for last_try in (False, True):
                try:
                    prediction = self._backend.predict(
                        contract.model,
                        inputs,
                        version=choice.version,
                        label=choice.label,
                        signature=contract.signature,
                        timeout=self._timeout,
                    )
                    self._check(contract, Choice(version=prediction.version))
                    break
                except errors.NotFound:
                    # The version that answered may be gone when its metadata is asked for: its successor is there then.
                    if last_try:
                        raise
        except errors.PredictError as error:
            raise self._problem(contract, choice, error) from error
        _check_outputs(contract, prediction, inputs)
        return prediction

    def with_version(self, contract: Contract, choice: Choice, ask: Callable[[int], _T]) -> _T:
        """Gives `ask` the number of the version chosen, for answers that take several calls or the version's assets.

        A version that is swapped for its successor meanwhile is let go, and `ask` called once more with that one.
        Raises Problem as `predict`.
        """
        for last_try in (False, True):
            version = choice.version or self.metadata(contract, choice).version
            try:
                return ask(version)
            except Problem as problem:
                if problem.status != 404 or choice.version is not None or last_try:
                    raise
        raise AssertionError("the last try returns or raises")

    def readiness(self, contract: Contract) -> Readiness:
        """Whether the newest version of the contract's model is loaded and keeps the contract."""
        try:
            metadata = self._backend.metadata(contract.model, timeout=min(self._timeout, _STATE_SECONDS))
        except errors.NotFound:
            reason = f"the model server at {self.address} has no version of {contract.model} loaded"
            return Readiness(False, 0, reason, absent=True)
        except errors.PredictError as error:
            away = isinstance(error, errors.Unavailable | errors.DeadlineExceeded)
            return Readiness(False, 0, from_model_server(error, self.address).detail, away=away)
        own = self._own(contract, metadata.version)
        mismatch = forms.mismatch(own, metadata) if own.whole else ""
        return Readiness(not mismatch, metadata.version, mismatch)

    def reachable(self) -> Readiness:
        """Whether the model server answers at all, whatever it serves."""
        try:
            self._backend.status(_NOBODY, timeout=self._timeout)
        except (errors.Unavailable, errors.DeadlineExceeded) as error:
            return Readiness(False, 0, from_model_server(error, self.address).detail)
        except errors.PredictError:
            pass
        return Readiness(True, 0, "")

    def statuses(self, model: str) -> list[VersionStatus]:
        """The versions of a model as the model server tracks them, newest first; none when it does not know the model.

        Raises Problem when the model server is away.
        """
        try:
            return self._backend.status(model, timeout=self._timeout)
        except errors.NotFound:
            return []
        except errors.PredictError as error:
            raise from_model_server(error, self.address) from error

    def metadata(self, contract: Contract, choice: Choice) -> ModelMetadata:
        """The signatures of the version chosen. Raises Problem as `predict`."""
        try:
            return self._backend.metadata(
                contract.model, version=choice.version, label=choice.label, timeout=self._timeout
            )
        except errors.PredictError as error:
            raise self._problem(contract, choice, error) from error

    def _own(self, contract: Contract, version: int) -> Contract:
        """The contract of a version, as far as the store has it."""
        own = self._contracts.of_version(contract.model, version) if self._contracts else None
        return contract if own is None else own

    def _check(self, contract: Contract, choice: Choice) -> None:
        """Problem 502 when the version does not keep the contract; PredictError when it cannot be told.

        Raises ContractChanged.
        """
        key = (contract.model, choice.version or 0)
        with self._lock:
            if self._checked.get(key) == contract:
                return
        metadata = self._backend.metadata(
            contract.model, version=choice.version, label=choice.label, timeout=self._timeout
        )
        own = self._own(contract, metadata.version)
        if own != contract:
            raise ContractChanged(own)
        mismatch = forms.mismatch(contract, metadata)
        if mismatch:
            raise Problem(502, mismatch)
        with self._lock:
            self._checked[contract.model, metadata.version] = contract

    def _problem(self, contract: Contract, choice: Choice, error: errors.PredictError) -> Problem:
        if isinstance(error, errors.Unavailable):
            with self._lock:  # whoever answers next may serve another store
                self._checked.clear()
        elif isinstance(error, errors.NotFound):
            wanted = f"version {choice.version}" if choice.version else "version"
            detail = f"the model server at {self.address} has no {wanted} of {contract.model} loaded"
            return Problem(404, f"{detail}: GET /api/v1/models/{contract.model} lists what it has")
        elif isinstance(error, errors.InvalidArgument | errors.FailedPrecondition):
            if choice.label is not None and "label" in str(error):
                return Problem(404, f"{contract.model} has no label {choice.label!r}", field="?label")
            # The tensors are of the contract's form, so the version that refuses them keeps another one.
            try:
                self._check(contract, choice)
            except Problem as mismatch:
                return mismatch
            except errors.PredictError as unanswered:
                return from_model_server(unanswered, self.address)
        return from_model_server(error, self.address)


def _check_outputs(contract: Contract, prediction: Prediction, inputs: Mapping[str, Array]) -> None:
    name = f"{contract.model} version {prediction.version}"
    is_tensors = forms.form(contract) == forms.TENSORS
    rows = () if is_tensors else inputs[contract.inputs[0].name].shape[:1]
    for tensor in contract.outputs:
        array = prediction.outputs.get(tensor.name)
        if array is None:
            raise Problem(502, f"{name} answered no output {tensor.name!r}")
        if is_tensors:
            continue
        sizes = zip(array.shape[1:], tensor.shape[1:], strict=False)
        fits = array.ndim == len(tensor.shape) and all(wants in (None, has) for has, wants in sizes)
        if array.dtype.name != tensor.dtype or not fits or array.shape[:1] != rows:
            wants = forms.type_text(tensor.dtype, tensor.shape)
            raise Problem(
                502, f"{name} answered {shape_text(array)} for {tensor.name!r}, not {wants} with n = {rows[0]}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Problem(502, f"{name} answered {tensor.name!r} with values that are no numbers")
