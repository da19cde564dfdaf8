"""The graphs of a version as functions from tensors to tensors, each run by its own engine.

For the parity of a version with its source. Every library is imported when a graph of its kind is loaded.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bookserve.export.errors import ExportError
from bookserve.serving.wire import wide_bfloat16

Rows = Mapping[str, npt.NDArray[Any]]
_NARROW = "bfloat16"  # in a type: NumPy has none
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
Run = Callable[[Rows], dict[str, npt.NDArray[Any]]]


def onnx_graph(path: Path | bytes, threads: int = 0) -> Run:
    """An ONNX graph, or the file with one, by ONNX Runtime on the CPU; `threads` are all cores where it is 0.

    As in the model server, bfloat16 is computed in float32 where ONNX Runtime lacks an operation in it.

    Raises:
        ExportError: ONNX Runtime does not load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    content = path if isinstance(path, bytes) else str(path)
    try:
        session = _session(content, options)
    except Exception as error:  # its exceptions share no base class below this one
        raise ExportError(f"ONNX Runtime does not load it: {_first_line(error)}") from error
    names = [value.name for value in session.get_outputs()]
    narrow = [value.name for value in (*session.get_inputs(), *session.get_outputs()) if _NARROW in value.type]

    def run(rows: Rows) -> dict[str, npt.NDArray[Any]]:
        if narrow:
            raise ExportError(f"'{narrow[0]}' is bfloat16, which NumPy has not: cast inputs and outputs to float32")
        answers = session.run(names, {name: _as_text(array) for name, array in rows.items()})
        return dict(zip(names, (np.asarray(value) for value in answers), strict=True))

    return run


def _as_text(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Words as ONNX Runtime takes them: of bytes it would take what Python prints of them, b'word'."""
    if array.dtype.kind not in "OS":
        return array
    words = [word.decode() if isinstance(word, bytes) else word for word in array.ravel().tolist()]
    return np.array(words, dtype=object).reshape(array.shape)


def _session(content: str | bytes, options: Any) -> Any:
    import onnxruntime

    providers = ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # as above
        if not wide_bfloat16.is_lack(error):
            raise
        wide = wide_bfloat16.widened(content if isinstance(content, bytes) else Path(content).read_bytes())
        if wide is None:
            raise
        if isinstance(content, str):
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(Path(content).parent))
        return onnxruntime.InferenceSession(wide, options, providers=providers)


def saved_model(folder: Path, signature: str) -> Run:
    """A signature of a SavedModel, by TensorFlow on the CPU: GPUs may round float32 to 19 bits.

    By TensorFlow 2's loader, or that of TensorFlow 1 where it fails: it does not restore the optimizers of Keras 2.

    Raises:
        ExportError: neither loads it.
    """
    import tensorflow as tf

    with tf.device("/CPU:0"):
        try:
            loaded = tf.saved_model.load(str(folder))  # held, or its variables go
        except Exception as error:  # its loader raises what its kernels raise
            return _in_a_session(folder, signature, error)
    function = loaded.signatures[signature]

    def run(rows: Rows) -> dict[str, npt.NDArray[Any]]:
        with tf.device("/CPU:0"):
            tensors = {name: tf.constant(array, dtype=_dtype(function, name)) for name, array in rows.items()}
            return {name: np.asarray(value) for name, value in function(**tensors).items() if loaded is not None}

    return run


def saved_model_session(folder: Path, signature: str) -> Run:
    """The same by TensorFlow 1's loader, in a session: as `saved_model_cli run` and TensorFlow Serving load it."""
    import tensorflow as tf

    with tf.Graph().as_default():
        session = tf.compat.v1.Session(config=tf.compat.v1.ConfigProto(device_count={"GPU": 0}))
        loaded = tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], str(folder))
    definition = loaded.signature_def[signature]
    wanted = {name: info.name for name, info in definition.outputs.items()}

    def run(rows: Rows) -> dict[str, npt.NDArray[Any]]:
        fed = {definition.inputs[name].name: array for name, array in rows.items()}
        return {name: np.asarray(value) for name, value in session.run(wanted, fed).items()}

    return run


def _dtype(function: Any, name: str) -> Any:
    return function.structured_input_signature[1][name].dtype


def _in_a_session(folder: Path, signature: str, first: BaseException) -> Run:
    """As TensorFlow Serving loads a SavedModel: its graph alone, not its objects."""
    import tensorflow as tf

    session = tf.compat.v1.Session(graph=tf.Graph(), config=tf.compat.v1.ConfigProto(device_count={"GPU": 0}))
    try:
        with session.graph.as_default():
            loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
    except Exception as error:  # as above
        raise ExportError(f"TensorFlow does not load {folder}: {_first_line(first)}; {_first_line(error)}") from error
    found = loaded.signature_def[signature]
    outputs = {name: info.name for name, info in found.outputs.items()}

    def run(rows: Rows) -> dict[str, npt.NDArray[Any]]:
        answers = session.run(outputs, {found.inputs[name].name: array for name, array in rows.items()})
        return {name: np.asarray(value) for name, value in answers.items()}

    return run


def tflite(path: Path, signature: str) -> Run:
    """A LiteRT file: its signature of that name, or its tensors where it has no signatures."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    if signature in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(signature)

        def run(rows: Rows) -> dict[str, npt.NDArray[Any]]:
            answers = runner(**{name: np.asarray(array, order="C") for name, array in rows.items()})
            return {name: np.array(value) for name, value in answers.items()}

        return run

    def run_by_index(rows: Rows) -> dict[str, npt.NDArray[Any]]:
        places = {entry["name"]: entry["index"] for entry in interpreter.get_input_details()}
        for name, array in rows.items():
            interpreter.resize_tensor_input(places[name], array.shape)
        interpreter.allocate_tensors()
        for name, array in rows.items():
            interpreter.set_tensor(places[name], np.asarray(array, order="C"))
        interpreter.invoke()
        details = interpreter.get_output_details()
        return {entry["name"]: np.array(interpreter.get_tensor(entry["index"])) for entry in details}

    return run_by_index


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:400] if lines else type(error).__name__
