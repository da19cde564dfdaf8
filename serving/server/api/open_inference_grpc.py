"""The Open Inference Protocol's gRPC service, `inference.GRPCInferenceService`, over the inference core.

As in Triton, a request carries its tensors as raw bytes or as typed contents, one of the two for all of them; it is
answered in the form that it used, but FP16 and BF16, which have no typed contents, turn an answer into raw bytes.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import Message

from bookserve.serving.server.api import open_inference
from bookserve.serving.server.api.admin import Access, Admin
from bookserve.serving.server.api.grpc_handlers import Coroutines, answer_with, fail, parse, unary
from bookserve.serving.server.inference import requests
from bookserve.serving.server.inference.requests import Prediction
from bookserve.serving.server.models.catalog import Catalog
from bookserve.serving.server.observability import metrics
from bookserve.serving.server.observability.metrics import Snapshot
from bookserve.serving.server.transport.grpc_call import GrpcCall, Handler
from bookserve.serving.server.types.errors import ServingError, invalid_argument
from bookserve.serving.server.types.signatures import find_signature
from bookserve.serving.wire import open_inference_pb2 as messages
from bookserve.serving.wire.tensors import MAX_RANK, Array, element_of


def handlers(
    catalog: Catalog,
    ready: Callable[[], bool],
    snapshots: Callable[[], Awaitable[list[Snapshot]]],
    admin: Admin,
    access: Access,
) -> dict[bytes, Handler]:
    """The handler of each method path.

    `ready` tells whether the server should be asked, `snapshots` are the metrics of all processes.
    """

    async def statistics(request: messages.ModelStatisticsRequest) -> Message:
        versions = open_inference.loaded_versions(catalog, request.name, request.version)
        counts = metrics.merged(await snapshots())
        return messages.ModelStatisticsResponse(model_stats=open_inference.statistics(versions, counts))

    async def load(request: messages.RepositoryModelLoadRequest) -> Message:
        open_inference.check_repository_request(request.repository_name, request.parameters)
        await admin.load(request.model_name)
        return messages.RepositoryModelLoadResponse()

    async def unload(request: messages.RepositoryModelUnloadRequest) -> Message:
        open_inference.check_repository_request(request.repository_name, request.parameters)
        await admin.remove(request.model_name)
        return messages.RepositoryModelUnloadResponse()

    guarded = Coroutines(access)
    service: dict[str, Handler] = {
        "ServerLive": unary(messages.ServerLiveRequest, lambda _: messages.ServerLiveResponse(live=True)),
        "ServerReady": unary(messages.ServerReadyRequest, lambda _: messages.ServerReadyResponse(ready=ready())),
        "ServerMetadata": unary(
            messages.ServerMetadataRequest,
            lambda _: messages.ServerMetadataResponse(**open_inference.server_metadata()),
        ),
        "ModelReady": unary(
            messages.ModelReadyRequest,
            lambda request: messages.ModelReadyResponse(
                ready=open_inference.model_ready(catalog, request.name, request.version)
            ),
        ),
        "ModelMetadata": unary(
            messages.ModelMetadataRequest,
            lambda request: messages.ModelMetadataResponse(
                **open_inference.model_metadata(catalog, request.name, request.version)
            ),
        ),
        "ModelInfer": _infer(catalog),
        "RepositoryIndex": unary(
            messages.RepositoryIndexRequest,
            lambda request: messages.RepositoryIndexResponse(
                models=open_inference.repository_index(catalog, request.repository_name, only_ready=request.ready)
            ),
        ),
        "RepositoryModelLoad": guarded.unary(messages.RepositoryModelLoadRequest, load),
        "RepositoryModelUnload": guarded.unary(messages.RepositoryModelUnloadRequest, unload),
        "ModelStatistics": Coroutines().unary(messages.ModelStatisticsRequest, statistics),
    }
    return {f"/inference.GRPCInferenceService/{method}".encode(): handler for method, handler in service.items()}


def _infer(catalog: Catalog) -> Handler:
    def handle(call: GrpcCall, data: bytes) -> None:
        try:
            request = parse(messages.ModelInferRequest, data)
            servable = open_inference.find(catalog, request.model_name, request.model_version, call)
            signature = find_signature(servable.engine.signatures, _signature_name(request))
            raw = request.raw_input_contents
            if raw and len(raw) != len(request.inputs):
                raise invalid_argument(
                    f"the request has {len(request.inputs)} inputs and {len(raw)} raw_input_contents: with raw contents"
                    " for one input there must be some for each"
                )
            inputs: dict[str, Array] = {}
            for number, tensor in enumerate(request.inputs):
                name = tensor.name
                dtype = open_inference.input_type(signature, name, tensor.datatype, servable.pictures)
                if name in inputs:
                    raise invalid_argument(f"input '{name}' comes twice")
                if tensor.parameters:
                    open_inference.refuse_unsupported(f"input '{name}'", tensor.parameters)
                shape = tensor.shape[: MAX_RANK + 1]  # one too many is refused as well as millions
                if not raw:
                    inputs[name] = _from_contents(tensor, dtype, shape)
                elif tensor.HasField("contents"):
                    raise invalid_argument(f"input '{name}' has contents, which raw_input_contents exclude")
                else:
                    inputs[name] = open_inference.from_raw(name, dtype, shape, raw[number])
            outputs = []
            for output in request.outputs:
                if output.parameters:
                    open_inference.refuse_unsupported(f"output '{output.name}'", output.parameters)
                outputs.append(output.name)
            done = answer_with(call, _encoder(request.id, outputs, bool(raw)))
            requests.predict(servable, signature, inputs, outputs, call, done)
        except ServingError as error:
            fail(call, error)

    return handle


def _signature_name(request: messages.ModelInferRequest) -> str:
    parameters: Mapping[str, messages.InferParameter] = request.parameters
    if not parameters or "signature_name" not in parameters:
        return ""
    parameter = parameters["signature_name"]
    if parameter.WhichOneof("parameter_choice") != "string_param":
        raise invalid_argument("parameter 'signature_name' must be a string")
    return parameter.string_param


def _from_contents(
    tensor: messages.ModelInferRequest.InferInputTensor, dtype: np.dtype[Any], shape: Sequence[int]
) -> Array:
    """The tensor in the typed contents. Raises ServingError (INVALID_ARGUMENT) when they do not fit type and shape."""
    name, datatype = tensor.name, tensor.datatype
    count = open_inference.count_elements(name, shape)
    field = element_of(dtype).contents
    if not field:
        raise invalid_argument(f"input '{name}': {datatype} has no typed contents, send it in raw_input_contents")
    values = getattr(tensor.contents, field)
    if len(values) != count:
        raise invalid_argument(f"input '{name}' of shape {shape} needs {count} {field}, the request has {len(values)}")
    if dtype.kind == "O":
        array = np.empty(count, dtype=np.object_)
        array[:] = list(values)
        return array.reshape(shape)
    if dtype.itemsize > 2 or dtype.kind == "b":
        return np.array(values, dtype=dtype).reshape(shape)
    wide = np.array(values, dtype=np.int64)
    limits = np.iinfo(dtype)
    if count and not (limits.min <= wide.min() and wide.max() <= limits.max):
        raise invalid_argument(f"input '{name}': a value is outside the range of {datatype}")
    return wide.astype(dtype).reshape(shape)


def _encoder(request_id: str, outputs: Sequence[str], raw: bool) -> Callable[[Prediction], bytes]:
    return lambda prediction: _encode(prediction, request_id, outputs, raw)


def _encode(prediction: Prediction, request_id: str, outputs: Sequence[str], raw: bool) -> bytes:
    response = messages.ModelInferResponse()
    response.model_name = prediction.model
    response.model_version = str(prediction.version)
    response.id = request_id
    raw = raw or not all(element_of(array.dtype).contents for array in prediction.outputs.values())
    for name in outputs or prediction.outputs:
        array = prediction.outputs[name]
        output = response.outputs.add()
        output.name = name
        output.datatype = open_inference.datatype_of(name, array)
        output.shape.extend(array.shape)
        if raw:
            response.raw_output_contents.append(open_inference.to_raw(array))
        else:
            getattr(output.contents, element_of(array.dtype).contents).extend(array.ravel().tolist())
    return response.SerializeToString()
