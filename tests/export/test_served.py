"""Labels and rollbacks of a store take effect on the servers that serve it, under load."""

import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result

from bookserve.clients.command_line import main
from bookserve.export.store import ModelStore
from bookserve.serving.wire import store_servers
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import to_proto
from certificates import Authority
from model_servers import Server, StartServer, server_starter, wait_until, write_scale_model


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    with server_starter(tmp_path) as starter:
        yield starter


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """Three versions; 3 has the label `stable`."""
    store = ModelStore(tmp_path / "models")
    for version in (1, 2, 3):
        write_scale_model(store.root / "scale", version, float(version))
    store.label("scale", "stable", 3)
    return store


def flags_of(store: ModelStore, way: str) -> list[str]:
    if way == "root":
        return [f"--model_root={store.root}", "--file_system_poll_wait_seconds=0.05"]
    poll = ("--model_config_file_poll_wait_seconds=1", "--allow_version_labels_for_unavailable_models")
    return [f"--model_config_file={store.root / 'models.config'}", *poll]


def models(store: ModelStore, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["models", *arguments, "--models-dir", str(store.root)])


class Asker:
    """Asks for the label, or for the default, over and over; notes every answer that is wrong."""

    def __init__(self, server: Server) -> None:
        self.settled: dict[str, int] = {}  # label -> version that a command has said to be served
        self.wrong: list[str] = []
        self.answers = 0
        self.stop = threading.Event()
        self._target = server.target

    def ask(self, label: str) -> None:
        with grpc.insecure_channel(self._target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            while not self.stop.is_set():
                before = self.settled.get(label)
                try:
                    version = version_for(channel, label)
                except grpc.RpcError as error:
                    self.wrong.append(f"{label}: {error}")
                    continue
                if before is not None and before == self.settled.get(label) != version:
                    self.wrong.append(f"{label}: {version}, not {before}")
                self.answers += 1


def version_for(channel: grpc.Channel, label: str) -> int:
    """The version that answers a label, or who names none."""
    request = messages.PredictRequest()
    request.model_spec.name = "scale"
    if label:
        request.model_spec.version_label = label
    request.inputs["x"].CopyFrom(to_proto(np.array([[1, 2, 3]], np.float32)))
    call = channel.unary_unary(
        "/tensorflow.serving.PredictionService/Predict",
        messages.PredictRequest.SerializeToString,
        messages.PredictResponse.FromString,
    )
    return int(call(request, timeout=30).model_spec.version.value)


@pytest.mark.parametrize(
    ("way", "workers"), [("file", 1), ("root", 1), pytest.param("root", 2, marks=pytest.mark.slow)]
)
def test_rollbacks_and_label_moves_under_load(start: StartServer, store: ModelStore, way: str, workers: int) -> None:
    server = start(*flags_of(store, way), f"--workers={workers}")
    assert [each.grpc for each in store_servers.servers(store.root)] == [server.target]
    asker = Asker(server)
    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(asker.ask, label) for label in ("stable", "stable", "", "")]
        try:
            for target in (2, 1, 3, 1, 2):
                asker.settled.clear()
                result = models(store, "rollback", "scale", "--to", str(target))
                assert result.exit_code == 0, result.output
                assert result.output.endswith(f"served by {server.target}\n")
                asker.settled[""] = target
                asked = asker.answers
                wait_until(lambda asked=asked: asker.answers > asked + 20, "more is asked", 60)  # type: ignore[misc]
                asker.settled.pop("stable", None)
                result = models(store, "label", "scale", "stable", str(target))
                assert result.exit_code == 0, result.output
                asker.settled["stable"] = target
                asked = asker.answers
                wait_until(lambda asked=asked: asker.answers > asked + 20, "more is asked", 60)  # type: ignore[misc]
        finally:
            asker.stop.set()
        for one in asking:
            one.result()
    assert asker.wrong == []
    assert f"not known by {server.target}\n" in models(store, "unlabel", "scale", "stable").output
    with grpc.insecure_channel(server.target) as channel:
        with pytest.raises(grpc.RpcError, match="Unrecognized servable version label: stable"):
            version_for(channel, "stable")
        assert version_for(channel, "") == 2
    assert server.stop() == 0
    assert store_servers.servers(store.root) == []
    assert not list(store.root.glob(".server-*"))


