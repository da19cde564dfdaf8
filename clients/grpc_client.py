"""Asks a model server over gRPC: ours, or TensorFlow Serving. Blocking (`GrpcClient`) and asyncio (`AsyncGrpcClient`).

Calls go by their raw method paths with the messages of `serving.wire`, so neither TensorFlow nor generated stubs are
needed. Every call has a deadline. Both clients may be shared by threads (tasks) and are meant to be kept: a channel
carries any number of calls and reconnects by itself. Where a target has several addresses, the calls go to all of them
in turns.

What was refused with UNAVAILABLE is sent again within the deadline. The channel does that, not this file: it asks the
next address of several, heeds what a server says of when, and stops while most calls fail.
"""

import ipaddress
import json
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import ArrayLike

from bookserve.clients import errors, typed_inputs
from bookserve.clients.answers import Array, ModelMetadata, Prediction, Signature, TensorInfo, VersionStatus
from bookserve.clients.retries import AGAIN, Retry
from bookserve.serving.wire import tensors
from bookserve.serving.wire.open_inference_pb2 import RepositoryIndexRequest, RepositoryIndexResponse
from bookserve.serving.wire.tensorflow_pb2 import SignatureDef
from bookserve.serving.wire.tensorflow_pb2 import TensorInfo as WireTensorInfo
from bookserve.serving.wire.tensorflow_serving_pb2 import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    GetModelStatusRequest,
    GetModelStatusResponse,
    ModelSpec,
    ModelVersionStatus,
    PredictRequest,
    PredictResponse,
    SignatureDefMap,
)

DEFAULT_TARGET = "127.0.0.1:8500"
DEFAULT_SIGNATURE = "serving_default"
DEFAULT_TIMEOUT = 10.0  # seconds

PREDICT = "/tensorflow.serving.PredictionService/Predict"
_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_INDEX = "/inference.GRPCInferenceService/RepositoryIndex"

_MOST_ATTEMPTS = 5  # gRPC's own limit


def _service_config(retry: Retry) -> str:
    """How calls are made on a channel, as gRPC's JSON.

    A target that stands for several addresses, such as the name of a headless Service, gets the calls in turns. What
    fails with UNAVAILABLE is sent again, as Predict changes nothing; not RESOURCE_EXHAUSTED, for a full server.
    """
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retry.attempts > 1:
        policy = {
            "maxAttempts": min(retry.attempts, _MOST_ATTEMPTS),
            "initialBackoff": f"{retry.first:.9f}s",
            "maxBackoff": f"{retry.longest:.9f}s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        names = [
            {"service": "tensorflow.serving.PredictionService"},
            {"service": "tensorflow.serving.ModelService", "method": "GetModelStatus"},
        ]
        config["methodConfig"] = [{"name": names, "retryPolicy": policy}]
        # While most calls fail, they are not sent again.
        config["retryThrottling"] = {"maxTokens": 10, "tokenRatio": 0.1}
    return json.dumps(config)


_OPTIONS = (
    # A DNS server's TXT record may not say otherwise.
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC's own ceiling is two minutes, far too long to notice that a model server is back.
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # despite its name the time that one attempt to connect may take
    # A server that was replaced has another address, which its name tells at once; gRPC's own pause is 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A model server is reached directly: a proxy of the environment would get requests meant for loopback.
    ("grpc.enable_http_proxy", 0),
)
CHANNEL_OPTIONS = (*_OPTIONS, ("grpc.service_config", _service_config(AGAIN)))


# The metadata of each call: names in lower case, and values, such as ("x-request-id", "a-1").
CallMetadata = Callable[[], Sequence[tuple[str, str]]]


def _no_metadata() -> Sequence[tuple[str, str]]:
    return ()


