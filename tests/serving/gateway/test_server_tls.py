"""Mutual TLS between gateway and model server, with the certificates of `make certificates`."""

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bookserve.serving.gateway.main import main
from gateway_pages import gateway
from model_servers import Server, server_starter, wait_until, write_scale_model

ROOT = Path(__file__).resolve().parents[3]
SHOWN = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
ROWS = json.dumps({"instances": [[1, 2, 3]]}).encode()


@pytest.fixture
def certificates(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("certificates")
    subprocess.run([sys.executable, ROOT / "docker" / "certificates.py", folder], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def server(certificates: Path, tmp_path: Path) -> Iterator[Server]:
    write_scale_model(tmp_path / "models" / "scale", 1, 2.0)
    config = certificates / "mutual-tls.config"
    with server_starter(tmp_path) as start:
        started = start(
            f"--model_root={tmp_path / 'models'}",
            f"--ssl_config_file={config}",
            f"--rest_ssl_config_file={config}",
            "--enable_metrics",
            wait=False,
        )
        wait_until(lambda: "Exporting HTTP/REST API" in started.log.read_text(), "the server is ready", seconds=60)
        yield started


def ask(url: str) -> list[object]:
    request = urllib.request.Request(f"{url}/api/v1/scale", ROWS, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        predictions: list[object] = json.load(response)["predictions"]
    return predictions


def options(certificates: Path, server: Server) -> list[str]:
    return [
        f"--model-server-ca={certificates / 'ca.pem'}",
        f"--model-server-rest=https://127.0.0.1:{server.rest_port}",
        "--log-level=error",
    ]


def live(url: str) -> dict[str, object]:
    with urllib.request.urlopen(f"{url}/api/v1/models/scale/state", timeout=30) as response:
        found: dict[str, object] = json.load(response)["live"]
    return found


def test_a_gateway_with_a_certificate_asks_over_mutual_tls(certificates: Path, server: Server, tmp_path: Path) -> None:
    shown = [f"--model-server-cert={certificates / 'client.pem'}", f"--model-server-key={certificates / 'client.key'}"]
    with gateway(server.target, tmp_path, *options(certificates, server), *shown) as url:
        assert ask(url) == [{"y": [2, 4, 6]}]
        # Over REST, too.
        wait_until(lambda: "requests" in live(url), "metrics are read", seconds=30)


def test_a_gateway_without_a_certificate_is_refused(certificates: Path, server: Server, tmp_path: Path) -> None:
    with (
        gateway(server.target, tmp_path, *options(certificates, server)) as url,
        pytest.raises(urllib.error.HTTPError) as caught,
    ):
        ask(url)
    assert caught.value.code == 503
    caught.value.close()


@pytest.mark.slow
def test_both_sides_get_new_certificates_without_a_restart(certificates: Path, server: Server, tmp_path: Path) -> None:
    """A new authority signs all: the server follows its SSLConfig, and the gateway its three files."""
    folder = tmp_path / "renewed"
    shutil.copytree(certificates, folder)
    mine = [f"--model-server-{name}={folder / file}" for name, file in SHOWN.items()]
    rest = f"--model-server-rest=https://127.0.0.1:{server.rest_port}"
    with gateway(server.target, tmp_path, rest, *mine) as url:
        assert ask(url) == [{"y": [2, 4, 6]}]
        for broken in (b"no certificate", b""):
            (folder / "client.pem").write_bytes(broken)
            wait_until(lambda: logged(tmp_path).count("those of before are kept") == 1, "it is logged", seconds=20)
            assert ask(url) == [{"y": [2, 4, 6]}]
            (folder / "client.pem").write_bytes((certificates / "client.pem").read_bytes())
            wait_until(lambda: "new files for the model server" in logged(tmp_path), "good files are taken", seconds=20)
            (tmp_path / "log").write_text("")
        subprocess.run([sys.executable, ROOT / "docker" / "certificates.py", folder], check=True, capture_output=True)
        (certificates / "mutual-tls.config").write_text((folder / "mutual-tls.config").read_text())
        wait_until(lambda: server.log.read_text().count("new certificates for") == 2, "the server follows", seconds=20)
        wait_until(lambda: "new files for the model server" in logged(tmp_path), "the gateway follows", seconds=20)
        assert ask(url) == [{"y": [2, 4, 6]}]
        wait_until(lambda: "requests" in live(url), "metrics are read", seconds=30)


def logged(folder: Path) -> str:
    return (folder / "log").read_text()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ca": "ca.pem", "cert": "client.pem"}, "--model-server-cert and --model-server-key belong together"),
        (
            {"cert": "client.pem", "key": "client.key"},
            "--model-server-cert is for TLS, which --model-server-ca turns on",
        ),
        ({"ca": "client.key"}, "not PEM files of certificates with a key that fits"),
        ({"ca": "ca.pem", "cert": "client.pem", "key": "server.key"}, "with a key that fits"),
    ],
)
def test_files_that_do_not_go_together_are_refused(certificates: Path, files: dict[str, str], message: str) -> None:
    arguments = [f"--model-server-{option}={certificates / name}" for option, name in files.items()]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
