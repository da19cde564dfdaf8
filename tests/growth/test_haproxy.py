"""Model servers behind HAProxy, with docker/proxy/haproxy.cfg: restarts, a kill and an upgrade under load, and TLS.

`make test-growth` runs this file where HAProxy is installed.
"""

import http.client
import json
import os
import signal
import ssl
import subprocess
from functools import partial
from pathlib import Path

import grpc
import pytest
from clients_under_load import PREDICT, Clients, has_healthy, report
from haproxy import CONFIGURATION, HAPROXY, haproxy

from bookserve.serving.wire import tensors
from bookserve.serving.wire.tensorflow_serving_pb2 import PredictResponse
from certificates import Authority
from load import REST_BODY, REST_PATH, predict_request
from model_servers import StartServer, runs, start_again, wait_until, write_scale_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAPROXY, reason="HAProxy is not installed: apt-get install haproxy"),
]
PROXY = haproxy
BACKENDS = ("model-server-grpc", "model-server-rest")


def test_every_server_gets_its_share(growth) -> None:
    with growth(2) as (_, proxy):
        with Clients(proxy.grpc_target, proxy.rest_port) as clients:
            clients.go_on(1000)
        for backend in BACKENDS:
            asked = proxy.asked(backend)
            assert min(asked.values()) > 0.25 * sum(asked.values()) / 2, asked
    report("2 servers", clients)
    assert clients.failed == []


def test_a_rolling_restart_under_load_fails_no_request(growth, start: StartServer) -> None:
    with growth(2) as (servers, proxy), Clients(proxy.grpc_target, proxy.rest_port) as clients:
        for server in servers:
            assert server.stop() == 0
            clients.go_on()
            start_again(start, server)
            for backend in BACKENDS:
                wait_until(partial(has_healthy, proxy, backend, 2), "it is asked again")
            clients.go_on()
    report("rolling restart of 2", clients)
    assert clients.failed == []


def test_a_new_version_under_load_fails_no_request(growth, tmp_path: Path) -> None:
    with growth(2) as (_, proxy), Clients(proxy.grpc_target, proxy.rest_port) as clients:
        write_scale_model(tmp_path / "store" / "scale", 2, 2.0)
        wait_until(lambda: clients.versions[2] > 200, "version 2 answers")
    report(f"rolling upgrade of 2, answers by version {dict(clients.versions)}", clients)
    assert clients.failed == []


@pytest.mark.parametrize("count", [2, 4])
def test_a_server_that_is_killed_costs_what_it_had_under_way(growth, start: StartServer, count: int) -> None:
    with (
        growth(count) as (servers, proxy),
        Clients(proxy.grpc_target, proxy.rest_port, again=True) as clients,
    ):
        child = servers[0].pid
        servers[0].kill()
        assert not runs(child)
        clients.go_on(500)
        wait_until(partial(has_healthy, proxy, "model-server-grpc", count - 1), "the dead server gets no requests")
        start_again(start, servers[0])
        wait_until(partial(has_healthy, proxy, "model-server-grpc", count), "the server is asked again")
        before = proxy.asked("model-server-grpc")[servers[0].grpc_port]
        clients.go_on(500)
        assert proxy.asked("model-server-grpc")[servers[0].grpc_port] > before
    report(f"one of {count} killed and started again, {len(clients.broken)} asked again", clients)
    assert clients.failed == []


def test_a_server_that_hangs_is_left_out_and_comes_back(growth) -> None:
    with growth(2) as (servers, proxy):
        stopped = servers[1].pid
        os.kill(stopped, signal.SIGSTOP)
        try:
            for backend in BACKENDS:
                wait_until(partial(has_healthy, proxy, backend, 1), "it is left out")
            with Clients(proxy.grpc_target, proxy.rest_port) as clients:
                clients.go_on()
            assert clients.failed == []
        finally:
            os.kill(stopped, signal.SIGCONT)
        wait_until(partial(has_healthy, proxy, "model-server-grpc", 2), "it is back")


def test_tls_for_both_protocols_and_no_way_to_change_models(growth) -> None:
    with growth(2) as (_, proxy):
        authority = proxy.authority.certificate
        options = [("grpc.ssl_target_name_override", "localhost")]
        credentials = grpc.ssl_channel_credentials(authority)
        with grpc.secure_channel(f"127.0.0.1:{proxy.https_port}", credentials, options) as channel:
            response = PredictResponse.FromString(channel.unary_unary(PREDICT)(predict_request(), timeout=20))
            assert list(tensors.to_array(response.outputs["y"])[0]) == [1, 2, 3]
            reload = channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest")
            with pytest.raises(grpc.RpcError) as caught:
                reload(b"", timeout=20)
            assert caught.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN)
        context = ssl.create_default_context(cadata=authority.decode())
        secure = http.client.HTTPSConnection("localhost", proxy.https_port, context=context, timeout=20)
        plain = http.client.HTTPConnection("127.0.0.1", proxy.rest_port, timeout=20)
        for connection in (secure, plain):
            connection.request("POST", REST_PATH, REST_BODY)
            assert json.loads(connection.getresponse().read()) == {"predictions": [[1, 2, 3]]}
            for path in ("/v1/models/scale:unload", "/v2/repository/models/scale/unload"):
                connection.request("POST", path, b"{}")
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 404, path
            connection.close()


def test_haproxy_accepts_the_file_as_it_is(tmp_path: Path) -> None:
    key, chain = Authority().issue("localhost")
    (tmp_path / "haproxy.pem").write_bytes(chain + key)
    text = CONFIGURATION.read_text().replace("/certificates/", f"{tmp_path}/")
    (tmp_path / "haproxy.cfg").write_text(text)
    done = subprocess.run([HAPROXY, "-c", "-f", tmp_path / "haproxy.cfg"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
