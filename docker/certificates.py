"""Certificates for development: a CA of their own, a server's and a client's certificate, and the model server's files.

`make certificates` writes them into certificates/. Whoever has that folder can pose as your servers: in production take
certificates of your own CA, with keys that only the server's user may read.
"""

import sys
from pathlib import Path

import trustme
from google.protobuf import text_format

from bookserve.serving.wire.ssl_config_pb2 import SSLConfig

# How clients on this machine, and containers of compose.yaml, call the servers.
NAMES = ("localhost", "127.0.0.1", "::1", "model-server", "gateway", "proxy")


def write(folder: Path) -> None:
    """ca.pem, server.key, server.pem, client.key, client.pem; tls.config, mutual-tls.config for --ssl_config_file."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA(organization_name="bookserve development")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, certificate in (
        ("server", authority.issue_cert(*NAMES)),
        ("client", authority.issue_cert("client@bookserve.localhost")),
    ):
        for suffix, content in (
            ("key", certificate.private_key_pem.bytes()),
            ("pem", b"".join(pem.bytes() for pem in certificate.cert_chain_pems)),
        ):
            scratch = folder / f".{name}.{suffix}"
            scratch.write_bytes(content)
            scratch.rename(folder / f"{name}.{suffix}")  # a proxy that watches the folder reads whole files
    config = SSLConfig(server_key=(folder / "server.key").read_text(), server_cert=(folder / "server.pem").read_text())
    (folder / "tls.config").write_text(text_format.MessageToString(config))
    config.custom_ca = (folder / "ca.pem").read_text()
    config.client_verify = True
    (folder / "mutual-tls.config").write_text(text_format.MessageToString(config))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    sys.stdout.write(f"for development only: {', '.join(sorted(path.name for path in Path(sys.argv[1]).iterdir()))}\n")
