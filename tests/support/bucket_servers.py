"""Servers of Amazon's S3 protocol on loopback: an honest one (moto), one that lies, and what clients of them need."""

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit
from xml.sax.saxutils import escape

from model_servers import free_port, wait_until

BUCKET = "models"


def environment(url: str) -> dict[str, str]:
    """The variables that the clients of Amazon's cloud read."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }


@dataclass
class S3Server:
    process: "subprocess.Popen[bytes]"
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """See `environment`."""
        return environment(self.url)

    def request(self, method: str, path: str, body: bytes = b"") -> None:
        """A request with a signature that this server does not check."""
        address = f"{self.url}/{quote(path, safe='/')}"
        headers = {"Content-Type": "application/octet-stream", "Authorization": "AWS someone:signature"}
        with urllib.request.urlopen(urllib.request.Request(address, body, headers, method=method), timeout=10):
            pass

    def put(self, key: str, content: bytes) -> None:
        """An object with that key, whatever it is called."""
        self.request("PUT", f"{BUCKET}/{key}", content)

    def put_folder(self, folder: Path, key: str, *, last: str = "") -> None:
        """Every file of a folder, the one named `last` after the others."""
        for path in sorted(folder.rglob("*"), key=lambda path: (path.name == last, path)):
            if path.is_file():
                self.put(f"{key}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def pause(self) -> None:
        """It takes connections, and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again, also what was asked meanwhile."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """One that runs, with an empty bucket."""
    port = free_port()
    with (folder / "s3.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
    server = S3Server(process, port)

    def up() -> bool:
        assert process.poll() is None, (folder / "s3.log").read_text()
        try:
            server.request("PUT", BUCKET)
        except OSError:
            return False
        return True

    try:
        wait_until(up, "the S3 server answers", seconds=60)
        yield server
    finally:
        server.kill()


@contextmanager
def lying_server(sizes: dict[str, int], bodies: dict[str, bytes], *, endless: bool = False) -> Iterator[str]:
    """The URL of one that lists keys with `sizes`, whatever their `bodies`; `endless` has it list them for ever."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = urlsplit(self.path).path.removeprefix(f"/{BUCKET}").strip("/")
            self._send(bodies[key] if key else self._listing(), key)

        def do_HEAD(self) -> None:
            self.do_GET()

        def _listing(self) -> bytes:
            items = "".join(
                f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size><ETag>&quot;1&quot;</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                for key, size in sizes.items()
            )
            more = (
                "<IsTruncated>true</IsTruncated><NextContinuationToken>more</NextContinuationToken>" if endless else ""
            )
            return f"<ListBucketResult>{items}{more}</ListBucketResult>".encode()

        def _send(self, body: bytes, key: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
