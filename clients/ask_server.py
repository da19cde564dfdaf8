"""Predictions straight from a model server, for `bookserve predict`.

INPUT becomes tensors here, by the same code that the gateway runs: as the contract in the version's manifest says,
where the model store is at hand. Without it INPUT is tensors, and those of the signature that the model server tells.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from bookserve.clients import forms, outputs
from bookserve.clients.answers import Array, ModelMetadata, Prediction, Signature, VersionStatus, joined
from bookserve.clients.errors import BadAnswer, InvalidArgument, NotFound, PredictError
from bookserve.clients.inputs import boards, compounds, molecules, pictures, points, words
from bookserve.clients.predict_inputs import STANDARD_INPUT, Tensors, Value
from bookserve.clients.store_contracts import StoreContracts
from bookserve.export.contracts import SIGNATURE, Contract

TOP_K = 5


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

    def status(self, model: str) -> list[VersionStatus]:
        """The versions of a model."""

    def models(self) -> list[str]:
        """The names of all models."""


@dataclass(frozen=True)
class Choice:
    """Which version is asked, and the model store, if it is known."""

    version: int | None = None
    label: str | None = None
    models_dir: Path | None = None


@dataclass(frozen=True)
class Asked:
    """The version that a choice comes to. `doubt` says why its contract is not a manifest's; it is empty otherwise.

    `unlike` is the similarity below which an input is unlike the training rows, where that is known. `reads_pictures`
    says that the server is sent pictures' files, as it knows how they become the model's input.
    """

    contract: Contract
    version: int
    doubt: str
    unlike: float | None = None
    reads_pictures: bool = False


def find(server: Server, model: str, choice: Choice) -> Asked:
    """The version that `choice` comes to, and its contract.

    Raises:
        PredictError: as the server's methods; NotFound names what is there.
    """
    try:
        metadata = server.metadata(model, version=choice.version, label=choice.label)
    except NotFound as error:
        raise NotFound(_what_is_there(server, model, choice) or str(error)) from error
    except InvalidArgument as error:
        mend = (
            f"; 'bookserve models label {model} {choice.label} VERSION' gives it to a version" if choice.label else ""
        )
        raise InvalidArgument(f"{error}{mend}") from error
    told, unlike, doubt = None, None, "the model store is not named"
    if choice.models_dir is not None:
        store = StoreContracts(choice.models_dir)
        told, unlike = store.of_model(model, metadata.version), store.unlike(model, metadata.version)
        doubt = f"{choice.models_dir} has no manifest of it with a contract"
    if told is not None:
        doubt = forms.mismatch(told, metadata)
    if told is not None and not doubt:
        return Asked(told, metadata.version, "", unlike)
    name, signature = _signature(metadata)
    return Asked(forms.from_signature(model, name, signature), metadata.version, doubt)


def ask(server: Server, asked: Asked, values: Sequence[Value], models_dir: Path | None = None) -> dict[str, Any]:
    """The answer {"model", "version", "predictions"} to one request, with one prediction a value.

    Each of `values` is what a person has of the contract's task (a picture, a molecule, numbers, a text, a board).
    `Tensors` come alone, and give one prediction a row. The vocabulary of a text model lies in `models_dir`.

    Raises:
        PredictError: as the server's methods; or an error of `clients.inputs`.
    """
    contract = asked.contract
    tensor = contract.inputs[0]
    match values[0]:
        case Tensors(_, Path() as file) if asked.reads_pictures:
            return outputs.tensors(contract, _send_picture(server, asked, file.read_bytes()))
        case Tensors(rows):
            return outputs.tensors(contract, _predict(server, asked, rows))
    match forms.form(contract):
        case forms.PICTURES:
            images = np.stack([picture(value, contract) for value in values])
            return outputs.rows(contract, _predict(server, asked, {tensor.name: images}))
        case forms.MOLECULES:
            smiles = [compounds.smiles_of(_text(value)) for value in values]
            made = [molecule(text, contract) for text in smiles]
            inputs = {one.name: np.concatenate([features[one.name] for features in made]) for one in contract.inputs}
            return outputs.molecules(contract, _predict(server, asked, inputs), smiles, asked.unlike)
        case forms.BOARD:
            positions = [boards.parse(_text(value)) for value in values]
            planes = np.stack([boards.planes(position) for position in positions]).astype(tensor.dtype)
            return outputs.board(contract, _predict(server, asked, {tensor.name: planes}), positions)
        case forms.TEXT:
            return _ask_text(server, asked, [_text(value) for value in values], models_dir)
        case _:
            table = np.stack([numbers(value, contract) for value in values]).astype(tensor.dtype)
            return outputs.rows(contract, _predict(server, asked, {tensor.name: table}))


def reads_pictures(server: Server, asked: Asked) -> bool:
    """Whether the server takes pictures' files as they are; bookserve's does where a manifest says how.

    It is asked with a small picture made here: one of the user's may be damaged.
    """
    if len(asked.contract.inputs) != 1:
        return False
    made = io.BytesIO()
    Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), 12)).save(made, "PNG")
    try:
        _send_picture(server, asked, made.getvalue())
    except PredictError:  # servers differ in how they refuse a text in the place of numbers
        return False
    return True


def _send_picture(server: Server, asked: Asked, content: bytes) -> Prediction:
    return _predict(server, asked, {asked.contract.inputs[0].name: np.array([content], object)})


def picture(value: Value, contract: Contract) -> Array:
    """A picture's file as one row of the model's input."""
    means = contract.preprocessing
    assert means is not None
    assert isinstance(value, Path | bytes)
    tensor: Array = pictures.tensor(pictures.levels(value, means)[None], means, contract.inputs[0])[0]
    return tensor


def molecule(source: str, contract: Contract) -> dict[str, Array]:
    """A molecule as one row of each of the model's inputs."""
    assert contract.preprocessing is not None
    made = molecules.features(source, contract.preprocessing)
    return {tensor.name: made[tensor.name][None].astype(tensor.dtype) for tensor in contract.inputs}


