"""Asks the gateway: its domain API takes pictures, molecules, texts and boards, no tensors."""

import json
import secrets
from collections.abc import Sequence
from os import PathLike
from typing import Any
from urllib.parse import quote, urlencode

from bookserve.clients import errors
from bookserve.clients.http_exchange import Answer, Server
from bookserve.clients.inputs.pictures import Picture, file_of

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT = 15.0  # seconds


class GatewayClient:
    """The client; it keeps no connection and may be shared by threads.

    Every model has a method of its name, which takes a sequence and gives {"model", "version", "predictions": [...]}
    with one prediction an item. They raise a `PredictError` whose message is the gateway's own: InvalidArgument names
    the faulty field, NotFound an unknown version or label, Unavailable says who does not answer. ValueError for a `url`
    that is none.
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        self._server = Server.at(url)

    def linear(
        self,
        x: Sequence[float],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """The fitted line at each x; each prediction is {"y"}."""
        return self._post_json("linear", {"x": list(x)}, version, label, timeout)

    def logistic(
        self,
        x: Sequence[Sequence[float]],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """The class of each point, a pair of numbers; each prediction is {"class", "probability"} (of class "1")."""
        return self._post_json("logistic", {"x": [list(point) for point in x]}, version, label, timeout)

    def tox21(
        self,
        smiles: Sequence[str],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """In which of twelve assays each molecule is active.

        Each prediction is {"smiles", "probabilities": {assay: probability}}.
        """
        return self._post_json("tox21", {"smiles": list(smiles)}, version, label, timeout)

    def mnist(
        self,
        pictures: Sequence[Picture],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """Which digit each picture shows: path or bytes of a PNG, JPEG, WebP or BMP, or a uint8 array of pixels.

        Each prediction is {"class", "probabilities": {digit: probability}}. OSError when a file cannot be read.
        """
        return self._post_pictures("mnist", pictures, version, label, timeout)

    def ptb(
        self,
        texts: Sequence[str],
        *,
        top_k: int = 5,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """The likeliest next words of each text.

        Each prediction is {"text", "unknown", "words": [{"word", "probability"}]}; `unknown` are words that the model
        does not know.
        """
        return self._post_json("ptb", {"text": list(texts), "top_k": top_k}, version, label, timeout)

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
    ) -> dict[str, Any]:
        """How each text may go on.

        At `temperature` 0 the likeliest word is taken each time, above it is drawn; the same `seed` draws the same.
        Gives "seed" beside the predictions, each of which is {"text", "unknown", "words": [word]}.
        """
        body = {"text": list(texts), "words": words, "temperature": temperature}
        if seed is not None:
            body["seed"] = seed
        return self._post_json("ptb/generate", body, version, label, timeout)

    def cifar10(
        self,
        pictures: Sequence[Picture],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """Which of ten things each picture (path or bytes of a PNG, JPEG, WebP or BMP, or uint8 pixels) shows.

        Each prediction is {"class", "probabilities": {class: probability}}. OSError when a file cannot be read.
        """
        return self._post_pictures("cifar10", pictures, version, label, timeout)

    def tictactoe(
        self,
        boards: Sequence[Sequence[str]],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """The best move on each board, nine squares row by row, each "X", "O" or "".

        Each prediction is {"player", "move", "row", "column", "probabilities", "value"}; squares are numbered from 0.
        """
        return self._post_json("tictactoe", {"board": [list(board) for board in boards]}, version, label, timeout)

    def models(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[dict[str, Any]]:
        """Every model that the gateway knows, with its version and whether it can answer."""
        models: list[dict[str, Any]] = self._get("/api/v1/models", timeout)["models"]
        return models

    def model(self, name: str, *, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """One model: its contract, its versions, and their figures where the gateway reads the store."""
        return self._get(f"/api/v1/models/{quote(name, safe='')}", timeout)

    def ready(self, *, timeout: float = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """The versions that are ready, as {"status": "ready", "models": {name: version}}; Unavailable says why not."""
        return self._get("/readyz", timeout)

    def _get(self, path: str, timeout: float) -> dict[str, Any]:
        return _document(self._server.exchange("GET", path, timeout=timeout))

    def _post_json(
        self, route: str, body: dict[str, Any], version: int | None, label: str | None, timeout: float
    ) -> dict[str, Any]:
        content = json.dumps(body).encode()
        return self._post(f"/api/v1/{route}", content, "application/json", version, label, timeout)

    def _post_pictures(
        self, model: str, pictures: Sequence[Picture], version: int | None, label: str | None, timeout: float
    ) -> dict[str, Any]:
        if isinstance(pictures, str | bytes | PathLike):
            raise TypeError(f"{model} takes a sequence of pictures: write [picture] for one")
        contents = [file_of(picture) for picture in pictures]
        body, content_type = _form("file", contents)
        return self._post(f"/api/v1/{model}", body, content_type, version, label, timeout)

    def _post(
        self, path: str, body: bytes, content_type: str, version: int | None, label: str | None, timeout: float
    ) -> dict[str, Any]:
        if version is not None and label is not None:
            raise ValueError(f"give a version ({version}) or a label ({label!r}), not both")
        choice = {"version": version, "label": label}
        query = urlencode({name: value for name, value in choice.items() if value is not None})
        target = f"{path}?{query}" if query else path
        return _document(self._server.exchange("POST", target, body, content_type=content_type, timeout=timeout))


def _document(answer: Answer) -> dict[str, Any]:
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        if answer.status == 200:
            raise errors.BadAnswer("the server answered something other than JSON: is this the gateway?")
        raise errors.from_http(answer.status, f"the server answered {answer.status}: is this the gateway?")
    if answer.status != 200:
        raise errors.from_http(answer.status, str(content.get("detail") or content.get("title") or answer.status))
    return content


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
