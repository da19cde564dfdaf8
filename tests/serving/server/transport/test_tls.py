"""TLS of both ports, on asyncio's loop and uvloop's, asked by the official gRPC client, http.client and curl."""

import asyncio
import contextlib
import http.client
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import uvloop

from bookserve.serving.server.transport import tls
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import ServingError
from certificates import Authority
from transports import LoopFactory, Transport, echo, serving, serving_rest

ECHO = {b"/t/Echo": echo}


def answer(exchange: HttpExchange) -> None:
    exchange.respond(200, exchange.body)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def clients() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def plain(authority: Authority, folder: Path) -> Path:
    return authority.write_config(folder / "plain.pbtxt")


@pytest.fixture(scope="module")
def mutual(authority: Authority, clients: Authority, folder: Path) -> Path:
    return authority.write_config(folder / "mutual.pbtxt", clients)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    factory: LoopFactory = request.param
    return factory


@pytest.fixture
def server(plain: Path, loop_factory: LoopFactory) -> Iterator[Transport]:
    with serving(ECHO, ssl_config_file=str(plain), loop_factory=loop_factory) as transport:
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


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate.decode())


def test_grpc_over_tls(server: Transport, authority: Authority) -> None:
    credentials = grpc.ssl_channel_credentials(authority.certificate)
    assert ask(server.target, credentials) == b"hello"
    assert ask(server.target, credentials, b"x" * (10 << 20), timeout=120) == b"x" * (10 << 20)


def test_clients_that_do_not_fit_are_refused_and_others_are_not(server: Transport, authority: Authority) -> None:
    refused(server.target, grpc.ssl_channel_credentials(Authority().certificate))
    with grpc.insecure_channel(server.target) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/t/Echo")(b"in the clear", timeout=20)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert ask(server.target, grpc.ssl_channel_credentials(authority.certificate)) == b"hello"


def test_grpc_clients_may_have_to_show_a_certificate(mutual: Path, authority: Authority, clients: Authority) -> None:
    with serving(ECHO, ssl_config_file=str(mutual)) as server:
        key, chain = clients.issue("client.example")
        assert ask(server.target, grpc.ssl_channel_credentials(authority.certificate, key, chain)) == b"hello"
        refused(server.target, grpc.ssl_channel_credentials(authority.certificate))
        key, chain = Authority().issue("client.example")
        refused(server.target, grpc.ssl_channel_credentials(authority.certificate, key, chain))


@pytest.mark.parametrize("port", ["port", "rest_port"])
def test_tls_is_1_2_or_1_3(plain: Path, authority: Authority, port: str) -> None:
    with serving(ECHO, ssl_config_file=str(plain), rest_ssl_config_file=str(plain)) as server:
        for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
            context = trusting(authority)
            context.minimum_version = context.maximum_version = version
            context.set_alpn_protocols(["h2", "http/1.1"])
            with (
                socket.create_connection(("127.0.0.1", getattr(server, port)), timeout=20) as connection,
                context.wrap_socket(connection, server_hostname="127.0.0.1") as client,
            ):
                assert client.version() == name
                assert client.selected_alpn_protocol() == ("h2" if port == "port" else "http/1.1")


@pytest.mark.parametrize("port", ["port", "rest_port"])
def test_older_tls_is_refused(plain: Path, authority: Authority, port: str) -> None:
    with serving(ECHO, ssl_config_file=str(plain), rest_ssl_config_file=str(plain)) as server:
        context = trusting(authority)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = ssl.TLSVersion.TLSv1_1
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(("127.0.0.1", getattr(server, port)), timeout=20) as connection,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(connection, server_hostname="127.0.0.1")


@pytest.mark.parametrize(
    ("port", "most"),
    [("port", 3.0), pytest.param("rest_port", 15.0, marks=pytest.mark.slow)],  # that of REST is the library's 10 s
)
def test_a_handshake_has_a_time_limit(plain: Path, authority: Authority, port: str, most: float) -> None:
    files = {"ssl_config_file": str(plain), "rest_ssl_config_file": str(plain)}
    with serving(ECHO, **files, handshake_seconds=0.5) as server:
        address = ("127.0.0.1", getattr(server, port))
        with socket.create_connection(address, timeout=20) as silent, socket.create_connection(address, 20) as noisy:
            began = time.monotonic()
            noisy.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            for client in (silent, noisy):
                with contextlib.suppress(ConnectionResetError):
                    while client.recv(1024):
                        pass
            assert time.monotonic() - began < most
        assert ask(server.target, grpc.ssl_channel_credentials(authority.certificate)) == b"hello"


def test_a_stop_answers_over_tls_too(server: Transport, authority: Authority) -> None:
    credentials = grpc.ssl_channel_credentials(authority.certificate)
    with grpc.secure_channel(server.target, credentials) as channel:
        call = channel.unary_unary("/t/Echo")
        assert call(b"before", timeout=20) == b"before"
        futures = [call.future(b"%d" % number, timeout=20) for number in range(100)]
        assert [future.result() for future in futures] == [b"%d" % number for number in range(100)]
        server.start_to_finish().result(5)


def test_rest_over_tls(plain: Path, authority: Authority, folder: Path, loop_factory: LoopFactory) -> None:
    with serving_rest(answer, rest_ssl_config_file=str(plain), loop_factory=loop_factory) as server:
        context = trusting(authority)
        for body in (b"hello", b"x" * (5 << 20)):
            assert post(server.rest_port, context, body) == body
        with pytest.raises(ssl.SSLError):
            post(server.rest_port, ssl.create_default_context(), b"of an unknown authority")
        file = folder / "authority.pem"
        file.write_bytes(authority.certificate)
        command = ["curl", "--silent", "--cacert", str(file), "--data", "hi", f"https://127.0.0.1:{server.rest_port}/"]
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"hi"


def test_rest_clients_may_have_to_show_a_certificate(
    mutual: Path, authority: Authority, clients: Authority, folder: Path
) -> None:
    with serving_rest(answer, rest_ssl_config_file=str(mutual)) as server:
        context = trusting(authority)
        with pytest.raises((ssl.SSLError, ConnectionError)):  # TLS 1.3 tells it with the first answer
            post(server.rest_port, context, b"hello")
        for issuer, fits in ((clients, True), (Authority(), False)):
            key, chain = issuer.issue("client.example")
            (folder / "client.pem").write_bytes(key + chain)
            context = trusting(authority)
            context.load_cert_chain(folder / "client.pem")
            if fits:
                assert post(server.rest_port, context, b"hello") == b"hello"
            else:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    post(server.rest_port, context, b"hello")


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
        tls.identity(path)
    assert str(path) in caught.value.message


def test_keys_and_authorities_that_do_not_fit_are_named(tmp_path: Path, authority: Authority) -> None:
    path = authority.write_config(tmp_path / "other.pbtxt")
    good = path.read_text()
    other = Authority().write_config(tmp_path / "another.pbtxt").read_text()
    lines = {line.split(":")[0]: line for line in good.splitlines()}
    path.write_text(next(line for line in other.splitlines() if "server_key" in line) + "\n" + lines["server_cert"])
    with pytest.raises(ServingError, match=r"server_key or server_cert of .*KEY_VALUES_MISMATCH"):
        tls.identity(path)
    path.write_text(good + "\ncustom_ca: 'no certificate'")
    with pytest.raises(ServingError, match="custom_ca of"):
        tls.identity(path)
    with pytest.raises(ServingError, match="Invalid protobuf file: '/nowhere'"):
        tls.identity(Path("/nowhere"))
