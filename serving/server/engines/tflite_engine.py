"""LiteRT (TensorFlow Lite) as the engine of a `model.tflite`, where --prefer_tflite_model asks for it.

An interpreter runs one request at a time, so a version holds several where batches run in parallel. No state outlives a
request: variable tensors are reset before each run, and a model that writes resource variables gets a new interpreter
for each.
"""

import queue
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bookserve.serving.server.engines import refusals, tflite_signatures, zero_sizes
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.engines.tflite_signatures import TfliteSignature
from bookserve.serving.server.types.errors import failed_precondition
from bookserve.serving.server.types.signatures import ShapeRule, Signature, from_proto
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensors import Array

_LACKING = re.compile(r"unresolved custom op: ([\w:]+)|\((Flex\w+)\) failed to prepare")
_WRITES = ("ASSIGN_VARIABLE", "HASHTABLE_IMPORT")


class TfliteEngine:
    """A version run by LiteRT."""

    name = "tflite"
    computes_alone = False
    keeps_state = False

    def __init__(self, path: Path, options: EngineOptions) -> None:
        """Loads the flatbuffer. Raises ServingError (FAILED_PRECONDITION) without LiteRT or when it refuses it."""
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ModuleNotFoundError:
            raise failed_precondition(f"{path} needs LiteRT: pip install 'bookserve[tflite]'") from None
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def interpreter() -> Any:
            made = Interpreter(model_path=str(path), num_threads=options.intra_op_threads or None)
            made.allocate_tensors()
            return made

        self._new_interpreter = interpreter
        try:
            interpreters = [interpreter() for _ in range(options.tflite_interpreters)]
            for one in interpreters:
                self._idle.put(one)
        except (RuntimeError, ValueError) as error:
            raise failed_precondition(f"{path} does not load: {_why(str(error))}") from error
        # What such a model writes, no call of the interpreter's resets.
        operations = interpreters[0]._get_ops_details()  # noqa: SLF001 - no public name
        self._used_once = any(operation["op_name"] in _WRITES for operation in operations)
        self._signatures = tflite_signatures.read(path, interpreters[0])
        self.signature_defs: Mapping[str, tensorflow_pb2.SignatureDef] = {
            name: signature.definition for name, signature in self._signatures.items()
        }
        self.signatures: Mapping[str, Signature] = {
            name: from_proto(name, definition, shape_rule=ShapeRule.SIZES_ARE_HINTS)
            for name, definition in self.signature_defs.items()
        }
        self.doubts: Mapping[str, str] = dict.fromkeys(self.signature_defs, "a TFLite model is not proved")

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See Engine.run. The interpreter's inputs take the shapes of the request's."""
        empty = zero_sizes.answer(signature, inputs, outputs, {}, {})
        if empty is not None:
            return empty
        own = self._signatures[signature.name]
        inputs = {name: _whole(array) for name, array in inputs.items()}
        interpreter = self._idle.get()
        try:
            interpreter.reset_all_variables()
            if own.is_the_files_own:
                answers = interpreter.get_signature_runner(signature.name)(**inputs)
                return [np.array(answers[name]) for name in outputs]
            return _run_by_number(interpreter, own, inputs, outputs)
        except Exception as error:
            refusal = refusals.of_tflite(error)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            self._idle.put(self._new_interpreter() if self._used_once else interpreter)

    def close(self) -> None:
        """See Engine.close."""
        self._idle = queue.SimpleQueue()


def _whole(array: Array) -> Array:
    """The array as LiteRT reads it: in one piece, and a single string as bytes.

    Of one object LiteRT would read the pointer.
    """
    if array.dtype.kind != "O" or array.ndim:
        return np.asarray(array, order="C")
    text: bytes = array.item()
    # Only the field of a record may have the length 0, and a string that ends in zeros keeps them in its bytes.
    single: Array = np.zeros((), [("text", f"S{len(text)}")])["text"]
    single[...] = text
    return single


def _run_by_number(
    interpreter: Any, signature: TfliteSignature, inputs: Mapping[str, Array], outputs: Sequence[str]
) -> list[Array]:
    for name, array in inputs.items():
        interpreter.resize_tensor_input(signature.inputs[name], array.shape)
    interpreter.allocate_tensors()  # each time, as a shape that was refused leaves nothing allocated; cheap where equal
    for name, array in inputs.items():
        interpreter.set_tensor(signature.inputs[name], array)
    interpreter.invoke()
    return [interpreter.get_tensor(signature.outputs[name]) for name in outputs]


def _why(reason: str) -> str:
    """LiteRT's reason, or what is missing and what to do where a file needs operations which LiteRT does not have."""
    operation = _LACKING.search(reason)
    if operation is None:
        return reason
    name = operation[1] or operation[2]
    if "ParseExample" in name:
        return (
            f"LiteRT for Python lacks the custom operation {name}: serve the SavedModel that the file was made of, or"
            " export the model with its features as tensors"
        )
    lacking, other = f"the custom operation {name}", "without custom operations"
    if name.startswith("Flex"):
        lacking = f"TensorFlow's operation {name.removeprefix('Flex')}"
        other = "with TFLITE_BUILTINS alone, without SELECT_TF_OPS"
    return f"LiteRT for Python lacks {lacking}: serve the SavedModel that the file was made of, or convert it {other}"
