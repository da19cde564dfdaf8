"""Certificates that are replaced while the server runs, as cert-manager and the kubelet do it: by a symbolic link."""

import asyncio
import http.client
import logging
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import grpc
import pytest

from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.transport import ports, tls
from bookserve.serving.server.transport.grpc_call import GrpcCall
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import ServingError
from certificates import Authority
from model_servers import server_starter, wait_until, write_scale_model
from transports import Transport, echo

FLAGS = {
    "ssl_cert_file": "tls.crt",
    "ssl_key_file": "tls.key",
    "ssl_client_ca_file": "ca.crt",
}


class Secret:
    """A mounted secret: files that are links into `..data`, which is a link to a folder that is replaced at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def write(self, **files: bytes) -> None:
        self._count += 1
        content = self.folder / f"..{self._count}"
        content.mkdir(parents=True)
        for name, pem in files.items():
            file = FLAGS[name]
            (content / file).write_bytes(pem)
            if not (self.folder / file).is_symlink():
                (self.folder / file).symlink_to(Path("..data") / file)
        scratch = self.folder / "..new"
        scratch.symlink_to(content.name)
        scratch.rename(self.folder / "..data")

    def issue(self, authority: Authority, clients: Authority | None = None) -> None:
        key, chain = authority.issue("127.0.0.1", "localhost")
        ca = {} if clients is None else {"ssl_client_ca_file": clients.certificate}
        self.write(ssl_cert_file=chain, ssl_key_file=key, **ca)

    def flags(self, *names: str) -> dict[str, str]:
        return {name: str(self.folder / FLAGS[name]) for name in ("ssl_cert_file", "ssl_key_file", *names)}


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Secret:
    monkeypatch.setattr(ports, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(ports, "_HANDSHAKE_SECONDS", 0.3)
    return Secret(tmp_path / "secret")


def answer(exchange: HttpExchange) -> None:
    exchange.respond(200, exchange.body)


def shown(port: int) -> str:
    """The certificate that a new connection is shown."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=20)


def renewed(port: int, before: str) -> bool:
    return shown(port) != before


class Asking:
    """Threads that ask all the time: two gRPC and two REST connections that are kept, and new ones for each request."""

    def __init__(self, server: Transport, authority: Authority) -> None:
        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []
        self._server = server
        self._credentials = grpc.ssl_channel_credentials(authority.certificate)
        self._context = ssl.create_default_context(cadata=authority.certificate.decode())
        self._stop = threading.Event()
        ways = (self._grpc, self._grpc, self._new_grpc, self._rest, self._rest, self._new_rest)
        self._threads = [threading.Thread(target=self._run, args=[way]) for way in ways]

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, times: int) -> None:
        before = self.answered.copy()
        for way in ("_grpc", "_new_grpc", "_rest", "_new_rest"):
            wait_until(partial(self._more, way, before[way] + times), f"answers of {way}", seconds=60)

    def _more(self, way: str, than: int) -> bool:
        return self.answered[way] > than

    def _run(self, way: Callable[[], Iterator[bytes]]) -> None:
        asking = way()
        while not self._stop.is_set():
            try:
                assert next(asking) == b"hello"
                self.answered[way.__name__] += 1
            except (grpc.RpcError, OSError, http.client.HTTPException) as error:
                self.failed.append(f"{way.__name__} {error!r}")
                asking = way()
        asking.close()  # type: ignore[attr-defined]

    def _channel(self) -> grpc.Channel:
        return grpc.secure_channel(self._server.target, self._credentials, [("grpc.use_local_subchannel_pool", 1)])

    def _grpc(self) -> Iterator[bytes]:
        with self._channel() as channel:
            while True:
                yield channel.unary_unary("/t/Echo")(b"hello", timeout=20)

    def _new_grpc(self) -> Iterator[bytes]:
        while True:
            with self._channel() as channel:
                yield channel.unary_unary("/t/Echo")(b"hello", timeout=20)

    def _rest(self) -> Iterator[bytes]:
        address = "127.0.0.1", self._server.rest_port
        with closing(http.client.HTTPSConnection(*address, context=self._context, timeout=20)) as connection:
            while True:
                connection.request("POST", "/", b"hello")
                yield connection.getresponse().read()

    def _new_rest(self) -> Iterator[bytes]:
        while True:
            yield next(self._rest())


def test_new_connections_get_a_new_certificate_and_no_request_fails(secret: Secret) -> None:
    authority = Authority()
    secret.issue(authority)
    with closing(Transport({b"/t/Echo": echo}, rest=answer, **secret.flags())) as server:
        with Asking(server, authority) as clients:
            for _ in range(3):
                clients.go_on(20)
                before = {port: shown(port) for port in (server.port, server.rest_port)}
                secret.issue(authority)
                for port, certificate in before.items():
                    wait_until(partial(renewed, port, certificate), "the new certificate is shown", seconds=20)
                wait_until(lambda: len(server.ports._servers) == 2, "the servers of before are gone", seconds=20)
                clients.go_on(20)
        assert clients.failed == []


