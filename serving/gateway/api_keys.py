"""API keys from a file: who may use /api/ and /metrics. The file is read anew when it changes.

A line has a key, or a name, a colon and a key; empty lines and lines that begin with # are left out. Only digests are
kept and compared, in constant time, so that neither memory nor timing tells a key.
"""

import hashlib
import hmac
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from flask import Request

from bookserve.serving.gateway.problems import Problem

COOKIE = "bookserve_key"  # by which the page sends the key that a person gave it
_GUARDED = ("/api/", "/metrics")
_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,200}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_BYTES = 1 << 20
_LOOK_SECONDS = 1.0  # between looks at the file

_log = structlog.get_logger()


class ApiKeysError(ValueError):
    """A file of keys that cannot be used; the message says which line, and never a key."""


class ApiKeys:
    """The keys of a file. Shared by the gateway's threads."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ApiKeysError."""
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._digests: dict[bytes, str] = {}
        self._seen = self._stamp()
        self._looked = clock()
        self._digests = _read(path)

    def check(self, request: Request) -> str:
        """The name of the key that a request has; "" where it needs none. Raises Problem 401."""
        if not request.path.startswith(_GUARDED):
            return ""
        given = _given(request)
        if given is None:
            raise _refused("this address needs an API key")
        self._reload()
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
        found = [name for known, name in self._digests.items() if hmac.compare_digest(known, digest)]
        if not found:
            raise _refused("the API key is not known here")
        return found[0]

    def _reload(self) -> None:
        with self._lock:
            now = self._clock()
            if now - self._looked < _LOOK_SECONDS:
                return
            self._looked = now
            stamp = self._stamp()
            if stamp == self._seen:
                return
            self._seen = stamp
            try:
                self._digests = _read(self._path)
            except ApiKeysError as error:
                _log.warning("api keys", reason=f"{error}: the keys of before are kept")
            else:
                _log.info("api keys", keys=len(self._digests))

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_size, found.st_ino)


def _given(request: Request) -> str | None:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("X-API-Key") or request.cookies.get(COOKIE)


def _refused(reason: str) -> Problem:
    detail = f"{reason}: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
    return Problem(401, detail, headers={"WWW-Authenticate": 'Bearer realm="bookserve"'})


def _read(path: Path) -> dict[bytes, str]:
    """Digest -> name of each key."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ApiKeysError(f"{path} has more than {_MAX_BYTES} bytes")
        lines = content.decode().splitlines()
    except OSError as error:
        raise ApiKeysError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ApiKeysError(f"{path} is not text") from error
    keys: dict[bytes, str] = {}
    for number, line in enumerate((line.strip() for line in lines), 1):
        if not line or line.startswith("#"):
            continue
        named, colon, key = line.partition(":")
        name, key = (named, key) if colon else (f"line-{number}", line)
        if not _KEY.fullmatch(key) or not _NAME.fullmatch(name):
            raise ApiKeysError(
                f"line {number} of {path} is not a key of 16 to 200 letters, digits and ._~+/=- (with NAME: before it)"
            )
        keys[hashlib.sha256(key.encode()).digest()] = name
    if not keys:
        raise ApiKeysError(f"{path} has no key: write one a line")
    return keys
