"""--workers: several processes behind the same ports answer as one server."""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from bookserve.serving.server.assembly import worker_count
from bookserve.serving.server.settings.flags import Flags
from bookserve.serving.server.types.errors import ServingError, failed_precondition
from bookserve.serving.server.workers.pool import Pool, _Worker
from certificates import Authority
from load import REST_BODY, under_load
from model_servers import Server, StartServer, runs, server_starter, wait_until, write_graph, write_scale_model

METRICS = "/monitoring/prometheus/metrics"
AVAILABLE, END = 30, 50


def config_of(folder: Path, names: Sequence[str]) -> str:
    models = [
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" }}' for name in names
    ]
    return f"model_config_list {{ {' '.join(models)} }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Two processes for all tests that ask or change models."""
    for name, factor in (("scale", 2.0), ("swapped", 1.0), ("other", 5.0)):
        write_scale_model(folder / name, 1, factor)
    (folder / "models.config").write_text(config_of(folder, ["scale", "swapped"]))
    with server_starter(folder) as start:
        yield start(
            f"--model_config_file={folder / 'models.config'}",
            "--workers=2",
            "--enable_metrics",
            "--file_system_poll_wait_seconds=0.2",
            f"--request_log_file={folder / 'requests'}",
            f"--grpc_socket_path={folder / 'socket'}",
        )


class Rest:
    """One connection, kept alive."""

    def __init__(self, server: Server, context: ssl.SSLContext | None = None) -> None:
        if context is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=60)
        else:
            self._connection = http.client.HTTPSConnection("127.0.0.1", server.rest_port, timeout=60, context=context)
        self._connection.connect()

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        self._connection.request(method, path, body)
        response = self._connection.getresponse()
        return response.status, response.read().decode()

    def predict(self, name: str = "scale") -> tuple[int, str]:
        return self.ask("POST", f"/v1/models/{name}:predict", REST_BODY)

    def close(self) -> None:
        self._connection.close()


@contextmanager
def connections(server: Server, count: int = 16, context: ssl.SSLContext | None = None) -> Iterator[list[Rest]]:
    """Open at the same time, so that they are spread over the processes."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(Rest(server, context))
            stack.callback(made[-1].close)
        yield made


@contextmanager
def channels(target: str, count: int = 4) -> Iterator[list[grpc.Channel]]:
    """Each with a connection of its own."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
            made.append(stack.enter_context(channel))
            grpc.channel_ready_future(channel).result(60)
        yield made


def request_of(name: str) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([[1, 2, 3]], np.float32)))
    return request


def predict(channel: grpc.Channel, name: str) -> tuple[int, list[float]]:
    """Which version answered, and what."""
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.Predict(request_of(name), timeout=60)
    return response.model_spec.version.value, list(response.outputs["y"].float_val)


def states(channel: grpc.Channel, name: str) -> dict[int, int]:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    response = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=60)
    return {status.version: status.state for status in response.model_version_status}


def reload(channel: grpc.Channel, config: str) -> None:
    request = model_management_pb2.ReloadConfigRequest(
        config=text_format.Parse(config, tf_config()),
    )
    response = model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=60)
    assert response.status.error_code == 0


def tf_config() -> Any:
    return model_management_pb2.ReloadConfigRequest().config


def series(page: str, name: str, **labels: str) -> float:
    """The sum of the series of a counter or gauge that have these labels."""
    found = re.findall(rf"^{name}{{([^}}]*)}} (\S+)$", page, re.MULTILINE)
    pairs = {f'{label}="{value}"' for label, value in labels.items()}
    return sum(float(value) for held, value in found if pairs <= set(held.split(",")))


def workers(server: Server) -> list[int]:
    """The processes that answer, in the order in which they came."""
    return [int(pid) for pid in re.findall(r"worker \d+ serves \(process (\d+)\)", server.log.read_text())]


def worker(server: Server, number: int) -> int:
    """The one of that number that came last; the first answer may come from another, before it is there."""

    def found() -> list[str]:
        return re.findall(rf"worker {number} serves \(process (\d+)\)", server.log.read_text())

    wait_until(lambda: bool(found()), f"worker {number} serves", 60)
    return int(found()[-1])


