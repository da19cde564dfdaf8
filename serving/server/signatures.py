"""What a loaded version can be asked: its signatures, with the names, types and shapes of their tensors.

Read from `saved_model.pb` without TensorFlow where there is one, so that metadata is what TensorFlow Serving shows, and
from the graph itself otherwise. A request's tensors are checked here before they reach an engine.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from bookserve.serving.server.errors import failed_precondition, invalid_argument, not_found
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensors import Array, data_type, numpy_type, type_name

DEFAULT_SIGNATURE = "serving_default"
PREDICT_METHOD = "tensorflow/serving/predict"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature. `shape` has None for a free dimension, and is None for an unknown rank.

    With `any_rank_of_ones` a shape whose fixed sizes are all 1 is no more than a hint: [?, 1] takes [3].
    """

    name: str  # the alias that requests use
    data_type: tensorflow_pb2.DataType
    shape: tuple[int | None, ...] | None
    tensor: str = ""  # its name in the graph, such as "x:0"
    any_rank_of_ones: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of the values; object (of bytes) for strings."""
        return numpy_type(self.data_type)

    def check(self, array: Array) -> None:
        """Raises ServingError (INVALID_ARGUMENT) when the array has another type or does not fit the shape."""
        if array.dtype != self.dtype:
            given, expected = _type_word(array.dtype), _type_word(self.dtype)
            raise invalid_argument(f"Expects arg[{self.name}] to be {expected} but {given} is provided")
        shape = self.shape
        if shape is None or (self.any_rank_of_ones and len(shape) != array.ndim and set(shape) <= {None, 1}):
            return
        if len(shape) != array.ndim or any(
            fixed is not None and fixed != size for fixed, size in zip(shape, array.shape, strict=True)
        ):
            raise invalid_argument(
                f"input '{self.name}' expects shape {shape_text(shape)}, the request has {list(array.shape)}"
            )


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of one way to call a model, by alias."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    def check_inputs(self, inputs: Mapping[str, Array]) -> None:
        """Raises ServingError (INVALID_ARGUMENT) for missing, unknown or unfit inputs."""
        if inputs.keys() != self.inputs.keys():
            given, expected = set(inputs), set(self.inputs)
            if len(given) != len(expected):
                raise invalid_argument(
                    f"input size does not match signature: {len(given)}!={len(expected)}"
                    f" len({_names(given)}) != len({_names(expected)})."
                    f" Sent extra: {_names(given - expected)}."
                    f" Missing but required: {_names(expected - given)}."
                )
            missing = min(expected - given)
            raise invalid_argument(
                f"Signature input alias: {missing} not found in request and no default value provided."
                f" Inputs expected to be in the request {_names(expected)}, or default input alias set: {{}}"
            )
        for name, array in inputs.items():
            self.inputs[name].check(array)

    def choose_outputs(self, output_filter: list[str]) -> tuple[str, ...]:
        """The outputs to answer: those of the filter, or all.

        Raises ServingError (INVALID_ARGUMENT) for a name that does not exist or comes twice.
        """
        if not output_filter:
            return tuple(self.outputs)
        chosen: list[str] = []
        for name in output_filter:
            if name not in self.outputs:
                raise invalid_argument(
                    f"output tensor alias not found in signature: {name}"
                    f" Outputs expected to be in the set {_names(set(self.outputs))}."
                )
            if name in chosen:
                raise invalid_argument(f"duplicate output tensor alias: {name}")
            chosen.append(name)
        return tuple(chosen)


def find_signature(signatures: Mapping[str, Signature], name: str) -> Signature:
    """The signature of that name; the empty name means `serving_default`.

    Raises ServingError (FAILED_PRECONDITION) when the model has none of that name.
    """
    signature = signatures.get(name or DEFAULT_SIGNATURE)
    if signature is None:
        raise failed_precondition(f'Serving signature key "{name or DEFAULT_SIGNATURE}" not found.')
    return signature


def from_proto(name: str, proto: tensorflow_pb2.SignatureDef, *, any_rank_of_ones: bool = False) -> Signature:
    """Reads a SignatureDef."""
    return Signature(name, _specs(proto.inputs, any_rank_of_ones), _specs(proto.outputs, any_rank_of_ones))


def read_meta_graph(path: Path, tags: Collection[str]) -> tensorflow_pb2.MetaGraphDef:
    """The graph of a `saved_model.pb` with exactly these tags.

    Raises ServingError: FAILED_PRECONDITION when the file is no SavedModel, NOT_FOUND when it has no such graph.
    """
    try:
        graphs = tensorflow_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs
    except (OSError, DecodeError) as error:
        raise failed_precondition(f"{path} cannot be read as a SavedModel: {error}") from error
    for graph in graphs:
        if set(graph.meta_info_def.tags) == set(tags):
            return graph
    found = "; ".join("{ " + ", ".join(sorted(graph.meta_info_def.tags)) + " }" for graph in graphs)
    raise not_found(
        "Could not find meta graph def matching supplied tags: { " + " ".join(tags) + " }."
        f" {path} has {found or 'no graph'}: choose one with --saved_model_tags"
    )


def copies(definitions: Mapping[str, tensorflow_pb2.SignatureDef]) -> dict[str, tensorflow_pb2.SignatureDef]:
    """Signature defs of their own, which do not keep the graph that they were read with in memory."""
    return {
        name: tensorflow_pb2.SignatureDef.FromString(definition.SerializeToString())
        for name, definition in definitions.items()
    }


def _specs(infos: Mapping[str, tensorflow_pb2.TensorInfo], any_rank_of_ones: bool) -> dict[str, TensorSpec]:
    specs = {}
    for alias in sorted(infos):
        info = infos[alias]
        shape = info.tensor_shape
        sizes = tuple(dim.size if dim.size >= 0 else None for dim in shape.dim)
        declared = None if shape.unknown_rank else sizes
        specs[alias] = TensorSpec(alias, info.dtype, declared, info.name, any_rank_of_ones)
    return specs


def shape_text(shape: tuple[int | None, ...]) -> str:
    """A shape for messages, with "?" for a free dimension."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _names(names: set[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _type_word(dtype: np.dtype[Any]) -> str:
    """TensorFlow's word for a type in its messages, such as "float"."""
    return type_name(data_type(dtype)).removeprefix("DT_").lower()
