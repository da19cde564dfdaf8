import json
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import pytest

from bookserve.serving.wire import tensors
from bookserve.serving.wire.tensorflow_pb2 import DT_FLOAT, DT_INT64, DT_STRING, DT_UINT8
from bookserve.serving.wire.tensorflow_serving_pb2 import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    GetModelStatusRequest,
    GetModelStatusResponse,
    ModelVersionStatus,
    PredictRequest,
    PredictResponse,
    SignatureDefMap,
)
from gateway_servers import Servers, start_gateway
from model_servers import server_starter, write_scale_model


@dataclass
class Fake:
    """A model server on loopback with one model, `mnist`: the class of a picture is its mean grey level, modulo 10."""

    target: str = ""
    versions: tuple[int, ...] = (2, 3)
    labels: dict[str, int] = field(default_factory=lambda: {"stable": 2})
    delay: float = 0.0  # seconds a Predict takes
    fail: grpc.StatusCode | None = None
    failures: int = 1_000  # how many of the first requests fail so
    received: list[PredictRequest] = field(default_factory=list)

    def version(self, spec: Any, context: grpc.ServicerContext) -> int:
        if spec.name != "mnist":
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({spec.name})")
        if spec.version_label:
            if spec.version_label not in self.labels:
                text = f"Unrecognized servable version label: {spec.version_label}"
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
            return self.labels[spec.version_label]
        if spec.HasField("version"):
            if spec.version.value not in self.versions:
                text = f"Servable not found for request: Specific(mnist, {spec.version.value})"
                context.abort(grpc.StatusCode.NOT_FOUND, text)
            return int(spec.version.value)
        return max(self.versions)

    def predict(self, request: PredictRequest, context: grpc.ServicerContext) -> PredictResponse:
        self.received.append(request)
        version = self.version(request.model_spec, context)
        if self.fail is not None and len(self.received) <= self.failures:
            context.abort(self.fail, "asked to fail")
        if "images" not in request.inputs:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "input size does not match signature")
        time.sleep(self.delay)
        images = tensors.to_array(request.inputs["images"])
        classes = (images.mean(axis=(1, 2)).astype(np.int64)) % 10
        response = PredictResponse()
        response.model_spec.name = "mnist"
        response.model_spec.version.value = version
        probabilities = np.eye(10, dtype=np.float32)[classes]
        response.outputs["probabilities"].CopyFrom(tensors.to_proto(probabilities, as_content=False))
        response.outputs["classes"].CopyFrom(tensors.to_proto(classes, as_content=False))
        return response

    def metadata(self, request: GetModelMetadataRequest, context: grpc.ServicerContext) -> GetModelMetadataResponse:
        response = GetModelMetadataResponse()
        response.model_spec.name = "mnist"
        response.model_spec.version.value = self.version(request.model_spec, context)
        definitions = SignatureDefMap()
        signature = definitions.signature_def["serving_default"]
        for side, name, dtype, shape in (
            (signature.inputs, "images", DT_UINT8, (-1, 28, 28)),
            (signature.outputs, "probabilities", DT_FLOAT, (-1, 10)),
            (signature.outputs, "classes", DT_INT64, (-1,)),
        ):
            side[name].dtype = dtype
            for size in shape:
                side[name].tensor_shape.dim.add().size = size
        text = definitions.signature_def["text"]
        text.inputs["s"].dtype = DT_STRING
        text.inputs["s"].tensor_shape.unknown_rank = True
        response.metadata["signature_def"].Pack(definitions)
        return response

    def status(self, request: GetModelStatusRequest, context: grpc.ServicerContext) -> GetModelStatusResponse:
        self.version(request.model_spec, context)
        response = GetModelStatusResponse()
        for version in self.versions:
            response.model_version_status.add(version=version, state=ModelVersionStatus.AVAILABLE)
        response.model_version_status.add(version=1, state=ModelVersionStatus.END).status.error_message = "disk full"
        return response


def _unary(method: Any, request: Any, response: Any) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(method, request.FromString, response.SerializeToString)


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
    prediction = {
        "Predict": _unary(fake.predict, PredictRequest, PredictResponse),
        "GetModelMetadata": _unary(fake.metadata, GetModelMetadataRequest, GetModelMetadataResponse),
    }
    model = {"GetModelStatus": _unary(fake.status, GetModelStatusRequest, GetModelStatusResponse)}
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", prediction),
            grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", model),
        ]
    )
    fake.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield fake
    server.stop(None).wait()


@dataclass
class HttpFake:
    """A web server on loopback that gives prepared answers: (method, path) -> (status, body)."""

    url: str = ""
    answers: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    received: list[tuple[str, str, str, bytes]] = field(default_factory=list)  # method, path, content type, body

    def answer(self, method: str, path: str, content: object, status: int = 200) -> None:
        self.answers[method, path] = (status, content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.fixture
def http_fake() -> Iterator[HttpFake]:
    fake = HttpFake()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            fake.received.append((self.command, self.path, self.headers.get("Content-Type", ""), body))
            status, content = fake.answers.get((self.command, self.path), (404, b'{"error": "no such path"}'))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    for version, factor in ((1, 2.0), (2, 3.0)):
        write_scale_model(folder / "models" / "scale", version, factor)
    write_scale_model(folder / "models" / "wide", 1, 1.0, width=None)
    policy = "model_platform: 'tensorflow' model_version_policy { all {} }"
    configs = [
        f"config {{ name: '{name}' base_path: '{folder}/models/{name}' {policy} }}" for name in ("scale", "wide")
    ]
    config = folder / "models.config"
    config.write_text(f"model_config_list {{ {' '.join(configs)} }}")
    with server_starter(folder) as start:
        server = start(f"--model_config_file={config}")
        options = [f"--models-dir={folder / 'models'}", f"--model-server={server.target}"]
        gateway = start_gateway(folder / "gateway.log", *options, host="127.0.0.1")
        try:
            yield Servers(server, gateway.url, folder / "models")
        finally:
            gateway.process.kill()
            gateway.process.wait()
            assert gateway.process.stdout is not None
            gateway.process.stdout.close()
