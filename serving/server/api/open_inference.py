"""The Open Inference Protocol (KServe's and Triton's "v2") over the inference core: what its gRPC and REST share.

Names and checks of datatypes and shapes, tensors as raw bytes, and the metadata as plain dictionaries, whose keys are
the protocol's in JSON and in its messages alike. A tensor's declared shape is compared with the bytes that came before
anything is allocated for it.
"""

import functools
import struct
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bookserve.serving.server.inference.requests import Caller
from bookserve.serving.server.models.catalog import Catalog, not_served
from bookserve.serving.server.models.picture_input import PictureInput
from bookserve.serving.server.models.servable import Servable
from bookserve.serving.server.observability.metric_families import (
    INFERENCE_COUNT,
    INFERENCE_MICROS,
    INFERENCE_ROWS,
    INFERENCE_RUNS,
    LAST_INFERENCE,
    Family,
)
from bookserve.serving.server.observability.metrics import Snapshot
from bookserve.serving.server.types.errors import ServingError, failed_precondition, invalid_argument
from bookserve.serving.server.types.signatures import Signature, find_signature
from bookserve.serving.wire import tensorflow_error_pb2, tensorflow_pb2
from bookserve.serving.wire.tensorflow_pb2 import DataType
from bookserve.serving.wire.tensorflow_serving_pb2 import ModelVersionStatus
from bookserve.serving.wire.tensors import (
    ELEMENT_TYPES,
    Array,
    TensorError,
    element_count,
    element_of,
    element_type,
    type_name,
)

_DATATYPES = {element.open_inference: element for element in ELEMENT_TYPES if element.open_inference}
_LENGTH = struct.Struct("<I")  # before each element of BYTES
_EXTENSIONS = ("binary_tensor_data", "model_repository", "statistics")
_MAX_VERSION_DIGITS = 18  # which fit 64 bits
# Triton's names of what runs a model.
_PLATFORMS = {"onnx": "onnxruntime_onnx", "tensorflow": "tensorflow_savedmodel"}
_STATES: dict[ModelVersionStatus.State, str] = {
    ModelVersionStatus.START: "UNAVAILABLE",
    ModelVersionStatus.LOADING: "LOADING",
    ModelVersionStatus.AVAILABLE: "READY",
    ModelVersionStatus.UNLOADING: "UNLOADING",
    ModelVersionStatus.END: "UNAVAILABLE",
}
# Of a request's time: to put a batch together and to take it apart belong to its run.
_NOT_MEASURED = ("compute_input", "compute_output", "cache_hit", "cache_miss")
_REASONS = {ModelVersionStatus.START: "not loaded yet", ModelVersionStatus.END: "unloaded"}


# Models


def find(catalog: Catalog, name: str, version: str, caller: Caller | None) -> Servable:
    """The version that a request names; the empty one means the latest.

    Raises ServingError: INVALID_ARGUMENT without a name or for a version that is no number, NOT_FOUND where nothing is
    loaded.
    """
    if caller is not None and caller.record is not None:
        caller.record.model = name
    if not name:
        raise invalid_argument("the request names no model")
    return catalog.find(name, version=version_number(version) if version else None)


def version_number(version: str) -> int:
    """Raises ServingError (INVALID_ARGUMENT) for a version that is no whole number."""
    if not (version.isascii() and version.isdigit() and len(version) <= _MAX_VERSION_DIGITS):
        raise invalid_argument(f"model version '{version[:80]}' is no version: it must be a whole number, such as 1")
    return int(version)


def model_ready(catalog: Catalog, name: str, version: str) -> bool:
    """Whether the model, or that version of it, is loaded and may be asked; False also for one that does not exist.

    Raises ServingError (INVALID_ARGUMENT) without a name or for a version that is no number.
    """
    try:
        statuses = catalog.status(name, version_number(version) if version else None)
    except ServingError as error:
        if error.code == tensorflow_error_pb2.NOT_FOUND:
            return False
        raise
    return any(status.state == ModelVersionStatus.AVAILABLE for status in statuses)


@functools.cache
def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of this server."""
    import importlib.metadata  # which takes as long as a tenth of a server's start

    version = importlib.metadata.version("bookserve")
    return {"name": "bookserve", "version": version, "extensions": list(_EXTENSIONS)}


def model_metadata(catalog: Catalog, name: str, version: str) -> dict[str, Any]:
    """Versions, inputs and outputs of a model's default signature. Raises ServingError as `find`."""
    servable = find(catalog, name, version, None)
    signature = find_signature(servable.engine.signatures, "")
    definition = servable.engine.signature_defs[signature.name]
    available = [status.version for status in catalog.status(name) if status.state == ModelVersionStatus.AVAILABLE]
    return {
        "name": name,
        "versions": [str(number) for number in sorted(available)],
        "platform": _PLATFORMS.get(servable.engine.name, servable.engine.name),
        "inputs": _tensors(definition.inputs),
        "outputs": _tensors(definition.outputs),
    }


