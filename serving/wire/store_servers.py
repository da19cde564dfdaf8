"""The servers of a model store: each leaves a file beside `models.config` that tells where it is asked.

A server holds a lock on its file as long as it lives, so a file without one is a dead server's. The commands that
change labels find here whom to ask whether the change has taken effect, and `bookserve models add` where its model is
served.
"""

import json
import os
import socket
import sys
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TLS = "grpcs://"  # before the address of a server with TLS
_PREFIX = ".server-"
_ANYWHERE = ("", "0.0.0.0", "::")


@dataclass(frozen=True)
class RunningServer:
    """Where a server that lives is asked."""

    grpc: str  # HOST:PORT, or grpcs://HOST:PORT with TLS
    rest: str  # a URL; empty where its REST is turned off


class Registration:
    """The file of this process."""

    def __init__(self, root: Path, bind_address: str, port: int, tls: bool, rest_port: int, rest_tls: bool) -> None:
        """Writes it below `root`; `rest_port` is 0 without REST.

        Raises OSError where that cannot be written to, as on Windows.
        """
        if sys.platform == "win32":
            raise OSError("files are not locked on Windows")
        import fcntl

        content = {
            "host": socket.gethostname(),
            "address": bind_address,
            "port": port,
            "tls": tls,
            "rest_port": rest_port,
            "rest_tls": rest_tls,
        }
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


def servers(root: Path) -> list[RunningServer]:
    """The servers that live. Files of dead ones are removed."""
    if sys.platform == "win32":
        return []
    import fcntl

    found = []
    for path in sorted(root.glob(f"{_PREFIX}*")):
        with suppress(OSError, ValueError, KeyError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(_server(json.load(file)))
            else:
                path.unlink()
    return found


def _server(content: dict[str, Any]) -> RunningServer:
    host = content["address"]
    if host in _ANYWHERE:
        host = "127.0.0.1" if content["host"] == socket.gethostname() else content["host"]
    if ":" in host:
        host = f"[{host}]"
    rest_port = content.get("rest_port", 0)  # which servers of bookserve 0.1.0 do not tell
    scheme = "https" if content.get("rest_tls") else "http"
    return RunningServer(
        f"{TLS if content.get('tls') else ''}{host}:{content['port']}",
        f"{scheme}://{host}:{rest_port}" if rest_port else "",
    )
