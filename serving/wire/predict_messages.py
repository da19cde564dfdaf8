"""PredictRequest and PredictResponse as bytes, for the server's hot path: what repeats from call to call is made once.

A client that asks one model for tensors of one shape sends the same bytes up to the values, and is answered with the
same bytes around the values. Everything else is read and written with the message classes, with the same result.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import Array, TensorError, data_type, to_array, to_proto

# Requests are remembered that have no more than this before their values, and not more of them than this.
_MAX_PREFIX = 1024
_MAX_REMEMBERED = 256

# Field numbers and wire types of PredictResponse.outputs and of TensorProto (tensorflow/core/framework/tensor.proto).
_OUTPUTS, _KEY, _VALUE = 0x0A, 0x0A, 0x12
_DTYPE, _SHAPE, _DIM, _SIZE, _CONTENT = 0x08, 0x12, 0x12, 0x08, 0x22
# The typed fields whose packed values are the array's own bytes.
_PACKED = {np.dtype("<f4"): 0x2A, np.dtype("<f8"): 0x32, np.dtype("?"): 0x5A}


class _Known(NamedTuple):
    """A request that ends with the values of its one tensor: what all requests have that begin like it."""

    request: messages.PredictRequest
    alias: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    length: int  # of the whole request


class PredictRequests:
    """Reads PredictRequests; remembers how those begin that end with the values of their one tensor."""

    def __init__(self) -> None:
        self._prefixes: dict[int, int] = {}  # length of a request -> length of what stands before its values
        self._known: dict[bytes, _Known] = {}

    def read(self, data: bytes) -> tuple[messages.PredictRequest, dict[str, Array] | None]:
        """The request, and its tensors by alias where they could be read at once; else `tensors` has them.

        A request that comes with its tensors is shared, and has no `inputs` of its own.
        Raises DecodeError for bytes that are no PredictRequest.
        """
        prefix = self._prefixes.get(len(data))
        if prefix is not None:
            known = self._known.get(data[:prefix])
            # Another request may begin alike and have more behind its values, such as an output filter.
            if known is not None and known.length == len(data):
                request, alias, dtype, shape, _ = known
                # A copy, as the values may lie anywhere, and a model wants them where its numbers belong.
                return request, {alias: np.frombuffer(data, dtype, offset=prefix).reshape(shape).copy()}
        return messages.PredictRequest.FromString(data), None

    def tensors(self, request: messages.PredictRequest, data: bytes) -> dict[str, Array]:
        """The tensors of a request by alias, the long way; `data` are the bytes that it was read from.

        Raises TensorError that names the input for a malformed tensor.
        """
        inputs = {}
        for alias, proto in request.inputs.items():
            try:
                inputs[alias] = to_array(proto)
            except TensorError as error:
                raise TensorError(f"{alias}: {error}") from error
        if len(inputs) == 1:
            self._remember(request, data, inputs)
        return inputs

    def _remember(self, request: messages.PredictRequest, data: bytes, inputs: dict[str, Array]) -> None:
        ((alias, array),) = inputs.items()
        content = request.inputs[alias].tensor_content
        prefix = data[: len(data) - len(content)]
        if not content or len(prefix) > _MAX_PREFIX or not data.endswith(content):
            return
        # The values are what the request ends with exactly where another end is read as other values.
        other = bytes([content[0] ^ 0xFF]) + content[1:-1] + bytes([content[-1] ^ 0xFF])
        if messages.PredictRequest.FromString(prefix + other).inputs[alias].tensor_content != other:
            return
        if len(self._known) >= _MAX_REMEMBERED:
            self._known.clear()
            self._prefixes.clear()
        shared = messages.PredictRequest()
        shared.CopyFrom(request)
        shared.inputs.clear()
        self._prefixes[len(data)] = len(prefix)
        self._known[prefix] = _Known(shared, alias, array.dtype, array.shape, len(data))


def write_response(
    model: str, version: int, signature: str, outputs: Mapping[str, Array], *, as_content: bool
) -> bytes:
    """A PredictResponse; the values go into the typed fields, or into `tensor_content`.

    Raises TensorError for an array that no TensorProto can carry.
    """
    parts = []
    for alias, array in outputs.items():
        dtype = array.dtype
        field = _CONTENT if as_content and dtype.kind in "biufc" else _PACKED.get(dtype)
        if field is not None and array.size and dtype.isnative:
            parts.append(_head(alias, dtype, array.shape, field))
            parts.append(array.tobytes())
        else:
            response = messages.PredictResponse()
            response.outputs[alias].CopyFrom(to_proto(array, as_content=as_content))
            parts.append(response.SerializeToString())
    parts.append(_model_spec(model, version, signature))
    return b"".join(parts)


@lru_cache(4096)
def _head(alias: str, dtype: np.dtype[Any], shape: tuple[int, ...], field: int) -> bytes:
    """What stands before the values of an entry of `outputs`."""
    nbytes = dtype.itemsize * math.prod(shape)
    dims = b"".join(_field(_DIM, bytes([_SIZE]) + _varint(size)) for size in shape)
    tensor = bytes([_DTYPE]) + _varint(data_type(dtype)) + _field(_SHAPE, dims) + bytes([field]) + _varint(nbytes)
    entry = _field(_KEY, alias.encode()) + bytes([_VALUE]) + _varint(len(tensor) + nbytes) + tensor
    return bytes([_OUTPUTS]) + _varint(len(entry) + nbytes) + entry


@lru_cache(4096)
def _model_spec(model: str, version: int, signature: str) -> bytes:
    response = messages.PredictResponse()
    response.model_spec.name = model
    response.model_spec.version.value = version
    response.model_spec.signature_name = signature
    return response.SerializeToString()


def _field(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
