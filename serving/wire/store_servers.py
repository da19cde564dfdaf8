"""The servers of a model store: each leaves a file beside `models.config` that tells where it is asked over gRPC.

A server holds a lock on its file as long as it lives, so a file without one is a dead server's. The commands that
change labels find here whom to ask whether the change has taken effect.
"""

import json
import os
import socket
import sys
import uuid
from contextlib import suppress
from pathlib import Path

TLS = "grpcs://"  # before the address of a server with TLS
_PREFIX = ".server-"
_ANYWHERE = ("", "0.0.0.0", "::")


class Registration:
    """The file of this process."""

    def __init__(self, root: Path, bind_address: str, port: int, *, tls: bool) -> None:
        """Writes it below `root`. Raises OSError where that cannot be written to, as on Windows."""
        if sys.platform == "win32":
            raise OSError("files are not locked on Windows")
        import fcntl

        content = {"host": socket.gethostname(), "address": bind_address, "port": port, "tls": tls}
        name = f"{_PREFIX}{uuid.uuid4().hex}"
        written = root / f"{name}.new"
        self._lock = os.open(written, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._path = root / f"{name}.json"
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            os.write(self._lock, json.dumps(content).encode())
            written.rename(self._path)
        except OSError:
            written.unlink(missing_ok=True)
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Removes it."""
        with suppress(OSError):  # the store may be gone
            self._path.unlink(missing_ok=True)
        os.close(self._lock)


def servers(root: Path) -> list[str]:
    """The gRPC addresses of the servers that live, as HOST:PORT, and grpcs://HOST:PORT of those with TLS.

    Files of dead ones are removed.
    """
    if sys.platform == "win32":
        return []
    import fcntl

    found = []
    for path in sorted(root.glob(f"{_PREFIX}*")):
        with suppress(OSError, ValueError, KeyError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                content = json.load(file)
                host = content["address"]
                if host in _ANYWHERE:
                    host = "127.0.0.1" if content["host"] == socket.gethostname() else content["host"]
                address = f"[{host}]:{content['port']}" if ":" in host else f"{host}:{content['port']}"
                found.append(f"{TLS}{address}" if content.get("tls") else address)
            else:
                path.unlink()
    return found
