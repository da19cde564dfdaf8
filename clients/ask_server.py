"""One prediction straight from a model server, for `bookserve predict`.

INPUT becomes tensors here, by the same code that the gateway runs: as the contract in the version's manifest says,
where the model store is at hand. Without it INPUT is tensors, and those of the signature that the model server tells.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bookserve.clients import forms, outputs
from bookserve.clients.answers import Array, ModelMetadata, Prediction, Signature
from bookserve.clients.errors import BadAnswer, InvalidArgument
from bookserve.clients.inputs import boards, molecules, pictures, points, words
from bookserve.clients.store_contracts import StoreContracts
from bookserve.export import example_inputs
from bookserve.export.contracts import SIGNATURE, Contract
from bookserve.export.errors import ExportError

TOP_K = 5
_FILES = (".json", ".npz", ".npy", ".csv")  # of tensors, whatever the task


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

    version: int | None = None
    label: str | None = None
    models_dir: Path | None = None


@dataclass(frozen=True)
class Asked:
    """The version that a choice comes to. `doubt` says why its contract is not a manifest's; it is empty otherwise."""

    contract: Contract
    version: int
    doubt: str


def find(server: Server, model: str, choice: Choice) -> Asked:
    """The version that `choice` comes to, and its contract.

    Raises:
        PredictError: as the server's methods.
    """
    metadata = server.metadata(model, version=choice.version, label=choice.label)
    told, doubt = None, "the model store is not named"
    if choice.models_dir is not None:
        told = StoreContracts(choice.models_dir).of_model(model, metadata.version)
        doubt = f"{choice.models_dir} has no manifest of it with a contract"
    if told is not None:
        doubt = forms.mismatch(told, metadata)
    if told is not None and not doubt:
        return Asked(told, metadata.version, "")
    name, signature = _signature(metadata)
    return Asked(forms.from_signature(model, name, signature), metadata.version, doubt)


def ask(server: Server, asked: Asked, source: str, models_dir: Path | None = None) -> dict[str, Any]:
    """The answer {"model", "version", "predictions"}, one prediction a row.

    `source` is what a person has of the contract's task (a picture, a molecule, numbers, a text, a board); or a file
    (.json in the REST form, .npz, .csv, for tensors a picture too), or JSON such as {"inputs": [[1.0, 2.0]]}. The
    vocabulary of a text model lies in `models_dir`.

    Raises:
        ExportError: the input cannot be read, or does not fit the signature; or an error of `clients.inputs`.
        PredictError: as the server's methods.
        ValueError: without a contract the input would have to be tensors, and is none.
    """
    contract = asked.contract
    form = forms.form(contract)
    if is_tensors(source, form):
        _check_tensors(source, asked)
        return outputs.tensors(contract, _predict(server, asked, rows(source, contract)))
    match form:
        case forms.PICTURES:
            image = picture(source, contract)[None]
            return outputs.rows(contract, _predict(server, asked, {contract.inputs[0].name: image}))
        case forms.MOLECULES:
            return outputs.molecules(contract, _predict(server, asked, molecule(source, contract)), [source])
        case forms.BOARD:
            position = boards.parse(source)
            planes = boards.planes(position)[None].astype(contract.inputs[0].dtype)
            return outputs.board(contract, _predict(server, asked, {contract.inputs[0].name: planes}), [position])
        case forms.TEXT:
            return _ask_text(server, asked, source, models_dir)
        case _:
            row = points.row(source, contract.inputs[0].shape[1] or 1)[None].astype(contract.inputs[0].dtype)
            return outputs.rows(contract, _predict(server, asked, {contract.inputs[0].name: row}))


def is_tensors(source: str, form: str) -> bool:
    """Whether INPUT is tensors in a file or as JSON, and not what a person has of a task."""
    if form == forms.TENSORS:
        return True
    begins = source.lstrip()[:1]
    if begins == "{" and form != forms.TEXT:
        return True
    if begins == "[" and form not in (forms.TEXT, forms.MOLECULES):
        return True
    return Path(source).suffix.lower() in _FILES and Path(source).is_file()


def rows(source: str, contract: Contract) -> example_inputs.Rows:
    """The tensors in a file or in JSON.

    Raises:
        ExportError: they cannot be read, or do not fit the contract.
    """
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


def picture(source: str, contract: Contract) -> Array:
    """A picture's file as one row of the model's input."""
    means = contract.preprocessing
    assert means is not None
    tensor: Array = pictures.tensor(pictures.levels(Path(source), means)[None], means, contract.inputs[0])[0]
    return tensor


def molecule(source: str, contract: Contract) -> dict[str, Array]:
    """A molecule as one row of each of the model's inputs."""
    assert contract.preprocessing is not None
    made = molecules.features(source, contract.preprocessing)
    return {tensor.name: made[tensor.name][None].astype(tensor.dtype) for tensor in contract.inputs}


def _ask_text(server: Server, asked: Asked, source: str, models_dir: Path | None) -> dict[str, Any]:
    contract, scores = asked.contract, forms.scores(asked.contract)
    assert models_dir is not None
    assert contract.preprocessing is not None
    assert scores is not None
    folder = models_dir / contract.model / str(asked.version)
    vocabulary = words.read_vocabulary(folder / "assets" / contract.preprocessing.vocabulary)
    tokens = words.tokens(source, vocabulary)
    inputs = {contract.inputs[0].name: np.array([tokens.ids], contract.inputs[0].dtype)}
    values = _predict(server, asked, inputs).outputs[scores.name]
    if contract.labels:
        return outputs.text_classes(contract, asked.version, [(source, tokens, values[0])])
    if values.shape != (1, len(vocabulary.words)):
        raise BadAnswer(f"version {asked.version} of {contract.model} has another vocabulary than {models_dir}")
    return outputs.next_words(contract, asked.version, vocabulary, [(source, tokens, values[0])], TOP_K)


def _predict(server: Server, asked: Asked, inputs: Any) -> Prediction:
    return server.predict(
        asked.contract.model, inputs, version=asked.version, label=None, signature=asked.contract.signature
    )


def _check_tensors(source: str, asked: Asked) -> None:
    """Says what would help where a person's input is given and no contract is known."""
    if asked.doubt and source.lstrip()[:1] not in ("{", "[") and not Path(source).suffix:
        raise ValueError(
            f"INPUT of {asked.contract.model} version {asked.version} is tensors, as {asked.doubt}: give a file "
            "(.json, .npz, .csv, a picture) or JSON, or the model store with --models-dir"
        )


def _signature(metadata: ModelMetadata) -> tuple[str, Signature]:
    if SIGNATURE in metadata.signatures:
        return SIGNATURE, metadata.signatures[SIGNATURE]
    if len(metadata.signatures) == 1:
        return next(iter(metadata.signatures.items()))
    known = ", ".join(sorted(metadata.signatures))
    raise InvalidArgument(f"{metadata.model} has no signature '{SIGNATURE}' (its signatures: {known})")
