"""Asks a model server over REST: ours, or TensorFlow Serving. The standard library's HTTP, no protobuf.

REST's predict answers neither the version nor the types, so each prediction first asks for the model's metadata and
then predicts with exactly the version that this names.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from bookserve.clients import errors
from bookserve.clients.answers import Array, ModelMetadata, Prediction, Signature, TensorInfo, VersionStatus
from bookserve.clients.http_exchange import Answer, Server
from bookserve.clients.retries import ONCE, Retry

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
    """The client; it keeps no connection and may be shared by threads.

    `retry` says whether a request that nobody answered is made again. Every method raises a `PredictError`, as
    `GrpcClient`'s do. ValueError for a `url` that is none.
    """

    def __init__(self, url: str = DEFAULT_URL, *, retry: Retry = ONCE) -> None:
        self._server = Server.at(url)
        self._retry = retry

    def predict(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Prediction:
        """Runs `inputs` (arrays of the signature's shapes and dtypes) through the newest version, or the one named.

        `timeout` is in seconds, for each of the two requests. ValueError when both `version` and `label` are given.
        """
        metadata = self.metadata(model, version=version, label=label, timeout=timeout)
        name = signature or DEFAULT_SIGNATURE
        if name not in metadata.signatures:
            known = ", ".join(sorted(metadata.signatures))
            raise errors.InvalidArgument(f"model {model!r} has no signature {name!r}; it has: {known}")
        content = self._exchange(
            "POST", predict_path(model, metadata.version, None), predict_body(inputs, name), timeout
        )
        outputs = _field(content, "outputs")
        expected = metadata.signatures[name].outputs
        if len(expected) == 1:
            outputs = {next(iter(expected)): outputs}
        if not isinstance(outputs, dict) or outputs.keys() - expected.keys():
            raise errors.BadAnswer(f"{self._server.url} answered outputs that the signature {name!r} does not have")
        arrays = {key: _to_array(key, value, expected[key]) for key, value in outputs.items()}
        return Prediction(model=model, version=metadata.version, outputs=arrays)

    def metadata(
        self, model: str, *, version: int | None = None, label: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> ModelMetadata:
        """The signatures of the newest version, or of the one named."""
        answer = self._exchange("GET", _path(model, version, label) + "/metadata", None, timeout)
        try:
            definitions = answer["metadata"]["signature_def"]["signature_def"]
            return ModelMetadata(
                model=model,
                version=int(answer["model_spec"]["version"]),
                signatures={
                    name: Signature(inputs=_tensor_infos(entry["inputs"]), outputs=_tensor_infos(entry["outputs"]))
                    for name, entry in definitions.items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise errors.BadAnswer(f"{self._server.url} answered metadata that is not TensorFlow Serving's") from error

    def status(self, model: str, *, timeout: float = DEFAULT_TIMEOUT) -> list[VersionStatus]:
        """Every version that the server tracks, newest first, with its state."""
        answer = self._exchange("GET", _path(model, None, None), None, timeout)
        try:
            statuses = [
                VersionStatus(int(entry["version"]), entry["state"], entry["status"].get("error_message", ""))
                for entry in answer["model_version_status"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise errors.BadAnswer(f"{self._server.url} answered a status that is not TensorFlow Serving's") from error
        return sorted(statuses, key=lambda status: status.version, reverse=True)

    def _exchange(self, method: str, path: str, body: bytes | None, timeout: float) -> Any:
        """The JSON of an answer, within `timeout` seconds with all retries."""
        kind = "application/json" if body is not None else ""

        def ask(seconds: float) -> Any:
            return _json(self._server.exchange(method, path, body, content_type=kind, timeout=seconds))

        return self._retry.call(ask, timeout)


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
