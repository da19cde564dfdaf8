"""A registry of OCI artifacts, such as Docker's, Harbor or ghcr.io: blobs and manifests, over the library oras.

Credentials are those that `docker login` or `oras login` left in Docker's configuration. What a registry answers is not
trusted: manifests are bounded, and every blob has the size and the SHA-256 by which it was asked for. The library is
the extra `oci`, and imported when it is needed.
"""

import hashlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bookserve.export.errors import StoreError

if TYPE_CHECKING:
    from oras.container import Container

SCHEME = "oci://"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_MAX_MANIFEST_BYTES = 4 << 20  # as registries have it
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
    """One repository of a registry."""

    def __init__(self, reference: Reference) -> None:
        """Registries on loopback are asked without TLS, as Docker does. Raises StoreError without the library."""
        try:
            import requests
            from oras.provider import Registry as Client
            from requests.adapters import HTTPAdapter
            from urllib3.util.retry import Retry
        except ModuleNotFoundError as error:
            raise StoreError(f"{reference} needs the package '{error.name}': pip install 'bookserve[oci]'") from error
        self._reference = reference
        insecure = _LOOPBACK.fullmatch(reference.host) is not None
        with self._told():
            first = requests.get(f"http{'' if insecure else 's'}://{reference.host}/v2/", timeout=_SECONDS, stream=True)
            first.close()
        basic = first.headers.get("WWW-Authenticate", "").lower().startswith("basic")
        self._client: Client = Client(insecure=insecure, auth_backend="basic" if basic else "token")
        session = self._client.session
        for scheme in ("https://", "http://"):
            retry = Retry(_RETRIES, backoff_factor=0.5, status_forcelist=_FAULTS)
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        session.request = partial(session.request, timeout=_SECONDS)
        # Without the library's own retries, which wait two minutes in silence, for wrong credentials, too.
        self._client.do_request = partial(inspect.unwrap(Client.do_request), self._client)
        self._container: Container = self._client.get_container(str(reference).removeprefix(SCHEME))
        with self._told():
            self._client.auth.load_configs(self._container)
        if basic and not hasattr(self._client.auth, "_basic_auth"):  # which the library then asks for
            raise StoreError(
                f"{reference}: the registry asks for credentials: 'docker login {reference.host}' keeps them"
            )

    @property
    def _base(self) -> str:
        return f"{self._client.prefix}://{self._reference.host}/v2/{self._reference.repository}"

    def manifest(self) -> bytes | None:
        """The manifest that the tag names; None where there is none. Raises StoreError."""
        url = f"{self._base}/manifests/{self._reference.tag}"
        with self._told(), self._client.do_request(url, headers={"Accept": MANIFEST_TYPE}, stream=True) as answer:
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
        with self._told(), self._client.do_request(url, stream=True) as answer:
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

    def tag(self, manifest: bytes) -> None:
        """Has the tag name this manifest, whose blobs are there. Raises StoreError."""
        url = f"{self._base}/manifests/{self._reference.tag}"
        with self._told():
            headers = {"Content-Type": MANIFEST_TYPE}
            _check(self._client.do_request(url, "PUT", data=manifest, headers=headers), self._reference)

    @contextmanager
    def _told(self) -> Iterator[None]:
        import requests

        try:
            yield
        except requests.RequestException as error:
            kind = "does not answer" if isinstance(error, requests.ConnectionError | requests.Timeout) else "fails"
            raise StoreError(f"{self._reference}: the registry {kind}: {str(error)[:300]}") from error
        except ValueError as error:  # the library's word for credentials that do not do
            hint = f"'docker login {self._reference.host}' keeps credentials"
            raise StoreError(f"{self._reference}: {str(error)[:300]}: {hint}") from error


def _check(answer: Any, reference: Reference) -> None:
    """Raises StoreError where a registry has refused."""
    if answer.status_code // 100 != 2:
        raise StoreError(f"{reference}: the registry answers {answer.status_code} {str(answer.reason)[:80]}")