def test_a_call_that_is_under_way_is_answered_over_its_old_connection(secret: Secret) -> None:
    authority = Authority()
    secret.issue(authority)
    held: list[tuple[GrpcCall, bytes]] = []
    with closing(Transport({b"/t/Echo": lambda *call: held.append(call)}, **secret.flags())) as server:
        credentials = grpc.ssl_channel_credentials(authority.certificate)
        with grpc.secure_channel(server.target, credentials) as channel:
            future = channel.unary_unary("/t/Echo").future(b"hello", timeout=20)
            wait_until(lambda: bool(held), "the call is there")
            before = shown(server.port)
            secret.issue(authority)
            wait_until(partial(renewed, server.port, before), "the new certificate is shown", seconds=20)
            server.on_loop(lambda: echo(*held[0]))
            assert future.result() == b"hello"


def test_a_broken_file_keeps_the_certificate_of_before_and_is_logged_once(
    secret: Secret, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority()
    secret.issue(authority)
    with caplog.at_level(logging.INFO), closing(Transport({b"/t/Echo": echo}, **secret.flags())) as server:
        before = shown(server.port)
        key, _ = authority.issue("127.0.0.1")
        _, chain = authority.issue("127.0.0.1")
        for broken, said in (
            ({"ssl_cert_file": b"no certificate", "ssl_key_file": key}, "tls.crt cannot be used"),
            ({"ssl_cert_file": chain, "ssl_key_file": key}, "cannot be used: KEY_VALUES_MISMATCH"),
            ({"ssl_cert_file": chain}, "tls.key' cannot be read: No such file or directory"),
        ):
            caplog.clear()
            secret.write(**broken)
            wait_until(partial(logged, caplog, said), "it is logged")
            for _ in range(5):
                assert shown(server.port) == before
            server.run(_until_looked_again())
            lines = [line for line in caplog.text.splitlines() if "the certificates of before are kept" in line]
            assert len(lines) == 2, lines  # for each port one
            assert "PRIVATE KEY" not in caplog.text
        secret.issue(authority)
        wait_until(partial(renewed, server.port, before), "a good file is taken again", seconds=20)


def logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


async def _until_looked_again() -> None:
    await asyncio.sleep(10 * ports._LOOK_SECONDS)


def test_the_authority_of_clients_is_renewed_too(secret: Secret) -> None:
    authority, first, second = Authority(), Authority(), Authority()
    secret.issue(authority, first)

    def may_ask(clients: Authority) -> bool:
        key, chain = clients.issue("client.example")
        credentials = grpc.ssl_channel_credentials(authority.certificate, key, chain)
        with grpc.secure_channel(server.target, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                return bool(channel.unary_unary("/t/Echo")(b"hello", timeout=20))
            except grpc.RpcError:
                return False

    with closing(Transport({b"/t/Echo": echo}, **secret.flags("ssl_client_ca_file"))) as server:
        assert (may_ask(first), may_ask(second)) == (True, False)
        secret.issue(authority, second)
        wait_until(partial(may_ask, second), "clients of the new authority are let in", seconds=20)
        assert not may_ask(first)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"ssl_key_file": "k"}, "--ssl_key_file: TLS needs both --ssl_cert_file and --ssl_key_file"),
        ({"ssl_cert_file": "c", "ssl_key_file": "k", "ssl_config_file": "s"}, "or else in --ssl_config_file"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ServingError, match=message):
        tls.source(Flags(**flags), flags.get("ssl_config_file", ""))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_server_follows_its_files(tmp_path: Path, workers: int) -> None:
    secret, authority = Secret(tmp_path / "secret"), Authority()
    secret.issue(authority)
    write_scale_model(tmp_path / "store" / "scale", 1, 2.0)
    flags = [f"--{name}={path}" for name, path in secret.flags().items()]
    with server_starter(tmp_path) as start:
        server = start(f"--model_root={tmp_path / 'store'}", f"--workers={workers}", *flags, wait=False)
        wait_until(lambda: "Exporting HTTP/REST API" in server.log.read_text(), "it listens", seconds=60)
        seen = [shown(port) for port in (server.grpc_port, server.rest_port)]
        secret.issue(authority)
        for port, before in zip((server.grpc_port, server.rest_port), seen, strict=True):
            wait_until(partial(renewed, port, before), "the new certificate is shown", seconds=20)
        text = server.log.read_text()
        wait_until(lambda: server.log.read_text().count("new certificates for") == 2 * workers, "it is logged")
        assert "the certificates of before" not in text
        assert server.stop() == 0
