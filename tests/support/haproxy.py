"""HAProxy with the project's own configuration, docker/proxy/haproxy.cfg, in front of servers on loopback."""

import csv
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from certificates import Authority
from model_servers import Server, answers, free_port, wait_until

CONFIGURATION = Path(__file__).resolve().parents[2] / "docker" / "proxy" / "haproxy.cfg"
HAPROXY = next((path for path in (shutil.which("haproxy"), "/usr/sbin/haproxy") if path and Path(path).exists()), "")


@dataclass
class Haproxy:
    """A running HAProxy: its ports, and the CA that signed its certificate."""

    grpc_port: int
    rest_port: int
    https_port: int
    observe_port: int
    authority: Authority
    servers: Sequence[Server]
    pid: int = 0

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def rows(self, backend: str) -> dict[int, dict[str, str]]:
        """Port -> what HAProxy says of the server there."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.observe_port}/;csv", timeout=5) as response:
            table = csv.DictReader(response.read().decode().removeprefix("# ").splitlines())
        found = {row["svname"]: row for row in table if row["pxname"] == backend}
        ports = [server.grpc_port if backend == "model-server-grpc" else server.rest_port for server in self.servers]
        return {port: found[f"replica{number}"] for number, port in enumerate(ports)}

    def healthy(self, backend: str) -> set[int]:
        """The ports of the servers that get requests."""
        return {port for port, row in self.rows(backend).items() if row["status"].startswith("UP")}

    def asked(self, backend: str) -> dict[int, int]:
        """Port -> requests that were sent there."""
        return {port: int(row["stot"]) for port, row in self.rows(backend).items()}


def configuration(proxy: Haproxy, certificate: Path) -> str:
    """The project's configuration with other addresses, and one thread, as the tests' Envoy has."""
    text = CONFIGURATION.read_text().replace("global\n", "global\n    nbthread 1\n", 1)
    ports = {8500: proxy.grpc_port, 8501: proxy.rest_port, 8443: proxy.https_port}
    for usual, port in ports.items():
        text = text.replace(f"bind :{usual}", f"bind 127.0.0.1:{port}")
    text = text.replace("bind 127.0.0.1:8404", f"bind 127.0.0.1:{proxy.observe_port}")
    text = text.replace("/certificates/haproxy.pem", str(certificate))

    def lines(match: re.Match[str]) -> str:
        options = match[2].replace(" resolvers names init-addr none", "")
        return "\n".join(
            f"    server replica{number} 127.0.0.1:{server.grpc_port if match[1] == '8500' else server.rest_port}"
            + options.replace("port 8501", f"port {server.rest_port}")
            for number, server in enumerate(proxy.servers)
        )

    text, count = re.subn(r"    server-template replica \d+ model-server:(\d+)(.*)", lines, text)
    assert count == 2
    return text


@contextmanager
def haproxy(folder: Path, servers: Sequence[Server]) -> Iterator[Haproxy]:
    """HAProxy in front of the servers, until the block ends; it has found all that are ready before."""
    proxy = Haproxy(free_port(), free_port(), free_port(), free_port(), Authority(), servers)
    key, chain = proxy.authority.issue("localhost")
    (folder / "haproxy.pem").write_bytes(chain + key)
    (folder / "haproxy.cfg").write_text(configuration(proxy, folder / "haproxy.pem"))
    with (folder / "haproxy.log").open("w") as log:
        process = subprocess.Popen([HAPROXY, "-db", "-f", folder / "haproxy.cfg"], stdout=log, stderr=subprocess.STDOUT)
    proxy.pid = process.pid
    try:

        def ready() -> bool:
            assert process.poll() is None, (folder / "haproxy.log").read_text()[-4000:]
            return answers(f"http://127.0.0.1:{proxy.observe_port}/metrics")

        wait_until(ready, "HAProxy is ready")
        for backend in ("model-server-grpc", "model-server-rest"):
            wait_until(lambda name=backend: len(proxy.healthy(name)) == len(servers), "it has found every server")
        yield proxy
    finally:
        process.terminate()
        process.wait(20)
