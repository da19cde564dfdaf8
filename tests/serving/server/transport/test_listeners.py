"""The ports of the model server as a process: TLS, services, sockets and limits, each through its flag."""

import contextlib
import http.client
import json
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from bookserve.serving.server.settings import flags
from bookserve.serving.server.transport.listeners import Listeners
from bookserve.serving.server.types.errors import ServingError
from certificates import Authority
from model_servers import Server, StartServer, free_port, server_starter, wait_until, write_scale_model
from raw_http2 import END_HEADERS, HEADERS, RawClient, frame, request_headers

LIVE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = json.dumps({"instances": [[1, 2, 3]]}).encode()


@pytest.fixture
def scale(tmp_path: Path) -> Path:
    base = tmp_path / "models" / "scale"
    write_scale_model(base, 1, 2.0)
    return base


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ports")


@pytest.fixture(scope="module")
def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate.decode())


@pytest.fixture(scope="module")
def server(folder: Path, authority: Authority, trusting: ssl.SSLContext) -> Iterator[Server]:
    """One server with everything turned on, for all tests that only ask."""
    write_scale_model(folder / "scale", 1, 2.0)
    config = authority.write_config(folder / "ssl.pbtxt")
    with server_starter(folder) as start:
        server = start(
            "--model_name=scale",
            f"--model_base_path={folder / 'scale'}",
            f"--ssl_config_file={config}",
            f"--rest_ssl_config_file={config}",
            "--enable_grpc_healthcheck_service",
            "--enable_grpc_reflection",
            "--enable_profiler",
            "--grpc_channel_arguments=grpc.max_receive_message_length=1000,grpc.lb_policy_name=grpclb",
            "--grpc_max_threads=4",
            "--rest_api_num_threads=4",
            wait=False,
        )

        def up() -> bool:
            assert server.process.poll() is None, server.log.read_text()
            try:
                return get(server, trusting, "/readyz")[0] == 200
            except OSError:
                return False

        wait_until(up, "the server is ready", seconds=120)
        yield server


def get(server: Server, context: ssl.SSLContext, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection("127.0.0.1", server.rest_port, timeout=20, context=context)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.fixture
def channel(server: Server, authority: Authority) -> Iterator[grpc.Channel]:
    with grpc.secure_channel(server.target, grpc.ssl_channel_credentials(authority.certificate)) as channel:
        yield channel


def status_of(channel: grpc.Channel, name: str = "scale") -> int:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    response = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=20)
    return int(response.model_version_status[0].state)


def test_both_ports_speak_tls_and_nothing_else(server: Server, channel: grpc.Channel, trusting: ssl.SSLContext) -> None:
    assert status_of(channel) == 30
    status, answer = get(server, trusting, "/v1/models/scale:predict", BODY)
    assert (status, json.loads(answer)) == (200, {"predictions": [[2, 4, 6]]})
    with pytest.raises((OSError, http.client.HTTPException)):
        urllib.request.urlopen(f"{server.url}/readyz", timeout=20)
    with grpc.insecure_channel(server.target) as insecure, pytest.raises(grpc.RpcError):
        status_of(insecure)


