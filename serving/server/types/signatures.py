"""What a loaded version can be asked: its signatures, with the names, types and shapes of their tensors.

Read from `saved_model.pb` without TensorFlow where there is one, so that metadata is what TensorFlow Serving shows, and
from the graph itself otherwise. A request's tensors are checked here before they reach an engine.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from bookserve.serving.server.types.errors import (
    failed_precondition,
    internal,
    invalid_argument,
    not_found,
)
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensors import Array, TensorError, data_type, numpy_type, to_array, type_word

log = logging.getLogger(__name__)

DEFAULT_SIGNATURE = "serving_default"
PREDICT_METHOD = "tensorflow/serving/predict"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"


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

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of the values; object (of bytes) for strings. Raises TensorError for bfloat16 and its like."""
        return numpy_type(self.data_type)

    def check(self, array: Array, place: int) -> None:
        """Raises ServingError (INVALID_ARGUMENT) when the array has another type or does not fit the shape.

        `place` is the input's number among those of its signature, which TensorFlow's message gives.
        """
        try:
            fits = array.dtype == self.dtype
        except TensorError:
            fits = False
        if not fits:
            expected, given = type_word(self.data_type), type_word(data_type(array.dtype))
            raise invalid_argument(
                f"Expects arg[{place}] to be {expected} but {given} is provided: input '{self.name}'"
            )
        shape = self.shape
        if shape is None or (self.any_rank_of_ones and len(shape) != array.ndim and set(shape) <= {None, 1}):
            return
        if not _takes(shape, array.shape):
            raise invalid_argument(
                f"input '{self.name}' expects shape {shape_text(shape)}, the request has {list(array.shape)}"
            )


@dataclass(frozen=True, eq=False)
class Signature:
    """The inputs and outputs of one way to call a model, by alias, and the inputs' defaults where there are any."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    defaults: Mapping[str, Array] = field(default_factory=dict)
    definition: tensorflow_pb2.SignatureDef = field(default_factory=tensorflow_pb2.SignatureDef)

    def complete(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The inputs to run: those of a request, checked, and the defaults of those that it leaves out.

        Raises ServingError (INVALID_ARGUMENT) for missing, unknown or unfit inputs.
        """
        if inputs.keys() != self.inputs.keys():
            inputs = self._with_defaults(inputs)
        for place, (alias, spec) in enumerate(self.inputs.items()):
            spec.check(inputs[alias], place)
        return inputs

    def _with_defaults(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        given, expected, defaults = set(inputs), set(self.inputs), self.defaults
        if len(given) > len(expected) or (len(given) < len(expected) and not defaults):
            raise invalid_argument(
                f"input size does not match signature: {len(given)}!={len(expected)}"
                f" len({_names(given)}) != len({_names(expected)})."
                f" Sent extra: {_names(given - expected)}."
                f" Missing but required: {_names(expected - given)}."
            )
        for alias, spec in self.inputs.items():
            if alias not in inputs and alias not in defaults:
                raise invalid_argument(
                    f"Signature input alias: {alias}(feed name: {spec.tensor}) not found in request and no default"
                    f" value provided. Inputs expected to be in the request {_names(given)},"
                    f" or default input alias set: {','.join(sorted(defaults))}"
                )
        if not given <= expected:
            raise invalid_argument(
                f"Inputs contains invalid name. Used request inputs: {','.join(sorted(given & expected))},"
                f" request input: {','.join(sorted(given))}"
            )
        return {alias: inputs[alias] if alias in inputs else defaults[alias] for alias in self.inputs}

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
        return tuple(name for name in self.outputs if name in chosen)  # one order: the same runs whatever the filter's

    def check_predict_method(self) -> None:
        """What --enable_signature_method_name_check asks of a signature that is called by Predict.

        Raises ServingError (INTERNAL) for a method name that TensorFlow Serving does not know.
        """
        known = (PREDICT_METHOD, CLASSIFY_METHOD, REGRESS_METHOD)
        if self.definition.method_name not in known:
            raise internal(
                f"Expected prediction signature method_name to be one of {{{', '.join(known)}}}."
                f" Was: {self.definition.method_name}",
            )


def find_signature(signatures: Mapping[str, Signature], name: str) -> Signature:
    """The signature of that name; the empty name means `serving_default`.

    Raises ServingError (FAILED_PRECONDITION) when the model has none of that name.
    """
    signature = signatures.get(name or DEFAULT_SIGNATURE)
    if signature is None:
        raise failed_precondition(f'Serving signature key "{name or DEFAULT_SIGNATURE}" not found.')
    return signature


def from_proto(name: str, proto: tensorflow_pb2.SignatureDef, *, any_rank_of_ones: bool = False) -> Signature:
    """Reads a SignatureDef; `any_rank_of_ones` as in TensorSpec."""
    inputs, outputs = (_specs(infos, any_rank_of_ones) for infos in (proto.inputs, proto.outputs))
    return Signature(name, inputs, outputs, _defaults(name, proto), proto)


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


def _defaults(name: str, proto: tensorflow_pb2.SignatureDef) -> dict[str, Array]:
    defaults = {}
    for alias, tensor in proto.defaults.items():
        try:
            defaults[alias] = to_array(tensor)
        except TensorError as error:
            log.warning("signature '%s': the default of input '%s' cannot be used: %s", name, alias, error)
    return defaults


def _takes(shape: tuple[int | None, ...], given: tuple[int, ...]) -> bool:
    if len(shape) != len(given):
        return False
    for fixed, size in zip(shape, given, strict=True):  # noqa: SIM110 - a generator for every tensor would cost more
        if fixed is not None and fixed != size:
            return False
    return True


def shape_text(shape: tuple[int | None, ...]) -> str:
    """A shape for messages, with "?" for a free dimension."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _names(names: set[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
