"""Clients that ask all the time, one request after the other and with no retry of their own, and what they got."""

import http.client
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import numpy as np

from bookserve.serving.wire import tensors
from bookserve.serving.wire.tensorflow_serving_pb2 import PredictResponse
from load import REST_BODY, REST_PATH, predict_request
from model_servers import wait_until

_AGAIN_SECONDS = 0.05  # after a failure
PREDICT = "/tensorflow.serving.PredictionService/Predict"


@dataclass(frozen=True)
class Question:
    """What is asked over both protocols, and which answers are right."""

    grpc: bytes
    path: str
    body: bytes
    grpc_is_right: Callable[[PredictResponse], bool]
    rest_is_right: Callable[[dict[str, Any]], bool]


def _scaled(response: PredictResponse) -> bool:
    rows = tensors.to_array(response.outputs["y"])
    return np.array_equal(rows, response.model_spec.version.value * np.float32([[1, 2, 3]]))


# Of the model `scale`, whose version N multiplies by N.
SCALE = Question(
    predict_request(),
    REST_PATH,
    REST_BODY,
    _scaled,
    lambda answer: answer["predictions"][0] in ([1, 2, 3], [2, 4, 6]),
)


class Clients:
    """Three threads ask over gRPC, each on a connection of its own, and two over REST; `failed` says what did."""

    def __init__(self, grpc_target: str, rest_port: int, question: Question = SCALE, *, again: bool = False) -> None:
        """With `again` a connection that breaks is no failure, and what was asked is asked once more."""
        self.broken: list[str] = []
        self._again = again
        self.answered: Counter[str] = Counter()
        self.versions: Counter[int] = Counter()
        self.failed: list[str] = []
        self._grpc_target = grpc_target
        self._rest_port = rest_port
        self._question = question
        self._stop = threading.Event()
        ways = (self._ask_grpc, self._ask_grpc, self._ask_grpc, self._ask_rest, self._ask_rest)
        self._threads = [threading.Thread(target=way) for way in ways]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __str__(self) -> str:
        return f"{self.answered['grpc']} gRPC, {self.answered['rest']} REST, {len(self.failed)} failed"

    def go_on(self, times: int = 100) -> None:
        """Waits for so many more answers each way."""
        before = self.answered.copy()
        for way in ("grpc", "rest"):
            wait_until(partial(self._has_answered, way, before[way] + times), f"answers over {way}", seconds=60)

    def _has_answered(self, way: str, times: int) -> bool:
        return self.answered[way] >= times

    def _breaks(self, what: str) -> None:
        """Each client may have one request under way when a server dies, and no more."""
        way = what.split(maxsplit=1)[0]
        used = sum(one.startswith(way) for one in self.broken)
        most = {"gRPC": 3, "REST": 2}[way]
        (self.broken if self._again and used < most else self.failed).append(what)

    def _ask_grpc(self) -> None:
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._grpc_target, options) as channel:
            call = channel.unary_unary(PREDICT, response_deserializer=PredictResponse.FromString)
            while not self._stop.is_set():
                try:
                    response = call(self._question.grpc, timeout=20)
                except grpc.RpcError as error:
                    self._breaks(f"gRPC {error.code()} {error.details()}")
                    self._stop.wait(_AGAIN_SECONDS)
                    continue
                if not self._question.grpc_is_right(response):
                    self.failed.append(f"gRPC answered {response}")
                self.versions[response.model_spec.version.value] += 1
                self.answered["grpc"] += 1

    def _ask_rest(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._rest_port, timeout=20)
        while not self._stop.is_set():
            try:
                connection.request("POST", self._question.path, self._question.body)
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                self._breaks(f"REST {error!r}")
                connection.close()
                self._stop.wait(_AGAIN_SECONDS)
                continue
            if response.status != 200 or not self._question.rest_is_right(json.loads(body)):
                self.failed.append(f"REST {response.status} {body[:200]!r}")
            self.answered["rest"] += 1
        connection.close()


def has_healthy(proxy: Any, servers: str, count: int) -> bool:
    """Whether a proxy asks so many of those that it calls `servers`: Envoy's cluster, HAProxy's backend."""
    return len(proxy.healthy(servers)) == count


def report(text: str, clients: Clients) -> None:
    """Shown with `pytest -s`."""
    print(f"\n{text}: {clients}")  # noqa: T201
