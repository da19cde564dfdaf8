"""TensorFlow's profiler client against a server whose models TensorFlow runs."""

import os
import signal
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf.profiler_options_pb2 import ProfileOptions
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from model_servers import Server, StartServer, server_starter, wait_until, write_scale_model


class Double(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def double(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x + x}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiled")
    module = Double()
    for name in ("double", "later"):
        tf.saved_model.save(module, str(folder / name / "1"), signatures={"serving_default": module.double})
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with server_starter(folder) as start:
        server = start(
            "--model_name=double",
            f"--model_base_path={folder / 'double'}",
            f"--allowed_model_roots={folder}",
            "--enable_profiler",
        )
        yield server
        assert server.stop(timeout=60) == 0
        assert "Traceback" not in server.log.read_text()


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target) as channel:
        yield channel


@contextmanager
def asking(channel: grpc.Channel, model: str) -> Iterator[None]:
    """Keeps asking the model."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.01):
            stub.Predict(request, timeout=60)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def runs_caught(server: Server, folder: Path) -> int:
    """Runs of a graph in a trace of half a second, made by TensorFlow's own client."""
    try:
        tf.profiler.experimental.client.trace(f"grpc://{server.target}", str(folder), 500, num_tracing_attempts=1)
    except RuntimeError as error:
        if "No trace event was collected" not in str(error):
            raise
        return 0
    (trace,) = folder.rglob("*.xplane.pb")
    return trace.read_bytes().count(b"SessionRun")


def change(server: Server, method: str, body: str | None = None) -> None:
    data = None if body is None else body.encode()
    request = urllib.request.Request(f"{server.url}/v1/models/later", data, method=method)
    with urllib.request.urlopen(request, timeout=120) as response:
        assert response.status == 200


def test_a_trace_catches_requests_of_what_was_loaded_last(
    server: Server, channel: grpc.Channel, folder: Path, tmp_path: Path
) -> None:
    with asking(channel, "double"):
        assert runs_caught(server, tmp_path / "first") > 0
        change(server, "PUT", f'{{"base_path": "{folder / "later"}"}}')
        assert runs_caught(server, tmp_path / "not asked") == 0
    with asking(channel, "later"):
        assert runs_caught(server, tmp_path / "second") > 0
    change(server, "DELETE")
    with asking(channel, "double"):
        assert runs_caught(server, tmp_path / "first again") > 0


def profile(channel: grpc.Channel, folder: Path, milliseconds: int) -> grpc.Future:
    """Calls Profile with a ProfileRequest, whose class TensorFlow's wheel lacks; the trace goes to `folder`."""
    options = ProfileOptions(version=1, host_tracer_level=2, duration_ms=milliseconds).SerializeToString()
    # opts, repository_root, session_id, host_name
    fields = {4: options, 5: str(folder).encode(), 6: folder.name.encode(), 7: b"here"}
    request = b"".join(bytes([number << 3 | 2, len(field)]) + field for number, field in fields.items())
    return channel.unary_unary("/tensorflow.ProfilerService/Profile").future(request, timeout=300)


def profile_long(channel: grpc.Channel, folder: Path) -> grpc.Future:
    """A call of Profile that TensorFlow is at, as a second one is refused."""
    while True:
        long = profile(channel, folder / "long", 250_000)
        while not long.done():
            error = profile(channel, folder / "refused", 1).exception()
            if error is not None and not long.done():
                assert error.details() == "Another profiling session active."
                return long


def profilers(server: Server) -> list[int]:
    """The versions' processes that listen, which only TensorFlow's profiler makes them do."""
    found = []
    for template in children(server.pid):
        for pid in children(template):
            sockets = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
            rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp6").read_text().splitlines()[1:]]
            if any(row[3] == "0A" and f"socket:[{row[9]}]" in sockets for row in rows):
                found.append(pid)
    return found


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(text) for task in tasks for text in (task / "children").read_text().split()]


def test_a_trace_ends_when_its_client_leaves(channel: grpc.Channel, tmp_path: Path) -> None:
    profile_long(channel, tmp_path).cancel()
    wait_until(lambda: profile(channel, tmp_path / "next", 1).exception() is None, "the trace has ended", seconds=120)


def test_terminate_ends_a_trace(channel: grpc.Channel, tmp_path: Path) -> None:
    long = profile_long(channel, tmp_path)
    channel.unary_unary("/tensorflow.ProfilerService/Terminate")(b"\x0a\x04long", timeout=60)
    assert long.result(timeout=60) is not None
    assert any((tmp_path / "long").rglob("*.xplane.pb"))


def test_what_tensorflow_refuses_keeps_its_status(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/tensorflow.ProfilerService/Profile")(b"no message", timeout=60)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert caught.value.details() != "internal error"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_that_dies_meanwhile_fails_its_traces_alone(
    server: Server, channel: grpc.Channel, tmp_path: Path
) -> None:
    long = profile_long(channel, tmp_path)
    (pid,) = profilers(server)
    os.kill(pid, signal.SIGKILL)
    error = long.exception(timeout=120)
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "its process ended meanwhile" in error.details()

    def back() -> bool:
        error = profile(channel, tmp_path / "back", 1).exception()
        assert error is None or error.code() == grpc.StatusCode.UNAVAILABLE
        return error is None

    wait_until(back, "the new process is profiled", seconds=120)
    with asking(channel, "double"):
        assert runs_caught(server, tmp_path / "again") > 0


def test_traces_are_for_those_who_may_change_models(start_server: StartServer, tmp_path: Path) -> None:
    write_scale_model(tmp_path / "scale", 1, 2.0)
    token = tmp_path / "token"
    token.write_text("secret\n")
    flags = [
        "--model_name=scale",
        f"--model_base_path={tmp_path / 'scale'}",
        f"--admin_token_file={token}",
        "--enable_profiler",
    ]
    server = start_server(*flags)
    with grpc.insecure_channel(server.target) as channel:
        profile = channel.unary_unary("/tensorflow.ProfilerService/Profile")
        with pytest.raises(grpc.RpcError) as caught:
            profile(b"", timeout=60)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.RpcError) as caught:
            profile(b"", timeout=60, metadata=[("authorization", "Bearer secret")])
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED  # TensorFlow runs no model there
