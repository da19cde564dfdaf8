"""Asks a model server over REST: ours, or TensorFlow Serving. Blocking (`RestClient`) and asyncio (`AsyncRestClient`).

No protobuf. The blocking client uses the standard library's HTTP, the asyncio one httpx2.
REST's predict answers neither the version nor the types, so each prediction first asks for the model's metadata and
then predicts with exactly the version that this names.
"""

import base64
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike

from bookserve.clients import errors, typed_inputs
from bookserve.clients.answers import Array, ModelMetadata, Prediction, Signature, TensorInfo, VersionStatus
from bookserve.clients.async_exchange import AsyncServer
from bookserve.clients.http_exchange import Answer, Server
from bookserve.clients.retries import AGAIN, Retry

DEFAULT_URL = "http://127.0.0.1:8501"
DEFAULT_SIGNATURE = "serving_default"
DEFAULT_TIMEOUT = 10.0  # seconds

# TensorFlow's names -> numpy's, for the types that TensorFlow Serving writes as JSON.
_DTYPES = {
    "DT_FLOAT": "float32",
    "DT_DOUBLE": "float64",
    "DT_INT8": "int8",
    "DT_INT16": "int16",
    "DT_INT32": "int32",
    "DT_INT64": "int64",
    "DT_UINT8": "uint8",
    "DT_UINT16": "uint16",
    "DT_UINT32": "uint32",
    "DT_UINT64": "uint64",
    "DT_BOOL": "bool",
    "DT_STRING": "object",
}


class RestClient:
    """The blocking client; it keeps no connection and may be shared by threads.

    `retry` says whether a request that nobody answered is made again. Every method raises a `PredictError`, as
    `GrpcClient`'s do. ValueError for a `url` that is none.
    """

    def __init__(self, url: str = DEFAULT_URL, *, retry: Retry = AGAIN) -> None:
        self._server = Server.at(url)
        self._retry = retry

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

        Values that are not arrays, such as lists, become arrays of the signature's types. `timeout` is in seconds, for
        each of the two requests. ValueError when both `version` and `label` are given.
        """
        metadata = self.metadata(model, version=version, label=label, timeout=timeout)
        name = signature or DEFAULT_SIGNATURE
        body = predict_body(typed_inputs.arrays(metadata, name, inputs), name)
        content = self._exchange("POST", predict_path(model, metadata.version, None), body, timeout)
        return _prediction(metadata, name, content)

    def metadata(
        self, model: str, *, version: int | None = None, label: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> ModelMetadata:
        """The signatures of the newest version, or of the one named."""
        return _metadata(model, self._exchange("GET", _path(model, version, label) + "/metadata", None, timeout))

    def status(self, model: str, *, timeout: float = DEFAULT_TIMEOUT) -> list[VersionStatus]:
        """Every version that the server tracks, newest first, with its state."""
        return _statuses(self._exchange("GET", _path(model, None, None), None, timeout))

    def models(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[str]:
        """The names of the server's models, sorted. Raises for TensorFlow Serving, which does not tell them."""
        return _names(self._exchange("GET", "/v1/models", None, timeout))

    def _exchange(self, method: str, path: str, body: bytes | None, timeout: float) -> Any:
        """The JSON of an answer, within `timeout` seconds with all retries."""

        def ask(seconds: float) -> Any:
            return _json(self._server.exchange(method, path, body, content_type=_kind(body), timeout=seconds))

        return self._retry.call(ask, timeout)


