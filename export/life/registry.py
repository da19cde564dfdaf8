"""A registry of OCI artifacts, such as Docker's, Harbor or ghcr.io: blobs and manifests, over the library oras.

Who asks is said by `registry_login.py`, with the account of `registry_credentials.py`. What a registry answers is not
trusted: manifests are bounded, and every blob has the size and the SHA-256 by which it was asked for. The library is
the extra `oci`, and imported when it is needed.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bookserve.export.errors import StoreError
from bookserve.export.life import registry_credentials
from bookserve.serving.wire import missing_package

if TYPE_CHECKING:
    from oras.container import Container

SCHEME = "oci://"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_MAX_MANIFEST_BYTES = 4 << 20  # as registries have it
_MAX_REASON_BYTES = 1 << 16
_HUB_SERVER = "registry-1.docker.io"
_CHUNK = 1 << 20
_UPLOAD_CHUNK = 16 << 20
_RETRIES = 3
_FAULTS = (500, 502, 503, 504)  # answers after which to try again
_SECONDS = (10.0, 60.0)  # to connect, and without a byte
_REFERENCE = re.compile(
    r"(?P<host>[A-Za-z0-9.-]+(:[0-9]{1,5})?)/(?P<repository>[a-z0-9]+([._/-]+[a-z0-9]+)*)"
    r":(?P<tag>[A-Za-z0-9_][\w.-]{0,127})",
    re.ASCII,
)
_LOOPBACK = re.compile(r"(localhost|127\.0\.0\.1)(:\d+)?")


@dataclass(frozen=True)
class Reference:
    """`oci://HOST/REPOSITORY:TAG`."""

    host: str
    repository: str
    tag: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}/{self.repository}:{self.tag}"


def parse(text: str) -> Reference:
    """Raises StoreError where a text is no reference; the message says what one looks like."""
    found = _REFERENCE.fullmatch(text.removeprefix(SCHEME)) if text.startswith(SCHEME) else None
    if found is None or len(text) > 512:
        raise StoreError(f"'{text[:255]}' is no reference: use oci://HOST/REPOSITORY:TAG")
    return Reference(found["host"], found["repository"], found["tag"])


class Registry:
    """One repository of a registry, with connections that leaving the context closes."""

    def __init__(self, reference: Reference, *, push: bool = False) -> None:
        """To pull from, or also to push to. Registries on loopback are asked without TLS, as Docker does.

        Raises StoreError without the library, and where the credentials that are kept cannot be read.
        """
        try:
            from oras.provider import Registry as Client
            from requests.adapters import HTTPAdapter
            from urllib3.util.retry import Retry

            from bookserve.export.life.registry_login import RegistryLogin
        except ModuleNotFoundError as error:
            raise StoreError(f"{reference} needs {missing_package.told(error, 'oci')}") from error
        self._reference = reference
        self._credentials = registry_credentials.find(reference.host)
        self._client: Client = Client(insecure=_LOOPBACK.fullmatch(reference.host) is not None)
        self._client.do_request = self._ask  # the library's own login fails where a token allows too little
        session = self._client.session
        for scheme in ("https://", "http://"):
            retry = Retry(_RETRIES, backoff_factor=0.5, status_forcelist=_FAULTS)
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        session.auth = RegistryLogin(self._base, reference.host, self._credentials, _SECONDS, push)
        name = f"{self._server}/{reference.repository}:{reference.tag}"
        self._container: Container = self._client.get_container(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.session.close()

    @property
    def _server(self) -> str:
        """The host that answers; Docker Hub's is not the one of its references."""
        host = self._reference.host
        return _HUB_SERVER if host in registry_credentials.DOCKER_HUB else host

    @property
    def _base(self) -> str:
        return f"{self._client.prefix}://{self._server}/v2/{self._reference.repository}"

    def _ask(self, url: str, method: str = "GET", **options: Any) -> Any:
        """The answer to a request. Raises StoreError where the registry wants another login."""
        answer = self._client.session.request(method, url, timeout=_SECONDS, **options)
        if answer.status_code in (401, 403):
            with answer:
                raise StoreError(self._refusal(answer))
        return answer

    def _refusal(self, answer: Any) -> str:
        host, known, said = self._reference.host, self._credentials, _told_by(answer)
        if known is None:
            return f"{self._reference}: the registry asks for credentials: 'docker login {host}' keeps them ({said})"
        if answer.status_code == 401 and answer.request.headers.get("Authorization", "").startswith("Basic "):
            return (
                f"{self._reference}: {host} does not accept the login of '{known.user}' from {known.source} ({said}):"
                f" 'docker login {host}' keeps another"
            )
        return f"{self._reference}: '{known.user}', from {known.source}, may not do that there ({said})"

    def manifest(self) -> bytes | None:
        """The manifest that the tag names; None where there is none. Raises StoreError."""
        url = f"{self._base}/manifests/{self._reference.tag}"
        with self._told(), self._ask(url, headers={"Accept": MANIFEST_TYPE}, stream=True) as answer:
            if answer.status_code == 404:
                return None
            _check(answer, self._reference)
            text = bytearray()
            for chunk in answer.iter_content(_CHUNK):
                text += chunk
                if len(text) > _MAX_MANIFEST_BYTES:
                    raise StoreError(f"{self._reference} has a manifest of more than {_MAX_MANIFEST_BYTES} bytes")
            return bytes(text)

    def chunks(self, digest: str, size: int) -> Iterator[bytes]:
        """The content of a blob. Raises StoreError, also at the end of one that is another than asked for."""
        url, left, sums = f"{self._base}/blobs/{digest}", size, hashlib.sha256()
        with self._told(), self._ask(url, stream=True) as answer:
            _check(answer, self._reference)
            for chunk in answer.iter_content(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise StoreError(f"{self._reference}: {digest} has more than the {size} bytes of its manifest")
                sums.update(chunk)
                yield chunk
        if left or f"sha256:{sums.hexdigest()}" != digest:
            raise StoreError(f"{self._reference}: what the registry answers is not {digest}, of {size} bytes")

    def upload(self, path: Path, digest: str) -> None:
        """Puts a file there as a blob, unless it is there. Raises StoreError."""
        layer = {"digest": digest, "size": path.stat().st_size}
        with self._told():
            answer = self._client.upload_blob(
                str(path), self._container, layer, do_chunked=True, chunk_size=_UPLOAD_CHUNK
            )
            _check(answer, self._reference)

    def tag(self, manifest: bytes, name: str | None = None) -> None:
        """Has the tag, or the repository's tag `name`, name this manifest, whose blobs are there. Raises StoreError."""
        url = f"{self._base}/manifests/{name or self._reference.tag}"
        with self._told():
            headers = {"Content-Type": MANIFEST_TYPE}
            _check(self._ask(url, "PUT", data=manifest, headers=headers), self._reference)

    @contextmanager
    def _told(self) -> Iterator[None]:
        import requests

        try:
            yield
        except requests.RequestException as error:
            kind = "does not answer" if isinstance(error, requests.ConnectionError | requests.Timeout) else "fails"
            raise StoreError(f"{self._reference}: the registry {kind}: {str(error)[:300]}") from error
        except ValueError as error:  # of the library, for an answer that it does not understand
            raise StoreError(f"{self._reference}: the registry fails: {str(error)[:300]}") from error


def _check(answer: Any, reference: Reference) -> None:
    """Raises StoreError where a registry has refused."""
    if answer.status_code // 100 != 2:
        raise StoreError(f"{reference}: the registry answers {_told_by(answer)}")


def _told_by(answer: Any) -> str:
    """The status of a refusal, and the first reason that it gives."""
    status = f"{answer.status_code} {str(answer.reason)[:80]}".strip()
    try:
        reason = json.loads(next(answer.iter_content(_MAX_REASON_BYTES), b""))["errors"][0]
        return " ".join(f"{status}: {reason['code']} {reason.get('message') or ''}".split())[:300]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError, OSError):
        return status
