"""The account of a user at a registry of OCI artifacts, from where Docker, Podman and oras keep it.

Looked for in this order: `ORAS_USER` and `ORAS_PASS`; `DOCKER_AUTH_CONFIG`, the text of a configuration, as GitLab's
jobs have it; the file that `REGISTRY_AUTH_FILE` names; `config.json` of `docker login`, in `DOCKER_CONFIG` or
`~/.docker`; `containers/auth.json` of `podman login`. Credential helpers (`credHelpers`, `credsStore`) are asked.
"""

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bookserve.export.errors import StoreError

DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_HUB_KEY = "https://index.docker.io/v1/"  # under which `docker login` keeps an account of Docker Hub
_TOKEN_USER = "<token>"  # with which a credential helper says that its secret is an identity token
_HELPER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HELPER_SECONDS = 60.0  # it may ask the user
_NOT_FOUND = "credentials not found"  # what every helper says where it has none


@dataclass(frozen=True)
class Credentials:
    """A name with a password, or an identity token: what some registries give at a login in place of a password."""

    user: str
    source: str  # where they were found
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of a header `Authorization`."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find(host: str) -> Credentials | None:
    """The account at a registry, such as "ghcr.io"; None where none is kept.

    Raises:
        StoreError: a configuration or a credential helper that cannot be used; the message names it.
    """
    user, password = os.environ.get("ORAS_USER"), os.environ.get("ORAS_PASS")
    if user and password:
        return Credentials(user, "ORAS_USER and ORAS_PASS", password)
    keys = [host, f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/"]
    if host in DOCKER_HUB:
        keys = [_HUB_KEY, *DOCKER_HUB]
    for source, text in _configurations():
        try:
            config = json.loads(text)
            auths = config.get("auths") or {}
            helpers = config.get("credHelpers") or {}
            kept = next((auths[key] for key in keys if auths.get(key)), None)
            helper = next((helpers[key] for key in keys if key in helpers), None) or config.get("credsStore")
            found = _kept(kept, source) if kept else None
        except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
            raise StoreError(
                f"{source} cannot be read: {str(error)[:200]}. 'docker login {host}' writes it anew"
            ) from error
        found = found or (_asked(helper, keys[0], source) if helper else None)
        if found is not None:
            return found
    return None


def _configurations() -> Iterator[tuple[str, str]]:
    """Where each configuration is, and its text."""
    if text := os.environ.get("DOCKER_AUTH_CONFIG"):
        yield "DOCKER_AUTH_CONFIG", text
    home = Path.home()
    paths = [
        Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json",
        Path(os.environ.get("XDG_RUNTIME_DIR") or "/run/user/none") / "containers/auth.json",
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "containers/auth.json",
    ]
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        paths.insert(0, Path(named))
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        yield str(path), text


def _kept(entry: dict[str, Any], source: str) -> Credentials | None:
    """The account in an entry of `auths`; None in an empty one, which says that a helper has it."""
    user, password = entry.get("username", ""), entry.get("password", "")
    if entry.get("auth"):
        try:
            user, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ValueError("an 'auth' is not the base64 of USER:PASSWORD") from error
        if not colon:
            raise ValueError("an 'auth' is not the base64 of USER:PASSWORD")
    token = entry.get("identitytoken", "")
    return Credentials(user, source, password, token) if password or token else None


def _asked(helper: str, key: str, source: str) -> Credentials | None:
    """What `docker-credential-HELPER` has for a registry; None where it has nothing."""
    program = f"docker-credential-{helper}"
    if not _HELPER.fullmatch(helper):
        raise StoreError(f"{source} names {helper!r}, which is no credential helper")
    try:
        done = subprocess.run(
            [program, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise StoreError(f"{source} names the credential helper '{program}', which is not on the PATH") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreError(f"the credential helper '{program}' of {source} fails: {str(error)[:200]}") from error
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    if done.returncode != 0:
        if _NOT_FOUND in said:
            return None
        raise StoreError(f"the credential helper '{program}' of {source} fails: {said[:200]}")
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"the credential helper '{program}' of {source} answers no credentials") from error
    if user == _TOKEN_USER:
        return Credentials(user, program, identity_token=secret)
    return Credentials(user, program, secret)
