"""Certificates made for a test: a CA, and what it signs, as TensorFlow Serving's SSLConfig files."""

from pathlib import Path

import trustme
from google.protobuf import text_format

from bookserve.serving.wire.ssl_config_pb2 import SSLConfig


class Authority:
    """A certificate authority of its own."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self.certificate: bytes = self._ca.cert_pem.bytes()

    def issue(self, *names: str) -> tuple[bytes, bytes]:
        """Key and certificate chain, as PEM, for these host names."""
        issued = self._ca.issue_cert(*names)
        return issued.private_key_pem.bytes(), b"".join(pem.bytes() for pem in issued.cert_chain_pems)

    def write_config(self, path: Path, clients: "Authority | None" = None) -> Path:
        """An SSLConfig file for a server at 127.0.0.1; with `clients`, those must show a certificate of theirs."""
        key, chain = self.issue("127.0.0.1", "localhost")
        config = SSLConfig(server_key=key.decode(), server_cert=chain.decode())
        if clients is not None:
            config.custom_ca = clients.certificate.decode()
            config.client_verify = True
        path.write_text(text_format.MessageToString(config))
        return path
