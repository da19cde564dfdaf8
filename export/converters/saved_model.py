"""SavedModels of TensorFlow 1 and 2, Keras, Estimators and TFX: copied, and converted to ONNX where tf2onnx can."""

import shutil
from pathlib import Path
from typing import Any

from bookserve.export import parity, saved_model_contract
from bookserve.export.contracts import SIGNATURE, Contract
from bookserve.export.converters.source import ONNX, SAVED_MODEL, TENSORFLOW_1, Converted, Rows, Wishes
from bookserve.export.errors import ExportError
from bookserve.export.example_inputs import Table

FORMAT = "SavedModel"
EXTRA = "convert,training"


def recognises(path: Path) -> bool:
    """A folder with saved_model.pb, or that file itself."""
    return _folder(path) is not None


def convert(path: Path, folder: Path, wishes: Wishes) -> Converted:
    """See `Converter.convert`."""
    source = _folder(path)
    assert source is not None
    contract = saved_model_contract.read(source, wishes.model)
    import tensorflow as tf

    from bookserve.export import engines
    from bookserve.export.converters import tensorflow_graphs

    _copy(source, folder)
    function, refused = None, ""
    try:
        loaded = tf.saved_model.load(str(source))
        function = loaded.signatures[contract.signature]
    except Exception as error:  # its loader raises what its kernels raise; that of TensorFlow 1 is tried below
        refused = (str(error).splitlines() or [type(error).__name__])[0][:300]
    if function is not None:
        contract = _known(contract, function)
    tensorflow_graphs.refuse_if_empty(contract, source)
    reference = engines.saved_model(source, contract.signature)
    graphs = {SAVED_MODEL: engines.saved_model(folder, contract.signature)}
    names = [tensor.name for tensor in contract.inputs]
    notes: list[str] = []
    checks = {}
    try:
        checks[TENSORFLOW_1] = engines.saved_model_session(folder, contract.signature)
    except Exception as error:  # as above
        why = str(error).splitlines()[0][:300]
        notes.append(f"TensorFlow 1's loader, which works as TensorFlow Serving's, refuses it: {why}")
    tables: dict[str, Table] = {}
    rounded: dict[str, float] = {}
    if function is None:
        notes.append(
            f"kept as a SavedModel alone: TensorFlow 2 does not load it, TensorFlow 1's loader does: {refused}"
        )
    elif contract.signature != SIGNATURE:
        notes.append(f"kept as a SavedModel alone: it has no signature '{SIGNATURE}' for an ONNX graph")
    else:
        servable = tensorflow_graphs.Servable(
            contract, lambda *inputs: function(**dict(zip(names, inputs, strict=True)))
        )
        made = tensorflow_graphs.to_onnx(servable, contract, folder)
        if isinstance(made, str):
            notes.append(f"kept as a SavedModel alone, which TensorFlow serves ('bookserve[tensorflow]'): {made}")
        else:
            graphs = {ONNX: made[0], **graphs}
            tables = made[1]
            if tensorflow_graphs.computes_in(function, tf.float16):
                rounded[ONNX] = parity.HALF_SOURCE["float16"]
                notes.append("it computes in float16, which engines round in their own ways: by at most 8 units")
    return Converted(
        contract=contract,
        reference=reference,
        graphs=graphs,
        checks=checks,
        tables=tables,
        example=_examples(source, contract),
        notes=tuple(notes),
        made_with=tensorflow_graphs.versions(),
        rounded=rounded,
    )


def _folder(path: Path) -> Path | None:
    folder = path.parent if path.name == SAVED_MODEL else path
    if (folder / SAVED_MODEL).is_file():
        return folder
    versions = [child for child in folder.iterdir() if child.name.isdigit()] if folder.is_dir() else []
    return _folder(versions[0]) if len(versions) == 1 else None  # a base path of TensorFlow Serving with one version


def _copy(source: Path, folder: Path) -> None:
    shutil.copyfile(source / SAVED_MODEL, folder / SAVED_MODEL)
    for name in ("variables", "assets"):
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
    for name in ("fingerprint.pb", "keras_metadata.pb"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _known(contract: Contract, function: Any) -> Contract:
    """The contract without inputs that the function does not take, which a loader may have dropped."""
    taken = function.structured_input_signature[1]
    missing = [tensor.name for tensor in contract.inputs if tensor.name not in taken]
    if missing:
        raise ExportError(f"TensorFlow's loader does not find the input '{missing[0]}' of '{contract.signature}'")
    return contract


def _examples(source: Path, contract: Contract) -> Rows | None:
    """Serialized tf.Examples, for a signature whose one input of strings is parsed as such."""
    features = saved_model_contract.parsed_features(source)
    if not features or len(contract.inputs) != 1 or contract.inputs[0].dtype != "object":
        return None
    return {contract.inputs[0].name: saved_model_contract.serialized_examples(features)}
