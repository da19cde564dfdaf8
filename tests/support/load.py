"""Clients that ask a model server in every way at once, until it refuses connections, and count what went wrong."""

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np

from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import to_proto
from model_servers import Server, wait_until

REST_PATH = "/v1/models/scale:predict"
REST_BODY = json.dumps({"instances": [[1, 2, 3]]}).encode()


def predict_request() -> bytes:
    """A PredictRequest for the model `scale`."""
    request = messages.PredictRequest()
    request.model_spec.name = "scale"
    request.inputs["x"].CopyFrom(to_proto(np.array([[1, 2, 3]], np.float32)))
    return request.SerializeToString()


class Load:
    """REST on kept-alive and on new connections, and gRPC by the official client."""

    def __init__(self, server: Server) -> None:
        self.answered = {"kept": 0, "new": 0, "grpc": 0}
        self.unanswered: list[str] = []  # requests that were sent to an open connection
        self._server = server
        self._request = predict_request()

    def ask_kept_alive(self) -> None:
        while (connection := self._connect()) is not None:
            closing = False
            while not closing:
                response = self._post(connection, "kept", {})
                if response is None:
                    return
                closing = response.will_close
            connection.close()

    def ask_new(self) -> None:
        while (connection := self._connect()) is not None:
            if self._post(connection, "new", {"Connection": "close"}) is None:
                return
            connection.close()
            time.sleep(0.05)

    def ask_grpc(self) -> None:
        with grpc.insecure_channel(self._server.target) as channel:
            call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            while True:
                try:
                    call(self._request, timeout=60)
                    self.answered["grpc"] += 1
                except grpc.RpcError as error:
                    if "failed to connect" not in str(error.details()):
                        self.unanswered.append(f"grpc: {error.code()} {error.details()}")
                    return

    def _connect(self) -> http.client.HTTPConnection | None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.rest_port, timeout=60)
        try:
            connection.connect()
        except ConnectionRefusedError:
            return None
        return connection

    def _post(
        self, connection: http.client.HTTPConnection, way: str, headers: dict[str, str]
    ) -> http.client.HTTPResponse | None:
        try:
            connection.request("POST", REST_PATH, REST_BODY, headers)
            response = connection.getresponse()
            response.read()
        except (http.client.HTTPException, OSError) as error:
            self.unanswered.append(f"{way}: {error!r}")
            return None
        if response.status != 200:
            self.unanswered.append(f"{way}: {response.status}")
        self.answered[way] += 1
        return response


@contextmanager
def under_load(server: Server) -> Iterator[Load]:
    """Five clients ask while the block runs, in which the server must be stopped."""
    load = Load(server)
    with ThreadPoolExecutor() as pool:
        asking = [
            pool.submit(ask)
            for ask in (load.ask_kept_alive, load.ask_kept_alive, load.ask_new, load.ask_grpc, load.ask_grpc)
        ]
        wait_until(lambda: min(load.answered.values()) > 5, "every way of asking works", seconds=60)
        yield load
        for asked in asking:
            asked.result()
