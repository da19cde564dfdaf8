"""ONNX Runtime as the engine of a version that carries an ONNX graph."""

import ctypes
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import onnxruntime

from bookserve.serving.server.engines import onnx_guards, onnx_signature, refusals, zero_sizes
from bookserve.serving.server.engines.engine import EngineOptions
from bookserve.serving.server.engines.onnx_rows import graph as graph_file
from bookserve.serving.server.engines.onnx_rows import walk
from bookserve.serving.server.engines.onnx_rows.values import Mixed
from bookserve.serving.server.engines.question import made_up
from bookserve.serving.server.settings import memory
from bookserve.serving.server.types.errors import ServingError, failed_precondition, invalid_argument
from bookserve.serving.server.types.signatures import (
    DEFAULT_SIGNATURE,
    Signature,
    copies,
    from_proto,
    read_meta_graph,
)
from bookserve.serving.wire import tensorflow_pb2, text_locale, wide_bfloat16, zip_map
from bookserve.serving.wire.tensors import Array

log = logging.getLogger(__name__)

_ERROR_LEVEL = 3
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_UNKNOWN_OPERATION = ("is not a registered function/op", "No Op registered for", "No opset import for domain")
_PROCESSOR = "CPUExecutionProvider"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_ONNX_BFLOAT16 = 16  # TensorProto.DataType
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
        content, reading, self.labels, self._companions, listed = _prepare(graph)
        try:
            for library in options.custom_op_libraries:
                session_options.register_custom_ops_library(library)
            self._session = _session(content, session_options, graph)
            own, optional = onnx_signature.of_session(self._session, graph)
        except ServingError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise failed_precondition(f"{graph} does not load: {error}{_remedy(error)}") from error
        for output, labels in self.labels.items():
            log.info("%s: the columns of output '%s' are the classes %s", graph, output, ", ".join(labels))
        on_one_thread = options.intra_op_threads == 1 and self._session.get_providers() == [_PROCESSOR]
        self.computes_alone = on_one_thread and not reading.open_ended
        self.doubts: Mapping[str, str] = {DEFAULT_SIGNATURE: reading.doubt} if reading.doubt else {}
        self._memory = memory.Memory()
        self._shrinking = onnxruntime.RunOptions()  # of a run that gives back what the session keeps for later runs
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._dimension_names = {
            node.name: tuple([size if isinstance(size, str) else "" for size in node.shape])
            for node in (*self._session.get_inputs(), *self._session.get_outputs())
        }
        self.signature_defs: Mapping[str, tensorflow_pb2.SignatureDef] = {DEFAULT_SIGNATURE: own}
        if saved_model.is_file():
            self.signature_defs = copies(read_meta_graph(saved_model, options.saved_model_tags).signature_def)
            declared = self.signature_defs.get(DEFAULT_SIGNATURE)
            if declared is None or not _agree(declared, own):
                raise failed_precondition(
                    f"{graph} does not have the inputs and outputs of '{DEFAULT_SIGNATURE}' in {saved_model.name}:"
                    " export the version again"
                )
        definition = self.signature_defs[DEFAULT_SIGNATURE]
        self.signatures: Mapping[str, Signature] = {
            DEFAULT_SIGNATURE: from_proto(DEFAULT_SIGNATURE, definition, optional=optional, constants=listed)
        }
        inputs, outputs = ({info.dtype for info in side.values()} for side in (own.inputs, own.outputs))
        self._has_bfloat16 = tensorflow_pb2.DT_BFLOAT16 in inputs | outputs
        if self._has_bfloat16 and tensorflow_pb2.DT_STRING in inputs:
            raise failed_precondition(
                f"{graph} takes text and has bfloat16, of which ONNX Runtime passes one alone: cast the bfloat16"
                " tensors to float in the graph"
            )
        memory.add_keeper(self)

    def run(self, signature: Signature, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """See Engine.run."""
        empty = zero_sizes.answer(signature, inputs, outputs, self._dimension_names, self._companions)
        if empty is not None:
            return empty
        return self._run(inputs, outputs, self._shrinking if self._memory.is_scarce else None)

    def give_back(self) -> None:
        """See memory.Keeper: a short run, after which the session keeps nothing, whether it succeeds or not."""
        for signature in self.signatures.values():
            inputs = made_up(signature)
            if inputs is not None:
                with suppress(Exception):  # also where the session is closed meanwhile
                    self._run(inputs, tuple(signature.outputs), self._shrinking)

    def close(self) -> None:
        """See Engine.close."""
        del self._session

    def _run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], options: onnxruntime.RunOptions | None
    ) -> list[Array]:
        strings = [alias for alias, array in inputs.items() if array.dtype.kind == "O"]
        if strings:
            inputs = {**inputs, **{alias: _to_text(inputs[alias], alias) for alias in strings}}
        try:
            arrays: list[Array]
            if self._has_bfloat16:
                arrays = self._run_values(inputs, outputs, options)
            else:
                arrays = self._session.run(list(outputs), inputs, options)
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            refusal = refusals.of_onnx(error)
            if refusal is None:
                raise
            raise refusal from error
        return [_to_bytes(array) if array.dtype.kind == "O" else array for array in arrays]

    def _run_values(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], options: onnxruntime.RunOptions | None
    ) -> list[Array]:
        """A run with ONNX Runtime's own tensors: it has no numpy type for bfloat16."""
        values = {name: _to_value(array) for name, array in inputs.items()}
        return [_to_array(value) for value in self._session.run_with_ort_values(list(outputs), values, options)]


