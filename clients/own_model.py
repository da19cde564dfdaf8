"""One prediction of any model, for `bookserve predict`: INPUT is tensors in a file or on the command line.

The tensors are those of the signature that the model server tells; labels come from the version's manifest, where the
model store is given.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bookserve.clients.answers import ModelMetadata, Prediction, Signature
from bookserve.clients.errors import InvalidArgument
from bookserve.export import example_inputs
from bookserve.export.contracts import SIGNATURE, Contract, ContractError, Tensor, from_json
from bookserve.export.errors import ExportError

_MANIFEST = "assets.extra/manifest.json"


class Server(Protocol):
    """`GrpcClient` and `RestClient` fit."""

    def predict(
        self,
        model: str,
        inputs: Any,
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
    ) -> Prediction:
        """One prediction."""

    def metadata(self, model: str, *, version: int | None = None, label: str | None = None) -> ModelMetadata:
        """The signatures of one version."""


@dataclass(frozen=True)
class Choice:
    """Which version is asked, and the model store, if it is known."""

    version: int | None
    label: str | None
    models_dir: Path | None


def ask(server: Server, model: str, source: str, choice: Choice) -> dict[str, Any]:
    """The answer {"model", "version", "predictions"}, one prediction a row.

    `source` is a file (.json in the REST form, .npz, .csv, a picture), or JSON such as {"inputs": [[1.0, 2.0]]}.

    Raises:
        ExportError: the input cannot be read, or does not fit the signature.
        PredictError: as the server's methods.
    """
    metadata = server.metadata(model, version=choice.version, label=choice.label)
    name, signature = _signature(metadata)
    contract = _contract(model, name, signature, _manifest(choice.models_dir, model, metadata.version))
    rows = _rows(source, contract)
    prediction = server.predict(model, rows, version=metadata.version, signature=name)
    return {"model": model, "version": metadata.version, "predictions": _predictions(contract, prediction)}


def _signature(metadata: ModelMetadata) -> tuple[str, Signature]:
    if SIGNATURE in metadata.signatures:
        return SIGNATURE, metadata.signatures[SIGNATURE]
    if len(metadata.signatures) == 1:
        return next(iter(metadata.signatures.items()))
    known = ", ".join(sorted(metadata.signatures))
    raise InvalidArgument(f"{metadata.model} has no signature '{SIGNATURE}' (its signatures: {known})")


def _contract(model: str, name: str, signature: Signature, told: Contract | None) -> Contract:
    inputs, outputs = (
        tuple(Tensor(key, info.dtype, info.shape or ()) for key, info in side.items())
        for side in (signature.inputs, signature.outputs)
    )
    labels, columns = ((), ()) if told is None else (told.labels, told.columns)
    return Contract(model, 1, inputs, outputs, labels=labels, columns=columns, signature=name)


def _manifest(models_dir: Path | None, model: str, version: int) -> Contract | None:
    """The contract of the version's manifest, or None where there is none that can be read."""
    if models_dir is None:
        return None
    try:
        content = json.loads((models_dir / model / str(version) / _MANIFEST).read_text(encoding="utf-8"))
        return from_json(content["contract"])
    except (OSError, ValueError, KeyError, TypeError, ContractError):
        return None


def _rows(source: str, contract: Contract) -> example_inputs.Rows:
    if source.lstrip()[:1] not in ("{", "["):
        return example_inputs.read(Path(source), contract)
    body = source if source.lstrip().startswith("{") else f'{{"instances": {source}}}'
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.write(body)
        file.flush()
        try:
            return example_inputs.read(Path(file.name), contract)
        except ExportError as error:
            raise ExportError(str(error).replace(file.name, "INPUT")) from error


def _predictions(contract: Contract, prediction: Prediction) -> list[dict[str, Any]]:
    """One object a row: output -> value; an output with a number for each label as {label: number}."""
    arrays = {tensor.name: np.asarray(prediction.outputs[tensor.name]) for tensor in contract.outputs}
    sizes = {len(array) if array.ndim else 1 for array in arrays.values()}
    if len(sizes) > 1 or any(array.ndim == 0 for array in arrays.values()):
        return [{name: example_inputs.to_rest(array) for name, array in arrays.items()}]
    return [{name: _value(array[row], contract.labels) for name, array in arrays.items()} for row in range(sizes.pop())]


def _value(value: Any, labels: tuple[str, ...]) -> Any:
    array = np.asarray(value)
    if labels and array.shape == (len(labels),) and array.dtype.kind == "f":
        return dict(zip(labels, (float(f"{number:.7g}") for number in array.tolist()), strict=True))
    return example_inputs.to_rest(array)
