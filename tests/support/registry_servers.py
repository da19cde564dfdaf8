"""Registries of OCI artifacts on loopback: Debian's docker-registry, by itself or behind a token server as Docker Hub,
ghcr.io, GitLab and Harbor have one, and one that answers what it is told to."""

import base64
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certificates import Authority
from model_servers import free_port, wait_until

PROGRAM = "docker-registry"


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False


@contextmanager
def docker_registry(folder: Path, users: str = "", auth: str = "") -> Iterator[str]:
    """HOST:PORT of an empty one, with users as `htpasswd -B` prints them, or with `auth` of its configuration.

    Skips the test where it is not installed.
    """
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"{PROGRAM} is not installed: apt-get install {PROGRAM}")
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder / 'blobs'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    if users:
        (folder / "users").write_text(users)
        auth = f"{{htpasswd: {{realm: here, path: {folder / 'users'}}}}}"
    if auth:
        with config.open("a") as file:
            file.write(f"auth: {auth}\n")
    with (folder / "registry.log").open("w") as log:
        process = subprocess.Popen([PROGRAM, "serve", config], stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: answers(port), "the registry answers", seconds=60)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@dataclass
class TokenServer:
    """What gives the tokens of a registry: who has which password, and what each may do; "" is everybody."""

    port: int
    passwords: dict[str, str]
    allowed: dict[str, set[str]]  # user -> actions
    identity_tokens: dict[str, str] = field(default_factory=dict)  # token -> user
    asked: list[tuple[str, list[str]]] = field(default_factory=list)  # user, scopes of each request


@contextmanager
def token_server(folder: Path) -> Iterator[tuple[TokenServer, str]]:
    """One that follows distribution's "Token Authentication Specification" and the OAuth2 form of it; and what the
    configuration of a registry says of it.

    Its user `me` with the password `pw` may pull and push, `reader` with `pw` may pull.
    """
    authority = Authority()
    key, chain = authority.issue("tokens.example")
    (folder / "authority.pem").write_bytes(authority.certificate)
    leaf = base64.b64encode(x509.load_pem_x509_certificates(chain)[0].public_bytes(Encoding.DER)).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, _, account = self.headers.get("Authorization", "").partition(" ")
            user, _, password = base64.b64decode(account).decode().partition(":")
            known = not kind or (kind == "Basic" and state.passwords.get(user) == password)
            self._give(user if known else None, parse_qs(urlsplit(self.path).query), "token")

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            user = state.identity_tokens.get(form["refresh_token"][0])
            self._give(user if form["grant_type"] == ["refresh_token"] else None, form, "access_token")

        def _give(self, user: str | None, asked: dict[str, list[str]], name: str) -> None:
            if user is None:
                self._send(401, {"details": "incorrect username or password"})
                return
            state.asked.append((user, asked.get("scope", [])))
            access = []
            for scope in asked.get("scope", []):
                kind, repository, actions = scope.split(":")
                granted = sorted(set(actions.split(",")) & state.allowed.get(user, set()))
                access.append({"type": kind, "name": repository, "actions": granted})
            now = int(time())
            claims = {"iss": "here", "sub": user, "aud": asked["service"][0], "nbf": now - 5, "iat": now}
            claims |= {"exp": now + 60, "jti": str(now), "access": access}
            token = jwt.encode(claims, key.decode(), algorithm="ES256", headers={"x5c": [leaf]})
            self._send(200, {name: token, "expires_in": 60})

        def _send(self, status: int, content: dict[str, object]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with _served(Handler) as port:
        state = TokenServer(port, {"me": "pw", "reader": "pw"}, {"me": {"pull", "push"}, "reader": {"pull"}})
        yield (
            state,
            f"{{token: {{realm: 'http://127.0.0.1:{port}/token', service: registry.example, issuer: here,"
            f" rootcertbundle: {folder / 'authority.pem'}}}}}",
        )


@contextmanager
def lying_registry(manifest: bytes, blob: bytes) -> Iterator[str]:
    """HOST:PORT of one that answers every question for a manifest, and every one for a blob, with these."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = manifest if "/manifests/" in self.path else blob
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with _served(Handler) as port:
        yield f"127.0.0.1:{port}"


@contextmanager
def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """The port of a server with this handler."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
