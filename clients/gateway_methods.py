"""What a gateway is asked: one method a task, the same for the blocking and the asyncio client of `gateway_client`."""

import json
import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import numpy as np

from bookserve.clients.answers import Array
from bookserve.clients.errors import InvalidArgument
from bookserve.clients.inputs.pictures import Picture, file_of
from bookserve.export import example_inputs

DEFAULT_TIMEOUT = 15.0  # seconds
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class Request:
    """An HTTP request of the gateway's API; `path` with its query."""

    method: str
    path: str
    body: bytes | None = None
    content_type: str = ""


class GatewayMethods(Generic[AnswerT]):
    """Every task has a method that takes the model's name and a sequence; each model of the book has one of its name.

    `AnswerT` is what they give: {"model", "version", "predictions": [...]} with one prediction an item, or an awaitable
    of that. Numbers and tensors may be NumPy arrays; `answers.columns` makes arrays of the predictions.
    """

    def _ask(self, request: Request, timeout: float) -> AnswerT:
        raise NotImplementedError

    def numbers(
        self,
        model: str,
        x: Sequence[float] | Sequence[Sequence[float]] | Array,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """What a model of the task "regression" or "tabular" says of each row of numbers.

        A row of one number is the number itself. Each prediction has {"class"} where the model names one, and every
        other output under its name.
        """
        rows = x if isinstance(x, np.ndarray) else [list(row) if isinstance(row, Iterable) else row for row in x]
        return self._send(_path(model), {"x": rows}, version, label, timeout)

    def molecules(
        self,
        model: str,
        smiles: Sequence[str],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """What a model of the task "molecules" says of each; a prediction is {"smiles"} and the outputs by name."""
        return self._send(_path(model), {"smiles": list(smiles)}, version, label, timeout)

    def pictures(
        self,
        model: str,
        pictures: Sequence[Picture],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """What a model of the task "image-classification" says of each picture.

        A picture is the path or the bytes of a file (PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF, HEIC), or a uint8 array of
        pixels. Each prediction is {"class"} and the outputs by name, such as "probabilities": {class: probability}.
        OSError when a file cannot be read.
        """
        if isinstance(pictures, str | bytes | PathLike):
            raise TypeError(f"{model} takes a sequence of pictures: write [picture] for one")
        body, content_type = _form("file", [file_of(picture) for picture in pictures])
        return self._ask(Request("POST", f"/api/v1/{_path(model)}{query(version, label)}", body, content_type), timeout)

    def next_words(
        self,
        model: str,
        texts: Sequence[str],
        *,
        top_k: int | None = None,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """What a model of the task "text" says of each text: its likeliest next words, or its class.

        Each prediction is {"text", "unknown", "words": [{"word", "probability"}]}, or {"text", "unknown", "class"} and
        the scores; `unknown` are words that the model does not know. `top_k` is for next words only.
        """
        body: dict[str, Any] = {"text": list(texts)}
        if top_k is not None:
            body["top_k"] = top_k
        return self._send(_path(model), body, version, label, timeout)

    def generate(
        self,
        model: str,
        texts: Sequence[str],
        *,
        words: int = 10,
        temperature: float = 1.0,
        seed: int | None = None,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """How each text may go on, by a model that knows the next word.

        At `temperature` 0 the likeliest word is taken each time, above it is drawn; the same `seed` draws the same.
        Gives "seed" beside the predictions, each of which is {"text", "unknown", "words": [word]}.
        """
        body: dict[str, Any] = {"text": list(texts), "words": words, "temperature": temperature}
        if seed is not None:
            body["seed"] = seed
        return self._send(f"{_path(model)}/generate", body, version, label, timeout)

    def boards(
        self,
        model: str,
        boards: Sequence[Sequence[str]],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """The best move on each board, nine squares row by row, each "X", "O" or "", by a model of the task "board".

        Each prediction is {"player", "move", "row", "column", "probabilities", "value"}; squares are numbered from 0.
        """
        return self._send(_path(model), {"board": [list(board) for board in boards]}, version, label, timeout)

    def tensors(
        self,
        model: str,
        inputs: Any,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """What any model says of tensors: {input: array or value in the REST form}, or that of its only input.

        Each prediction has every output under its name.
        """
        return self._send(_path(model), {"inputs": inputs}, version, label, timeout)

    def linear(
        self,
        x: Sequence[float] | Array,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """The fitted line at each x; each prediction is {"y"}."""
        return self.numbers("linear", x, version=version, label=label, timeout=timeout)

    def logistic(
        self,
        x: Sequence[Sequence[float]] | Array,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """The class of each point, a pair of numbers; each prediction is {"class", "probability"} (of class "1")."""
        return self.numbers("logistic", x, version=version, label=label, timeout=timeout)

    def tox21(
        self,
        smiles: Sequence[str],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """In which of twelve assays each molecule is active.

        Each prediction is {"smiles", "probabilities": {assay: probability}}.
        """
        return self.molecules("tox21", smiles, version=version, label=label, timeout=timeout)

    def mnist(
        self,
        pictures: Sequence[Picture],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """Which digit each picture shows: path or bytes of a file, or a uint8 array of pixels.

        Each prediction is {"class", "probabilities": {digit: probability}}. OSError when a file cannot be read.
        """
        return self.pictures("mnist", pictures, version=version, label=label, timeout=timeout)

    def ptb(
        self,
        texts: Sequence[str],
        *,
        top_k: int = 5,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """The likeliest next words of each text.

        Each prediction is {"text", "unknown", "words": [{"word", "probability"}]}; `unknown` are words that the model
        does not know.
        """
        return self.next_words("ptb", texts, top_k=top_k, version=version, label=label, timeout=timeout)

    def ptb_generate(
        self,
        texts: Sequence[str],
        *,
        words: int = 10,
        temperature: float = 1.0,
        seed: int | None = None,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """How each text may go on.

        At `temperature` 0 the likeliest word is taken each time, above it is drawn; the same `seed` draws the same.
        Gives "seed" beside the predictions, each of which is {"text", "unknown", "words": [word]}.
        """
        return self.generate(
            "ptb",
            texts,
            words=words,
            temperature=temperature,
            seed=seed,
            version=version,
            label=label,
            timeout=timeout,
        )

    def cifar10(
        self,
        pictures: Sequence[Picture],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """Which of ten things each picture (path or bytes of a file, or uint8 pixels) shows.

        Each prediction is {"class", "probabilities": {class: probability}}. OSError when a file cannot be read.
        """
        return self.pictures("cifar10", pictures, version=version, label=label, timeout=timeout)

    def tictactoe(
        self,
        boards: Sequence[Sequence[str]],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> AnswerT:
        """The best move on each board, nine squares row by row, each "X", "O" or "".

        Each prediction is {"player", "move", "row", "column", "probabilities", "value"}; squares are numbered from 0.
        """
        return self.boards("tictactoe", boards, version=version, label=label, timeout=timeout)

    def model(self, name: str, *, timeout: float = DEFAULT_TIMEOUT) -> AnswerT:
        """One model: its contract, its versions, and their figures where the gateway reads the store."""
        return self._ask(Request("GET", f"/api/v1/models/{_path(name)}"), timeout)

    def ready(self, *, timeout: float = DEFAULT_TIMEOUT) -> AnswerT:
        """The versions that are ready, as {"status": "ready", "models": {name: version}}; Unavailable says why not."""
        return self._ask(Request("GET", "/readyz"), timeout)

    def _send(
        self, route: str, body: dict[str, Any], version: int | None, label: str | None, timeout: float
    ) -> AnswerT:
        path = f"/api/v1/{route}{query(version, label)}"
        return self._ask(Request("POST", path, json_body(body), "application/json"), timeout)


def json_body(body: Any) -> bytes:
    """A body as JSON; arrays and numbers of NumPy as in the REST form, missing numbers (NaN) as null.

    Raises InvalidArgument for an infinite number, which JSON has not.
    """
    try:
        return json.dumps(body, default=_json_value, allow_nan=False).encode()
    except ValueError:  # there is NaN in it, or infinity
        pass
    try:
        return json.dumps(_without_nan(body), default=_json_value, allow_nan=False).encode()
    except ValueError as error:
        raise InvalidArgument("JSON has no infinite numbers: send them to the model server itself") from error


def _json_value(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return example_inputs.to_rest(np.asarray(value))
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON")


def _without_nan(value: Any) -> Any:
    match value:
        case dict():
            return {name: _without_nan(item) for name, item in value.items()}
        case list() | tuple():
            return [_without_nan(item) for item in value]
        case np.ndarray() | np.generic():
            return _without_nan(example_inputs.to_rest(np.asarray(value)))
        case float() if math.isnan(value):
            return None
        case _:
            return value


def _path(model: str) -> str:
    return quote(model, safe="")


def query(version: int | None, label: str | None) -> str:
    """The query of an address. ValueError when both are given."""
    if version is not None and label is not None:
        raise ValueError(f"give a version ({version}) or a label ({label!r}), not both")
    choice = {"version": version, "label": label}
    query = urlencode({name: value for name, value in choice.items() if value is not None})
    return f"?{query}" if query else ""


def _form(field: str, files: Sequence[bytes]) -> tuple[bytes, str]:
    """A multipart/form-data body (RFC 7578) with all files under one field, and its Content-Type."""
    boundary = secrets.token_hex(16)
    parts = []
    for index, content in enumerate(files):
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{index}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        parts.append(head.encode() + content + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
