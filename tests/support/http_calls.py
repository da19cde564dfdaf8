"""HTTP in tests: requests to a server's process on loopback, raw ones too, and what a problem document must be."""

import http.client
import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from werkzeug.test import TestResponse

from bookserve.serving.gateway.problems import MEDIA_TYPE

HOST = "127.0.0.1"
SECONDS = 15


@dataclass(frozen=True)
class Answer:
    """What a server answered, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        """The JSON of the body."""
        return json.loads(self.body)

    def problem(self) -> dict[str, Any]:
        """The problem document that the body must be."""
        assert self.headers["Content-Type"] == MEDIA_TYPE
        document: dict[str, Any] = self.json()
        assert document["status"] == self.status
        return document


def connect(port: int) -> http.client.HTTPConnection:
    """A connection for several requests; the caller closes it."""
    return http.client.HTTPConnection(HOST, port, timeout=SECONDS)


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | str | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request over a connection that stays open."""
    connection.request(method, path, body, dict(headers or {}))
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())


def get(port: int, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
    """One request without a body, over a connection of its own."""
    connection = connect(port)
    try:
        return ask(connection, method, path, headers=headers)
    finally:
        connection.close()


def post(port: int, path: str, body: bytes | str | Iterable[bytes], content_type: str = "application/json") -> Answer:
    """One POST over a connection of its own; a body that is no text or bytes goes in chunks."""
    connection = connect(port)
    try:
        return ask(connection, "POST", path, body, {"Content-Type": content_type})
    finally:
        connection.close()


def open_raw(port: int, sent: bytes = b"") -> socket.socket:
    """A connection over which these bytes went; the caller closes it."""
    connection = socket.create_connection((HOST, port), timeout=SECONDS)
    connection.sendall(sent)
    return connection


def read_raw(connection: socket.socket) -> bytes:
    """What a server sends until it closes the connection."""
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pass  # it closed while bytes were on their way to it
    return b"".join(pieces)


def problem_of(response: TestResponse, status: int) -> dict[str, Any]:
    """The problem document of a Flask test client's answer, which must have this status.

    What is too large is told how large it may be, which the page shows.
    """
    assert response.status_code == status, response.text
    assert response.content_type == MEDIA_TYPE
    document: dict[str, Any] = response.get_json(force=True)
    assert document["status"] == status
    assert document["request_id"] == response.headers["X-Request-ID"]
    assert status != 413 or document["expected"]
    return document