def _tensors(infos: Mapping[str, tensorflow_pb2.TensorInfo]) -> list[dict[str, Any]]:
    return [
        {
            "name": alias,
            "datatype": datatype_name(infos[alias].dtype),
            "shape": [-1]
            if infos[alias].tensor_shape.unknown_rank
            else [max(dim.size, -1) for dim in infos[alias].tensor_shape.dim],
        }
        for alias in sorted(infos)
    ]


def repository_index(catalog: Catalog, repository: str, *, only_ready: bool) -> list[dict[str, str]]:
    """Every version of every model, configured or removed, with its state and the reason of one that is not READY.

    Raises ServingError (INVALID_ARGUMENT) for a named repository.
    """
    _check_repository(repository)
    index = []
    for name in (*catalog.names, *catalog.removed):
        try:
            statuses = catalog.status(name)
        except ServingError as error:  # no version folder yet
            index.append({"name": name, "version": "", "state": "UNAVAILABLE", "reason": error.message})
            continue
        index += [
            {
                "name": name,
                "version": str(status.version),
                "state": _STATES[status.state],
                "reason": status.status.error_message or _REASONS.get(status.state, ""),
            }
            for status in statuses
        ]
    return [entry for entry in index if entry["state"] == "READY" or not only_ready]


def _check_repository(name: str) -> None:
    if name:
        raise invalid_argument("repository_name is not supported: this server has one repository, without a name")


def check_repository_request(repository: str, parameters: Iterable[str]) -> None:
    """Raises ServingError (INVALID_ARGUMENT) for a load that brings what is read from the model's folder alone."""
    _check_repository(repository)
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise invalid_argument(
                f"parameter '{name[:80]}' is not supported: versions are read from the model's folder, and settings"
                " are changed by PUT /v1/models/NAME or HandleReloadConfigRequest"
            )


# Statistics


def loaded_versions(catalog: Catalog, name: str, version: str) -> list[tuple[str, int]]:
    """The loaded versions, with their models, that a request for statistics names; an empty name or version means all.

    Raises ServingError as `find` where nothing is loaded of what is named.
    """
    if version and not name:
        raise invalid_argument("the request names a version and no model")
    number = version_number(version) if version else None
    loaded = []
    for model in [name] if name else catalog.names:
        try:
            statuses = catalog.status(model, number)
        except ServingError as error:
            if error.code != tensorflow_error_pb2.NOT_FOUND:
                raise
            continue
        loaded += [(model, status.version) for status in statuses if status.state == ModelVersionStatus.AVAILABLE]
    if name and not loaded:
        raise not_served(name, number)
    return loaded


def statistics(versions: Iterable[tuple[str, int]], counts: Snapshot) -> list[dict[str, Any]]:
    """What was asked of these versions since the server started, as `counts` has it."""
    values = {
        (family.name, *labels): series[0]
        for family in (INFERENCE_COUNT, INFERENCE_MICROS, INFERENCE_ROWS, INFERENCE_RUNS, LAST_INFERENCE)
        for labels, series in counts[family.name]
    }

    def value(family: Family, *labels: str) -> float:
        return values.get((family.name, *labels), 0.0)

    found = []
    for name, number in versions:
        version = (name, str(number))
        answered = int(value(INFERENCE_COUNT, *version, "success"))
        queue = round(1000 * value(INFERENCE_MICROS, *version, "queue"))
        run = round(1000 * value(INFERENCE_MICROS, *version, "run"))
        failed = int(value(INFERENCE_COUNT, *version, "failure"))
        failure = round(1000 * value(INFERENCE_MICROS, *version, "failure"))
        found.append(
            {
                "name": name,
                "version": str(number),
                "last_inference": round(1000 * value(LAST_INFERENCE, *version)),
                "inference_count": int(value(INFERENCE_ROWS, *version)),
                "execution_count": int(value(INFERENCE_RUNS, *version)),
                "inference_stats": {
                    "success": {"count": answered, "ns": queue + run},
                    "fail": {"count": failed, "ns": failure},
                    "queue": {"count": answered, "ns": queue},
                    "compute_infer": {"count": answered, "ns": run},
                    **{name: {"count": 0, "ns": 0} for name in _NOT_MEASURED},
                },
            }
        )
    return found


# Tensors


