"""What a client meets around every request: request ids, pages of other origins, time-outs, and readiness."""

import asyncio
import http.client
import json
import os
import re
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from bookserve.serving.server.api.rest_api import RestApi
from bookserve.serving.server.models.config import ModelSetting
from bookserve.serving.server.models.loader import InProcessLoader, LoadOptions
from bookserve.serving.server.models.manager import ManagerOptions, ModelManager
from bookserve.serving.server.models.servable import Servable
from bookserve.serving.server.observability.metrics import Metrics
from bookserve.serving.server.transport.http_exchange import HttpExchange
from model_servers import Server, StartServer, answers, server_starter, wait_until, write_graph, write_scale_model


def write_slow_model(base: Path) -> None:
    """`turns` int64 [1] -> `result` float32 [1], after so many turns of a loop: as slow as the request asks."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
            helper.make_node("Sin", ["value"], ["value_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value_out", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["turns"], ["count"]),
            helper.make_node("Loop", ["count", "", "start"], ["result"], body=body),
        ],
        "slow",
        [helper.make_tensor_value_info("turns", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.ones(1, np.float32), "start")],
    )
    write_graph(base, 1, graph)


def fetch(
    server: Server, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def predict(server: Server, *, name: str = "scale", request_id: str | None = None) -> dict[str, Any]:
    """The trailing metadata of one call."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones((1, 3), np.float32)))
    metadata = (("x-request-id", request_id),) if request_id is not None else ()
    with grpc.insecure_channel(server.target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            trailers = stub.Predict.with_call(request, timeout=20, metadata=metadata)[1].trailing_metadata()
        except grpc.RpcError as error:
            trailers = error.trailing_metadata()  # type: ignore[attr-defined]
    return dict(trailers)


BODY = {"instances": [[1, 2, 3]]}
PREDICT = "/v1/models/scale:predict"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("observer")
    write_scale_model(folder / "scale", 1, 2.0)
    write_slow_model(folder / "slow")
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Server]:
    """Without any flag."""
    with server_starter(folder) as start:
        yield start("--model_name=scale", f"--model_base_path={folder / 'scale'}")


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With request lines, metrics, CORS and a short time-out."""
    with server_starter(tmp_path_factory.mktemp("logs")) as start:
        yield start(
            *(f"--model_root={folder}", "--log_requests=errors", "--enable_metrics"),
            *("--rest_api_enable_cors_support", "--rest_api_timeout_in_ms=300"),
        )


# Request ids


def test_the_clients_id_comes_back(plain: Server, server: Server) -> None:
    for asked in (plain, server):
        assert fetch(asked, PREDICT, BODY, {"X-Request-ID": "a-1/b:2"})[1]["x-request-id"] == "a-1/b:2"
        assert fetch(asked, "/v1/models/foo:predict", BODY, {"X-Request-ID": "a-2"})[1]["x-request-id"] == "a-2"
        assert predict(asked, request_id="a-3")["x-request-id"] == "a-3"
        assert predict(asked, name="foo", request_id="a-4")["x-request-id"] == "a-4"


def test_without_one_an_id_is_made_where_requests_are_logged(plain: Server, server: Server) -> None:
    assert fetch(plain, PREDICT, BODY)[1]["x-request-id"] is None
    assert "x-request-id" not in predict(plain)
    made = {fetch(server, PREDICT, BODY)[1]["x-request-id"] for _ in range(3)}
    made |= {predict(server)["x-request-id"] for _ in range(3)}
    assert len(made) == 6
    assert all(re.fullmatch("[0-9a-f]{16}-[0-9a-f]+", text) for text in made)


@pytest.mark.parametrize("given", ["with space", "x" * 129, "<script>", 'quo"te', "semi;colon"])
def test_an_id_that_is_none_is_not_taken_over(plain: Server, server: Server, given: str) -> None:
    assert fetch(plain, PREDICT, BODY, {"X-Request-ID": given})[1]["x-request-id"] is None
    assert re.fullmatch("[0-9a-f-]+", fetch(server, PREDICT, BODY, {"X-Request-ID": given})[1]["x-request-id"])
    assert re.fullmatch("[0-9a-f-]+", predict(server, request_id=given)["x-request-id"])


def test_an_id_travels_with_an_answer_in_many_frames(plain: Server) -> None:
    """An answer larger than the client's window gets its trailers on another way."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "scale"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones((100_000, 3), np.float32)))
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(plain.target, options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        _, call = stub.Predict.with_call(request, timeout=60, metadata=(("x-request-id", "large-1"),))
    assert dict(call.trailing_metadata())["x-request-id"] == "large-1"


# Pages of other origins (CORS)

CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


def test_with_the_flag_every_answer_under_v1_lets_pages_of_other_origins_read_it(server: Server) -> None:
    for path, body, status in (
        (PREDICT, BODY, 200),
        ("/v1/models/foo:predict", BODY, 404),
        ("/v1/models/scale", None, 200),
        ("/V1/models/scale/metadata", None, 200),
        ("/v1/models/scale:foo", BODY, 400),
    ):
        given, headers, _ = fetch(server, path, body)
        assert given == status
        assert {name: headers[name] for name in CORS} == CORS
    for path in ("/healthz", "/nothing"):
        assert fetch(server, path)[1]["Access-Control-Allow-Origin"] is None


def test_without_the_flag_none_does(plain: Server) -> None:
    for path, body in ((PREDICT, BODY), ("/v1/models/scale", None)):
        assert fetch(plain, path, body)[1]["Access-Control-Allow-Origin"] is None


def test_preflight(plain: Server, server: Server) -> None:
    """OPTIONS is answered with and without the flag, as TensorFlow Serving does; without, no page gets leave."""
    for origin, status in (("http://example.com", 200), ("https://example.com", 200), ("null", 400), (None, 400)):
        headers = {"Origin": origin} if origin else {}
        for asked, leave in ((plain, None), (server, "*")):
            given, answer, body = fetch(asked, PREDICT, None, headers, "OPTIONS")
            assert (given, body, answer["Access-Control-Allow-Origin"]) == (status, b"", leave)


# Time-outs


def page(server: Server) -> str:
    """The metrics; on a busy machine the short time-out of this server is over before it has written them."""
    while (answer := fetch(server, "/monitoring/prometheus/metrics"))[0] == 504:
        pass
    assert answer[0] == 200, answer
    return answer[2].decode()


def metric(server: Server, name: str) -> float:
    return float(page(server).split(f"\n{name} ")[1].split("\n")[0])


def test_a_rest_request_that_takes_too_long_is_answered_and_its_like_in_the_queue_never_run(server: Server) -> None:
    runs = metric(server, ":tensorflow:serving:batching_session:wrapped_run_count{}")
    slow, in_flight = "/v1/models/slow:predict", ':bookserve:requests_in_flight{model_name="slow",version="1"}'
    answered: list[tuple[int, bytes]] = []

    def ask() -> None:
        status, _, body = fetch(server, slow, {"inputs": [1_500_000]})
        answered.append((status, body))

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1  # as the server counts
    threads = [threading.Thread(target=ask) for _ in range(cores + 1)]
    for number, thread in enumerate(threads):  # one runs on every core, and one waits
        thread.start()
        wait_until(lambda number=number: metric(server, in_flight) == number + 1, "the request is there")  # type: ignore[misc]
    for thread in threads:
        thread.join(60)
    assert answered == [(504, b'{\n    "error": "Timed out waiting for notification"\n}')] * len(threads)
    wait_until(lambda: metric(server, in_flight) == 0, "the runs are over", seconds=120)
    assert fetch(server, slow, {"inputs": [1]})[0] == 200
    assert metric(server, ":tensorflow:serving:batching_session:wrapped_run_count{}") == runs + cores + 1
    expired = ':tensorflow:serving:request_count{model_name="slow",status="DEADLINE_EXCEEDED"}'
    assert metric(server, expired) == len(threads)


def test_a_client_that_goes_away_is_counted_once_as_cancelled(server: Server) -> None:
    cancelled = ':tensorflow:serving:request_count{model_name="slow",status="CANCELLED"}'
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "slow"
    request.inputs["turns"].CopyFrom(tf.make_tensor_proto(np.array([5_000_000])))
    with grpc.insecure_channel(server.target) as channel:
        call = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict.future(request, timeout=60)
        in_flight = ':bookserve:requests_in_flight{model_name="slow",version="1"}'
        wait_until(lambda: metric(server, in_flight) >= 1, "the call has arrived")
        call.cancel()
        wait_until(lambda: f"\n{cancelled} 1\n" in page(server), "the cancelled call is counted")


# Readiness


def test_no_port_is_open_before_the_models_are_loaded(start_server: StartServer, folder: Path) -> None:
    server = start_server("--model_name=scale", f"--model_base_path={folder / 'scale'}", wait=False)
    seen: list[int] = []

    def answered() -> bool:
        assert server.process.poll() is None, server.log.read_text()
        try:
            seen.append(fetch(server, "/readyz")[0])
        except OSError:
            return False
        return True

    wait_until(answered, "the port is open", seconds=120)
    assert seen == [200]
    assert fetch(server, PREDICT, BODY)[0] == 200


def test_readiness_turns_off_first_when_the_server_drains(start_server: StartServer, folder: Path) -> None:
    server = start_server(
        "--model_name=scale", f"--model_base_path={folder / 'scale'}", "--drain_seconds=60", "--drain_quiet_seconds=3"
    )
    assert fetch(server, "/readyz")[::2] == (200, b"ready\n")
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: fetch(server, "/readyz")[::2] == (503, b"draining\n"), "readiness is off")
    assert answers(f"{server.url}/healthz")
    status, headers, _ = fetch(server, PREDICT, BODY)
    assert (status, headers["Connection"]) == (200, "close")
    assert server.process.wait(60) == 0


def test_readiness_waits_for_a_version_that_is_being_loaded(tmp_path: Path) -> None:
    """In process, with a load that is held up."""
    write_scale_model(tmp_path / "scale", 1, 2.0)

    class HeldUp(InProcessLoader):
        async def load(self, name: str, version: int, path: Path) -> Servable:
            await go_on.wait()
            return await super().load(name, version, path)

    go_on = asyncio.Event()

    async def run() -> None:
        manager = ModelManager(HeldUp(LoadOptions(), Metrics(enabled=False)), ManagerOptions())
        unused: Any = None
        api = RestApi(manager, unused, unused, unused)

        def readiness() -> tuple[int, bytes]:
            scope: Any = SimpleNamespace(method="GET", path="/readyz", headers={})
            exchange = HttpExchange(scope, unused)
            api.handle(exchange)
            assert exchange.answer is not None
            return exchange.answer[0], exchange.answer[2]

        new = await manager.apply([ModelSetting("scale", tmp_path / "scale")])
        assert readiness() == (503, b"loading\n")
        go_on.set()
        assert await manager.until_tried(new) == []
        assert readiness() == (200, b"ready\n")
        await manager.close()

    asyncio.run(run())
