"""TLS of a port, from files that may change: a text SSLConfig, TensorFlow Serving's --ssl_config_file, or PEM files."""

import logging
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bookserve.serving.server.settings import text_protos
from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.wire.file_stamps import Stamp, stamp
from bookserve.serving.wire.ssl_config_pb2 import SSLConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """The PEM texts of a port: its certificates, their key, and the authorities of the clients' certificates.

    Without `authorities` clients show no certificate.
    """

    certificates: str
    key: str
    authorities: str

    @contextmanager
    def files(self) -> Iterator["IdentityFiles"]:
        """The same as files, in a folder for this user alone, while a library reads them."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            files = IdentityFiles(folder / "certificates", folder / "key", folder / "authorities")
            files.certificates.write_text(self.certificates)
            files.key.write_text(self.key)
            files.authorities.write_text(self.authorities)
            yield files


@dataclass(frozen=True)
class IdentityFiles:
    """See Identity."""

    certificates: Path
    key: Path
    authorities: Path


@dataclass(frozen=True)
class Source:
    """Where the identity of a port comes from: the file of an SSLConfig, or PEM files of certificates and their key."""

    config: Path | None = None
    certificates: Path | None = None
    key: Path | None = None
    authorities: Path | None = None  # of clients, which must then show a certificate

    def stamp(self) -> Stamp:
        """Another one when a file is replaced or written, also behind symbolic links."""
        return stamp((self.config, self.certificates, self.key, self.authorities))

    def identity(self) -> Identity:
        """What the files say now. Raises ServingError (INVALID_ARGUMENT), naming the file that cannot be used."""
        if self.config is not None:
            return identity(self.config)
        assert self.certificates is not None
        assert self.key is not None
        found = Identity(
            _pem(self.certificates), _pem(self.key), "" if self.authorities is None else _pem(self.authorities)
        )
        _check_key(found, f"--ssl_key_file={self.key} and --ssl_cert_file={self.certificates}")
        if self.authorities is not None:
            _check_authorities(found.authorities, f"--ssl_client_ca_file={self.authorities}")
        return found

    def __str__(self) -> str:
        return str(self.config or self.certificates)


def source(flags: Flags, config_file: str) -> Source | None:
    """Where the TLS of a port comes from whose SSLConfig is `config_file`; None is without TLS.

    Raises ServingError (INVALID_ARGUMENT) for flags that do not go together.
    """
    pem = {"cert": flags.ssl_cert_file, "key": flags.ssl_key_file, "client_ca": flags.ssl_client_ca_file}
    given = ", ".join(f"--ssl_{name}_file" for name, path in pem.items() if path)
    if given and (flags.ssl_config_file or flags.rest_ssl_config_file):
        raise invalid_argument(
            f"{given}: TLS of both ports is in these PEM files, or else in --ssl_config_file and --rest_ssl_config_file"
        )
    if given and not (flags.ssl_cert_file and flags.ssl_key_file):
        raise invalid_argument(f"{given}: TLS needs both --ssl_cert_file and --ssl_key_file")
    if given:
        authorities = Path(flags.ssl_client_ca_file) if flags.ssl_client_ca_file else None
        return Source(None, Path(flags.ssl_cert_file), Path(flags.ssl_key_file), authorities)
    return Source(Path(config_file)) if config_file else None


class Followed:
    """The identity of a port, as its files say, also after they have changed."""

    def __init__(self, source: Source) -> None:
        """Raises ServingError as `Source.identity`."""
        self._source = source
        self._seen = source.stamp()
        self.identity = source.identity()

    def renewed(self) -> bool:
        """Whether `identity` is another one since the last look. What cannot be used is logged once, and ignored."""
        stamp = self._source.stamp()
        if stamp == self._seen:
            return False
        found, reason = self.identity, ""
        try:
            found = self._source.identity()
        except ServingError as error:
            reason = error.message
        if self._source.stamp() != stamp:  # replaced while they were read: the next look sees them whole
            return False
        self._seen = stamp
        if reason:
            log.error("the certificates of before are kept: %s", reason)
        renewed = found != self.identity
        self.identity = found
        return renewed

    def __str__(self) -> str:
        return str(self._source)


def identity(path: Path) -> Identity:
    """What the SSLConfig at `path` asks for.

    With `client_verify`, clients must show a certificate that `custom_ca` has signed; without a `custom_ca`, one that
    the system trusts. Raises ServingError (INVALID_ARGUMENT), naming the file and the field, for what cannot be used.
    """
    config = text_protos.read(path, SSLConfig())
    for field in ("server_key", "server_cert"):
        if not getattr(config, field):
            raise invalid_argument(f"'{path}' has no {field}: it must hold the contents of a PEM file")
    found = Identity(config.server_cert, config.server_key, config.custom_ca if config.client_verify else "")
    _check_key(found, f"server_key or server_cert of '{path}'")
    if config.custom_ca:
        _check_authorities(config.custom_ca, f"custom_ca of '{path}'")
    if config.client_verify and not config.custom_ca:
        found = Identity(found.certificates, found.key, _trusted_by_the_system(path))
    return found


def _pem(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise invalid_argument(f"'{path}' cannot be read: {reason} (it must be a PEM file)") from error


def _check_key(found: Identity, where: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with found.files() as files:
        try:
            # A password would be asked for on the terminal.
            context.load_cert_chain(files.certificates, files.key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise _unusable(where, error) from error


def _check_authorities(pem: str, where: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise _unusable(where, error) from error


def _trusted_by_the_system(path: Path) -> str:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authorities = context.get_ca_certs(binary_form=True)
    if not authorities:
        raise invalid_argument(f"'{path}' has client_verify and no custom_ca, and this system trusts no authority")
    return "".join(ssl.DER_cert_to_PEM_cert(certificate) for certificate in authorities)


def _unusable(where: str, error: Exception) -> ServingError:
    reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else error
    return invalid_argument(f"{where} cannot be used: {reason} (they hold the contents of PEM files)")
