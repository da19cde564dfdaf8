"""Servers of the protocols of Google Cloud Storage and of Azure's blobs on loopback: google_storage.py, and Azurite."""

import base64
import hashlib
import hmac
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from google_storage import google_storage
from model_servers import free_port, wait_until

CLOUDS = ("gs", pytest.param("az", marks=pytest.mark.slow))  # parameters of a fixture that starts each
_AZURITE = "azurite@3.37.0"
_INSTALLED = Path(__file__).resolve().parents[2] / ".venv-azurite"
ACCOUNT = "devstoreaccount1"
# The key that every emulator of Azure has: it is in Azurite's documentation.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def cloud(scheme: str, folder: Path) -> Iterator[dict[str, str]]:
    """A server of the cloud of `gs://` or `az://`, with `models` in it, that clients in this process ask; yields the
    environment of others."""
    start = google_storage if scheme == "gs" else azure
    with start(folder) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


@contextmanager
def azure(folder: Path) -> Iterator[dict[str, str]]:
    """Azurite with the container `models`; the environment of its clients."""
    port = free_port()
    command = [_azurite(), "--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--blobHost", "127.0.0.1"]

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


def _azurite() -> str:
    """The program: the installed one, or npm's, which takes half a minute the first time."""
    program = shutil.which("azurite-blob") or str(_INSTALLED / "node_modules/.bin/azurite-blob")
    if not Path(program).exists():
        if shutil.which("npm") is None:
            pytest.skip("azurite-blob is not installed, nor npm, which installs it")
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(_INSTALLED), _AZURITE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        if done.returncode != 0:
            pytest.skip(f"npm cannot install {_AZURITE}: {done.stderr[-300:]}")
    return program


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
