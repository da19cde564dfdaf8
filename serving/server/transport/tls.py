"""TLS from a text SSLConfig, TensorFlow Serving's --ssl_config_file: for the gRPC port, and just so for REST."""

import ssl
import tempfile
from pathlib import Path

from bookserve.serving.server.settings import text_protos
from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.wire.ssl_config_pb2 import SSLConfig


def server_context(path: Path, protocol: str) -> ssl.SSLContext:
    """The server's side of TLS as the file at `path` asks for it, offering `protocol` ("h2", "http/1.1") by ALPN.

    With `client_verify`, clients must show a certificate that `custom_ca` has signed; without a `custom_ca`, one that
    the system trusts. Raises ServingError (INVALID_ARGUMENT), naming the file and the field, for what cannot be used.
    """
    config = text_protos.read(path, SSLConfig())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([protocol])
    _load_key(context, config, path)
    if config.custom_ca:
        try:
            context.load_verify_locations(cadata=config.custom_ca)
        except (ssl.SSLError, ValueError) as error:
            raise _unusable(path, "custom_ca", error) from error
    elif config.client_verify:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    if config.client_verify:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load_key(context: ssl.SSLContext, config: SSLConfig, path: Path) -> None:
    for field in ("server_key", "server_cert"):
        if not getattr(config, field):
            raise invalid_argument(f"'{path}' has no {field}: it must hold the contents of a PEM file")
    # OpenSSL reads keys from files only; these exist, in a folder for this user alone, while it does.
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder, "key"), Path(folder, "certificate")
        key.write_text(config.server_key)
        certificate.write_text(config.server_cert)
        try:
            # A password would be asked for on the terminal.
            context.load_cert_chain(certificate, key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise _unusable(path, "server_key or server_cert", error) from error


def _unusable(path: Path, field: str, error: Exception) -> ServingError:
    reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else error
    return invalid_argument(f"{field} of '{path}' cannot be used: {reason} (they hold the contents of PEM files)")
