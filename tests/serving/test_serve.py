"""`bookserve serve` as a process, over a store of one small model."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from model_signing import signing

import batch_models
from bookserve.serving import serve
from bookserve.serving.wire import version_folder, version_signature
from bucket_servers import s3_server
from http_calls import get, post
from model_servers import answers, free_port, wait_until, write_scale_model


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = write_scale_model(tmp_path / "models" / "scale", 1, 2.0)
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "manifest.json").write_text("{}")
    return tmp_path / "models"


@contextmanager
def serving(
    store: Path, ports: list[int], *more: str, address: str = ""
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A `bookserve serve` over `store`, or over `address`; its log lies beside `store`."""
    log = store.parent / "serve.log"
    names = ("grpc", "rest", "gateway")
    options = [
        "--models-dir",
        address or store,
        *(f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)),
        *more,
    ]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bookserve.clients.command_line", "serve", *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        yield process, log
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        wait_until(lambda: not any(map(listens, ports)), "no server is left behind")


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def started(process: subprocess.Popen[str], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    return "gRPC      127.0.0.1" in log.read_text()


def test_only_what_is_signed_is_served(store: Path) -> None:
    private, public = store.parent / "private.pem", store.parent / "public.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], check=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    shutil.copytree(store / "scale", store / "unsigned")
    signed = store / "scale" / "1"
    (signed / version_folder.MANIFEST).write_text('{"model": "scale", "version": 1}')
    config = signing.Config().use_elliptic_key_signer(private_key=private)
    config.set_hashing_config(version_signature.what_is_signed()).sign(signed, signed / version_folder.SIGNATURE)
    ports = [free_port() for _ in range(3)]
    with serving(store, ports, f"--require-signature={public}") as (process, log):
        wait_until(lambda: started(process, log), "both servers are up", seconds=90)
        assert "unsigned/1 is refused: it has no signature (assets.extra/model.sig)" in log.read_text()
        answer = post(ports[1], "/v1/models/scale:predict", b'{"instances": [[3.0, 1.0, 2.0]]}')
        assert json.loads(answer.body)["predictions"] == [[6.0, 2.0, 4.0]], answer
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_the_gateways_port_speaks_tls_with_a_certificate(store: Path) -> None:
    folder = store.parent / "certificates"
    subprocess.run([sys.executable, "docker/certificates.py", folder], check=True, stdout=subprocess.DEVNULL)
    ports = [free_port() for _ in range(3)]
    tls = (f"--tls-cert={folder / 'server.pem'}", f"--tls-key={folder / 'server.key'}")
    with serving(store, ports, *tls) as (process, log):
        wait_until(lambda: started(process, log), "both servers are up", seconds=90)
        assert f"web page  https://127.0.0.1:{ports[2]}/" in log.read_text()
        ask = ["curl", "--silent", "--fail", "--cacert", folder / "ca.pem", f"https://localhost:{ports[2]}/readyz"]
        assert json.loads(subprocess.run(ask, capture_output=True, check=True).stdout)["status"] == "ready"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_serves_until_sigterm_and_ends_cleanly_with_a_line_a_request_if_asked(store: Path) -> None:
    ports = [free_port() for _ in range(3)]
    with serving(store, ports, "--verbose") as (process, log):
        wait_until(lambda: started(process, log), "both servers are up", seconds=90)
        assert answers(f"http://127.0.0.1:{ports[1]}/v1/models/scale")
        assert answers(f"http://127.0.0.1:{ports[2]}/")
        wait_until(lambda: '"path": "/"' in log.read_text(), "the request is in the log")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "Traceback" not in log.read_text()
        assert not any(map(listens, ports))


def test_it_shows_its_steps_and_its_addresses_and_no_line_a_request(store: Path) -> None:
    ports = [free_port() for _ in range(3)]
    with serving(store, ports) as (process, log):
        wait_until(lambda: started(process, log), "both servers are up", seconds=90)
        for _ in range(3):
            assert answers(f"http://127.0.0.1:{ports[2]}/")
        lines = [line for line in log.read_text().splitlines() if line]
        assert re.fullmatch(r" *\d+\.\d s  model server ready, with the models of .*", lines[0])
        assert re.fullmatch(r" *\d+\.\d s  gateway ready", lines[1])
        assert [line.split()[-1] for line in lines[-3:]] == [
            f"http://127.0.0.1:{ports[2]}/",
            f"http://127.0.0.1:{ports[1]}/v1/models",
            f"127.0.0.1:{ports[0]}",
        ]
        assert len(lines) == 6
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert (
            log.read_text().splitlines()[-1] == "model server and gateway stopped; the same command starts them again"
        )


@pytest.mark.slow
def test_the_gateway_alone_is_opened_with_keys(store: Path, tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    (tmp_path / "keys").write_text("0123456789abcdef")
    opened = ("--bind=127.0.0.2", "--allowed-hosts=models.example", f"--api-keys={tmp_path / 'keys'}")
    with serving(store, ports, *opened) as (process, log):
        wait_until(lambda: started(process, log), "both servers are up", seconds=90)
        url = f"http://127.0.0.2:{ports[2]}"
        assert f"web page  {url}/" in log.read_text()
        assert not listens(ports[2])  # on 127.0.0.1
        assert answers(f"{url}/healthz")
        assert not answers(f"{url}/api/v1/models")
        key = {"X-API-Key": "0123456789abcdef", "Host": "models.example"}
        with urllib.request.urlopen(urllib.request.Request(f"{url}/api/v1/models", headers=key), timeout=5) as answer:
            assert answer.status == 200
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.2", ports[0])) != 0  # the model server stays on loopback
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.slow
def test_a_store_in_a_bucket_is_served_with_its_contracts_cards_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = [free_port() for _ in range(3)]
    store = batch_models.write_all(tmp_path / "models")
    (store / "flats/1/assets.extra/report").mkdir()
    (store / "flats/1/assets.extra/report/card.md").write_text("# flats\n")
    batch_models.describe(store, batch_models.FLATS)
    (store / "models.config").write_text(
        f'model_config_list {{ config {{ name: "flats" base_path: "{store}/flats" model_platform: "tensorflow"'
        ' version_labels { key: "stable" value: 1 } } }'
    )
    with s3_server(tmp_path) as bucket:
        bucket.put_folder(store, "store", last="manifest.json")
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        with serving(store, ports, address="s3://models/store") as (process, log):
            wait_until(lambda: started(process, log), "both servers are up", seconds=90)
            assert "model server ready, with the models of s3://models/store" in log.read_text()
            assert answers(f"http://127.0.0.1:{ports[2]}/models/flats")
            told = get(ports[2], "/api/v1/models/flats").json()
            assert (told["task"], told["columns"], told["ready"]) == ("regression", ["area", "rooms"], True)
            (version,) = told["versions"]
            assert (version["labels"], version["state"]) == (["stable"], "AVAILABLE")
            assert version["manifest"]["contract"]["task"] == "regression"
            assert get(ports[2], version["card"]).body == b"# flats\n"
            assert get(ports[2], version["graph"]).json()["nodes"] == 1
            asked = post(ports[2], "/api/v1/models/flats:predict", json.dumps({"x": [[70.0, 3.0]]}))
            assert (asked.status, asked.json()["predictions"]) == (200, [{"price": 71500.0}])
            words = post(ports[2], "/api/v1/models/next:predict", json.dumps({"text": "the stock"}))
            assert words.json()["predictions"][0]["words"][0]["word"] == "market"
            assert not Path("s3:").exists()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_it_names_the_models_that_a_stopped_training_has_left_out(store: Path) -> None:
    for name in ("linear", "mnist"):
        manifest = store / name / "1" / "assets.extra" / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text("{}")
        shutil.copy2(store / "scale" / "1" / "model.onnx", manifest.parents[1])
    ports = [free_port() for _ in range(3)]
    with serving(store, ports) as (process, log):
        wait_until(lambda: "not trained yet" in log.read_text(), "the missing models are named", seconds=90)
        names = "logistic tox21 ptb tictactoe cifar10"
        assert f"'bookserve train-all --models-dir={store} " in log.read_text()
        assert set(names.split()) == set(re.findall(r"not trained yet: (.*) \(", log.read_text())[0].split())
        process.terminate()
        assert process.wait(60) == 0


def test_a_killed_serve_leaves_no_server_behind(store: Path) -> None:
    ports = [free_port() for _ in range(3)]
    with serving(store, ports) as (process, log):
        wait_until(lambda: started(process, log), "both servers are up", seconds=90)
        process.kill()
        wait_until(lambda: not any(map(listens, ports)), "the servers have gone with it")


def test_a_taken_port_is_named_with_what_to_do(store: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "bookserve.clients.command_line", "serve", f"--models-dir={store}"]
        done = subprocess.run([*command, f"--gateway-port={port}"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"port {port} cannot be used" in done.stderr
    assert "GATEWAY_PORT" in done.stderr


def test_a_training_that_fails_ends_serve_with_its_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bookserve.clients.command_line", "serve", f"--models-dir={tmp_path / 'models'}"]
    ports = [f"--{name}-port={free_port()}" for name in ("grpc", "rest", "gateway")]
    done = subprocess.run([*command, *ports, "--profile=nonsense"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "the training failed, its message is above" in done.stderr
    assert "nonsense" in done.stderr


def test_ctrl_c_during_the_training_says_what_comes_next(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    with serving(tmp_path / "models", ports, "--profile=smoke", "--data=sample") as (process, log):
        wait_until(lambda: "training them first" in log.read_text(), "the training has begun")
        process.send_signal(signal.SIGINT)
        assert process.wait(240) == 130
        assert "'bookserve train-all' trains all models" in log.read_text().splitlines()[-1]
        assert "Traceback" not in log.read_text()


def test_a_stop_that_comes_where_python_drops_exceptions_is_heard() -> None:
    class Deleted:
        def __del__(self) -> None:  # as a callback of a fork: what is raised here is lost
            os.kill(os.getpid(), signal.SIGINT)

    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        asked = serve._Asked()
        asked.wait()
        deleted = Deleted()
        del deleted
        with pytest.raises(serve._Stopped) as stopped:
            asked.wait()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert stopped.value.number == signal.SIGINT