def test_a_model_that_is_added_is_asked_at_the_ports_of_the_server(start: StartServer, store: ModelStore) -> None:
    def added() -> list[str]:
        result = models(store, "add", "score", str(store.root / "scale" / "1" / "model.onnx"))
        assert result.exit_code == 0, result.output
        return result.output.splitlines()

    def check(line: str) -> None:
        """The line works as soon as the server has loaded the version."""
        command = [*line.split()[1:], f"--models-dir={store.root}"]
        wait_until(lambda: CliRunner().invoke(main, command).exit_code == 0, line, 60)

    server = start(*flags_of(store, "root"))
    *_, named, _, predict, curl = added()
    assert named.startswith(f"a server that runs loads it: {server.target}; ")
    check(predict)
    answer = subprocess.run([*curl.split(), "-s", "--fail"], capture_output=True, text=True)
    assert "outputs" in answer.stdout, answer.stderr
    assert server.stop() == 0
    server = start(*flags_of(store, "root"), "--rest_api_port=0", wait=False)
    wait_until(lambda: bool(store_servers.servers(store.root)), "the server without REST has begun", 60)
    predict = added()[-1]
    assert predict.endswith(f"--grpc {server.target}")
    check(predict)


def test_a_version_that_no_server_loads_changes_nothing(start: StartServer, store: ModelStore) -> None:
    server = start(*flags_of(store, "root"), "--max_num_load_retries=0")
    (store.root / "scale" / "1" / "model.onnx").write_bytes(b"no graph")
    before = (store.root / "models.config").read_text()
    result = models(store, "rollback", "scale", "--to", "1", "--wait", "2")
    assert result.exit_code == 1
    assert f"after 2 s, {server.target} says: version 1 is END (" in result.output
    assert "does not load" in result.output
    assert (store.root / "models.config").read_text() == before
    assert "'stable' is version 2" in models(store, "label", "scale", "stable", "2").output
    server.kill()
    assert list(store.root.glob(".server-*"))  # which nobody removed
    assert "no server was asked" in models(store, "label", "scale", "stable", "3").output
    assert not list(store.root.glob(".server-*"))


def test_a_server_that_is_named_must_answer(store: ModelStore) -> None:
    result = models(store, "rollback", "scale", "--server", "127.0.0.1:1", "--wait", "0.2")
    assert result.exit_code == 1
    assert "after 0.2 s, 127.0.0.1:1 says: UNAVAILABLE" in result.output


def test_servers_with_tls_are_found_and_asked(start: StartServer, store: ModelStore, tmp_path: Path) -> None:
    authority, clients = Authority(), Authority()
    config = authority.write_config(tmp_path / "tls.config", clients)
    key, chain = clients.issue("operator")
    for name, content in (("ca", authority.certificate), ("cert", chain), ("key", key)):
        (tmp_path / f"{name}.pem").write_bytes(content)
    files = [f"--{name}={tmp_path / name}.pem" for name in ("ca", "cert", "key")]
    server = start(*flags_of(store, "root"), f"--ssl_config_file={config}")
    address = f"grpcs://{server.target}"
    assert [each.grpc for each in store_servers.servers(store.root)] == [address]

    result = models(store, "label", "scale", "stable", "1", *files)
    assert result.output.endswith(f"served by {address}\n"), result.output
    named = f"grpcs://localhost:{server.grpc_port}"
    result = models(store, "unlabel", "scale", "stable", "--server", named, *files)
    assert result.output.endswith(f"not known by {named}\n"), result.output
    stranger = models(store, "rollback", "scale", "--server", named, "--wait", "0.2", *files[:1])
    assert (stranger.exit_code, f"after 0.2 s, {named} says: UNAVAILABLE" in stranger.output) == (1, True)
    assert store.default_version("scale") == 3
    plain = models(store, "rollback", "scale", "--server", server.target, *files)
    assert "--ca is for TLS, and no --server is grpcs://HOST:PORT" in plain.output
    half = models(store, "rollback", "scale", "--server", named, files[1])
    assert "--cert and --key belong together" in half.output
    unknown = models(store, "rollback", "scale", "--server", f"https://{server.target}")
    assert "HOST:PORT of gRPC, or grpcs://HOST:PORT" in unknown.output
