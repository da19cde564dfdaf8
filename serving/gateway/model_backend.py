"""The model server as the gateway sees it: predictions of versions whose contract the gateway knows, and no others.

Between the model files of this folder and the client that is injected. A version is checked once, when it first
answers: versions are never rewritten. Everything that goes wrong here is a `Problem`.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from bookserve.clients import errors
from bookserve.clients.answers import Array, ModelMetadata, Prediction, TensorInfo, VersionStatus, shape_text
from bookserve.export.book_contracts import CONTRACTS
from bookserve.export.contracts import SIGNATURE, Contract, Tensor
from bookserve.serving.gateway.problems import Problem, from_model_server
from bookserve.serving.gateway.request_parsing import Choice

_T = TypeVar("_T")


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
    server was never given is `absent`, which is no fault.
    """

    ready: bool
    version: int
    reason: str
    absent: bool = False


class ModelBackend:
    """Asks `backend` for predictions and checks contracts. Shared by the gateway's threads."""

    def __init__(self, backend: PredictClient, address: str, timeout: float) -> None:
        self.address = address
        self._backend = backend
        self._timeout = timeout
        self._checked: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def predict(self, contract: Contract, inputs: Mapping[str, Array], choice: Choice) -> Prediction:
        """Runs `inputs`, which are of the contract's shapes and dtypes; the outputs are of them too, and finite.

        Raises Problem: 404 for an unknown version or label, 502 for a version of another contract, 503 and 504 when the
        model server is away, full or late.
        """
        rows = len(next(iter(inputs.values())))
        try:
            for last_try in (False, True):
                try:
                    prediction = self._backend.predict(
                        contract.model,
                        inputs,
                        version=choice.version,
                        label=choice.label,
                        signature=SIGNATURE,
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
        _check_outputs(contract, prediction, rows)
        return prediction

    def with_version(self, contract: Contract, choice: Choice, ask: Callable[[int], _T]) -> _T:
        """Gives `ask` the number of the version chosen, for answers that take several calls or the version's assets.

        A version that is swapped for its successor meanwhile is let go, and `ask` called once more with that one.
        Raises Problem as `predict`.
        """
        for last_try in (False, True):
            version = choice.version or self._resolve(contract, choice)
            try:
                return ask(version)
            except Problem as problem:
                if problem.status != 404 or choice.version is not None or last_try:
                    raise
        raise AssertionError("the last try returns or raises")

    def readiness(self, contract: Contract) -> Readiness:
        """Whether the newest version of the contract's model is loaded and keeps the contract."""
        try:
            metadata = self._backend.metadata(contract.model, timeout=self._timeout)
        except errors.NotFound:
            reason = f"the model server at {self.address} has no version of {contract.model} loaded"
            return Readiness(False, 0, reason, absent=True)
        except errors.PredictError as error:
            return Readiness(False, 0, from_model_server(error, self.address).detail)
        mismatch = contract_mismatch(contract, metadata)
        return Readiness(not mismatch, metadata.version, mismatch)

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

    def _resolve(self, contract: Contract, choice: Choice) -> int:
        try:
            return self._backend.metadata(contract.model, label=choice.label, timeout=self._timeout).version
        except errors.PredictError as error:
            raise self._problem(contract, choice, error) from error

    def _check(self, contract: Contract, choice: Choice) -> None:
        """Problem 502 when the version does not keep the contract; PredictError when it cannot be told."""
        key = (contract.model, choice.version or 0)
        with self._lock:
            if key in self._checked:
                return
        metadata = self._backend.metadata(
            contract.model, version=choice.version, label=choice.label, timeout=self._timeout
        )
        mismatch = contract_mismatch(contract, metadata)
        if mismatch:
            raise Problem(502, mismatch)
        with self._lock:
            self._checked.add((contract.model, metadata.version))

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


def contract_mismatch(contract: Contract, metadata: ModelMetadata) -> str:
    """Why a version does not keep a contract; empty when it does."""
    name = f"{metadata.model} version {metadata.version}"
    if contract.model not in CONTRACTS:
        return f"{name} is of no contract that this gateway knows"
    signature = metadata.signatures.get(SIGNATURE)
    if signature is None:
        return f"{name} has no signature {SIGNATURE!r}, which contract {contract.id} needs"
    for kind, tensors, infos in (
        ("input", contract.inputs, signature.inputs),
        ("output", contract.outputs, signature.outputs),
    ):
        for tensor in tensors:
            info = infos.get(tensor.name)
            if info is None or not _fits(tensor, info, kind):
                has = "nothing" if info is None else _text(info.dtype, info.shape)
                wants = _text(tensor.dtype, tensor.shape)
                return (
                    f"{name} does not keep contract {contract.id}: {kind} {tensor.name!r} should be {wants}, is {has}"
                )
        extra = sorted(infos.keys() - {tensor.name for tensor in tensors}) if kind == "input" else []
        if extra:
            return f"{name} does not keep contract {contract.id}: it wants an input {extra[0]!r} as well"
    return ""


def _fits(tensor: Tensor, info: TensorInfo, kind: str) -> bool:
    """A dimension that the contract fixes may be free in the signature.

    One that it frees must be free, but for an output's after the batch: a version has its own size there, as of its
    vocabulary.
    """
    if info.dtype != tensor.dtype:
        return False
    if info.shape is None:
        return True
    if len(info.shape) != len(tensor.shape):
        return False
    return all(
        has is None or has == wants or (wants is None and kind == "output" and place > 0)
        for place, (has, wants) in enumerate(zip(info.shape, tensor.shape, strict=True))
    )


def _text(dtype: str, shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return f"{dtype} of any shape"
    return f"{dtype} [{','.join('n' if size is None else str(size) for size in shape)}]"


def _check_outputs(contract: Contract, prediction: Prediction, rows: int) -> None:
    name = f"{contract.model} version {prediction.version}"
    for tensor in contract.outputs:
        array = prediction.outputs.get(tensor.name)
        if array is None:
            raise Problem(502, f"{name} answered no output {tensor.name!r}")
        sizes = zip(array.shape[1:], tensor.shape[1:], strict=False)
        fits = array.ndim == len(tensor.shape) and all(wants in (None, has) for has, wants in sizes)
        if array.dtype.name != tensor.dtype or not fits or len(array) != rows:
            wants = _text(tensor.dtype, tensor.shape)
            raise Problem(502, f"{name} answered {shape_text(array)} for {tensor.name!r}, not {wants} with n = {rows}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Problem(502, f"{name} answered {tensor.name!r} with values that are no numbers")