class _Prepared(NamedTuple):
    """An ONNX file that was read, and made fit to be run."""

    content: str | bytes  # what ONNX Runtime is to load: the file's path where the file can stay as it is
    reading: walk.Reading
    labels: Mapping[str, tuple[str, ...]]  # of an output's columns, where the graph tells them
    companions: zero_sizes.Companions
    listed: frozenset[str] = frozenset()  # initializers that the graph lists as inputs


def _prepare(path: Path) -> _Prepared:
    try:
        model = graph_file.read(path)
    except Mixed as doubt:
        return _Prepared(str(path), walk.Reading(str(doubt), open_ended=True), {}, {})  # ONNX Runtime says why
    reading = walk.read(model)
    listed = frozenset(info.name for info in model.graph.input) & {tensor.name for tensor in model.graph.initializer}
    try:
        companions, labels = zero_sizes.companions(model), zip_map.replace(model)
        changed = any([onnx_guards.put(model), text_locale.replace(model), bool(labels)])
        return _Prepared(model.SerializeToString() if changed else str(path), reading, labels, companions, listed)
    except onnx_guards.Unguarded as reason:
        raise failed_precondition(f"{path} is refused: {reason}") from reason
    except (IndexError, ValueError, RecursionError) as fault:  # of a node without its inputs, which is refused next
        log.debug("%s: %s", path, fault)
        return _Prepared(str(path), reading, {}, {})


def _session(content: str | bytes, options: onnxruntime.SessionOptions, path: Path) -> onnxruntime.InferenceSession:
    """What runs the graph in `content`, of the file `path`; in float32 where an operation lacks in bfloat16."""
    providers = [name for name in onnxruntime.get_available_providers() if name != _REMOTE]
    if isinstance(content, bytes):
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent))
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        if not wide_bfloat16.is_lack(error):
            raise
        wide = wide_bfloat16.widened(content if isinstance(content, bytes) else path.read_bytes())
        if wide is None:
            raise
        log.info("%s is computed in float32, not in bfloat16: %s", path, error)
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent))
        return onnxruntime.InferenceSession(wide, options, providers=providers)


def _remedy(error: BaseException) -> str:
    """What to do about a graph that needs operations which ONNX Runtime does not have, or not for its types."""
    if any(sign in str(error) for sign in _UNKNOWN_OPERATION):
        return ". Operations of one's own come from the libraries of --custom_op_libraries"
    return ". It has the operation for other types" if wide_bfloat16.is_lack(error) else ""


def _to_value(array: Array) -> onnxruntime.OrtValue:
    if array.dtype == _BFLOAT16:
        bits = np.asarray(array, order="C").view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))


def _to_array(value: onnxruntime.OrtValue) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, _BFLOAT16).reshape(value.shape())


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
