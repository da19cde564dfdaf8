"""The Open Inference Protocol's REST API, everything under /v2, over the inference core: route, decode, call, encode.

Tensors come and go as JSON or, by the binary tensor data extension, as raw bytes behind the JSON, which then tells how
many of them are whose; the header Inference-Header-Content-Length tells where the JSON ends.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import orjson

from bookserve.serving.server.api import open_inference
from bookserve.serving.server.api.rest_handlers import RestAnswer, answer_with
from bookserve.serving.server.inference import requests
from bookserve.serving.server.inference.requests import Prediction
from bookserve.serving.server.models.catalog import Catalog
from bookserve.serving.server.models.servable import Servable
from bookserve.serving.server.transport.http_exchange import HttpExchange
from bookserve.serving.server.types.errors import failed_precondition, invalid_argument, not_found, unavailable
from bookserve.serving.server.types.signatures import Signature, find_signature
from bookserve.serving.wire.json_tensors import to_array, widened
from bookserve.serving.wire.json_text import JsonError, parse
from bookserve.serving.wire.tensors import Array

_JSON_LENGTH = "inference-header-content-length"
_BLOCK = 1 << 16  # values that are written at a time, so that the interpreter is free in between

Kind = TypeVar("Kind", str, bool, list[Any], dict[str, Any])


class OpenInferenceRest:
    """Answers the requests under /v2, but for those of the repository; each raises ServingError where it cannot."""

    def __init__(self, catalog: Catalog, ready: Callable[[], bool]) -> None:
        """`ready` tells whether the server should be asked."""
        self._catalog = catalog
        self._ready = ready

    def server(self, exchange: HttpExchange, _: re.Match[str]) -> None:
        """What the server is, and which extensions it has."""
        exchange.respond(200, orjson.dumps(open_inference.server_metadata()))

    def live(self, exchange: HttpExchange, _: re.Match[str]) -> None:
        """That the server lives."""
        exchange.respond(200, b'{"live":true}')

    def ready(self, exchange: HttpExchange, _: re.Match[str]) -> None:
        """Whether it should be asked."""
        ready = self._ready()
        exchange.respond(200 if ready else 503, orjson.dumps({"ready": ready}))

    def metadata(self, exchange: HttpExchange, match: re.Match[str]) -> None:
        """The tensors of a version."""
        name, version = model_and_version(exchange, match)
        exchange.respond(200, orjson.dumps(open_inference.model_metadata(self._catalog, name, version)))

    def model_ready(self, exchange: HttpExchange, match: re.Match[str]) -> None:
        """Whether a version is loaded; any version of the model without one."""
        name, version = model_and_version(exchange, match)
        if open_inference.model_ready(self._catalog, name, version):
            exchange.respond(200, orjson.dumps({"name": name, "ready": True}))
        elif name in self._catalog.names:
            which = f"version {version} of model '{name}'" if version else f"model '{name}'"
            raise unavailable(f"{which} is not loaded")
        else:
            raise not_found(f"there is no model '{name}'")

    def index(self, exchange: HttpExchange, _: re.Match[str]) -> None:
        """Which models there are, configured or not."""
        request: dict[str, Any] = {}
        if exchange.body:
            try:
                request = _checked(parse(exchange.body), dict, "the request")
            except JsonError as error:
                raise invalid_argument(str(error)) from error
        repository = _field(request, "repository_name", str, "the request", "")
        only_ready = _field(request, "ready", bool, "the request", False)
        exchange.respond(
            200, orjson.dumps(open_inference.repository_index(self._catalog, repository, only_ready=only_ready))
        )

    def infer(self, exchange: HttpExchange, match: re.Match[str]) -> None:
        """One inference. Raises ServingError for one that cannot be served."""
        name, version = model_and_version(exchange, match)
        json_length = _json_length(exchange)
        head, tail = exchange.body[:json_length], memoryview(exchange.body)[json_length:]
        try:
            request = _checked(parse(head), dict, "the request")
        except JsonError as error:
            raise invalid_argument(str(error)) from error
        request_id = _field(request, "id", str, "the request", "")
        if not _is_text(request_id):
            raise invalid_argument("the request: 'id' holds half a surrogate pair")
        parameters = _parameters(request, "the request")
        servable = open_inference.find(self._catalog, name, version, exchange)
        signature_name = _field(parameters, "signature_name", str, "the request's parameters", "")
        signature = find_signature(servable.engine.signatures, signature_name)
        booleans = b"true" in head or b"false" in head
        tensors = _field(request, "inputs", list, "the request")
        inputs = _read_inputs(tensors, servable, signature, booleans, tail)
        in_binary = _field(parameters, "binary_data_output", bool, "the request's parameters", False)
        outputs: dict[str, bool] = {}  # whether in binary, by name
        for output in _field(request, "outputs", list, "the request", []):
            output_name = _field(_checked(output, dict, "an element of 'outputs'"), "name", str, "an output")
            what = f"output '{output_name}'"
            output_parameters = _parameters(output, what)
            open_inference.refuse_unsupported(what, output_parameters)
            if output_name in outputs:
                raise invalid_argument(f"{what} is requested twice")
            outputs[output_name] = _field(output_parameters, "binary_data", bool, what, in_binary)

        def encode(prediction: Prediction) -> RestAnswer:
            return _encode(prediction, request_id, outputs, in_binary)

        done = answer_with(exchange, encode, requests.values)
        requests.predict(servable, signature, inputs, list(outputs), exchange, done)


def model_and_version(exchange: HttpExchange, match: re.Match[str]) -> tuple[str, str]:
    """The two of an address; "" without a version."""
    name, version = match["name"], match["version"] or ""
    if exchange.record is not None:
        exchange.record.model = name
    return name, version


# Reading


def _json_length(exchange: HttpExchange) -> int:
    """How much of the body is JSON. Raises ServingError (INVALID_ARGUMENT) for a header that cannot be right."""
    header = exchange.headers.get(_JSON_LENGTH)
    size = len(exchange.body)
    if header is None:
        return size
    if not (header.isascii() and header.isdigit()) or len(header) > 18 or int(header) > size:
        raise invalid_argument(
            f"Inference-Header-Content-Length is {header[:80]!r}: expected the length of the JSON at"
            f" the beginning of the body, which has {size} bytes"
        )
    return int(header)


def _read_inputs(
    tensors: list[Any], servable: Servable, signature: Signature, booleans: bool, tail: memoryview
) -> dict[str, Array]:
    """The tensors of a request; `tail` is what follows the JSON, `booleans` as in json_tensors.to_array.

    Raises ServingError (INVALID_ARGUMENT) for what is malformed or does not fit the signature.
    """
    inputs: dict[str, Array] = {}
    position = 0
    for tensor in tensors:
        name = _field(_checked(tensor, dict, "an element of 'inputs'"), "name", str, "an input")
        what = f"input '{name}'"
        datatype = _field(tensor, "datatype", str, what)
        dtype = open_inference.input_type(signature, name, datatype, servable.pictures)
        if name in inputs:
            raise invalid_argument(f"{what} comes twice")
        shape = _field(tensor, "shape", list, what)
        if not all(type(size) is int for size in shape):
            raise invalid_argument(f"{what}: 'shape' must be a list of whole numbers")
        parameters = _parameters(tensor, what)
        open_inference.refuse_unsupported(what, parameters)
        size = parameters.get("binary_data_size")
        if size is None:
            inputs[name] = _from_json(name, dtype, shape, tensor, booleans)
            continue
        if type(size) is not int or size < 0:
            raise invalid_argument(f"{what}: 'binary_data_size' must be a number of bytes")
        if "data" in tensor:
            raise invalid_argument(f"{what} has both 'data' and 'binary_data_size'")
        if size > len(tail) - position:
            raise invalid_argument(
                f"{what}: binary_data_size is {size}, but only {len(tail) - position} bytes are left behind the JSON,"
                " whose length Inference-Header-Content-Length tells"
            )
        inputs[name] = open_inference.from_raw(name, dtype, shape, tail[position : position + size])
        position += size
    if position != len(tail):
        raise invalid_argument(
            f"{len(tail)} bytes follow the JSON, but the inputs' binary_data_size add up to {position}"
        )
    return inputs


def _from_json(name: str, dtype: np.dtype[Any], shape: list[int], tensor: dict[str, Any], booleans: bool) -> Array:
    count = open_inference.count_elements(name, shape)
    if "data" not in tensor:
        raise invalid_argument(f"input '{name}' has neither 'data' nor the parameter 'binary_data_size'")
    try:
        array = to_array(tensor["data"], dtype, f"input '{name}'", booleans)
    except JsonError as error:
        raise invalid_argument(str(error)) from error
    if array.size != count:
        raise invalid_argument(f"input '{name}' of shape {shape} needs {count} values, its data has {array.size}")
    if array.ndim != 1 and list(array.shape) != shape:
        raise invalid_argument(
            f"input '{name}' has shape {shape}, its data is nested as {list(array.shape)}: nest it like the shape, or"
            " not at all"
        )
    return array.reshape(shape)


def _is_text(value: str) -> bool:
    """Whether it can be written again: JSON may spell a surrogate without its other half."""
    return value.isascii() or value == value.encode("utf-8", "replace").decode()


def _parameters(holder: dict[str, Any], what: str) -> dict[str, Any]:
    return _field(holder, "parameters", dict, what, {})


def _field(holder: dict[str, Any], key: str, kind: type[Kind], what: str, default: Kind | None = None) -> Kind:
    """The value at `key`, or `default` where it is absent or null.

    Raises ServingError (INVALID_ARGUMENT) for a value of another type, and for none without a default.
    """
    value = holder.get(key)
    if value is not None:
        return _checked(value, kind, f"{what}: '{key}'")
    if default is None:
        raise invalid_argument(f"{what} has no '{key}'")
    return default


def _checked(value: Any, kind: type[Kind], what: str) -> Kind:
    if not isinstance(value, kind):
        word = {str: "a string", bool: "true or false", list: "a list", dict: "an object"}[kind]
        raise invalid_argument(f"{what} must be {word}")
    return value


# Writing


def _encode(prediction: Prediction, request_id: str, requested: Mapping[str, bool], in_binary: bool) -> RestAnswer:
    """The answer with the outputs. Raises ServingError for one that its form cannot carry."""
    outputs = []
    raw = []
    for name in requested or prediction.outputs:
        array = prediction.outputs[name]
        output: dict[str, Any] = {
            "name": name,
            "datatype": open_inference.datatype_of(name, array),
            "shape": array.shape,
        }
        if requested.get(name, in_binary):
            data = open_inference.to_raw(array)
            output["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            output["data"] = _json_values(name, array)
        outputs.append(output)
    answer = {"model_name": prediction.model, "model_version": str(prediction.version), "outputs": outputs}
    if request_id:
        answer["id"] = request_id
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if not raw:
        return RestAnswer(head)
    length = (_JSON_LENGTH, str(len(head)))
    return RestAnswer(b"".join((head, *raw)), "application/octet-stream", (length,))


def _json_values(name: str, array: Array) -> Any:
    """The values in row-major order, as orjson can write them."""
    if array.dtype.kind == "O":
        try:
            return [value.decode() for value in array.flat]
        except UnicodeDecodeError:
            raise failed_precondition(
                f"output '{name}' is no UTF-8, which JSON needs: request it with the parameter binary_data"
            ) from None
    (array,) = widened({name: array}).values()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise failed_precondition(
            f"output '{name}' has a value that is not finite, for which JSON has no number: request it with the"
            " parameter binary_data"
        )
    flat = np.ascontiguousarray(array).ravel()
    if flat.size <= _BLOCK:
        return flat
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    texts = [orjson.dumps(block, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for block in blocks]
    return orjson.Fragment(b"[" + b",".join(texts) + b"]")
