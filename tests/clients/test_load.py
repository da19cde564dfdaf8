import http.server
import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from bookserve.clients import errors, load, load_run
from bookserve.clients.grpc_client import GrpcClient
from bookserve.clients.load_run import Counts, Load
from model_servers import Server, server_starter, write_scale_model


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    write_scale_model(folder / "models" / "scale", 1, 2.0)
    with server_starter(folder) as start:
        yield start(f"--model_root={folder / 'models'}")


@pytest.fixture(autouse=True)
def _short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_WARM_UP", 0.1)


def _run(*arguments: str):
    return CliRunner().invoke(load.main, arguments)


def test_a_real_server_is_measured_over_both_transports(server: Server) -> None:
    done = _run("scale", "--grpc", server.target, "--rest", server.url, "--seconds=1", "--connections=4", "--json")
    assert done.exit_code == 0, done.output
    runs = json.loads(done.output)["runs"]
    assert [run["transport"] for run in runs] == ["gRPC", "REST"]
    for run in runs:
        assert run["failed"] == 0
        assert run["answered"] > 50
        assert run["each_second"] == [run["answered"]]
        assert 0 < run["p50_ms"] <= run["p90_ms"] <= run["p99_ms"] <= run["longest_ms"] < 1000
        # As many calls are under way as there are connections (Little's law).
        assert run["rate"] * run["p50_ms"] / 1000 < 4.5
        assert run["input"] == "random numbers"
        assert run["rows"] == 1


def test_the_text_has_a_picture_and_fits_80_columns(server: Server) -> None:
    done = _run("scale", "--grpc", server.target, "--seconds=1", "--rows=5")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == f"scale version 1 over gRPC at {server.target}"
    assert max(map(len, lines)) <= 80
    assert "  each second  █" in lines
    assert "5 rows a request" in lines[1]
    assert any(line.startswith("  rows         ") for line in lines)


@pytest.mark.slow
def test_a_file_of_tensors_is_sent(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.ones((2, 3), np.float32))
    done = _run("scale", "--rest", server.url, "--seconds=1", "--connections=1", "--input", str(path), "--json")
    (run,) = json.loads(done.output)["runs"]
    assert run["rows"] == 2
    assert run["rows_rate"] == pytest.approx(2 * run["rate"], rel=0.01)
    assert run["input"] == str(path)


def test_the_example_of_the_manifest_is_sent(fake, tmp_path: Path) -> None:
    from book_contracts import CONTRACTS, write_manifests

    write_manifests(tmp_path, ["mnist"])
    path = tmp_path / "mnist/3/assets.extra/manifest.json"
    manifest = json.loads(path.read_text())
    image = np.full(CONTRACTS["mnist"].inputs[0].shape[1:], 7, np.uint8).tolist()
    manifest["contract"]["example"] = {"inputs": {"images": [image]}, "outputs": {}}
    path.write_text(json.dumps(manifest))
    done = _run(
        "mnist", "--grpc", fake.target, "--seconds=1", "--connections=2", "--models-dir", str(tmp_path), "--json"
    )
    (run,) = json.loads(done.output)["runs"]
    assert run["input"] == "the manifest's example"
    assert b"\x07" * 28 * 28 in fake.received[-1].SerializeToString()


def test_failures_are_counted_by_kind_and_give_status_1(fake) -> None:
    with GrpcClient(fake.target) as client:
        client.metadata("mnist")
    fake.failures = sys.maxsize  # a fast machine has asked thousands by then
    stop = threading.Timer(0.6, lambda: setattr(fake, "fail", grpc.StatusCode.RESOURCE_EXHAUSTED))
    stop.start()
    done = _run("mnist", "--grpc", fake.target, "--seconds=2", "--connections=2", "--json")
    stop.join()
    (run,) = json.loads(done.output)["runs"]
    assert done.exit_code == 1
    assert run["errors"]["RESOURCE_EXHAUSTED"] == {"count": run["failed"], "message": "asked to fail"}
    assert run["answered"] > 0


@pytest.mark.slow
def test_a_late_answer_is_a_failure_of_its_kind(fake) -> None:
    def later() -> None:
        fake.delay = 0.3

    timer = threading.Timer(0.05, later)  # within the warm-up
    timer.start()
    done = _run("mnist", "--grpc", fake.target, "--seconds=1", "--connections=2", "--timeout=0.1", "--json")
    timer.join()
    (run,) = json.loads(done.output)["runs"]
    assert set(run["errors"]) == {"DEADLINE_EXCEEDED"}
    assert (run["answered"], done.exit_code, run["p50_ms"]) == (0, 1, None)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--grpc", "127.0.0.1:1"), "nothing answers over gRPC at 127.0.0.1:1"),
        (("--rest", "http://127.0.0.1:1"), "nothing answers at http://127.0.0.1:1"),
        (("--rest", "127.0.0.1:1"), "is no URL of a server"),
        (("--version", "1", "--label", "stable"), "one of --version and --label"),
        (("--seconds", "601"), "601"),
        (("--connections", "257"), "257"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments: tuple[str, ...], text: str) -> None:
    done = _run("scale", *arguments)
    assert done.exit_code in (1, 2)
    assert text in done.output
    assert "Traceback" not in done.output


def test_a_connection_that_the_server_closes_is_opened_again() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Connection", "close")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, args=(0.02,))
    thread.start()
    try:
        target = load_run.Server.at(f"http://127.0.0.1:{web.server_address[1]}")
        done = load_run.run(lambda: load_run.RestCaller(target, "/", b"{}", 5), 2, 0.5)
        assert done.failed == 0
        assert done.answered > 5
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


class _Sleeper:
    """Answers after 1, 2, … 10 ms in turn, and fails the eleventh time."""

    def __init__(self) -> None:
        self._turn = 0

    def call(self) -> None:
        self._turn = self._turn % 11 + 1
        if self._turn == 11:
            raise errors.Internal("broken")
        time.sleep(self._turn / 1000)

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_the_figures_are_those_of_known_times() -> None:
    done = load_run.run(_Sleeper, 1, 1.0)
    assert done.counts.failed == {"INTERNAL": done.failed}
    assert done.failed == pytest.approx(done.answered / 10, abs=1)
    p50, p99 = done.percentile(0.5), done.percentile(0.99)
    assert p50 is not None
    assert p99 is not None
    assert 0.0049 < p50 < 0.009  # a sleep takes somewhat longer than asked
    assert p50 < p99 <= done.counts.longest


def test_percentiles_are_two_percent_exact_and_memory_is_bounded() -> None:
    times = np.random.default_rng(0).lognormal(-5, 1, 20_000)
    counts = Counts(Counter(load_run._bucket(time) for time in times), longest=max(times))
    measured = Load(1.0, counts, 0.0)
    for share in (0.5, 0.9, 0.99):
        assert measured.percentile(share) == pytest.approx(np.quantile(times, share), rel=0.02)
    assert len(counts.times) < 1000
    assert sum(measured.spread(38)) == 20_000
    assert len(measured.spread(38)) <= 38
