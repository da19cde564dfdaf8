"""Registries of OCI artifacts on loopback: Debian's docker-registry, and one that answers what it is told to."""

import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from model_servers import free_port, wait_until

PROGRAM = "docker-registry"


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False


@contextmanager
def docker_registry(folder: Path, users: str = "") -> Iterator[str]:
    """HOST:PORT of an empty one, with users as `htpasswd -B` prints them. Skips the test where it is not installed."""
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"{PROGRAM} is not installed: apt-get install {PROGRAM}")
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder / 'blobs'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    if users:
        (folder / "users").write_text(users)
        with config.open("a") as file:
            file.write(f"auth: {{htpasswd: {{realm: here, path: {folder / 'users'}}}}}\n")
    with (folder / "registry.log").open("w") as log:
        process = subprocess.Popen([PROGRAM, "serve", config], stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: answers(port), "the registry answers", seconds=60)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def lying_registry(manifest: bytes, blob: bytes) -> Iterator[str]:
    """HOST:PORT of one that answers every question for a manifest, and every one for a blob, with these."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = manifest if "/manifests/" in self.path else blob
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
