"""TLS between the gateway and the model server, over gRPC and REST, from files that may change."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from bookserve.serving.wire.file_stamps import Stamp, stamp

_log = structlog.get_logger()


@dataclass(frozen=True)
class ServerTls:
    """PEM files: of the authority that signed the model server's certificate, of the gateway's own certificate, which a
    server that asks for one is shown, and of its key.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @property
    def wanted(self) -> bool:
        """Whether the model server is spoken to with TLS over gRPC; over REST its address says so."""
        return self.ca is not None

    def check(self) -> None:
        """ValueError when the files do not go together, or are not what they should be."""
        if (self.cert is None) != (self.key is None):
            raise ValueError(
                "--model-server-cert and --model-server-key belong together: the gateway's certificate and its key"
            )
        if self.cert is not None and not self.wanted:
            raise ValueError("--model-server-cert is for TLS, which --model-server-ca turns on")
        try:
            self.context()
        except ssl.SSLError as error:
            files = ", ".join(str(path) for path in (self.ca, self.cert, self.key) if path is not None)
            raise ValueError(f"not PEM files of certificates with a key that fits: {files} ({error.reason})") from error

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For gRPC; None is without TLS."""
        if not self.wanted:
            return None
        ca, cert, key = (None if path is None else path.read_bytes() for path in (self.ca, self.cert, self.key))
        return grpc.ssl_channel_credentials(ca, key, cert)

    def context(self) -> ssl.SSLContext:
        """For REST at https://."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        return context

    def stamp(self) -> Stamp:
        """Another one when a file is replaced or written, also behind symbolic links."""
        return stamp((self.ca, self.cert, self.key))


class FollowedTls:
    """The files of a `ServerTls`, whenever they change; those that cannot be used are logged once, and passed over."""

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        self._seen = tls.stamp()

    def renewed(self) -> tuple[grpc.ChannelCredentials | None, ssl.SSLContext] | None:
        """For gRPC and for REST what the files say now, where they have changed since the last look; else None."""
        stamp = self._tls.stamp()
        if stamp == self._seen:
            return None
        found, reason = None, ""
        try:
            self._tls.check()
            found = self._tls.credentials(), self._tls.context()
        except (OSError, ValueError) as error:
            reason = str(error)
        if self._tls.stamp() != stamp:  # replaced while they were read: the next look sees them whole
            return None
        self._seen = stamp
        if reason:
            _log.warning("certificates", reason=f"{reason}: those of before are kept")
        else:
            _log.info("certificates", reason="new files for the model server")
        return found