def numbers(value: Value, contract: Contract) -> Array:
    """Numbers as a person types them, or as a table has them, as one row of the model's input."""
    if isinstance(value, np.ndarray):
        return value
    return points.row(_text(value), contract.inputs[0].shape[1] or 1)


def _text(value: Value) -> str:
    assert isinstance(value, str)
    return value


def _ask_text(server: Server, asked: Asked, texts: Sequence[str], models_dir: Path | None) -> dict[str, Any]:
    contract, scores = asked.contract, forms.scores(asked.contract)
    assert models_dir is not None
    assert contract.preprocessing is not None
    assert scores is not None
    folder = models_dir / contract.model / str(asked.version)
    vocabulary = words.read_vocabulary(folder / "assets" / contract.preprocessing.vocabulary)
    found = []
    for text in texts:  # of different lengths, so each is a request
        tokens = words.tokens(text, vocabulary)
        inputs = {contract.inputs[0].name: np.array([tokens.ids], contract.inputs[0].dtype)}
        values = _predict(server, asked, inputs).outputs[scores.name]
        if not contract.labels and values.shape != (1, len(vocabulary.words)):
            raise BadAnswer(f"version {asked.version} of {contract.model} has another vocabulary than {models_dir}")
        found.append((text, tokens, values[0]))
    if contract.labels:
        return outputs.text_classes(contract, asked.version, found)
    return outputs.next_words(contract, asked.version, vocabulary, found, TOP_K)


def _predict(server: Server, asked: Asked, inputs: Any) -> Prediction:
    contract = asked.contract
    return joined(
        [
            server.predict(contract.model, part, version=asked.version, label=None, signature=contract.signature)
            for part in forms.requests(contract, inputs)
        ]
    )


def check_tensors(source: str, asked: Asked) -> None:
    """Says what would help where a person's input is given and no contract is known.

    Raises:
        ValueError: without a contract the input would have to be tensors, and is none.
    """
    begins = source.lstrip()[:1]
    if forms.form(asked.contract) != forms.TENSORS or source == STANDARD_INPUT or begins in ("{", "["):
        return
    if asked.doubt and not Path(source).suffix and not Path(source).is_dir():
        raise ValueError(
            f"INPUT of {asked.contract.model} version {asked.version} is tensors, as {asked.doubt}: give a file "
            "(.json, .npz, .csv, a picture) or JSON, or the model store with --models-dir"
        )


def _what_is_there(server: Server, model: str, choice: Choice) -> str:
    """What the server has instead of the version that it does not have; empty where it does not tell."""
    try:
        states = [f"{status.version} {status.state}" for status in server.status(model)]
        if states:
            wanted = f"has no version {choice.version} loaded" if choice.version else "has no version loaded"
            return f"the model server {wanted} of {model}; its versions: {', '.join(states)}"
    except NotFound:
        pass
    except PredictError:
        return ""
    try:
        names = server.models()
    except PredictError:  # TensorFlow Serving has no such list
        names = []
    known = f"; it has: {', '.join(names)}" if names else ""
    if choice.models_dir is not None and (choice.models_dir / model).is_dir():
        known += f"; {choice.models_dir} has it: is that the store which the server serves?"
    return f"the model server has no model {model!r}{known}"


def _signature(metadata: ModelMetadata) -> tuple[str, Signature]:
    if SIGNATURE in metadata.signatures:
        return SIGNATURE, metadata.signatures[SIGNATURE]
    if len(metadata.signatures) == 1:
        return next(iter(metadata.signatures.items()))
    known = ", ".join(sorted(metadata.signatures))
    raise InvalidArgument(f"{metadata.model} has no signature '{SIGNATURE}' (its signatures: {known})")