def channel_to(target: str, retry: Retry = AGAIN) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """What a channel is opened with for "HOST:PORT", or for several IPv4 addresses with commas: its URI and options.

    ValueError when one of several is not an IPv4 address with a port.
    """
    options = (*_OPTIONS, ("grpc.service_config", _service_config(retry)))
    addresses = [address.strip() for address in target.split(",")]
    if len(addresses) == 1:
        return target, options
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not (_is_ipv4(host) and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(
                f"{address!r} is not an IPv4 address with a port, as in 10.0.0.1:8500: several model servers are "
                "given by address, or by one name that stands for all of them"
            )
    # gRPC would send the whole list as :authority, which is no host.
    return f"ipv4:{','.join(addresses)}", (*options, ("grpc.default_authority", addresses[0]))


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


class GrpcClient:
    """The blocking client.

    Takes a target such as "127.0.0.1:8500" (with `credentials` for TLS), several addresses with commas, or a `channel`
    of the caller's, which then stays the caller's to close. Use it as a context manager, or call `close`. ValueError
    when one of several is not an IPv4 address with a port. `call_metadata` is asked for the metadata of each call.
    `retry` says how often the channel sends a call again that nobody answered, 4 times more at most; a `channel` of the
    caller's does as it was made.

    Every method raises a `PredictError`: NotFound for an unknown model or version, InvalidArgument for wrong tensors or
    an unknown label, DeadlineExceeded after `timeout` seconds, Unavailable when nobody answers, BadAnswer for an answer
    that breaks the protocol.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        channel: grpc.Channel | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        call_metadata: CallMetadata = _no_metadata,
        retry: Retry = AGAIN,
    ) -> None:
        self.target = target
        self._call_metadata = call_metadata
        self._owned = channel is None
        self._retry = retry
        self._channel = _opened(target, credentials, retry) if channel is None else channel
        self._predict, self._metadata, self._status, self._index = _methods(self._channel)

    def renew(self, credentials: grpc.ChannelCredentials) -> grpc.Channel:
        """Later calls go over a new channel with these credentials.

        Answers the channel of before, for the caller to close when the calls on it have ended.
        """
        before, self._channel = self._channel, _opened(self.target, credentials, self._retry)
        self._predict, self._metadata, self._status, self._index = _methods(self._channel)
        return before

    def predict(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Prediction:
        """Runs `inputs` (arrays of the signature's shapes and dtypes) through the newest version, or the one named.

        Values that are not arrays, such as lists, become arrays of the types of the version's signature, which is asked
        first. `timeout` is in seconds, for each call. ValueError when both `version` and `label` are given.
        """
        if not typed_inputs.are_arrays(inputs):
            metadata = self.metadata(model, version=version, label=label, timeout=timeout)
            inputs = typed_inputs.arrays(metadata, signature or DEFAULT_SIGNATURE, inputs)
            version, label = metadata.version, None
        request = predict_request(model, inputs, version, label, signature)
        return _prediction(model, self._call(self._predict, request, timeout))

    def metadata(
        self, model: str, *, version: int | None = None, label: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> ModelMetadata:
        """The signatures of the newest version, or of the one named."""
        request = _metadata_request(model, version, label)
        return _model_metadata(model, self._call(self._metadata, request, timeout))

    def status(self, model: str, *, timeout: float = DEFAULT_TIMEOUT) -> list[VersionStatus]:
        """Every version that the server tracks, newest first, with its state."""
        request = GetModelStatusRequest(model_spec=ModelSpec(name=model))
        return _version_statuses(self._call(self._status, request, timeout))

    def models(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[str]:
        """The names of the server's models, sorted. Unimplemented for TensorFlow Serving, which does not tell them."""
        return _names(self._call(self._index, RepositoryIndexRequest(), timeout))

    def close(self) -> None:
        """Closes the channel if this client opened it."""
        if self._owned:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Any, timeout: float) -> Any:
        try:
            return method(request, timeout=timeout, metadata=self._call_metadata())
        except grpc.RpcError as error:
            raise errors.from_grpc(error.code(), error.details() or "", self.target) from error


class AsyncGrpcClient:
    """The asyncio client: the same methods and errors as `GrpcClient`, to be awaited.

    Make it inside a running event loop. Use it as an asynchronous context manager, or await `close`.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        channel: grpc.aio.Channel | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        call_metadata: CallMetadata = _no_metadata,
        retry: Retry = AGAIN,
    ) -> None:
        self.target = target
        self._call_metadata = call_metadata
        self._owned = channel is None
        uri, options = channel_to(target, retry)
        if channel is not None:
            self._channel = channel
        elif credentials is not None:
            self._channel = grpc.aio.secure_channel(uri, credentials, options=options)
        else:
            self._channel = grpc.aio.insecure_channel(uri, options=options)
        self._predict, self._metadata, self._status, self._index = _methods(self._channel)

    async def predict(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Prediction:
        """As `GrpcClient.predict`."""
        if not typed_inputs.are_arrays(inputs):
            metadata = await self.metadata(model, version=version, label=label, timeout=timeout)
            inputs = typed_inputs.arrays(metadata, signature or DEFAULT_SIGNATURE, inputs)
            version, label = metadata.version, None
        request = predict_request(model, inputs, version, label, signature)
        return _prediction(model, await self._call(self._predict, request, timeout))

    async def metadata(
        self, model: str, *, version: int | None = None, label: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> ModelMetadata:
        """As `GrpcClient.metadata`."""
        request = _metadata_request(model, version, label)
        return _model_metadata(model, await self._call(self._metadata, request, timeout))

    async def status(self, model: str, *, timeout: float = DEFAULT_TIMEOUT) -> list[VersionStatus]:
        """As `GrpcClient.status`."""
        request = GetModelStatusRequest(model_spec=ModelSpec(name=model))
        return _version_statuses(await self._call(self._status, request, timeout))

    async def models(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[str]:
        """As `GrpcClient.models`."""
        return _names(await self._call(self._index, RepositoryIndexRequest(), timeout))

    async def close(self) -> None:
        """Closes the channel if this client opened it."""
        if self._owned:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: Any, request: Any, timeout: float) -> Any:
        try:
            return await method(request, timeout=timeout, metadata=self._call_metadata())
        except grpc.aio.AioRpcError as error:
            raise errors.from_grpc(error.code(), error.details() or "", self.target) from error


def _opened(target: str, credentials: grpc.ChannelCredentials | None, retry: Retry) -> grpc.Channel:
    uri, options = channel_to(target, retry)
    if credentials is None:
        return grpc.insecure_channel(uri, options=options)
    return grpc.secure_channel(uri, credentials, options=options)


def _methods(channel: Any) -> tuple[Any, Any, Any, Any]:
    """Predict, GetModelMetadata, GetModelStatus and RepositoryIndex of a blocking or an asyncio channel."""
    return (
        channel.unary_unary(PREDICT, PredictRequest.SerializeToString, PredictResponse.FromString),
        channel.unary_unary(_METADATA, GetModelMetadataRequest.SerializeToString, GetModelMetadataResponse.FromString),
        channel.unary_unary(_STATUS, GetModelStatusRequest.SerializeToString, GetModelStatusResponse.FromString),
        channel.unary_unary(_INDEX, RepositoryIndexRequest.SerializeToString, RepositoryIndexResponse.FromString),
    )


def _names(response: RepositoryIndexResponse) -> list[str]:
    return sorted({model.name for model in response.models})


def _model_spec(model: str, version: int | None, label: str | None) -> ModelSpec:
    if version is not None and label is not None:
        raise ValueError(f"give a version ({version}) or a label ({label!r}), not both")
    spec = ModelSpec(name=model)
    if version is not None:
        spec.version.value = version
    elif label is not None:
        spec.version_label = label
    return spec


def predict_request(
    model: str, inputs: Mapping[str, Array], version: int | None, label: str | None, signature: str | None
) -> PredictRequest:
    """The message of a Predict call. ValueError when both `version` and `label` are given."""
    request = PredictRequest(model_spec=_model_spec(model, version, label))
    if signature is not None:
        request.model_spec.signature_name = signature
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(tensors.to_proto(array))
    return request


def _metadata_request(model: str, version: int | None, label: str | None) -> GetModelMetadataRequest:
    return GetModelMetadataRequest(model_spec=_model_spec(model, version, label), metadata_field=["signature_def"])


def _prediction(model: str, response: PredictResponse) -> Prediction:
    try:
        outputs = {name: tensors.to_array(proto) for name, proto in response.outputs.items()}
    except tensors.TensorError as error:
        raise errors.BadAnswer(f"the model server answered a malformed tensor: {error}") from error
    return Prediction(model=model, version=response.model_spec.version.value, outputs=outputs)


def _model_metadata(model: str, response: GetModelMetadataResponse) -> ModelMetadata:
    if "signature_def" not in response.metadata:
        raise errors.BadAnswer(f"the model server answered no signatures for {model!r}")
    signatures = SignatureDefMap()
    if not response.metadata["signature_def"].Unpack(signatures):
        raise errors.BadAnswer(f"the model server answered something other than signatures for {model!r}")
    return ModelMetadata(
        model=model,
        version=response.model_spec.version.value,
        signatures={name: _signature(definition) for name, definition in signatures.signature_def.items()},
    )


def _signature(definition: SignatureDef) -> Signature:
    return Signature(
        inputs={name: _tensor_info(info) for name, info in definition.inputs.items()},
        outputs={name: _tensor_info(info) for name, info in definition.outputs.items()},
    )


def _tensor_info(info: WireTensorInfo) -> TensorInfo:
    try:
        dtype = tensors.numpy_type(info.dtype).name
    except tensors.TensorError:
        dtype = tensors.type_name(info.dtype)
    if info.tensor_shape.unknown_rank:
        return TensorInfo(dtype, None)
    return TensorInfo(dtype, tuple(dim.size if dim.size >= 0 else None for dim in info.tensor_shape.dim))


def _version_statuses(response: GetModelStatusResponse) -> list[VersionStatus]:
    statuses = [
        VersionStatus(
            version=status.version,
            state=ModelVersionStatus.State.Name(status.state),
            error=status.status.error_message,
        )
        for status in response.model_version_status
    ]
    return sorted(statuses, key=lambda status: status.version, reverse=True)
