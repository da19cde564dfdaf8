"""TLS of both transports, on asyncio's loop and uvloop's, asked by the official gRPC client and http.client."""

import asyncio
import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import uvloop

from bookserve.serving.server.transport import tls
from bookserve.serving.server.transport.http1 import HttpExchange
from bookserve.serving.server.types.errors import ServingError
from certificates import Authority
from model_servers import wait_until
from transports import GrpcTransport, LoopFactory, echo, serving, serving_rest

ECHO = {b"/t/Echo": echo}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def clients() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    factory: LoopFactory = request.param
    return factory


@pytest.fixture
def server(authority: Authority, folder: Path, loop_factory: LoopFactory) -> Iterator[GrpcTransport]:
    context = tls.server_context(authority.write_config(folder / "plain.pbtxt"), "h2")
    with serving(ECHO, tls=context, loop_factory=loop_factory) as transport:
        yield transport


@pytest.fixture
def mutual(
    authority: Authority, clients: Authority, folder: Path, loop_factory: LoopFactory
) -> Iterator[GrpcTransport]:
    context = tls.server_context(authority.write_config(folder / "mutual.pbtxt", clients), "h2")
    with serving(ECHO, tls=context, loop_factory=loop_factory) as transport:
        yield transport


def ask(target: str, credentials: grpc.ChannelCredentials, message: bytes = b"hello", timeout: float = 20) -> bytes:
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.secure_channel(target, credentials, options) as channel:
        answer: bytes = channel.unary_unary("/t/Echo")(message, timeout=timeout)
        return answer


def refused(target: str, credentials: grpc.ChannelCredentials) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(target, credentials)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_grpc_over_tls(server: GrpcTransport, authority: Authority) -> None:
    trusting = grpc.ssl_channel_credentials(authority.certificate)
    assert ask(server.target, trusting) == b"hello"
    assert ask(server.target, trusting, b"x" * (10 << 20), timeout=120) == b"x" * (10 << 20)


def test_clients_that_do_not_fit_are_refused_and_others_are_not(server: GrpcTransport, authority: Authority) -> None:
    refused(server.target, grpc.ssl_channel_credentials(Authority().certificate))
    with grpc.insecure_channel(server.target) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t/Echo")(b"in the clear", timeout=20)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert ask(server.target, grpc.ssl_channel_credentials(authority.certificate)) == b"hello"


def test_clients_may_have_to_show_a_certificate(
    mutual: GrpcTransport, authority: Authority, clients: Authority
) -> None:
    key, chain = clients.issue("client.example")
    assert ask(mutual.target, grpc.ssl_channel_credentials(authority.certificate, key, chain)) == b"hello"
    refused(mutual.target, grpc.ssl_channel_credentials(authority.certificate))
    key, chain = Authority().issue("client.example")
    refused(mutual.target, grpc.ssl_channel_credentials(authority.certificate, key, chain))


def test_a_unix_socket_has_tls_too(authority: Authority, folder: Path, loop_factory: LoopFactory) -> None:
    context = tls.server_context(authority.write_config(folder / "unix.pbtxt"), "h2")
    path = str(folder / f"{loop_factory.__module__}.sock")
    with serving(ECHO, tls=context, loop_factory=loop_factory, path=path):
        options = [("grpc.ssl_target_name_override", "localhost")]
        credentials = grpc.ssl_channel_credentials(authority.certificate)
        with grpc.secure_channel(f"unix:{path}", credentials, options) as channel:
            assert channel.unary_unary("/t/Echo")(b"hello", timeout=20) == b"hello"


def test_http2_is_chosen_and_old_tls_is_not(server: GrpcTransport, authority: Authority) -> None:
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    context.set_alpn_protocols(["http/1.1", "h2"])
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as client,
    ):
        assert client.selected_alpn_protocol() == "h2"
        assert client.version() == "TLSv1.3"
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as client,
    ):
        assert client.version() == "TLSv1.2"


def test_a_handshake_has_a_time_limit(authority: Authority, folder: Path, loop_factory: LoopFactory) -> None:
    context = tls.server_context(authority.write_config(folder / "slow.pbtxt"), "h2")
    with (
        serving(ECHO, tls=context, loop_factory=loop_factory, handshake_seconds=0.2) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as noisy,
    ):
        noisy.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for client in (silent, noisy):
            try:
                while client.recv(1024):
                    pass
            except ConnectionResetError:
                pass
        assert ask(server.target, grpc.ssl_channel_credentials(authority.certificate)) == b"hello"


def test_a_drain_answers_over_tls_too(server: GrpcTransport, authority: Authority) -> None:
    credentials = grpc.ssl_channel_credentials(authority.certificate)
    with grpc.secure_channel(server.target, credentials) as channel:
        call = channel.unary_unary("/t/Echo")
        assert call(b"before", timeout=20) == b"before"
        (connection,) = server.connections
        futures = [call.future(b"%d" % number, timeout=20) for number in range(100)]
        server.on_loop(connection.drain)
        assert [future.result() for future in futures] == [b"%d" % number for number in range(100)]
        wait_until(lambda: connection not in server.connections, "the drained connection is closed")


def test_rest_over_tls(authority: Authority, clients: Authority, folder: Path, loop_factory: LoopFactory) -> None:
    def answer(exchange: HttpExchange) -> None:
        exchange.respond(200, exchange.body)

    context = tls.server_context(authority.write_config(folder / "rest.pbtxt", clients), "http/1.1")
    with serving_rest(answer, tls=context, loop_factory=loop_factory) as server:
        trusting = ssl.create_default_context(cadata=authority.certificate.decode())
        with pytest.raises((ssl.SSLError, ConnectionError)):  # TLS 1.3 tells it with the first answer
            post(server.port, trusting, b"hello")
        key, chain = clients.issue("client.example")
        (folder / "client.pem").write_bytes(key + chain)
        trusting.load_cert_chain(folder / "client.pem")
        for body in (b"hello", b"x" * (5 << 20)):
            assert post(server.port, trusting, body) == body


def post(port: int, context: ssl.SSLContext, body: bytes) -> bytes:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    try:
        connection.request("POST", "/", body)
        return connection.getresponse().read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server_key: 1", "Invalid protobuf file"),
        ("server_key: 'x' nonsense: 'y'", "Invalid protobuf file"),
        ("", "has no server_key"),
        ("server_key: 'x'", "has no server_cert"),
        ("server_key: 'x' server_cert: 'y'", "server_key or server_cert of"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "broken.pbtxt"
    path.write_text(text)
    with pytest.raises(ServingError, match=problem) as caught:
        tls.server_context(path, "h2")
    assert str(path) in caught.value.message


def test_keys_and_authorities_that_do_not_fit_are_named(tmp_path: Path, authority: Authority) -> None:
    path = authority.write_config(tmp_path / "other.pbtxt")
    good = path.read_text()
    other = Authority().write_config(tmp_path / "another.pbtxt").read_text()
    lines = {line.split(":")[0]: line for line in good.splitlines()}
    path.write_text(next(line for line in other.splitlines() if "server_key" in line) + "\n" + lines["server_cert"])
    with pytest.raises(ServingError, match=r"server_key or server_cert of .*KEY_VALUES_MISMATCH"):
        tls.server_context(path, "h2")
    path.write_text(good + "\ncustom_ca: 'no certificate'")
    with pytest.raises(ServingError, match="custom_ca of"):
        tls.server_context(path, "h2")
    with pytest.raises(ServingError, match="Invalid protobuf file: '/nowhere'"):
        tls.server_context(Path("/nowhere"), "h2")