def test_connections_are_spread_over_both_protocols(server: Server, folder: Path) -> None:
    with (
        connections(server, 24) as rest,
        channels(server.target, 16) as calls,
        channels(f"unix:{folder / 'socket'}") as more,
    ):
        answers = [connection.predict() for connection in rest]
        assert [(status, json.loads(body)) for status, body in answers] == [(200, {"predictions": [[2, 4, 6]]})] * 24
        assert {predict(channel, "scale")[0] for channel in (*calls, *more)} == {1}
        page = rest[0].ask("GET", METRICS)[1]
    for worker in ("0", "1"):
        # Not just half of them: of those that were closed a moment ago some may still be counted.
        assert series(page, ":bookserve:connections", worker=worker, api="rest") >= 2
        assert series(page, ":bookserve:connections", worker=worker, api="grpc") >= 2
        assert 20e6 < series(page, ":bookserve:resident_bytes", worker=worker) < 2e9


def test_every_process_shows_the_counts_of_all(server: Server) -> None:
    counted: dict[str, str] = {"model_name": "scale", "status": "OK"}
    with connections(server) as rest:
        before = series(rest[0].ask("GET", METRICS)[1], ":tensorflow:serving:request_count", **counted)
        for connection in rest:
            for _ in range(5):
                assert connection.predict()[0] == 200
        pages = [connection.ask("GET", METRICS)[1] for connection in rest]
    for page in pages:
        assert series(page, ":tensorflow:serving:request_count", **counted) == before + 5 * len(pages)
        assert series(page, ":bookserve:model_version_state", model_name="scale", state="AVAILABLE") == 2


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/readyz"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/scale"),
        ("GET", "/v1/models/scale/versions/7"),
        ("GET", "/v1/models/none"),
        ("GET", "/v1/models/scale/metadata"),
        ("GET", "/v1/config"),
        ("GET", "/v2/models/scale/ready"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v1/models/none:predict"),
        ("POST", "/v1/models/scale/versions/7:predict"),
        ("POST", "/v1/models/scale/labels/stable:predict"),
        ("DELETE", "/v1/models/none"),
    ],
)
def test_every_process_answers_the_same(server: Server, method: str, path: str) -> None:
    with connections(server) as rest:
        body = REST_BODY if path.endswith(":predict") else None
        answers = {connection.ask(method, path, body) for connection in rest}
    assert len(answers) == 1
    assert next(iter(answers))[0] < 500


def test_versions_are_swapped_under_load_without_a_failure(server: Server, folder: Path) -> None:
    """Once a version has ended, as any process sees it, none answers from it."""
    ended = 0  # versions up to this one
    stop = threading.Event()

    def keep_asking(channel: grpc.Channel) -> int:
        asked = 0
        while not stop.is_set():
            before = ended
            version, values = predict(channel, "swapped")
            assert version > before
            assert values == [float(version), 2.0 * version, 3.0 * version]
            asked += 1
        return asked

    with channels(server.target) as calls, ThreadPoolExecutor() as pool:
        asking = [pool.submit(keep_asking, channel) for channel in calls]
        try:
            for version in (2, 3, 4):
                write_scale_model(folder / "swapped", version, float(version))
                watched = calls[version % 2]
                wait_until(lambda: states(watched, "swapped").get(version - 1) == END, "swapped", 60)  # noqa: B023
                assert states(watched, "swapped")[version] == AVAILABLE
                ended = version - 1
                time.sleep(0.05)  # under load
        finally:
            stop.set()
        assert min(asked.result() for asked in asking) > 10
        assert {tuple(states(channel, "swapped").items()) for channel in calls} == {
            ((4, 30), (3, 50), (2, 50), (1, 50))
        }


def test_a_change_is_known_everywhere_when_it_is_answered(server: Server, folder: Path) -> None:
    """By whichever process it comes in."""
    with channels(server.target) as calls, connections(server) as rest:
        for channel in calls:
            reload(channel, config_of(folder, ["scale", "swapped", "other"]))
            assert [predict(each, "other")[1] for each in calls] == [[5.0, 10.0, 15.0]] * 4
            reload(channel, config_of(folder, ["scale", "swapped"]))
            for each in calls:
                with pytest.raises(grpc.RpcError, match=r"Servable not found for request: Latest\(other\)"):
                    predict(each, "other")
        for connection in rest:
            body = json.dumps({"base_path": str(folder / "other")}).encode()
            assert connection.ask("PUT", "/v1/models/other", body) == (200, "{}")
            assert {each.predict("other")[0] for each in rest} == {200}
            assert connection.ask("DELETE", "/v1/models/other") == (200, "{}")
            assert {each.predict("other")[0] for each in rest} == {404}


