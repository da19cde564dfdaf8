"""Changes which models our model server serves, one at a time, over its ModelAdminService.

TensorFlow Serving has no such service: there HandleReloadConfigRequest replaces all models at once.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import grpc

from bookserve.clients import errors
from bookserve.clients.grpc_client import CHANNEL_OPTIONS, DEFAULT_TARGET
from bookserve.serving.wire.model_admin_pb2 import (
    AddOrReplaceModelRequest,
    AddOrReplaceModelResponse,
    GetConfigRequest,
    GetConfigResponse,
    RemoveModelRequest,
    RemoveModelResponse,
)
from bookserve.serving.wire.tensorflow_serving_pb2 import ModelConfig

DEFAULT_TIMEOUT = 60.0  # seconds; adding a model waits until it is loaded

_SERVICE = "/bookserve.ModelAdminService"


class AdminClient:
    """The blocking client; use it as a context manager, or call `close`.

    `token` is that of the server's --admin_token_file, which a server on another machine demands. Every method raises a
    `PredictError`: PermissionDenied without access, InvalidArgument for a name, path or policy that is not accepted,
    FailedPrecondition for a label on a version that is not available.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.target = target
        self._metadata = [("authorization", f"Bearer {token}")] if token is not None else []
        if credentials is not None:
            self._channel = grpc.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)

    def add_or_replace(
        self,
        model: str,
        base_path: str,
        *,
        latest: int = 1,
        versions: tuple[int, ...] = (),
        labels: Mapping[str, int] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Serves the newest `latest` versions below `base_path` on the server, or just `versions` where some are named.

        Returns when a model that is new is available.
        """
        config = ModelConfig(
            name=model, base_path=base_path, model_platform="tensorflow", version_labels=dict(labels or {})
        )
        if versions:
            config.model_version_policy.specific.versions.extend(versions)
        else:
            config.model_version_policy.latest.num_versions = latest
        self._call("AddOrReplaceModel", AddOrReplaceModelRequest(model=config), AddOrReplaceModelResponse, timeout)

    def remove(self, model: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Stops serving a model; NotFound when there is none of that name."""
        self._call("RemoveModel", RemoveModelRequest(name=model), RemoveModelResponse, timeout)

    def models(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[ModelConfig]:
        """The models as they are configured now."""
        response = self._call("GetConfig", GetConfigRequest(), GetConfigResponse, timeout)
        return list(response.config.model_config_list.config)

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, request: Any, response: Any, timeout: float) -> Any:
        call = self._channel.unary_unary(f"{_SERVICE}/{method}", type(request).SerializeToString, response.FromString)
        try:
            return call(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise errors.from_grpc(error.code(), error.details() or "", self.target) from error