def datatype_name(number: DataType) -> str:
    """The protocol's name of a type, such as "FP32"; TensorFlow's where the protocol has none."""
    try:
        return element_type(number).open_inference or type_name(number)
    except TensorError:
        return type_name(number)


def datatype_of(output: str, array: Array) -> str:
    """The protocol's name for the type of an output's values.

    Raises ServingError (FAILED_PRECONDITION) where it has none.
    """
    name = element_of(array.dtype).open_inference
    if not name:
        raise failed_precondition(
            f"output '{output}' is of type {array.dtype.name}, for which the Open Inference Protocol has no datatype:"
            " request the other outputs by name"
        )
    return name


def input_type(signature: Signature, name: str, datatype: str, pictures: PictureInput | None = None) -> np.dtype[Any]:
    """The numpy type of an input's values; object, of bytes, for BYTES, which `pictures` takes in place of numbers.

    Raises ServingError (INVALID_ARGUMENT) for an input that the model does not have, or has with another datatype.
    """
    spec = signature.inputs.get(name)
    if spec is None:
        raise invalid_argument(f"the model has no input '{name}': its inputs are {', '.join(signature.inputs)}")
    known = _DATATYPES.get(datatype)
    if known is None:
        raise invalid_argument(
            f"input '{name}': datatype '{datatype[:80]}' does not exist; the model expects"
            f" {datatype_name(spec.data_type)}"
        )
    if known.number != spec.data_type and not (
        known.number == tensorflow_pb2.DT_STRING and pictures is not None and pictures.takes(signature, name)
    ):
        raise invalid_argument(
            f"input '{name}' expects datatype {datatype_name(spec.data_type)}, the request has {datatype}"
        )
    return known.dtype


def count_elements(name: str, shape: Sequence[int]) -> int:
    """How many values an input of that shape has. Raises ServingError (INVALID_ARGUMENT) for a shape of no tensor."""
    try:
        return element_count(shape)
    except TensorError as error:
        raise invalid_argument(f"input '{name}': {error}") from error


def from_raw(name: str, dtype: np.dtype[Any], shape: Sequence[int], data: bytes | memoryview) -> Array:
    """The tensor in `data`: little-endian values in row-major order, each with its length in front for BYTES.

    The array is read-only and shares the memory of `data` where the model may read it there.
    Raises ServingError (INVALID_ARGUMENT) when the length of `data` is not the shape's.
    """
    count = count_elements(name, shape)
    if dtype.kind == "O":
        return _strings(name, count, data).reshape(shape)
    if len(data) != count * dtype.itemsize:
        raise invalid_argument(
            f"input '{name}' of shape {list(shape)} and datatype {element_of(dtype).open_inference} needs"
            f" {count * dtype.itemsize} bytes, the request has {len(data)}"
        )
    array: Array = np.frombuffer(data, np.uint8 if dtype.kind == "b" else dtype.newbyteorder("<"))
    if dtype.kind == "b":
        array = array != 0  # any byte may come, not every one is a boolean
    if not array.flags.aligned:
        array = array.copy()
    return array.reshape(shape)


def _strings(name: str, count: int, data: bytes | memoryview) -> Array:
    if count * _LENGTH.size > len(data):
        raise invalid_argument(
            f"input '{name}' has {count} elements of datatype BYTES, each with its length in 4 bytes before it:"
            f" {len(data)} bytes are too few"
        )
    values = []
    position = 0
    for number in range(count):
        start = position + _LENGTH.size
        stop = start + _LENGTH.unpack_from(data, position)[0] if start <= len(data) else start
        if stop > len(data):
            raise invalid_argument(f"input '{name}': element {number} goes beyond the {len(data)} bytes of its data")
        values.append(bytes(data[start:stop]))
        position = stop
    if position != len(data):
        raise invalid_argument(
            f"input '{name}': its {count} elements are {position} bytes long, the request has {len(data)}"
        )
    array = np.empty(count, dtype=np.object_)
    array[:] = values
    return array


def to_raw(array: Array) -> bytes:
    """The values of a tensor as `from_raw` reads them."""
    if array.dtype.kind != "O":
        return array.tobytes()
    return b"".join([part for value in array.flat for part in (_LENGTH.pack(len(value)), value)])


def refuse_unsupported(what: str, parameters: Container[str]) -> None:
    """Raises ServingError (INVALID_ARGUMENT) for parameters of a tensor that ask for another answer than a tensor."""
    if "classification" in parameters:
        raise invalid_argument(f"{what}: 'classification' is not supported: take the largest values of the tensor")
    if "shared_memory_region" in parameters:
        raise invalid_argument(f"{what}: shared memory is not supported: send and receive the tensor's bytes")
