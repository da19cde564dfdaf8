"""Asks the gateway: its domain API takes pictures and answers classes, no tensors. The standard library's HTTP."""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from bookserve.clients import errors
from bookserve.clients.http_exchange import Answer, Server

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT = 15.0  # seconds


class GatewayClient:
    """The client; it keeps no connection and may be shared by threads.

    Every method raises a `PredictError` whose message is the gateway's own: InvalidArgument names the faulty field,
    NotFound an unknown version or label, Unavailable says who does not answer. ValueError for a `url` that is none.
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        self._server = Server.at(url)

    def mnist(
        self,
        pictures: Sequence[bytes | Path],
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> dict[str, Any]:
        """Which digit each picture (PNG, JPEG, WebP or BMP) shows.

        Gives {"model", "version", "predictions": [{"class", "probabilities": {digit: probability}}]}, one prediction a
        picture. OSError when a file cannot be read.
        """
        contents = [picture.read_bytes() if isinstance(picture, Path) else picture for picture in pictures]
        body, content_type = _form("file", contents)
        return self._post("/api/v1/mnist", body, content_type, version, label, timeout)

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
