"""What a loaded version can be asked: its signatures, with the names, types and shapes of their tensors.

Read from the SavedModel without TensorFlow where there is one, so that metadata is what TensorFlow Serving shows, and
from the graph itself otherwise. A request's tensors are checked here before they reach an engine.
"""

import enum
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from google.protobuf import text_format
from google.protobuf.message import DecodeError

from bookserve.serving.server.types.errors import (
    failed_precondition,
    internal,
    invalid_argument,
    not_found,
)
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensorflow_pb2 import DataType
from bookserve.serving.wire.tensors import Array, TensorError, TensorSpec, data_type, read_spec, to_array, type_word

log = logging.getLogger(__name__)

DEFAULT_SIGNATURE = "serving_default"
PREDICT_METHOD = "tensorflow/serving/predict"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"


class ShapeRule(enum.Enum):
    """How far the shapes of a signature's inputs bind a request."""

    DECLARED = enum.auto()
    RANK_OF_ONES_IS_FREE = enum.auto()  # where all fixed sizes are 1, the rank is a hint: [?, 1] takes [3]
    SIZES_ARE_HINTS = enum.auto()  # the engine resizes its inputs to what comes


@dataclass(frozen=True, eq=False)
class Signature:
    """The inputs and outputs of one way to call a model, by alias, and the inputs' defaults where there are any.

    `optional` names inputs that may be left out because the engine itself has a value for them, and `constants` those
    that the graph lists beside them and that no request can set.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    defaults: Mapping[str, Array] = field(default_factory=dict)
    definition: tensorflow_pb2.SignatureDef = field(default_factory=tensorflow_pb2.SignatureDef)
    optional: frozenset[str] = frozenset()
    constants: frozenset[str] = frozenset()
    shape_rule: ShapeRule = ShapeRule.DECLARED

    @cached_property
    def required(self) -> Mapping[str, TensorSpec]:
        """The inputs of every run, in the order of `inputs`: those that are not optional."""
        return {alias: spec for alias, spec in self.inputs.items() if alias not in self.optional}

    @cached_property
    def input_types(self) -> Mapping[str, DataType]:
        """The element type of each input."""
        return {alias: spec.data_type for alias, spec in self.inputs.items()}

    @cached_property
    def may_be_omitted(self) -> frozenset[str]:
        """The inputs that a request may leave out."""
        return self.optional | self.defaults.keys()

    def complete(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The inputs to run: those of a request, checked, and the defaults of those that it leaves out.

        Raises ServingError (INVALID_ARGUMENT) for missing, unknown or unfit inputs.
        """
        if inputs.keys() != self.inputs.keys():
            inputs = self._with_defaults(inputs)
        for place, (alias, spec) in enumerate(self.inputs.items()):
            if alias in inputs:
                self._check(spec, inputs[alias], place)
        return inputs

    def _check(self, spec: TensorSpec, array: Array, place: int) -> None:
        """`place` is the input's number among those of the signature, which TensorFlow's message gives."""
        try:
            fits = array.dtype == spec.dtype
        except TensorError:
            fits = False
        if not fits:
            expected, given = type_word(spec.data_type), type_word(data_type(array.dtype))
            raise invalid_argument(
                f"Expects arg[{place}] to be {expected} but {given} is provided: input '{spec.name}'"
            )
        shape, rule = spec.shape, self.shape_rule
        if shape is None or (rule is ShapeRule.SIZES_ARE_HINTS and len(shape) == array.ndim):
            return
        if rule is ShapeRule.RANK_OF_ONES_IS_FREE and len(shape) != array.ndim and set(shape) <= {None, 1}:
            return
        if not _takes(shape, array.shape):
            raise invalid_argument(
                f"input '{spec.name}' expects shape {shape_text(shape)}, the request has {list(array.shape)}"
            )

    def _with_defaults(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        given, expected = set(inputs), set(self.inputs)
        defaults = self.may_be_omitted
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
        return {
            alias: inputs[alias] if alias in inputs else self.defaults[alias]
            for alias in self.inputs
            if alias in inputs or alias not in self.optional
        }

    def check_sent(self, names: Collection[str]) -> None:
        """For requests whose unknown inputs are passed over: a constant of the graph may not be sent in vain.

        Raises ServingError (INVALID_ARGUMENT).
        """
        fixed = self.constants & set(names)
        if fixed:
            raise invalid_argument(f"input '{min(fixed)}' is a constant of the graph, which no request can set")

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

    Raises ServingError (FAILED_PRECONDITION) when the model has none of that name, with those that it has.
    """
    signature = signatures.get(name or DEFAULT_SIGNATURE)
    if signature is None:
        raise failed_precondition(
            f'Serving signature key "{name or DEFAULT_SIGNATURE}" not found. {existing(signatures)}'
        )
    return signature


def existing(signatures: Collection[str]) -> str:
    """What a message about a missing signature says of those that there are."""
    if not signatures:
        return "The model has no signature."
    return f"The model has: {', '.join(sorted(signatures))}. Choose one with signature_name."


def from_proto(
    name: str,
    proto: tensorflow_pb2.SignatureDef,
    *,
    optional: Collection[str] = (),
    constants: Collection[str] = (),
    shape_rule: ShapeRule = ShapeRule.DECLARED,
) -> Signature:
    """Reads a SignatureDef. `optional`, `constants` and `shape_rule` as in Signature."""
    inputs, outputs = (
        {alias: read_spec(alias, infos[alias]) for alias in sorted(infos)} for infos in (proto.inputs, proto.outputs)
    )
    defaults = {alias: array for alias, array in _defaults(name, proto).items() if alias not in optional}
    fixed = frozenset(constants) - inputs.keys()
    return Signature(name, inputs, outputs, defaults, proto, frozenset(optional), fixed, shape_rule)


def read_meta_graph(path: Path, tags: Collection[str]) -> tensorflow_pb2.MetaGraphDef:
    """The graph of a `saved_model.pb`, or of one as text (`.pbtxt`), with exactly these tags.

    Raises ServingError: FAILED_PRECONDITION when the file is no SavedModel, NOT_FOUND when it has no such graph.
    """
    try:
        if path.suffix == ".pbtxt":
            text = path.read_text()
            graphs = text_format.Parse(text, tensorflow_pb2.SavedModel(), allow_unknown_field=True).meta_graphs
        else:
            graphs = tensorflow_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs
    except (OSError, DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
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
