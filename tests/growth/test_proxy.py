"""Two and four model servers behind Envoy, with the configuration of docker/proxy: what clients notice when servers go,
come back, die, or take a new version while everybody asks. Nothing may fail.

`make test-growth` installs Envoy and runs this file.
"""

import http.client
import json
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import grpc
import pytest
from clients_under_load import PREDICT, Clients, has_healthy, report
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from bookserve.serving.wire import tensors
from bookserve.serving.wire.tensorflow_serving_pb2 import PredictRequest, PredictResponse
from gateway_pages import gateway
from load import REST_BODY, REST_PATH, predict_request
from model_servers import Server, StartServer, free_port, runs, start_again, wait_until, write_scale_model
from proxy import ENVOY, Proxy, envoy, write_certificate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ENVOY, reason="Envoy is not installed: make test-growth does that"),
]
PROXY = envoy


@pytest.mark.parametrize("count", [2, 4])
def test_every_server_gets_its_share(growth, count: int) -> None:
    with growth(count) as (servers, proxy):
        before = {cluster: proxy.asked(cluster) for cluster in ("model-server-grpc", "model-server-rest")}
        with Clients(proxy.grpc_target, proxy.rest_port) as clients:
            clients.go_on(1000)
        for cluster, ports in before.items():
            asked = {port: total - ports[port] for port, total in proxy.asked(cluster).items()}
            assert len(asked) == len(servers)
            assert min(asked.values()) > 0.25 * sum(asked.values()) / count, asked  # slow ones get fewer
    report(f"{count} servers", clients)
    assert clients.failed == []


def test_a_rolling_restart_under_load_fails_no_request(growth, start: StartServer) -> None:
    with growth(2) as (servers, proxy), Clients(proxy.grpc_target, proxy.rest_port) as clients:
        for server in servers:
            assert server.stop() == 0
            clients.go_on()
            start_again(start, server)
            for cluster in ("model-server-grpc", "model-server-rest"):
                wait_until(partial(has_healthy, proxy, cluster, len(servers)), "it is asked again")
            clients.go_on()
    report("rolling restart of 2", clients)
    assert clients.failed == []


def test_a_new_version_under_load_fails_no_request(growth, tmp_path: Path) -> None:
    with growth(2) as (_, proxy), Clients(proxy.grpc_target, proxy.rest_port) as clients:
        assert set(clients.versions) == {1}
        write_scale_model(tmp_path / "store" / "scale", 2, 2.0)
        wait_until(lambda: clients.versions[2] > 200, "version 2 answers")
        wait_until(lambda: still(lambda: clients.versions[1], clients), "only version 2 answers")
    report(f"rolling upgrade of 2, answers by version {dict(clients.versions)}", clients)
    assert clients.failed == []


def still(count: Callable[[], int], clients: Clients) -> bool:
    """Whether a number stays as it is for a hundred answers."""
    before = count()
    clients.go_on()
    return count() == before


@pytest.mark.parametrize("count", [2, 4])
def test_a_server_that_is_killed_costs_no_request(growth, start: StartServer, count: int) -> None:
    with growth(count) as (servers, proxy), Clients(proxy.grpc_target, proxy.rest_port) as clients:
        child = servers[0].pid
        servers[0].kill()
        assert not runs(child)
        clients.go_on(500)
        wait_until(lambda: len(proxy.healthy("model-server-grpc")) == count - 1, "the dead server gets no requests")
        start_again(start, servers[0])
        wait_until(lambda: len(proxy.healthy("model-server-grpc")) == count, "the server is asked again")
        port = servers[0].grpc_port
        before = proxy.asked("model-server-grpc")[port]
        wait_until(lambda: proxy.asked("model-server-grpc")[port] > before + 100, "it gets its share again")
    report(f"one of {count} killed and started again", clients)
    assert clients.failed == []


