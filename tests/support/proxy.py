"""Envoy with the project's own configuration, docker/proxy/envoy.yaml, in front of servers on loopback."""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from certificates import Authority
from model_servers import Server, answers, free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
PROXY = ROOT / "docker" / "proxy"
_OWN = ROOT / ".venv-proxy" / "bin" / "envoy"  # made by `make test-growth`
ENVOY = shutil.which("envoy") or (str(_OWN) if _OWN.exists() else "")


@dataclass
class Proxy:
    """A running Envoy: its ports, the file of the CA that signed its certificate, and how many hosts it has."""

    grpc_port: int
    rest_port: int
    https_port: int
    admin_port: int
    authority: Authority
    folder: Path
    pid: int = 0

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def hosts(self, cluster: str) -> dict[int, dict[str, Any]]:
        """Port -> what Envoy says of the server there."""
        url = f"http://127.0.0.1:{self.admin_port}/clusters?format=json"
        with urllib.request.urlopen(url, timeout=5) as response:
            statuses = json.load(response)["cluster_statuses"]
        (found,) = (status for status in statuses if status["name"] == cluster)
        return {host["address"]["socket_address"]["port_value"]: host for host in found.get("host_statuses", [])}

    def healthy(self, cluster: str) -> set[int]:
        """The ports of the servers that get requests."""
        return {
            port
            for port, host in self.hosts(cluster).items()
            if host["health_status"].get("eds_health_status") == "HEALTHY" and len(host["health_status"]) == 1
        }

    def asked(self, cluster: str) -> dict[int, int]:
        """Port -> requests that were sent there."""
        return {
            port: int(next(stat.get("value", 0) for stat in host["stats"] if stat["name"] == "rq_total"))
            for port, host in self.hosts(cluster).items()
        }


def configuration(
    servers: Sequence[Server], gateway_ports: Sequence[int], ports: dict[str, int], admin_port: int, folder: Path
) -> dict[str, Any]:
    """The project's configuration with other addresses."""
    text = (PROXY / "envoy.yaml").read_text().replace("/etc/envoy/", f"{folder}/")
    config: dict[str, Any] = yaml.safe_load(text)
    config["admin"]["address"]["socket_address"]["port_value"] = admin_port
    for listener in config["static_resources"]["listeners"]:
        listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": ports[listener["name"]]}
    targets = {
        "model-server-grpc": [server.grpc_port for server in servers],
        "model-server-rest": [server.rest_port for server in servers],
        "gateway": gateway_ports,
    }
    for cluster in config["static_resources"]["clusters"]:
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
            for port in targets[cluster["name"]]
        ]
    return config


@contextmanager
def envoy(folder: Path, servers: Sequence[Server], gateway_ports: Sequence[int] = (1,)) -> Iterator[Proxy]:
    """Envoy in front of the servers, until the block ends; it has found all that are ready before."""
    ports = {name: free_port() for name in ("grpc", "rest", "https")}
    proxy = Proxy(ports["grpc"], ports["rest"], ports["https"], free_port(), Authority(), folder)
    write_certificate(proxy)
    secrets = (PROXY / "certificate.yaml").read_text().replace("/certificates", str(folder / "certificates"))
    (folder / "certificate.yaml").write_text(secrets)
    config = configuration(servers, gateway_ports, ports, proxy.admin_port, folder)
    (folder / "envoy.yaml").write_text(yaml.safe_dump(config))
    with (folder / "envoy.log").open("w") as log:
        process = subprocess.Popen(
            [ENVOY, "--config-path", folder / "envoy.yaml", "--concurrency", "1", "--disable-hot-restart"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    proxy.pid = process.pid
    try:

        def ready() -> bool:
            assert process.poll() is None, (folder / "envoy.log").read_text()[-4000:]
            return answers(f"http://127.0.0.1:{proxy.admin_port}/ready")

        wait_until(ready, "Envoy is ready")
        wait_until(lambda: len(proxy.healthy("model-server-grpc")) == len(servers), "Envoy has found every server")
        wait_until(lambda: len(proxy.healthy("model-server-rest")) == len(servers), "Envoy has found every server")
        yield proxy
    finally:
        process.terminate()
        process.wait(20)


def write_certificate(proxy: Proxy) -> None:
    """A new certificate for the TLS listener, in a folder that replaces the one of before."""
    key, chain = proxy.authority.issue("localhost")
    folder = proxy.folder / "certificates"
    folder.mkdir(exist_ok=True)
    for name, content in (("server.key", key), ("server.pem", chain)):
        scratch = folder / f".{name}"
        scratch.write_bytes(content)
        scratch.rename(folder / name)
    (proxy.folder / "ca.pem").write_bytes(proxy.authority.certificate)
