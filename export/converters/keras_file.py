"""Keras models: `.keras` of Keras 3, and `.h5` of any Keras. They become a SavedModel and an ONNX graph.

Layers of mixed precision compute in float32 there: that is what their weights are kept in, what CPUs compute faster,
and what the values are closest to.
"""

import re
import zipfile
from pathlib import Path
from typing import Any

from bookserve.export import parity
from bookserve.export.contracts import SIGNATURE, Contract, Tensor
from bookserve.export.converters.source import ONNX, SAVED_MODEL, TENSORFLOW_1, Converted, Rows, Run, Wishes
from bookserve.export.errors import ExportError
from bookserve.export.example_inputs import Table

FORMAT = "Keras"
EXTRA = "convert,training"
# What Keras says of a layer or function that whoever saved the model wrote.
_ELSEWHERE = re.compile(r"(?:Could not locate|Unknown) (class|function|layer):? '([^']{1,200})'")
_HDF5 = b"\x89HDF\r\n\x1a\n"


def recognises(path: Path) -> bool:
    """A file that is named .keras, or an HDF5 file named .h5 or .hdf5."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".keras":
        return True
    with path.open("rb") as stream:
        return path.suffix.lower() in (".h5", ".hdf5") and stream.read(8) == _HDF5


def convert(path: Path, folder: Path, wishes: Wishes) -> Converted:
    """See `Converter.convert`. A Lambda layer is code: it is loaded only where the file is trusted."""
    if path.suffix.lower() == ".keras" and not zipfile.is_zipfile(path):
        raise ExportError(f"{path} is no Keras file: it is no zip archive")
    import keras
    import tensorflow as tf

    from bookserve.export import engines, savedmodel
    from bookserve.export.converters import tensorflow_graphs

    network = _load(path, wishes)
    precision = _computes_in(network)
    if precision:
        for layer in _layers(network):
            layer.dtype_policy = keras.DTypePolicy("float32")
    contract, call = _contract(network, wishes.model)
    servable = tensorflow_graphs.Servable(contract, call)
    module = tf.Module(name=contract.model)
    module.kept, module.serve = savedmodel.read_resources(network, servable.serve), servable.serve
    tf.saved_model.save(module, str(folder), signatures={SIGNATURE: servable.serve})
    savedmodel.make_repeatable(folder)
    graphs = {SAVED_MODEL: engines.saved_model(folder, SIGNATURE)}
    notes: list[str] = []
    tables: dict[str, Table] = {}
    made = tensorflow_graphs.to_onnx(servable, contract, folder)
    if isinstance(made, str):
        notes.append(f"kept as a SavedModel alone, which TensorFlow serves ('bookserve[tensorflow]'): {made}")
    else:
        graphs, tables = {ONNX: made[0], **graphs}, made[1]
    names = [tensor.name for tensor in contract.inputs]

    def run(call: Any) -> Run:
        def answer(rows: Rows) -> dict[str, Any]:
            answers = call(*(tf.constant(rows[name]) for name in names))
            return {name: value.numpy() for name, value in answers.items()}

        return answer

    checks = {TENSORFLOW_1: engines.saved_model_session(folder, SIGNATURE)}
    rounded = {}
    if precision:
        notes.append(f"its layers compute in {precision}; those of the version, with the same weights, in float32")
        rounded = {f"the file in {precision}": parity.HALF_SOURCE[precision]}
        checks |= dict.fromkeys(rounded, _in_float32(run(_contract(_load(path, wishes), wishes.model)[1])))
    return Converted(
        contract,
        run(call),
        graphs,
        checks,
        tables=tables,
        notes=tuple(notes),
        made_with=tensorflow_graphs.versions(),
        rounded=rounded,
    )


def _load(path: Path, wishes: Wishes) -> Any:
    """The network of a file.

    Raises:
        ExportError: Keras does not load it, or it keeps values from one call to the next.
    """
    import keras

    try:
        network = keras.models.load_model(path, compile=False, safe_mode=not wishes.trust)
    except Exception as error:  # what layers raise while they are built
        raise ExportError(_reason(path, error)) from error
    stateful = [layer.name for layer in _layers(network) if getattr(layer, "stateful", False)]
    if stateful:
        raise ExportError(
            f"{path}: the layer '{stateful[0]}' is stateful, so an answer would depend on the requests before it: build"
            " the network with stateful=False, give it these weights with set_weights, and save that"
        )
    return network


def _layers(network: Any) -> list[Any]:
    """The network and all layers in it, those inside layers as well."""
    return list(network._flatten_layers())  # noqa: SLF001  Keras's own way to them


def _computes_in(network: Any) -> str:
    """The type of 16 bits in which layers of the network compute, as mixed precision has it; empty without one."""
    used = {layer.compute_dtype for layer in _layers(network)}
    return next((name for name in ("bfloat16", "float16") if name in used), "")


def _in_float32(run: Run) -> Run:
    """A run whose answers of 16 bits are widened."""
    import numpy as np

    def answer(rows: Rows) -> dict[str, Any]:
        return {
            name: value.astype(np.float32) if value.dtype.name in parity.HALF_SOURCE else value
            for name, value in run(rows).items()
        }

    return answer


def _contract(network: Any, model: str) -> tuple[Contract, Any]:
    """The contract of a network, and its function from input tensors in order to outputs by name."""
    if not getattr(network, "inputs", None) or not getattr(network, "outputs", None):
        raise ExportError("the network has no fixed inputs: build it by a call, or save it as a SavedModel")
    inputs = tuple(
        Tensor(_name(tensor.name), tensor.dtype if tensor.dtype != "string" else "object", tuple(tensor.shape))
        for tensor in network.inputs
    )
    layers = getattr(network, "output_names", None) or [network.layers[-1].name]  # of a Sequential the last one
    names = [_name(name) for name in layers]
    if len(set(names)) < len(names):
        names = [f"output_{number}" for number in range(len(names))]
    outputs = tuple(
        Tensor(name, "float32" if tensor.dtype in parity.HALF_SOURCE else tensor.dtype, tuple(tensor.shape))
        for name, tensor in zip(names, network.outputs, strict=True)
    )

    def call(*tensors: Any) -> dict[str, Any]:
        import keras

        structure = getattr(network, "input", None) if len(network.inputs) > 1 else None
        arguments = tensors[0] if structure is None else keras.tree.pack_sequence_as(structure, list(tensors))
        answer = network(arguments, training=False)
        return dict(zip(names, keras.tree.flatten(answer), strict=True))

    return Contract(model, 1, inputs, outputs), call


def _name(name: str) -> str:
    return name.partition(":")[0].replace("/", "_")


def _reason(path: Path, error: Exception) -> str:
    text = str(error)
    if missing := _ELSEWHERE.search(text):
        if path.suffix.lower() != ".keras" and _is_operation(missing[2]):
            return (
                f"{path} holds Keras's operation '{missing[2]}', which is not brought back from HDF5: save the network"
                " with model.save('model.keras'), and add that file"
            )
        return (
            f"{path} needs the {missing[1]} '{missing[2]}', which is Python code that is not in the file: where that "
            "code is, write a SavedModel with model.export('FOLDER'), and add FOLDER"
        )
    if "Lambda" in text and ("safe_mode" in text or "unsafe" in text or "enable_unsafe" in text):
        return (
            f"{path} holds a Lambda layer, which is Python code of whoever made the file. --trust loads it: the code "
            "then runs with your rights, on this machine"
        )
    if "No model config found" in text:
        return (
            f"{path} holds weights alone: where the network is built, save it whole with model.save('model.keras'), and"
            " add that file"
        )
    why = text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
    return f"Keras does not load {path}{_writer(path)}: {why}"


def _is_operation(name: str) -> bool:
    """Whether a name such as "TopK" is that of a function of keras.ops."""
    import keras

    return hasattr(keras.ops, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())


def _writer(path: Path) -> str:
    """Which Keras wrote an HDF5 file, where it says so: files of versions before 2.3 often do not load any more."""
    import h5py

    if path.suffix.lower() == ".keras":
        return ""
    with h5py.File(path) as file:
        version = file.attrs.get("keras_version")
    version = version.decode(errors="replace") if isinstance(version, bytes) else version
    return f", which Keras {version[:40]} wrote" if isinstance(version, str) else ""