def test_health_and_reflection_are_there(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="PredictionService")
    assert health.Check(request, timeout=20).status == health_pb2.HealthCheckResponse.SERVING
    database = ProtoReflectionDescriptorDatabase(channel)
    names = database.get_services()
    assert {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"} <= set(names)
    pool = DescriptorPool(database)
    assert all(pool.FindServiceByName(name).methods for name in names)


def test_channel_arguments_hold_or_are_said_to_have_no_effect(server: Server, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        status_of(channel, "x" * 2000)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    log = server.log.read_text()
    assert "grpc.lb_policy_name has no effect on this server" in log
    assert "--grpc_max_threads has no effect on this server" in log
    assert "--rest_api_num_threads has no effect on this server" in log


def test_without_tensorflow_there_is_nothing_to_profile(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/tensorflow.ProfilerService/Profile")(b"", timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "no model here is run by TensorFlow" in caught.value.details()


def test_services_that_nobody_asked_for_are_not_there(start_server: StartServer, scale: Path, tmp_path: Path) -> None:
    """And limits: each is a flag, and what they refuse names it."""
    path = tmp_path / "grpc.sock"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    server = start_server(
        "--model_name=scale",
        f"--model_base_path={scale}",
        f"--grpc_socket_path={path}",
        "--max_header_bytes=1000",
        "--max_request_bytes=5000",
    )
    with grpc.insecure_channel(f"unix:{path}") as channel:
        assert status_of(channel) == 30
        for method in ("grpc.health.v1.Health/Check", "grpc.reflection.v1.ServerReflection/ServerReflectionInfo"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{method}")(b"", timeout=20)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/tensorflow.ProfilerService/Profile")(b"", timeout=20)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert caught.value.details() == "the profiler is turned off: start with --enable_profiler"
        with pytest.raises(grpc.RpcError) as caught:
            status_of(channel, "x" * 6000)
        assert "--max_request_bytes" in caught.value.details()
    assert ask(server, {"X": "y" * 2000}) == (431, "--max_header_bytes")
    assert ask(server, {"Content-Length": "6000"}) == (413, "--max_request_bytes")
    assert server.stop() == 0
    assert not path.exists()


def ask(server: Server, headers: dict[str, str]) -> tuple[int, str]:
    """The status, and the flag that the error names."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
    try:
        connection.putrequest("POST", "/v1/models/scale:predict")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        text: str = json.loads(response.read())["error"]
        return response.status, text[text.find("--") :].split(")")[0]
    finally:
        connection.close()


def test_connections_above_the_limit_wait_for_others_to_end(start_server: StartServer, scale: Path) -> None:
    server = start_server("--model_name=scale", f"--model_base_path={scale}", "--max_connections=3")
    with contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", server.rest_port), 20))

        clients = [connect() for _ in range(3)]
        for client in clients:
            client.sendall(LIVE)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
        fourth = connect()
        fourth.sendall(LIVE)
        fourth.settimeout(1)
        with pytest.raises(TimeoutError):
            fourth.recv(65536)
        clients[0].close()
        fourth.settimeout(20)
        assert fourth.recv(65536).startswith(b"HTTP/1.1 200 OK")
    with contextlib.ExitStack() as stack:
        calls = [stack.enter_context(RawClient(server.grpc_port)) for _ in range(3)]
        for call in calls:
            call.settle()
        another = stack.enter_context(RawClient(server.grpc_port))
        another.read_for(1)
        assert another.frames == []
        calls[0].socket.close()
        another.settle()
        assert another.frames
    assert server.stop() == 0


def refusal(*arguments: str) -> str:
    """What ends a start with these flags, before a model is loaded."""
    with pytest.raises(ServingError) as caught:
        Listeners(flags.parse(["--bind_address=127.0.0.1", f"--port={free_port()}", *arguments])[0])
    return str(caught.value)


def test_a_unix_socket_with_tls_is_refused(scale: Path, authority: Authority) -> None:
    config = authority.write_config(scale.parent / "ssl.pbtxt")
    path = scale.parent / "grpc.sock"
    told = refusal(f"--ssl_config_file={config}", f"--grpc_socket_path={path}")
    assert told.startswith(f"INVALID_ARGUMENT: --grpc_socket_path={path} cannot have TLS")


def test_a_unix_socket_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "grpc.sock"
    assert f"--grpc_socket_path={path}: No such file or directory" in refusal(f"--grpc_socket_path={path}")


def test_control_characters_of_requests_do_not_reach_the_log(start_server: StartServer, scale: Path) -> None:
    server = start_server("--model_name=scale", f"--model_base_path={scale}")
    with RawClient(server.grpc_port, frame(HEADERS, END_HEADERS, 1, request_headers(b"/\x1b[2J/\r\nforged"))) as raw:
        raw.read_until(lambda: 1 in raw.ended() | raw.resets().keys())
    for start in (b"GET /\x1b[2J", b"GET /v1/models/%1b%5b2J%0d%0aforged:predict", b"\x1b[2J /"):
        with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as client:
            client.sendall(start + b" HTTP/1.1\r\nHost: \x1b[2J\r\nX-Request-Id: \x1b[2J\r\nConnection: close\r\n\r\n")
            while client.recv(65536):
                pass
    assert server.stop() == 0
    log = server.log.read_bytes()
    assert b"\x1b" not in log
    assert not any(line.startswith(b"forged") for line in log.splitlines())


@pytest.mark.parametrize("flag", ["--ssl_config_file", "--rest_ssl_config_file"])
def test_tls_that_cannot_work_ends_the_start(start_server: StartServer, tmp_path: Path, flag: str) -> None:
    config = tmp_path / "broken.pbtxt"
    config.write_text("server_key: 'no key' server_cert: 'no certificate'")
    server = start_server(f"--model_base_path={tmp_path}", f"{flag}={config}", wait=False)
    assert server.process.wait(60) == 255
    log = server.log.read_text()
    assert f"Failed to start server. Error: INVALID_ARGUMENT: server_key or server_cert of '{config}'" in log
    assert "Traceback" not in log


def test_a_file_in_the_socket_s_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    assert f"--grpc_socket_path={path} is there already, and is no socket" in refusal(f"--grpc_socket_path={path}")
    assert path.read_text() == "data"


def test_a_watcher_learns_of_the_stop_and_holds_nothing_up(start_server: StartServer, scale: Path) -> None:
    server = start_server("--model_name=scale", f"--model_base_path={scale}", "--enable_grpc_healthcheck_service")
    with grpc.insecure_channel(server.target) as channel:
        watched: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=120)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        server.process.terminate()
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.process.wait(60) == 0
    assert "connections are dropped" not in server.log.read_text()


@pytest.mark.parametrize("flag", ["--port=65536", "--port=-1", "--rest_api_port=70000", "--rest_api_port=99999999999"])
def test_a_port_that_tcp_has_not_is_refused(flag: str) -> None:
    assert refusal(flag) == f"INVALID_ARGUMENT: {flag} is no port: it must be 0 to 65535"


def test_an_address_that_is_none_is_named() -> None:
    told = refusal("--bind_address=no.such.host.invalid")
    assert told.startswith("INVALID_ARGUMENT: Failed to BuildAndStart gRPC server: ")
    assert "--bind_address=no.such.host.invalid: " in told


def test_a_taken_port_is_told_as_the_original_tells_it(start_server: StartServer, server: Server, scale: Path) -> None:
    """This and TLS that cannot work prove that the process tells what `refusal` reads, and ends."""
    second = start_server("--model_name=scale", f"--model_base_path={scale}", f"--port={server.grpc_port}", wait=False)
    assert second.process.wait(20) == 255
    assert "Error: INVALID_ARGUMENT: Failed to BuildAndStart gRPC server: " in second.log.read_text()
    assert f"{server.grpc_port}" in second.log.read_text()


@pytest.mark.parametrize("without", ["nothing", "a kernel with IPv6", "an address of IPv6"])
def test_without_an_address_it_listens_on_all(
    without: str, start_server: StartServer, scale: Path, tmp_path: Path
) -> None:
    """All are here the two of loopback; socket() tells of a kernel without IPv6, bind() of one that has it off."""
    (tmp_path / "sitecustomize.py").write_text(f"""if True:
        import errno, socket

        class Loopback(socket.socket):
            def __init__(self, family=-1, *rest, **named):
                if family == socket.AF_INET6 and "{without}" == "a kernel with IPv6":
                    raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
                super().__init__(family, *rest, **named)

            def bind(self, address):
                if self.family == socket.AF_INET6 and "{without}" == "an address of IPv6":
                    raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
                loopback = {{"0.0.0.0": "127.0.0.1", "::": "::1"}}.get(address[0], address[0])
                super().bind((loopback, *address[1:]))

        socket.socket = Loopback
    """)
    shim = {"PYTHONPATH": str(tmp_path)}
    settings = ["--model_name=scale", f"--model_base_path={scale}"]
    server = start_server(*settings, "--bind_address=", environment=shim)
    log = server.log.read_text()
    assert f"Running gRPC ModelServer at 0.0.0.0:{server.grpc_port} ..." in log
    assert f"Exporting HTTP/REST API at:localhost:{server.rest_port} ..." in log
    for port in (server.grpc_port, server.rest_port):
        assert _connects("127.0.0.1", port)
        assert _connects("::1", port) == (without == "nothing" and _has_ipv6())
    if without != "nothing":  # an address that was asked for is not done without
        refused = start_server(*settings, "--bind_address=::1", environment=shim, wait=False)
        assert refused.process.wait(20) == 255
        assert "Failed to BuildAndStart gRPC server: " in refused.log.read_text()


def _connects(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), 10):
        return True
    return False


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False
