"""Classify and Regress: which signatures can be asked so, tf.Example in, labels with scores or values out.

A method here only says what to run and reads what came out; `inference/requests.py` runs it. As in TensorFlow Serving
(servables/tensorflow/classifier.cc, regressor.cc), the examples go as serialized bytes into the one input `inputs`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from google.protobuf import text_format

from bookserve.serving.server.types.errors import invalid_argument
from bookserve.serving.server.types.signatures import CLASSIFY_METHOD, REGRESS_METHOD, Signature
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire import tensorflow_serving_pb2 as messages
from bookserve.serving.wire.tensors import Array, TensorSpec, data_type, type_name, type_word

Result = messages.ClassificationResult | messages.RegressionResult
Response = messages.ClassificationResponse | messages.RegressionResponse

INPUTS = "inputs"
_CLASSES = "classes"
_SCORES = "scores"
_OUTPUTS = "outputs"


@dataclass(frozen=True)
class ExampleMethod:
    """One of the two methods that take tf.Example."""

    name: str  # as signatures and InferenceTasks have it
    noun: str  # as TensorFlow Serving's messages have it
    response: Callable[..., Response]
    result_field: str  # of InferenceResult
    # Both raise ServingError (INVALID_ARGUMENT): for a signature of another form, and for outputs of another form.
    choose_outputs: Callable[[Signature], tuple[str, ...]]
    read: Callable[[Mapping[str, Array], int], Result]

    def outputs(self, signature: Signature, check_method_name: bool) -> tuple[str, ...]:
        """The outputs to run. Raises ServingError (INVALID_ARGUMENT) when the signature cannot be asked this way."""
        if check_method_name and signature.definition.method_name != self.name:
            raise invalid_argument(
                f"Expected {self.noun} signature method_name to be {self.name}. Was: {signature.definition.method_name}"
            )
        if len(signature.inputs) != 1:
            raise invalid_argument("Expected one input Tensor.")
        outputs = self.choose_outputs(signature)
        wanted = signature.inputs[INPUTS].data_type
        if wanted != tensorflow_pb2.DT_STRING:
            raise invalid_argument(
                f"Expects arg[0] to be {type_word(wanted)} but string is provided: the input '{INPUTS}' of the"
                f" signature '{signature.name}' does not take serialized tf.Example; call Predict instead"
            )
        return outputs


def read_examples(source: messages.Input) -> Array:
    """The examples as a tensor of strings [n], each serialized, behind the context that all share.

    Concatenated messages merge when they are parsed: an example's own features win over those of the context.
    Raises ServingError (INVALID_ARGUMENT) when there is none.
    """
    context = b""
    if source.WhichOneof("kind") == "example_list_with_context":
        context = source.example_list_with_context.context.SerializeToString()
        examples = source.example_list_with_context.examples
    else:
        examples = source.example_list.examples
    if not examples:
        raise invalid_argument("Input is empty.")
    serialized = np.empty(len(examples), dtype=np.object_)
    serialized[:] = [context + example.SerializeToString() for example in examples]
    return serialized


@lru_cache(maxsize=256)
def join(signatures: tuple[Signature, ...]) -> Signature:
    """One signature that takes the inputs and gives the outputs of several, by the names that they have in the graph.

    It is the same object for the same signatures, so that requests for it can be batched.
    """
    if len(signatures) == 1:
        return signatures[0]
    inputs: dict[str, TensorSpec] = {}
    outputs: dict[str, TensorSpec] = {}
    for signature in signatures:
        inputs.update({spec.tensor: spec for spec in signature.inputs.values()})
        outputs.update({spec.tensor: spec for spec in signature.outputs.values()})
    names = "+".join(signature.name for signature in signatures)
    return Signature(names, inputs, outputs)


def _classification_outputs(signature: Signature) -> tuple[str, ...]:
    if len(signature.outputs) not in (1, 2):
        raise invalid_argument(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if INPUTS not in signature.inputs:
        raise invalid_argument(f"No classification inputs found in SignatureDef: {_text(signature)}")
    outputs = tuple(alias for alias in (_CLASSES, _SCORES) if alias in signature.outputs)
    if not outputs:
        raise invalid_argument(
            f'Expected classification signature outputs to contain at least one of "{_CLASSES}" or "{_SCORES}".'
            f" Signature was: {_text(signature)}"
        )
    return outputs


def _classification_result(outputs: Mapping[str, Array], rows: int) -> messages.ClassificationResult:
    """`classes` (strings) and `scores` (float32), both [rows, classes]; without one, labels are "" or scores 0."""
    classes, scores = outputs.get(_CLASSES), outputs.get(_SCORES)
    for alias, array, expected in (
        (_CLASSES, classes, "DT_STRING"),
        (_SCORES, scores, "DT_FLOAT"),
    ):
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid_argument(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
        if _type(array) != expected:
            raise invalid_argument(f"Expected {alias} Tensor of {expected}. Got: {_type(array)}")
        if array.shape[0] != rows:
            raise invalid_argument(f"Expected {alias} output batch size of {rows}. Got: {array.shape[0]}")
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid_argument(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    result = messages.ClassificationResult()
    for row in range(rows):
        entry = result.classifications.add().classes
        labels = [] if classes is None else [label.decode("utf-8", "replace") for label in classes[row].tolist()]
        values = [] if scores is None else scores[row].tolist()
        for place in range(max(len(labels), len(values))):
            entry.add(label=labels[place] if labels else "", score=values[place] if values else 0.0)
    return result


def _regression_outputs(signature: Signature) -> tuple[str, ...]:
    if len(signature.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if INPUTS not in signature.inputs:
        raise invalid_argument(f"No regression inputs found in SignatureDef: {_text(signature)}")
    if _OUTPUTS not in signature.outputs:
        raise invalid_argument(f"No regression outputs found in SignatureDef: {_text(signature)}")
    return (_OUTPUTS,)


def _regression_result(outputs: Mapping[str, Array], rows: int) -> messages.RegressionResult:
    """`outputs` (float32), [rows] or [rows, 1]."""
    array = outputs[_OUTPUTS]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise invalid_argument(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(array)}"
        )
    if array.shape[0] != rows:
        raise invalid_argument(f"Input batch size did not match output batch size: {rows} vs. {array.shape[0]}")
    if _type(array) != "DT_FLOAT":
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {_type(array)}")
    result = messages.RegressionResult()
    for value in array.ravel().tolist():
        result.regressions.add(value=value)
    return result


def _text(signature: Signature) -> str:
    return text_format.MessageToString(signature.definition)


def _type(array: Array) -> str:
    return type_name(data_type(array.dtype))


def _shape(array: Array) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


CLASSIFY = ExampleMethod(
    CLASSIFY_METHOD,
    "classification",
    messages.ClassificationResponse,
    "classification_result",
    _classification_outputs,
    _classification_result,
)
REGRESS = ExampleMethod(
    REGRESS_METHOD,
    "regression",
    messages.RegressionResponse,
    "regression_result",
    _regression_outputs,
    _regression_result,
)
METHODS = {method.name: method for method in (CLASSIFY, REGRESS)}
