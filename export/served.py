"""Whether model servers serve what the store says: asked over gRPC, ours and TensorFlow Serving alike."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import grpc

from bookserve.export.errors import StoreError
from bookserve.serving.wire import open_inference_pb2 as open_inference
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.store_servers import TLS

_CALL_SECONDS = 3.0
_PAUSE_SECONDS = 0.1
_DIRECTLY = (("grpc.enable_http_proxy", 0),)  # a proxy of the environment would get what is meant for loopback
_AVAILABLE = messages.ModelVersionStatus.AVAILABLE


class Servers:
    """Some model servers, by their gRPC addresses, and how long to wait for each of the two steps of a change.

    An address is HOST:PORT, or grpcs://HOST:PORT of a server with TLS, which is asked with the `credentials`.
    """

    def __init__(
        self, targets: Sequence[str], seconds: float, credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        self._targets = targets
        self._seconds = seconds
        self._credentials = credentials

    def __bool__(self) -> bool:
        return bool(self._targets)

    def __str__(self) -> str:
        return ", ".join(self._targets)

    def answering(self) -> "Servers":
        """Those that answer at all."""

        def answers(target: str) -> bool:
            with self._channel(target) as channel:
                try:
                    grpc.channel_ready_future(channel).result(_CALL_SECONDS)
                except grpc.FutureTimeoutError:
                    return False
            return True

        return Servers([target for target in self._targets if answers(target)], self._seconds, self._credentials)

    def loaded(self, model: str) -> dict[int, str]:
        """The versions that a server has or is about to have, and which server; those that it knows as ended are none.

        Raises:
            StoreError: one does not answer.
        """
        found = {}
        for target in self._targets:
            request = messages.GetModelStatusRequest()
            request.model_spec.name = model
            with grpc.insecure_channel(target) as channel:
                try:
                    answer = _call(channel, "ModelService/GetModelStatus", request, messages.GetModelStatusResponse)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.NOT_FOUND:
                        continue
                    raise StoreError(f"{target} says: {_reason(error)}") from error
            for status in answer.model_version_status:
                if status.state != messages.ModelVersionStatus.END:
                    found[status.version] = f"{target} has it"
        return found

    def counts(self, model: str, version: int) -> tuple[int, int]:
        """How many requests the version answered and failed to answer on all servers, since they loaded it.

        Raises:
            StoreError: a server does not answer, has not loaded the version, or does not count, as TensorFlow Serving.
        """
        answered = failed = 0
        request = open_inference.ModelStatisticsRequest(name=model, version=str(version))
        for target in self._targets:
            with grpc.insecure_channel(target) as channel:
                call = channel.unary_unary(
                    "/inference.GRPCInferenceService/ModelStatistics",
                    open_inference.ModelStatisticsRequest.SerializeToString,
                    open_inference.ModelStatisticsResponse.FromString,
                )
                try:
                    response = call(request, timeout=_CALL_SECONDS)
                except grpc.RpcError as error:
                    raise StoreError(f"{target} does not tell how version {version} fares: {_reason(error)}") from error
            for told in response.model_stats:
                answered += told.inference_stats.success.count
                failed += told.inference_stats.fail.count
        return answered, failed

    def until_loaded(self, model: str, versions: Collection[int]) -> None:
        """Waits until every server has loaded these versions.

        Raises:
            StoreError: one has not in time; the message has what it tells of them.
        """

        def missing(channel: grpc.Channel) -> str:
            request = messages.GetModelStatusRequest()
            request.model_spec.name = model
            call = _call(channel, "ModelService/GetModelStatus", request, messages.GetModelStatusResponse)
            known = {status.version: status for status in call.model_version_status}
            left = [version for version in sorted(versions) if _state(known.get(version)) != _AVAILABLE]
            return "; ".join(f"version {version} is {_words(known.get(version))}" for version in left)

        self._until(missing)

    def until_named(self, model: str, labels: Mapping[str, int | None], default: int | None = None) -> None:
        """Waits until every server answers each label, and who names neither version nor label, from these versions.

        A label of None is one that no server may know any more.

        Raises:
            StoreError: one does not in time; the message says from which it answers.
        """
        wanted: dict[str, int | None] = dict(labels) if default is None else {**labels, "": default}

        def wrong(channel: grpc.Channel) -> str:
            said = []
            for label, version in wanted.items():
                request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
                request.model_spec.name = model
                if label:
                    request.model_spec.version_label = label
                name = f"'{label}'" if label else "the default"
                try:
                    method = "PredictionService/GetModelMetadata"
                    answer = _call(channel, method, request, messages.GetModelMetadataResponse)
                except grpc.RpcError as error:
                    if version is not None or _code(error) is not grpc.StatusCode.INVALID_ARGUMENT:
                        said.append(f"{name} is not served ({_reason(error)})")
                    continue
                if answer.model_spec.version.value != version:
                    said.append(f"{name} is version {answer.model_spec.version.value}")
            return "; ".join(said)

        self._until(wrong)

    def _until(self, problem: Callable[[grpc.Channel], str]) -> None:
        end = time.monotonic() + self._seconds
        with ExitStack() as stack:
            left = {target: stack.enter_context(self._channel(target)) for target in self._targets}
            while left:
                said = {}
                for target, channel in left.items():
                    try:
                        said[target] = problem(channel)
                    except grpc.RpcError as error:
                        said[target] = _reason(error)
                left = {target: channel for target, channel in left.items() if said[target]}
                if left and time.monotonic() > end:
                    raise StoreError(
                        "; ".join(f"after {self._seconds:g} s, {target} says: {said[target]}" for target in left)
                        + ". A server that reads models.config needs --model_config_file_poll_wait_seconds"
                    )
                time.sleep(_PAUSE_SECONDS if left else 0)

    def _channel(self, target: str) -> grpc.Channel:
        if target.startswith(TLS):
            return grpc.secure_channel(target.removeprefix(TLS), self._credentials, _DIRECTLY)
        return grpc.insecure_channel(target, _DIRECTLY)


def _call(channel: grpc.Channel, method: str, request: Any, answer: type[Any]) -> Any:
    call = channel.unary_unary(f"/tensorflow.serving.{method}", type(request).SerializeToString, answer.FromString)
    return call(request, timeout=_CALL_SECONDS)


def _code(error: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = error.code()
    return code


def _reason(error: Any) -> str:
    return f"{error.code().name}: {error.details()}"


def _state(status: messages.ModelVersionStatus | None) -> int:
    return messages.ModelVersionStatus.UNKNOWN if status is None else status.state


def _words(status: messages.ModelVersionStatus | None) -> str:
    if status is None:
        return "not known there"
    state = messages.ModelVersionStatus.State.Name(status.state)
    return f"{state} ({status.status.error_message})" if status.status.error_message else state