def test_a_change_is_refused_in_the_same_words_everywhere(server: Server, folder: Path) -> None:
    broken = config_of(folder, ["scale", "swapped"]).replace(
        "base_path", 'version_labels { key: "x" value: 9 } base_path'
    )
    elsewhere = json.dumps({"base_path": "/etc"}).encode()
    with channels(server.target) as calls, connections(server) as rest:
        details = set()
        for channel in calls:
            with pytest.raises(grpc.RpcError) as caught:
                reload(channel, broken)
            details.add((caught.value.code(), caught.value.details()))
        assert len(details) == 1
        assert "not currently available for inference" in str(details)
        assert len({connection.ask("PUT", "/v1/models/other", elsewhere) for connection in rest}) == 1


def test_each_process_writes_request_logs_of_its_own(server: Server, folder: Path) -> None:
    with connections(server) as rest:
        for connection in rest:
            assert connection.predict()[0] == 200
    for pattern in ("requests-[0-9]*.jsonl", "requests-worker1-[0-9]*.jsonl"):

        def written(pattern: str = pattern) -> bool:
            return any('"model":"scale"' in file.read_text() for file in folder.glob(pattern))

        wait_until(written, f"{pattern} is written")


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    write_scale_model(tmp_path / "models" / "scale", 1, 2.0)
    return ["--model_name=scale", f"--model_base_path={tmp_path / 'models' / 'scale'}", "--workers=2"]


def test_a_stop_under_load_answers_everything_and_leaves_no_process(
    start_server: StartServer, flags: list[str]
) -> None:
    server = start_server(*flags)
    with under_load(server) as load:
        assert server.stop(signal.SIGTERM, timeout=60) == 0
    assert load.unanswered == []
    assert len(workers(server)) == 2
    assert not any(runs(pid) for pid in workers(server))
    assert "worker 1 ended" not in server.log.read_text()


def test_a_process_that_dies_is_replaced_and_none_outlives_the_main_process(
    start_server: StartServer, flags: list[str], tmp_path: Path
) -> None:
    server = start_server(*flags, "--enable_metrics", "--file_system_poll_wait_seconds=0.2")
    with connections(server) as rest:
        assert {connection.predict()[0] for connection in rest} == {200}
        write_scale_model(tmp_path / "models" / "scale", 2, 3.0)
        wait_until(lambda: all("3.0" in connection.predict()[1] for connection in rest), "version 2 serves")
        assert all(connection.predict()[0] == 200 for connection in rest for _ in range(20))
        counted = series(rest[0].ask("GET", METRICS)[1], ":tensorflow:serving:request_count", status="OK")
        first = worker(server, 1)
        subprocess.run(["kill", "-KILL", str(first)], check=True)
        for connection in rest:
            try:
                assert connection.predict()[0] == 200
            except (http.client.HTTPException, OSError):
                connection.close()
        with connections(server, 1) as (new,):
            assert new.predict()[0] == 200
    wait_until(lambda: len(workers(server)) == 3, "the process is replaced", 60)
    with connections(server) as rest:
        assert all("3.0" in connection.predict()[1] for connection in rest)
        page = rest[0].ask("GET", METRICS)[1]
        assert series(page, ":bookserve:connections", worker="1", api="rest") >= 1
        assert series(page, ":tensorflow:serving:request_count", status="OK") >= counted  # of the dead one, too
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(runs(pid) for pid in workers(server)), "no process is left")


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def is_worker(pid: int) -> bool:
    """Not the process that tries versions."""
    return b"worker_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_spare_process_takes_the_place_of_one_that_dies(start_server: StartServer, flags: list[str]) -> None:
    """Under load, again and again: it has imported everything before, so it answers within a second or two."""
    server = start_server(*flags)

    def spare() -> int | None:
        idle = [pid for pid in children(server.process.pid) - set(workers(server)) if is_worker(pid)]
        return idle[0] if idle else None

    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            with suppress(http.client.HTTPException, OSError), connections(server, 1) as (rest,):
                while not stop.is_set():
                    assert rest.predict()[0] == 200

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(keep_asking) for _ in range(2)]
        try:
            wait_until(lambda: len(workers(server)) == 2, "both serve; until then none is a spare", 60)
            for number in (0, 1):
                wait_until(lambda: spare() is not None, "there is a spare process", 30)
                ready, killed = spare(), worker(server, number)
                os.kill(killed, signal.SIGKILL)
                wait_until(lambda: worker(server, number) != killed, "another serves", 60)  # noqa: B023
                assert worker(server, number) == ready, server.log.read_text()
            wait_until(lambda: spare() is not None, "there is a spare process", 30)
            left = {*workers(server), spare() or 0}
        finally:
            stop.set()
        for asked in asking:
            asked.result()
    with connections(server) as rest:
        assert {connection.predict()[0] for connection in rest} == {200}
    assert server.stop(timeout=60) == 0
    assert not any(runs(pid) for pid in left)


