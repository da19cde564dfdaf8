"""Asks the gateway, whose domain API takes pictures, molecules, texts, boards and numbers, and tensors of any model."""

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any
from urllib.parse import quote, urlencode

from bookserve.clients import errors
from bookserve.clients.http_exchange import Answer, Server
from bookserve.clients.inputs.pictures import Picture, file_of
from bookserve.clients.retries import ONCE, Retry

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT = 15.0  # seconds
_LINES, _LINES_BYTES = 256, 128 << 10  # of a request: what is sent fits into buffers, so that nobody waits to be read


class GatewayClient:
    """The client; it keeps no connection and may be shared by threads.

    Every task has a method that takes the model's name and a sequence and gives {"model", "version", "predictions":
    [...]} with one prediction an item; the models of the book have a method of their own name each. They raise a
    `PredictError` whose message is the gateway's own: InvalidArgument names the faulty field, NotFound an unknown
    model, version or label, Unavailable says who does not answer. ValueError for a `url` that is none. `key` is an API
    key, `retry` says whether a request that nobody answered is made again.
    """

    def __init__(self, url: str = DEFAULT_URL, *, key: str = "", retry: Retry = ONCE) -> None:
        self._server = Server.at(url)
        self._key = key
        self._retry = retry

    def numbers(
        self,
        model: str,
        x: Sequence[float] | Sequence[Sequence[float]],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """What a model of the task "regression" or "tabular" says of each row of numbers.

        A row of one number is the number itself. Each prediction has {"class"} where the model names one, and every
        other output under its name.
        """
        rows = [list(row) if isinstance(row, Iterable) else row for row in x]
        return self._post_json(_path(model), {"x": rows}, version, label, timeout)

    def molecules(
        self,
        model: str,
        smiles: Sequence[str],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """What a model of the task "molecules" says of each; a prediction is {"smiles"} and the outputs by name."""
        return self._post_json(_path(model), {"smiles": list(smiles)}, version, label, timeout)

    def pictures(
        self,
        model: str,
        pictures: Sequence[Picture],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """What a model of the task "image-classification" says of each picture.

        A picture is the path or the bytes of a file (PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF, HEIC), or a uint8 array of
        pixels. Each prediction is {"class"} and the outputs by name, such as "probabilities": {class: probability}.
        OSError when a file cannot be read.
        """
        if isinstance(pictures, str | bytes | PathLike):
            raise TypeError(f"{model} takes a sequence of pictures: write [picture] for one")
        body, content_type = _form("file", [file_of(picture) for picture in pictures])
        return self._post(f"/api/v1/{_path(model)}", body, content_type, version, label, timeout)

    def next_words(
        self,
        model: str,
        texts: Sequence[str],
        *,
        top_k: int | None = None,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """What a model of the task "text" says of each text: its likeliest next words, or its class.

        Each prediction is {"text", "unknown", "words": [{"word", "probability"}]}, or {"text", "unknown", "class"} and
        the scores; `unknown` are words that the model does not know. `top_k` is for next words only.
        """
        body: dict[str, Any] = {"text": list(texts)}
        if top_k is not None:
            body["top_k"] = top_k
        return self._post_json(_path(model), body, version, label, timeout)

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
    ) -> dict[str, Any]:
        """How each text may go on, by a model that knows the next word.

        At `temperature` 0 the likeliest word is taken each time, above it is drawn; the same `seed` draws the same.
        Gives "seed" beside the predictions, each of which is {"text", "unknown", "words": [word]}.
        """
        body: dict[str, Any] = {"text": list(texts), "words": words, "temperature": temperature}
        if seed is not None:
            body["seed"] = seed
        return self._post_json(f"{_path(model)}/generate", body, version, label, timeout)

    def boards(
        self,
        model: str,
        boards: Sequence[Sequence[str]],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """The best move on each board, nine squares row by row, each "X", "O" or "", by a model of the task "board".

        Each prediction is {"player", "move", "row", "column", "probabilities", "value"}; squares are numbered from 0.
        """
        return self._post_json(_path(model), {"board": [list(board) for board in boards]}, version, label, timeout)

    def tensors(
        self,
        model: str,
        inputs: Any,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """What any model says of tensors in the REST form: {input: value}, or the value of its only input.

        Each prediction has every output under its name.
        """
        return self._post_json(_path(model), {"inputs": inputs}, version, label, timeout)

    def lines(
        self,
        model: str,
        bodies: Iterable[Mapping[str, Any]],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Iterator[dict[str, Any]]:
        """The answer to each of many JSON bodies in turn, such as {"x": 1.5}: {"line", "version", "predictions"}, or
        {"line", "problem"} for one that is refused. `line` counts from 1.

        `bodies` may be of any length: so many as fit into a request are in memory. `timeout` is that of a request.
        """
        path = f"/api/v1/models/{_path(model)}:predict{_query(version, label)}"
        sent = 0
        for part in _parts(bodies):
            body = b"".join(part)

            def ask(seconds: float, body: bytes = body) -> list[dict[str, Any]]:
                return _lines(self._exchange("POST", path, body, "application/x-ndjson", seconds))

            for answer in self._retry.call(ask, timeout):
                yield {**answer, "line": sent + answer["line"]}
            sent += len(part)

    def linear(
        self,
        x: Sequence[float],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """The fitted line at each x; each prediction is {"y"}."""
        return self.numbers("linear", x, version=version, label=label, timeout=timeout)

    def logistic(
        self,
        x: Sequence[Sequence[float]],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """The class of each point, a pair of numbers; each prediction is {"class", "probability"} (of class "1")."""
        return self.numbers("logistic", x, version=version, label=label, timeout=timeout)

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
        return self.molecules("tox21", smiles, version=version, label=label, timeout=timeout)

    def mnist(
        self,
        pictures: Sequence[Picture],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
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
    ) -> dict[str, Any]:
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
    ) -> dict[str, Any]:
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
    ) -> dict[str, Any]:
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
    ) -> dict[str, Any]:
        """The best move on each board, nine squares row by row, each "X", "O" or "".

        Each prediction is {"player", "move", "row", "column", "probabilities", "value"}; squares are numbered from 0.
        """
        return self.boards("tictactoe", boards, version=version, label=label, timeout=timeout)

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
        return self._ask("GET", path, None, "", timeout)

    def _post_json(
        self, route: str, body: dict[str, Any], version: int | None, label: str | None, timeout: float
    ) -> dict[str, Any]:
        content = json.dumps(body).encode()
        return self._post(f"/api/v1/{route}", content, "application/json", version, label, timeout)

    def _post(
        self, path: str, body: bytes, content_type: str, version: int | None, label: str | None, timeout: float
    ) -> dict[str, Any]:
        return self._ask("POST", path + _query(version, label), body, content_type, timeout)

    def _ask(self, method: str, path: str, body: bytes | None, content_type: str, timeout: float) -> dict[str, Any]:
        def ask(seconds: float) -> dict[str, Any]:
            return _document(self._exchange(method, path, body, content_type, seconds))

        return self._retry.call(ask, timeout)

    def _exchange(self, method: str, path: str, body: bytes | None, content_type: str, timeout: float) -> Answer:
        return self._server.exchange(method, path, body, content_type=content_type, key=self._key, timeout=timeout)


def _path(model: str) -> str:
    return quote(model, safe="")


def _query(version: int | None, label: str | None) -> str:
    if version is not None and label is not None:
        raise ValueError(f"give a version ({version}) or a label ({label!r}), not both")
    choice = {"version": version, "label": label}
    query = urlencode({name: value for name, value in choice.items() if value is not None})
    return f"?{query}" if query else ""


def _parts(bodies: Iterable[Mapping[str, Any]]) -> Iterator[list[bytes]]:
    """The bodies as lines, as many as go into a request."""
    part: list[bytes] = []
    for body in bodies:
        line = json.dumps(body).encode() + b"\n"
        if part and (len(part) >= _LINES or sum(map(len, part)) + len(line) > _LINES_BYTES):
            yield part
            part = []
        part.append(line)
    if part:
        yield part


def _lines(answer: Answer) -> list[dict[str, Any]]:
    if answer.status != 200:
        _document(answer)  # raises
    try:
        return [json.loads(line) for line in answer.body.splitlines()]
    except ValueError as error:
        raise errors.BadAnswer("the server answered something other than NDJSON: is this the gateway?") from error


def _document(answer: Answer) -> dict[str, Any]:
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        if answer.status == 200:
            raise errors.BadAnswer("the server answered something other than JSON: is this the gateway?")
        text = f"the server answered {answer.status}: is this the gateway?"
        raise errors.from_http(answer.status, text, answer.retry_after)
    if answer.status != 200:
        text = str(content.get("detail") or content.get("title") or answer.status)
        raise errors.from_http(answer.status, text, answer.retry_after)
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
