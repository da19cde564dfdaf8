"""TLS from a text SSLConfig, TensorFlow Serving's --ssl_config_file: for the gRPC port, and just so for REST."""

import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bookserve.serving.server.settings import text_protos
from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.wire.ssl_config_pb2 import SSLConfig


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


def identity(path: Path) -> Identity:
    """What the file at `path` asks for.

    With `client_verify`, clients must show a certificate that `custom_ca` has signed; without a `custom_ca`, one that
    the system trusts. Raises ServingError (INVALID_ARGUMENT), naming the file and the field, for what cannot be used.
    """
    config = text_protos.read(path, SSLConfig())
    for field in ("server_key", "server_cert"):
        if not getattr(config, field):
            raise invalid_argument(f"'{path}' has no {field}: it must hold the contents of a PEM file")
    found = Identity(config.server_cert, config.server_key, config.custom_ca if config.client_verify else "")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with found.files() as files:
        try:
            # A password would be asked for on the terminal.
            context.load_cert_chain(files.certificates, files.key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise _unusable(path, "server_key or server_cert", error) from error
    if config.custom_ca:
        try:
            context.load_verify_locations(cadata=config.custom_ca)
        except (ssl.SSLError, ValueError) as error:
            raise _unusable(path, "custom_ca", error) from error
    if config.client_verify and not config.custom_ca:
        found = Identity(found.certificates, found.key, _trusted_by_the_system(path))
    return found


def _trusted_by_the_system(path: Path) -> str:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authorities = context.get_ca_certs(binary_form=True)
    if not authorities:
        raise invalid_argument(f"'{path}' has client_verify and no custom_ca, and this system trusts no authority")
    return "".join(ssl.DER_cert_to_PEM_cert(certificate) for certificate in authorities)


def _unusable(path: Path, field: str, error: Exception) -> ServingError:
    reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else error
    return invalid_argument(f"{field} of '{path}' cannot be used: {reason} (they hold the contents of PEM files)")