def test_a_process_that_hangs_is_killed_and_replaced(start_server: StartServer, flags: list[str]) -> None:
    server = start_server(*flags, "--worker_timeout_seconds=3", "--enable_metrics")
    first = worker(server, 1)
    os.kill(first, signal.SIGSTOP)
    try:
        text = f"worker 1 (process {first}) has not answered for 3 seconds: it is killed"
        wait_until(lambda: text in server.log.read_text(), "its silence is noticed", 60)
        wait_until(lambda: not runs(first), "it is killed", 60)
    finally:
        if runs(first):
            os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(workers(server)) == 3, "it is replaced", 120)
    assert f"worker 1 (process {first}) ended with -9: it is replaced" in server.log.read_text()
    with connections(server) as rest:
        assert {connection.predict()[0] for connection in rest} == {200}
        page = rest[0].ask("GET", METRICS)[1]
        assert series(page, ":bookserve:connections", worker="1", api="rest") >= 1
    assert server.stop(timeout=60) == 0


def test_tls_works_in_every_process(start_server: StartServer, flags: list[str], tmp_path: Path) -> None:
    authority = Authority()
    config = authority.write_config(tmp_path / "ssl.pbtxt")
    trusting = ssl.create_default_context(cadata=authority.certificate.decode())
    server = start_server(
        *flags, "--enable_metrics", f"--ssl_config_file={config}", f"--rest_ssl_config_file={config}", wait=False
    )

    def up() -> bool:
        assert server.process.poll() is None, server.log.read_text()
        try:
            with connections(server, 1, trusting) as (rest,):
                return rest.ask("GET", "/readyz")[0] == 200
        except OSError:
            return False

    wait_until(up, "the server is ready", 120)
    credentials = grpc.ssl_channel_credentials(authority.certificate)
    with connections(server, 24, trusting) as rest, ExitStack() as stack:
        assert [connection.predict()[0] for connection in rest] == [200] * 24
        for _ in range(24):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = stack.enter_context(grpc.secure_channel(server.target, credentials, options))
            assert predict(channel, "scale") == (1, [2.0, 4.0, 6.0])
        page = rest[0].ask("GET", METRICS)[1]
    for worker in ("0", "1"):
        assert series(page, ":bookserve:connections", worker=worker, api="grpc") >= 2
        assert series(page, ":bookserve:connections", worker=worker, api="rest") >= 2
    assert server.stop() == 0


