"""ONNX Runtime as the engine of a version that carries an ONNX graph."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from bookserve.serving.server.engines import refusals, zero_sizes
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.engines.onnx_rows import walk
from bookserve.serving.server.settings.memory import Memory
from bookserve.serving.server.types.errors import failed_precondition, invalid_argument
from bookserve.serving.server.types.signatures import (
    DEFAULT_SIGNATURE,
    PREDICT_METHOD,
    Signature,
    copies,
    from_proto,
    read_meta_graph,
)
from bookserve.serving.wire import tensorflow_pb2
from bookserve.serving.wire.tensors import Array

# ONNX Runtime's names of the types that TensorFlow Serving's protocol can carry.
_DATA_TYPES: dict[str, tensorflow_pb2.DataType] = {
    "tensor(float)": tensorflow_pb2.DT_FLOAT,
    "tensor(double)": tensorflow_pb2.DT_DOUBLE,
    "tensor(float16)": tensorflow_pb2.DT_HALF,
    "tensor(int8)": tensorflow_pb2.DT_INT8,
    "tensor(int16)": tensorflow_pb2.DT_INT16,
    "tensor(int32)": tensorflow_pb2.DT_INT32,
    "tensor(int64)": tensorflow_pb2.DT_INT64,
    "tensor(uint8)": tensorflow_pb2.DT_UINT8,
    "tensor(uint16)": tensorflow_pb2.DT_UINT16,
    "tensor(uint32)": tensorflow_pb2.DT_UINT32,
    "tensor(uint64)": tensorflow_pb2.DT_UINT64,
    "tensor(bool)": tensorflow_pb2.DT_BOOL,
    "tensor(string)": tensorflow_pb2.DT_STRING,
}
_ERROR_LEVEL = 3
_PROCESSOR = "CPUExecutionProvider"
_REMOTE = "AzureExecutionProvider"  # of operations that ask a service that the graph names


class OnnxEngine:
    """A version run by ONNX Runtime, on the GPU when the installed package can use one."""

    name = "onnx"
    keeps_state = False

    def __init__(self, graph: Path, saved_model: Path, options: EngineOptions) -> None:
        """Loads `graph`; `saved_model`, where it exists, tells the signature as TensorFlow Serving would show it.

        Raises ServingError (FAILED_PRECONDITION) when the graph does not load or the two disagree.
        """
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = options.intra_op_threads
        session_options.inter_op_num_threads = 1
        # Measured on 2 cores: threads that spin for work cost half as much again and end hardly sooner.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session_options.log_severity_level = _ERROR_LEVEL
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph),
                session_options,
                providers=[name for name in onnxruntime.get_available_providers() if name != _REMOTE],
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise failed_precondition(f"{graph} does not load: {error}") from error
        reading = walk.read(graph)
        on_one_thread = options.intra_op_threads == 1 and self._session.get_providers() == [_PROCESSOR]
        self.computes_alone = on_one_thread and not reading.open_ended
        self.doubts: Mapping[str, str] = {DEFAULT_SIGNATURE: reading.doubt} if reading.doubt else {}
        self._memory = Memory()
        self._shrinking = onnxruntime.RunOptions()  # of a run that gives back what the session keeps for later runs
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._dimension_names = {
            node.name: tuple([size if isinstance(size, str) else "" for size in node.shape])
            for node in (*self._session.get_inputs(), *self._session.get_outputs())
        }
        own = self._signature_def(graph)
        self.signature_defs: Mapping[str, tensorflow_pb2.SignatureDef] = {DEFAULT_SIGNATURE: own}
        if saved_model.is_file():
            self.signature_defs = copies(read_meta_graph(saved_model, options.saved_model_tags).signature_def)
            declared = self.signature_defs.get(DEFAULT_SIGNATURE)
            if declared is None or not _agree(declared, own):
                raise failed_precondition(
                    f"{graph} does not have the inputs and outputs of '{DEFAULT_SIGNATURE}' in {saved_model.name}:"
                    " export the version again"
                )
        self.signatures: Mapping[str, Signature] = {
            DEFAULT_SIGNATURE: from_proto(DEFAULT_SIGNATURE, self.signature_defs[DEFAULT_SIGNATURE])
        }

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See Engine.run."""
        empty = zero_sizes.answer(signature, inputs, outputs, self._dimension_names)
        if empty is not None:
            return empty
        strings = [alias for alias, array in inputs.items() if array.dtype.kind == "O"]
        if strings:
            inputs = {**inputs, **{alias: _to_text(inputs[alias], alias) for alias in strings}}
        try:
            options = self._shrinking if self._memory.is_scarce else None
            arrays: list[Array] = self._session.run(list(outputs), inputs, options)
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            refusal = refusals.of_onnx(error)
            if refusal is None:
                raise
            raise refusal from error
        return [_to_bytes(array) if array.dtype.kind == "O" else array for array in arrays]

    def close(self) -> None:
        """See Engine.close."""
        del self._session

    def _signature_def(self, graph: Path) -> tensorflow_pb2.SignatureDef:
        definition = tensorflow_pb2.SignatureDef(method_name=PREDICT_METHOD)
        for nodes, infos in (
            (self._session.get_inputs(), definition.inputs),
            (self._session.get_outputs(), definition.outputs),
        ):
            for node in nodes:
                if node.type not in _DATA_TYPES:
                    raise failed_precondition(f"{graph}: '{node.name}' is a {node.type}, which cannot be served")
                info = infos[node.name]
                info.name = node.name
                info.dtype = _DATA_TYPES[node.type]
                for size in node.shape:
                    info.tensor_shape.dim.add().size = size if isinstance(size, int) else -1
        return definition


def _agree(declared: tensorflow_pb2.SignatureDef, own: tensorflow_pb2.SignatureDef) -> bool:
    return all(
        {alias: info.dtype for alias, info in theirs.items()} == {alias: info.dtype for alias, info in ours.items()}
        for theirs, ours in ((declared.inputs, own.inputs), (declared.outputs, own.outputs))
    )


def _to_text(array: Array, alias: str) -> Array:
    """Strings as ONNX Runtime takes them; of bytes it would take Python's notation."""
    try:
        return np.array([value.decode() for value in array.ravel().tolist()], dtype=np.object_).reshape(array.shape)
    except UnicodeDecodeError as error:
        raise invalid_argument(f"input '{alias}': a string of an ONNX model has to be UTF-8: {error}") from error


def _to_bytes(array: Array) -> Array:
    return np.array([value.encode() for value in array.ravel().tolist()], dtype=np.object_).reshape(array.shape)
