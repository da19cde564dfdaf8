"""The signatures of a TFLite file, as TensorFlow Serving finds them (servables/tensorflow/tflite_session.cc).

SignatureDefs in the metadata `signature_defs_metadata` come first. Then the signatures of the file itself, which the
original does not read. A file without a `serving_default` gets one whose names are those of its tensors without `:0`.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from bookserve.serving.server.types.errors import failed_precondition
from bookserve.serving.server.types.signatures import DEFAULT_SIGNATURE, PREDICT_METHOD
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensors import TensorError, TensorSpec, data_type, write_spec

METADATA = "signature_defs_metadata"

Details = Mapping[str, Any]  # LiteRT's description of one tensor


@dataclass(frozen=True)
class TfliteSignature:
    """One signature. `inputs` and `outputs` are numbers of tensors by alias; empty where the runtime knows the key."""

    definition: tensorflow_pb2.SignatureDef
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]

    @property
    def is_the_files_own(self) -> bool:
        """Whether the runtime runs it by its key."""
        return not self.outputs


def read(path: Path, interpreter: Any) -> dict[str, TfliteSignature]:
    """The signatures of a file that the interpreter has loaded.

    Raises ServingError (FAILED_PRECONDITION) for tensors of a type that cannot be served, for names that are not
    unique, and for metadata that cannot be read or names other tensors than there are.
    """
    try:
        definitions = _metadata(path.read_bytes())
        sides = interpreter.get_input_details(), interpreter.get_output_details()
        if definitions:
            return {name: _of_metadata(definition, *sides) for name, definition in definitions.items()}
        signatures = {}
        for key in interpreter.get_signature_list():
            runner = interpreter.get_signature_runner(key)
            definition = _definition(runner.get_input_details(), runner.get_output_details())
            signatures[key] = TfliteSignature(definition, {}, {})
        if DEFAULT_SIGNATURE not in signatures:
            inputs, outputs = (_by_short_name(side) for side in sides)
            numbers = ({name: entry["index"] for name, entry in side.items()} for side in (inputs, outputs))
            signatures[DEFAULT_SIGNATURE] = TfliteSignature(_definition(inputs, outputs), *numbers)
        return signatures
    except TensorError as error:
        raise failed_precondition(f"{path} cannot be served: {error}") from error


def _metadata(data: bytes) -> dict[str, tensorflow_pb2.SignatureDef]:
    """A FlexBuffer map of serialized SignatureDefs, in a buffer that an entry of the file's metadata points to."""
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import flexbuffers

    try:
        model = schema.Model.GetRootAs(data, 0)
        entries = [model.Metadata(number) for number in range(model.MetadataLength())]
        entry = next((entry for entry in entries if entry.Name() == METADATA.encode()), None)
        if entry is None:
            return {}
        content = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
        values = flexbuffers.GetRoot(bytearray(content)).AsMap
        return {
            key.AsKey: tensorflow_pb2.SignatureDef.FromString(value.AsStringBytes)
            for key, value in zip(values.Keys, values.Values, strict=True)
        }
    except (AttributeError, DecodeError, IndexError, TypeError, ValueError, struct.error) as error:
        raise TensorError(f"its metadata {METADATA} cannot be read: {error}") from error


def _of_metadata(
    definition: tensorflow_pb2.SignatureDef, inputs: list[Details], outputs: list[Details]
) -> TfliteSignature:
    """The signature with the names and types of the tensors that it means, also by their names without `:0`."""
    numbers: list[dict[str, int]] = []
    for infos, details in ((definition.inputs, inputs), (definition.outputs, outputs)):
        tensors = {entry["name"]: entry for entry in details}
        found: dict[str, int] = {}
        for alias, info in infos.items():
            entry = tensors.get(info.name) or tensors.get(_short(info.name))
            if entry is None:
                raise TensorError(f"'{alias}' of its metadata {METADATA} is the tensor '{info.name}': there is none")
            own = _info(alias, entry)
            if len(info.tensor_shape.dim) == len(own.tensor_shape.dim):
                own.tensor_shape.CopyFrom(info.tensor_shape)
            info.CopyFrom(own)
            found[alias] = entry["index"]
        numbers.append(found)
    return TfliteSignature(definition, *numbers)


def _by_short_name(details: list[Details]) -> dict[str, Details]:
    found: dict[str, Details] = {}
    for entry in details:
        if found.setdefault(_short(entry["name"]), entry) is not entry:
            raise TensorError(f"two tensors are named '{_short(entry['name'])}'")
    return found


def _short(name: str) -> str:
    return name.partition(":")[0]


def _definition(inputs: Mapping[str, Details], outputs: Mapping[str, Details]) -> tensorflow_pb2.SignatureDef:
    """Raises TensorError for a type that cannot be served."""
    definition = tensorflow_pb2.SignatureDef(method_name=PREDICT_METHOD)
    for details, infos in ((inputs, definition.inputs), (outputs, definition.outputs)):
        for name, entry in details.items():
            infos[name].CopyFrom(_info(name, entry))
    return definition


def _info(name: str, entry: Details) -> tensorflow_pb2.TensorInfo:
    declared = entry["shape_signature"] if len(entry["shape_signature"]) else entry["shape"]
    shape = tuple(None if size < 0 else int(size) for size in declared)
    return write_spec(TensorSpec(name, data_type(np.dtype(entry["dtype"])), shape, entry["name"]))
