"""LiteRT (TensorFlow Lite) as the engine of a `model.tflite`, where --prefer_tflite_model asks for it.

The signatures are those of the flatbuffer; a model without any gets a `serving_default` of its tensor names, as in
TensorFlow Serving. An interpreter runs one request at a time, so a version holds several where batches run in parallel.
No state outlives a request: variable tensors are reset before each run, and a model that writes resource variables gets
a new interpreter for each.
"""

import queue
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bookserve.serving.server.engines import refusals, zero_sizes
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.types.errors import failed_precondition
from bookserve.serving.server.types.signatures import DEFAULT_SIGNATURE, PREDICT_METHOD, Signature, from_proto
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensors import Array, TensorError, data_type

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
            raise failed_precondition(f"{path} does not load: {error}") from error
        first = interpreters[0]
        # What such a model writes, no call of the interpreter's resets.
        self._used_once = any(entry["op_name"] in _WRITES for entry in first._get_ops_details())  # noqa: SLF001 - no public name
        self._keys = list(first.get_signature_list())
        try:
            if self._keys:
                definitions = {key: _definition(*_signature_details(first, key)) for key in self._keys}
            else:
                details = (first.get_input_details(), first.get_output_details())
                self._inputs, self._outputs = ({entry["name"]: entry["index"] for entry in side} for side in details)
                definitions = {DEFAULT_SIGNATURE: _definition(*({e["name"]: e for e in side} for side in details))}
        except TensorError as error:
            raise failed_precondition(f"{path} cannot be served: {error}") from error
        self.signature_defs: Mapping[str, tensorflow_pb2.SignatureDef] = definitions
        self.signatures: Mapping[str, Signature] = {
            name: from_proto(name, definition) for name, definition in definitions.items()
        }
        self.doubts: Mapping[str, str] = dict.fromkeys(definitions, "a TFLite model is not proved")

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See Engine.run."""
        empty = zero_sizes.answer(signature, inputs, outputs, {})
        if empty is not None:
            return empty
        interpreter = self._idle.get()
        try:
            interpreter.reset_all_variables()
            if self._keys:
                runner = interpreter.get_signature_runner(signature.name)
                answers = runner(**{name: np.ascontiguousarray(array) for name, array in inputs.items()})
                return [np.array(answers[name]) for name in outputs]
            return self._run_by_index(interpreter, inputs, outputs)
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

    def _run_by_index(self, interpreter: Any, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        current = {entry["index"]: tuple(entry["shape"]) for entry in interpreter.get_input_details()}
        resized = False
        for name, array in inputs.items():
            if current[self._inputs[name]] != array.shape:
                interpreter.resize_tensor_input(self._inputs[name], array.shape)
                resized = True
        if resized:
            interpreter.allocate_tensors()
        for name, array in inputs.items():
            interpreter.set_tensor(self._inputs[name], np.ascontiguousarray(array))
        interpreter.invoke()
        return [interpreter.get_tensor(self._outputs[name]) for name in outputs]


def _signature_details(interpreter: Any, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    runner = interpreter.get_signature_runner(key)
    return runner.get_input_details(), runner.get_output_details()


def _definition(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> tensorflow_pb2.SignatureDef:
    """A SignatureDef from LiteRT's details of tensors. Raises TensorError for a type that cannot be served."""
    definition = tensorflow_pb2.SignatureDef(method_name=PREDICT_METHOD)
    for details, infos in ((inputs, definition.inputs), (outputs, definition.outputs)):
        for name, entry in details.items():
            info = infos[name]
            info.name = entry["name"]
            info.dtype = data_type(np.dtype(entry["dtype"]))
            declared = entry["shape_signature"] if len(entry["shape_signature"]) else entry["shape"]
            for size in declared:
                info.tensor_shape.dim.add().size = int(size)
    return definition