def write_lenet(base: Path) -> None:
    """A network of LeNet-5's size: `x` float32 [n, 1, 28, 28] -> `y` float32 [n, 10]."""
    random = np.random.default_rng(0)
    shapes = {"c1": (6, 1, 5, 5), "c2": (16, 6, 5, 5), "w1": (256, 120), "w2": (120, 84), "w3": (84, 10)}
    nodes = [
        helper.make_node("Conv", ["x", "c1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["h2"]),
        helper.make_node("MaxPool", ["h2"], ["h3"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["h3", "c2"], ["h4"]),
        helper.make_node("Relu", ["h4"], ["h5"]),
        helper.make_node("MaxPool", ["h5"], ["h6"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["h6"], ["h7"]),
        helper.make_node("MatMul", ["h7", "w1"], ["h8"]),
        helper.make_node("Relu", ["h8"], ["h9"]),
        helper.make_node("MatMul", ["h9", "w2"], ["h10"]),
        helper.make_node("Relu", ["h10"], ["h11"]),
        helper.make_node("MatMul", ["h11", "w3"], ["h12"]),
        helper.make_node("Softmax", ["h12"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "lenet",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(random.normal(0, 0.1, s).astype(np.float32), n) for n, s in shapes.items()],
    )
    write_graph(base, 1, graph)


def memory_mib(pids: Sequence[int]) -> float:
    """What the processes hold together; what they share counts once."""
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[0]) for rollup in rollups) / 1024


def processor_seconds(pids: Sequence[int]) -> float:
    """That the processes have used."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(user) + int(system) for user, system in (row[11:13] for row in fields)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("h2load") is None, reason="needs h2load (Debian: nghttp2-client)")
def test_rates_and_memory(start_server: StartServer, tmp_path: Path) -> None:
    """To be read: calls a second over 32 connections, their cost, and memory, with one process and with two."""
    write_scale_model(tmp_path / "models" / "scale", 1, 2.0)
    write_lenet(tmp_path / "models" / "lenet")
    inputs = {"scale": np.ones((1, 3), np.float32), "lenet": np.ones((1, 1, 28, 28), np.float32)}
    for name, array in inputs.items():
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(array))
        message = request.SerializeToString()
        (tmp_path / name).write_bytes(struct.pack(">BL", 0, len(message)) + message)
    for count in (1, 2, 1, 2):
        server = start_server(f"--model_root={tmp_path / 'models'}", f"--workers={count}")
        pids = [server.process.pid, *workers(server)]
        rates = []
        for name in inputs:
            used = processor_seconds(pids)
            arguments = ["-n60000", "-c32", "-t1", "-d", str(tmp_path / name), "-H", "te: trailers"]
            url = f"http://{server.target}/tensorflow.serving.PredictionService/Predict"
            command = ["h2load", *arguments, "-H", "content-type: application/grpc", url]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert "60000 succeeded, 0 failed" in output
            rate = re.findall(r"([\d.]+) req/s", output)[0]
            micros = (processor_seconds(pids) - used) / 60_000 * 1e6
            rates.append(f"{name} {float(rate):.0f} calls/s at {micros:.0f} us of a core each")
        print(f"workers {count}: {', '.join(rates)}, {memory_mib(pids):.0f} MiB")  # noqa: T201
        assert server.stop() == 0


class FakeChannel:
    """To a worker that loads, or does not."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault = fault
        self.asked: list[tuple[Any, ...]] = []
        self.told: list[str] = []

    def ask(self, name: str, *arguments: Any) -> "asyncio.Future[None]":
        self.asked.append((name, *arguments))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if name == "load" and self.fault is not None:
            future.set_exception(self.fault)
        else:
            future.set_result(None)
        return future

    def tell(self, name: str, *_: Any) -> None:
        self.told.append(name)


def test_what_one_process_cannot_load_is_unloaded_in_all(tmp_path: Path) -> None:
    async def load() -> None:
        unused: Any = None
        pool = Pool(Flags(), 3, unused)
        fine, broken, gone = FakeChannel(), FakeChannel(failed_precondition("not here")), FakeChannel(ConnectionError())
        for number, channel in enumerate((fine, broken, gone)):
            pool._workers.append(_Worker(number, unused, channel))  # type: ignore[arg-type]
        with pytest.raises(ServingError, match="not here"):
            await pool.load("scale", 1, tmp_path)
        for channel in (fine, broken, gone):
            assert channel.asked == [("load", 1, "scale", 1, tmp_path), ("unload", 1)]
        pool._workers.pop(1)
        assert (await pool.load("scale", 2, tmp_path)).key == 2  # one that is gone has nothing to say

    asyncio.run(load())


@pytest.mark.parametrize(
    ("flags_", "message"),
    [
        (Flags(workers=2, lazy_loading=True), "--workers=2 and --lazy_loading exclude each other"),
        (Flags(workers=-1), "--workers=-1: give the number of processes"),
    ],
)
def test_what_cannot_be_is_refused(flags_: Flags, message: str) -> None:
    with pytest.raises(ServingError, match=message):
        worker_count(flags_)
