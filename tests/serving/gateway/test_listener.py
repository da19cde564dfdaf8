"""TLS of the gateway's own port, with the certificates of `make certificates`, asked with curl."""

import http.client
import shutil
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from bookserve.serving.gateway.main import main
from gateway_pages import gateway
from model_servers import wait_until

ROOT = Path(__file__).resolve().parents[3]
NOBODY = "127.0.0.1:1"  # no model server
OLD_LOG = "those of before are kept"
NEW_LOG = "new files for the gateway's port"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, certificates: Path) -> Path:
    """A copy of them, which a test may change, beside an empty store."""
    (tmp_path / "models").mkdir()
    shutil.copytree(certificates, tmp_path / "certificates")
    return tmp_path / "certificates"


def make_certificates(folder: Path) -> None:
    subprocess.run([sys.executable, ROOT / "docker" / "certificates.py", folder], check=True, stdout=subprocess.DEVNULL)


def options(folder: Path) -> list[str]:
    return [f"--tls-cert={folder / 'server.pem'}", f"--tls-key={folder / 'server.key'}"]


def curl(url: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["curl", "--silent", "--show-error", *more, url], capture_output=True, text=True, timeout=30)


def trusting(folder: Path) -> tuple[str, str]:
    return "--cacert", str(folder / "ca.pem")


def test_the_page_and_probes_are_served_over_tls_alone(folder: Path, tmp_path: Path) -> None:
    with gateway(NOBODY, tmp_path, *options(folder)) as url:
        assert url.startswith("https://")
        assert curl(f"{url}/healthz", *trusting(folder)).stdout == '{"status":"ok"}'
        assert "<title>" in curl(f"{url}/", *trusting(folder)).stdout
        unknown = curl(f"{url}/healthz")
        assert (unknown.returncode, unknown.stdout) == (60, ""), "the system does not know this authority"
        plain = curl(f"{url}/healthz".replace("https", "http"))
        assert plain.returncode != 0
        probe = [sys.executable, "-IS", ROOT / "docker" / "probe.py", url.rpartition(":")[2]]
        told = subprocess.run(probe, capture_output=True, text=True, timeout=30).stderr
        assert "not ready: 503" in told, "it is asked with TLS, and has no model server"


def test_clients_show_a_certificate_where_they_are_asked_for_one(folder: Path, tmp_path: Path) -> None:
    with gateway(NOBODY, tmp_path, *options(folder), f"--tls-client-ca={folder / 'ca.pem'}") as url:
        shown = ("--cert", str(folder / "client.pem"), "--key", str(folder / "client.key"))
        assert curl(f"{url}/healthz", *trusting(folder), *shown).stdout == '{"status":"ok"}'
        assert curl(f"{url}/healthz", *trusting(folder)).returncode != 0


def test_new_certificates_are_shown_without_a_restart_or_a_failed_request(folder: Path, tmp_path: Path) -> None:
    failed: list[Exception] = []
    answered = 0
    stop = threading.Event()

    def ask(port: int) -> None:
        nonlocal answered
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        while not stop.is_set():
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
            try:
                connection.request("GET", "/healthz")
                assert connection.getresponse().read() == b'{"status":"ok"}'
                answered += 1
            except Exception as error:
                failed.append(error)
            finally:
                connection.close()

    def logged(text: str) -> bool:
        return text in (tmp_path / "log").read_text()

    before = (folder / "server.pem").read_bytes()
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    with gateway(NOBODY, tmp_path, *options(folder)) as url:
        threads = [threading.Thread(target=ask, args=(int(url.rpartition(":")[2]),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            (folder / "server.pem").write_bytes(b"no certificate")
            wait_until(lambda: logged(OLD_LOG), "the fault is logged", seconds=20)
            assert curl(f"{url}/healthz", *trusting(old)).stdout == '{"status":"ok"}'
            (folder / "server.pem").write_bytes(before)
            wait_until(lambda: logged(NEW_LOG), "good files are taken", seconds=20)
            make_certificates(folder)
            wait_until(
                lambda: curl(f"{url}/healthz", *trusting(folder)).returncode == 0, "the new one is shown", seconds=30
            )
            wait_until(lambda: curl(f"{url}/healthz", *trusting(old)).returncode == 60, "the old one is gone")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert answered > 20
    assert failed == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("--tls-cert=server.pem",), "--tls-cert and --tls-key belong together"),
        (("--tls-client-ca=ca.pem",), "--tls-cert and --tls-key belong together"),
        (("--tls-cert=server.pem", "--tls-key=client.key"), "not PEM files of a certificate with a key that fits"),
        (("--tls-cert=tls.config", "--tls-key=server.key"), "not PEM files of a certificate with a key that fits"),
        (
            ("--tls-cert=server.pem", "--tls-key=server.key", "--tls-client-ca=server.key"),
            "not PEM files of a certificate with a key that fits",
        ),
        (("--tls-cert=gone.pem", "--tls-key=server.key"), "does not exist"),
    ],
)
def test_files_that_cannot_be_used_are_named_at_the_start(
    certificates: Path, files: tuple[str, ...], message: str, monkeypatch
) -> None:
    monkeypatch.chdir(certificates)
    done = CliRunner().invoke(main, list(files))
    assert done.exit_code == 2
    assert message in done.output
