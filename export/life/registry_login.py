"""How a registry of OCI artifacts learns who asks: the login of each request that goes to it.

A registry answers 401 with a challenge. `Basic` wants the account itself; `Bearer` names a server that gives a token
for it, or for nobody where the repository is public (Docker Hub, ghcr.io, GitLab, Harbor: "Token Authentication
Specification" and "OAuth2 Token Authentication" of the project distribution). Each challenge is answered anew, so a
token that expires while a version is copied, or that allows too little, is replaced. Passwords and tokens go to the
registry and to its token server, and to no other place that an answer names. Needs the library requests.
"""

import json
import re
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.utils import parse_dict_header

from bookserve.export.errors import StoreError
from bookserve.export.life.registry_credentials import Credentials

_MAX_TOKEN_BYTES = 1 << 20
_CLIENT = "bookserve"  # how this program calls itself to a token server
_LOOPBACK = ("localhost", "127.0.0.1")
_ONLY_PULL = re.compile(r"(repository:[^ ]+):pull")


class RegistryLogin:
    """What `auth` of a session of `requests` may be: it logs in to one registry, as its challenges want."""

    def __init__(
        self, url: str, name: str, credentials: Credentials | None, seconds: tuple[float, float], push: bool
    ) -> None:
        """`url` is an address of the registry, `name` what users call it.

        `push` asks at once for a token that allows a push, too.
        """
        self._origin = _origin(url)
        self._name = name
        self._credentials = credentials
        self._seconds = seconds
        self._push = push
        self._authorization = ""

    def __call__(self, request: Any) -> Any:
        """Puts the login into a request. Called by `requests` for each one that it prepares."""
        if _origin(request.url) == self._origin:
            if self._authorization:
                request.headers["Authorization"] = self._authorization
            request.register_hook("response", self._answer)
        return request

    def _answer(self, response: Any, **options: Any) -> Any:
        """The response; or the next one, where this one was a challenge that can be answered."""
        if response.status_code != 401 or _origin(response.request.url) != self._origin:
            return response
        challenges = _challenges(response)
        if "bearer" in challenges:
            response.close()
            self._authorization = self._token(challenges["bearer"])
        elif "basic" in challenges and self._credentials is not None and self._credentials.password:
            if self._authorization == self._credentials.basic:  # it is wrong, and no better at the second try
                return response
            response.close()
            self._authorization = self._credentials.basic
        else:
            return response
        request = response.request.copy()
        request.headers["Authorization"] = self._authorization
        again = response.connection.send(request, **options)
        again.history.append(response)
        again.request = request
        return again

    def _token(self, challenge: dict[str, str]) -> str:
        """A header `Authorization` with a token of the server that a challenge names.

        Raises:
            StoreError: the server takes no such account, gives no token, or may not be asked.
        """
        realm = challenge.get("realm") or ""
        place = urlsplit(realm)
        here = self._origin[0] == place.scheme == "http" and place.hostname in _LOOPBACK
        if not place.hostname or not (place.scheme == "https" or here):
            raise StoreError(
                f"{self._name} wants a login at '{realm[:200]}', where nobody could send a password safely: it must"
                " begin with https://"
            )
        asked = {name: challenge[name] for name in ("service", "scope") if challenge.get(name)}
        if self._push and "scope" in asked:
            asked["scope"] = _ONLY_PULL.sub(r"\1:pull,push", asked["scope"])
        known = self._credentials
        if known is not None and known.identity_token:
            form = {"grant_type": "refresh_token", "client_id": _CLIENT, "refresh_token": known.identity_token}
            answer = requests.post(realm, data=form | asked, timeout=self._seconds, stream=True)
        else:
            headers = {"Authorization": known.basic} if known is not None else {}
            answer = requests.get(
                realm, params=asked, headers=headers, auth=_as_it_is, timeout=self._seconds, stream=True
            )
        with answer:
            text = answer.raw.read(_MAX_TOKEN_BYTES, decode_content=True)
            if answer.status_code in (400, 401, 403) and known is not None:
                raise StoreError(
                    f"{place.hostname} does not accept the login of '{known.user}' from {known.source}"
                    f" ({answer.status_code} {str(answer.reason)[:80]}): 'docker login {self._name}' keeps another"
                )
            if answer.status_code != 200:
                raise StoreError(f"{place.hostname} gives no token: {answer.status_code} {str(answer.reason)[:80]}")
        try:
            content = json.loads(text)
            token = content.get("token") or content["access_token"]
        except (ValueError, RecursionError, KeyError, AttributeError) as error:
            raise StoreError(f"{place.hostname} gives no token: what it answers is none") from error
        return f"Bearer {token}"


def _as_it_is(request: Any) -> Any:
    """Keeps `requests` from putting a login of `.netrc` in place of the one that a request has."""
    return request


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


def _challenges(response: Any) -> dict[str, dict[str, str]]:
    """The parameters of each challenge by its scheme, in small letters."""
    found = {}
    for line in response.raw.headers.getlist("WWW-Authenticate"):
        scheme, _, parameters = line.strip().partition(" ")
        found[scheme.lower()] = {
            name.lower(): value for name, value in parse_dict_header(parameters).items() if value is not None
        }
    return found