class AsyncRestClient:
    """The asyncio client: the same methods and errors as `RestClient`, to be awaited. It keeps its connections.

    Make it inside a running event loop. Use it as an asynchronous context manager, or await `close`. ImportError
    without httpx2.
    """

    def __init__(self, url: str = DEFAULT_URL, *, retry: Retry = AGAIN) -> None:
        self._server = AsyncServer(url)
        self._retry = retry

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
        """As `RestClient.predict`."""
        metadata = await self.metadata(model, version=version, label=label, timeout=timeout)
        name = signature or DEFAULT_SIGNATURE
        body = predict_body(typed_inputs.arrays(metadata, name, inputs), name)
        content = await self._exchange("POST", predict_path(model, metadata.version, None), body, timeout)
        return _prediction(metadata, name, content)

    async def metadata(
        self, model: str, *, version: int | None = None, label: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> ModelMetadata:
        """As `RestClient.metadata`."""
        return _metadata(model, await self._exchange("GET", _path(model, version, label) + "/metadata", None, timeout))

    async def status(self, model: str, *, timeout: float = DEFAULT_TIMEOUT) -> list[VersionStatus]:
        """As `RestClient.status`."""
        return _statuses(await self._exchange("GET", _path(model, None, None), None, timeout))

    async def models(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[str]:
        """As `RestClient.models`."""
        return _names(await self._exchange("GET", "/v1/models", None, timeout))

    async def close(self) -> None:
        """Closes the connections."""
        await self._server.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _exchange(self, method: str, path: str, body: bytes | None, timeout: float) -> Any:
        async def ask(seconds: float) -> Any:
            return _json(await self._server.exchange(method, path, body, content_type=_kind(body), timeout=seconds))

        return await self._retry.call_async(ask, timeout)


def predict_path(model: str, version: int | None, label: str | None) -> str:
    """The address of a model's predictions. ValueError when both `version` and `label` are given."""
    return f"{_path(model, version, label)}:predict"


def predict_body(inputs: Mapping[str, Array], signature: str) -> bytes:
    """The JSON body of a prediction; arrays of the signature's shapes and dtypes."""
    values = {name: _to_json(array) for name, array in inputs.items()}
    return json.dumps({"signature_name": signature, "inputs": values}).encode()


def _path(model: str, version: int | None, label: str | None) -> str:
    if version is not None and label is not None:
        raise ValueError(f"give a version ({version}) or a label ({label!r}), not both")
    path = f"/v1/models/{quote(model, safe='')}"
    if version is not None:
        return f"{path}/versions/{version}"
    if label is not None:
        return f"{path}/labels/{quote(label, safe='')}"
    return path


def _kind(body: bytes | None) -> str:
    return "" if body is None else "application/json"


def _prediction(metadata: ModelMetadata, signature: str, content: Any) -> Prediction:
    outputs = _field(content, "outputs")
    expected = metadata.signatures[signature].outputs
    if len(expected) == 1:
        outputs = {next(iter(expected)): outputs}
    if not isinstance(outputs, dict) or outputs.keys() - expected.keys():
        raise errors.BadAnswer(f"the server answered outputs that the signature {signature!r} does not have")
    arrays = {key: _to_array(key, value, expected[key]) for key, value in outputs.items()}
    return Prediction(model=metadata.model, version=metadata.version, outputs=arrays)


def _metadata(model: str, content: Any) -> ModelMetadata:
    try:
        definitions = content["metadata"]["signature_def"]["signature_def"]
        return ModelMetadata(
            model=model,
            version=int(content["model_spec"]["version"]),
            signatures={
                name: Signature(inputs=_tensor_infos(entry["inputs"]), outputs=_tensor_infos(entry["outputs"]))
                for name, entry in definitions.items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise errors.BadAnswer("the server answered metadata that is not TensorFlow Serving's") from error


def _statuses(content: Any) -> list[VersionStatus]:
    try:
        statuses = [
            VersionStatus(int(entry["version"]), entry["state"], entry["status"].get("error_message", ""))
            for entry in content["model_version_status"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise errors.BadAnswer("the server answered a status that is not TensorFlow Serving's") from error
    return sorted(statuses, key=lambda status: status.version, reverse=True)


def _names(content: Any) -> list[str]:
    try:
        return sorted(str(entry["name"]) for entry in _field(content, "models"))
    except (KeyError, TypeError) as error:
        raise errors.BadAnswer("the server answered a list of models that is none") from error


def _json(answer: Answer) -> Any:
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        if answer.status == 200:
            raise errors.BadAnswer("the server answered something other than JSON: is this its REST port?") from error
        raise errors.from_http(
            answer.status, f"the server answered {answer.status} without a reason", answer.retry_after
        ) from error
    if answer.status != 200:
        message = content.get("error") if isinstance(content, dict) else None
        text = str(message or f"the server answered {answer.status} without a reason")
        raise errors.from_http(answer.status, text, answer.retry_after)
    return content


def _field(content: Any, name: str) -> Any:
    if not isinstance(content, dict) or name not in content:
        raise errors.BadAnswer(f"the server's answer has no {name!r}")
    return content[name]


def _to_json(array: Array) -> Any:
    if array.dtype.kind in "OSU":
        return _strings_to_json(array.tolist())
    return array.tolist()


def _strings_to_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_strings_to_json(item) for item in value]
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _to_array(name: str, value: Any, info: TensorInfo) -> Array:
    try:
        if info.dtype == "object":
            return np.array(_strings_from_json(value), dtype=np.object_)
        return np.array(value, dtype=np.dtype(info.dtype))
    except (TypeError, ValueError, OverflowError) as error:
        raise errors.BadAnswer(f"the server's output {name!r} is no {info.dtype} tensor") from error


def _strings_from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_strings_from_json(item) for item in value]
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else str(value).encode()


def _tensor_infos(entries: dict[str, Any]) -> dict[str, TensorInfo]:
    infos = {}
    for name, entry in entries.items():
        shape = entry["tensor_shape"]
        sizes = [int(dim["size"]) for dim in shape.get("dim", [])]
        free_rank = bool(shape.get("unknown_rank", False))
        infos[name] = TensorInfo(
            dtype=_DTYPES.get(entry["dtype"], str(entry["dtype"])),
            shape=None if free_rank else tuple(size if size >= 0 else None for size in sizes),
        )
    return infos
