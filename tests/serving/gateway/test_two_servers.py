"""One gateway in front of two model servers on two addresses, as a headless Service of Kubernetes gives them."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bookserve.clients.grpc_client import GrpcClient
from model_servers import Server, StartServer, answers, free_port, server_starter, wait_until, write_scale_model

ADDRESSES = ("127.0.0.1", "127.0.0.2")
ROWS = json.dumps({"instances": [[1, 2, 3]]}).encode()


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[StartServer]:
    with server_starter(tmp_path_factory.mktemp("servers")) as starter:
        yield starter


@pytest.fixture
def servers(start, tmp_path) -> tuple[Server, ...]:
    write_scale_model(tmp_path / "store" / "scale", 1, 2.0)
    return tuple(
        start(f"--bind_address={address}", f"--model_root={tmp_path / 'store'}", "--enable_metrics", wait=False)
        for address in ADDRESSES
    )


def answered(server: Server, address: str) -> int:
    """Predicts that a server has answered."""
    url = f"http://{address}:{server.rest_port}/monitoring/prometheus/metrics"
    with urllib.request.urlopen(url, timeout=5) as response:
        page = response.read().decode()
    counts = [line for line in page.splitlines() if line.startswith(":bookserve:inference_count{")]
    return sum(int(float(line.rpartition(" ")[2])) for line in counts if 'outcome="success"' in line)


def test_a_gateway_asks_two_servers_in_turns_and_one_that_is_killed_costs_no_request(servers, tmp_path) -> None:
    for server, address in zip(servers, ADDRESSES, strict=True):
        ready = f"http://{address}:{server.rest_port}/readyz"
        wait_until(lambda url=ready: answers(url), "a model server is ready", seconds=60)
    both = ",".join(f"{address}:{server.grpc_port}" for server, address in zip(servers, ADDRESSES, strict=True))
    port = free_port()
    with (tmp_path / "gateway.log").open("w") as log:
        gateway = subprocess.Popen(
            [
                *(sys.executable, "-m", "bookserve.clients.command_line", "gateway"),
                *(f"--port={port}", f"--model-server={both}", "--drain-seconds=0"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), "the gateway is ready", seconds=60)

        def ask(times: int) -> None:
            for _ in range(times):
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}/api/v1/scale", ROWS, {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=30) as response:
                    assert json.load(response)["predictions"] == [{"y": [2, 4, 6]}]

        def counts() -> tuple[int, ...]:
            return tuple(answered(server, address) for server, address in zip(servers, ADDRESSES, strict=True))

        ask(4)
        with GrpcClient(both) as client:

            def predict(times: int) -> list[int]:
                """Calls, and how many of them each server answered."""
                before = counts()
                for _ in range(times):
                    client.predict("scale", {"x": np.ones((1, 3), np.float32)})
                return [after - first for after, first in zip(counts(), before, strict=True)]

            wait_until(lambda: min(predict(2)) > 0, "both connections are open")
            assert predict(40) == [20, 20]

        before = counts()

        def both_answered() -> bool:
            with ThreadPoolExecutor(4) as pool:  # a request may be two calls: one client alone would meet one server
                list(pool.map(ask, [10] * 4))
            return min(after - first for after, first in zip(counts(), before, strict=True)) > 20

        wait_until(both_answered, "both servers answer requests of the gateway")
        servers[1].kill()
        ask(20)
    finally:
        gateway.terminate()
        gateway.wait(20)