def test_refusals_are_passed_on_and_a_server_that_hangs_is_left_out(start: StartServer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    servers = [start(), start(f"--model_root={tmp_path / 'empty'}")]
    (tmp_path / "proxy").mkdir()
    with envoy(tmp_path / "proxy", servers) as proxy:
        # NOT_FOUND is the client's fault, and no server's: it is passed on, and nobody is left out.
        with grpc.insecure_channel(proxy.grpc_target) as channel:
            call = channel.unary_unary(PREDICT)
            codes = []
            for _ in range(40):
                try:
                    call(predict_request(), timeout=20)
                except grpc.RpcError as error:
                    codes.append(error.code())
        assert set(codes) == {grpc.StatusCode.NOT_FOUND}
        assert len(proxy.healthy("model-server-grpc")) == 2
        # A server that is stopped as a process is connected to, and never answers.
        stopped = servers[1].pid
        os.kill(stopped, signal.SIGSTOP)
        try:
            wait_until(lambda: proxy.healthy("model-server-grpc") == {servers[0].grpc_port}, "it is left out")
        finally:
            os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: len(proxy.healthy("model-server-grpc")) == 2, "it is back")


@contextmanager
def failing_server() -> Iterator[Server]:
    """Answers every probe, and no prediction: UNAVAILABLE over gRPC, 503 over REST."""

    class Rest(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200)

        def do_POST(self) -> None:
            self._answer(503)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, status: int) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.UNAVAILABLE, "not me")

    rest = ThreadingHTTPServer(("127.0.0.1", 0), Rest)
    threading.Thread(target=rest.serve_forever).start()
    server = grpc.server(ThreadPoolExecutor(8))
    health = HealthServicer()
    health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    methods = {"Predict": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", methods)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield cast(Server, SimpleNamespace(grpc_port=port, rest_port=rest.server_port))
    finally:
        server.stop(None).wait()
        rest.shutdown()
        rest.server_close()


def test_a_server_that_fails_and_answers_its_probes_is_ejected(start: StartServer, tmp_path: Path) -> None:
    with failing_server() as bad:
        (tmp_path / "proxy").mkdir()
        with envoy(tmp_path / "proxy", [start(), bad]) as proxy, Clients(proxy.grpc_target, proxy.rest_port) as clients:
            for cluster, port in (("model-server-grpc", bad.grpc_port), ("model-server-rest", bad.rest_port)):
                wait_until(partial(is_ejected, proxy, cluster, port), "it is left out")
            asked = proxy.asked("model-server-grpc")[bad.grpc_port]
            clients.go_on()
            # It is tried again after five seconds; until then nobody asks it but the probes.
            assert proxy.asked("model-server-grpc")[bad.grpc_port] - asked < 20
    report(f"one of 2 fails every request, and was asked {asked} times", clients)
    assert clients.failed == []


def is_ejected(proxy: Proxy, cluster: str, port: int) -> bool:
    return bool(proxy.hosts(cluster)[port]["health_status"].get("failed_outlier_check"))


def test_tls_grpc_web_and_a_new_certificate(growth) -> None:
    with growth(2) as (_, proxy):
        authority = proxy.authority.certificate
        options = [("grpc.ssl_target_name_override", "localhost")]
        credentials = grpc.ssl_channel_credentials(authority)
        with grpc.secure_channel(f"127.0.0.1:{proxy.https_port}", credentials, options) as channel:
            response = PredictResponse.FromString(channel.unary_unary(PREDICT)(predict_request(), timeout=20))
        assert list(tensors.to_array(response.outputs["y"])[0]) == [1, 2, 3]

        context = ssl.create_default_context(cadata=authority.decode())

        def connect() -> http.client.HTTPSConnection:
            return http.client.HTTPSConnection("localhost", proxy.https_port, context=context, timeout=20)

        framed = b"\0" + len(predict_request()).to_bytes(4, "big") + predict_request()
        connection = connect()
        connection.request("POST", PREDICT, framed, {"Content-Type": "application/grpc-web+proto", "X-Grpc-Web": "1"})
        answer = connection.getresponse()
        body = answer.read()
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/grpc-web+proto")
        size = int.from_bytes(body[1:5], "big")
        assert PredictResponse.FromString(body[5 : 5 + size]).model_spec.version.value == 1
        assert b"grpc-status:0" in body[5 + size :]

        connection.request("POST", REST_PATH, REST_BODY)
        assert json.loads(connection.getresponse().read()) == {"predictions": [[1, 2, 3]]}
        # Who changes models does so inside: no route leads there. All else goes to the gateway, which is not there.
        plain = http.client.HTTPConnection("127.0.0.1", proxy.rest_port, timeout=20)
        for path in ("/v1/models/scale:unload", "/v2/repository/models/scale/unload"):
            for asked, status in ((plain, 404), (connection, 503)):
                asked.request("POST", path, b"{}")
                answer = asked.getresponse()
                answer.read()
                assert answer.status == status, path
        plain.close()

        def serial() -> bytes | None:
            fresh = connect()
            fresh.connect()
            assert fresh.sock is not None
            shown: bytes | None = fresh.sock.getpeercert(binary_form=True)
            fresh.close()
            return shown

        before = serial()
        write_certificate(proxy)
        wait_until(lambda: serial() != before, "the new certificate is shown")
        connection.request("POST", REST_PATH, REST_BODY)  # the old connection goes on
        assert connection.getresponse().read()
        connection.close()


def test_two_gateways_are_restarted_under_load(start: StartServer, tmp_path: Path) -> None:
    """Two gateways and two model servers on one store, asked as a browser asks them: over TLS, through the proxy."""
    servers = [start() for _ in range(2)]
    write_scale_model(tmp_path / "models" / "scale", 1, 1.0)  # where `gateway` expects the store
    both = ",".join(server.target for server in servers)
    ports = [free_port(), free_port()]
    with ExitStack() as stack:
        folders = [tmp_path / "one", tmp_path / "two", tmp_path / "proxy"]
        for folder in folders:
            folder.mkdir()
            (folder / "models").symlink_to(tmp_path / "models")
        options = ("--allowed-hosts=gateway,localhost", "--log-level=error")

        def start_gateway(place: int) -> ExitStack:
            own = stack.enter_context(ExitStack())
            own.enter_context(gateway(both, folders[place], *options, port=ports[place]))
            return own

        running = [start_gateway(0), start_gateway(1)]
        proxy = stack.enter_context(envoy(folders[2], servers, ports))
        wait_until(partial(has_healthy, proxy, "gateway", 2), "both gateways are ready")
        context = ssl.create_default_context(cadata=proxy.authority.certificate.decode())
        failed: list[str] = []
        answered = [0]
        stop = threading.Event()

        def ask() -> None:
            connection = http.client.HTTPSConnection("localhost", proxy.https_port, context=context, timeout=20)
            while not stop.is_set():
                connection.request("POST", "/api/v1/scale", REST_BODY, {"Content-Type": "application/json"})
                response = connection.getresponse()
                body = response.read()
                if response.status != 200:
                    failed.append(f"{response.status} {body[:200]!r}")
                answered[0] += 1
            connection.close()

        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask) for _ in range(3)]
            try:
                for place in range(2):
                    before = answered[0]
                    wait_until(partial(more, answered, before + 50), "answers")
                    running[place].close()  # SIGTERM; it must end with 0
                    wait_until(partial(more, answered, answered[0] + 50), "answers of the other gateway")
                    start_gateway(place)
                    wait_until(partial(has_healthy, proxy, "gateway", 2), "it is asked again")
            finally:
                stop.set()
            for asked in asking:
                asked.result()
    print(f"\nrolling restart of 2 gateways: {answered[0]} over TLS, {len(failed)} failed")  # noqa: T201
    assert failed == []


def more(counter: list[int], than: int) -> bool:
    return counter[0] > than


def request_of(model: str) -> bytes:
    request = PredictRequest()
    request.model_spec.name = model
    return request.SerializeToString()


def test_requests_that_no_server_can_answer_come_back_at_once(growth) -> None:
    with growth(2) as (_, proxy), grpc.insecure_channel(proxy.grpc_target) as channel:
        started = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(PREDICT)(request_of("nobody"), timeout=20)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert time.monotonic() - started < 2
