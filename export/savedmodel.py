"""The SavedModel of a version: the trained network under the signature that its contract names."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import fingerprint_pb2

from bookserve.export.contracts import SIGNATURE, Contract, Tensor
from bookserve.export.errors import ExportError


class ServingModule(tf.Module):  # type: ignore[misc]
    """A network and its one signature: the contract's inputs in order, the contract's outputs by name."""

    def __init__(self, network: keras.Model, contract: Contract, assets: Sequence[Path]) -> None:
        super().__init__(name="servable")  # a model's name may be no Python identifier
        self.assets = [tf.saved_model.Asset(str(path)) for path in assets]
        self.specs = [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in contract.inputs]

        def serve(*inputs: Any) -> dict[str, Any]:
            arguments = dict(zip([tensor.name for tensor in contract.inputs], inputs, strict=True))
            outputs = network(arguments if len(arguments) > 1 else inputs[0], training=False)
            return {tensor.name: tf.identity(outputs[tensor.name], name=tensor.name) for tensor in contract.outputs}

        self.serve = tf.function(serve, input_signature=self.specs, autograph=False)
        self.kept = read_resources(network, self.serve)


def read_resources(network: keras.Model, serve: Any) -> list[Any]:
    """The variables and tables of a network that its function `serve` reads: what a SavedModel holds.

    Variables are in the network's order; tables are those of layers that look words or numbers up.

    The network itself would bring its optimizer along, and the states of its random generators. Keras's own variables,
    which wrap these, would be written as objects that TensorFlow 1's loader does not fill, nor that of TensorFlow
    Serving, and that LiteRT's converter takes for empty ones, without an error.
    """
    function = serve.get_concrete_function()
    read = {variable.ref() for variable in function.variables}
    variables = [variable.value for variable in network.variables if variable.value.ref() in read]
    captured = {id(tensor) for tensor in function.captured_inputs}
    parts = tf.train.TrackableView(network).descendants()
    return [*variables, *(part for part in parts if id(getattr(part, "resource_handle", None)) in captured)]


def load(path: Path, contract: Contract, assets: Sequence[Path] = ()) -> ServingModule:
    """The network of a run, checked against its contract; `assets` are the files that it carries along.

    Raises:
        ExportError: the file is damaged, or an input or output is missing or of another type or shape.
    """
    try:
        network = keras.models.load_model(path, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{path} cannot be loaded: {error}") from error
    try:
        servable = ServingModule(network, contract, assets)
        function = servable.serve.get_concrete_function()
    except KeyError as error:
        raise ExportError(f"{path} has no output {error}, which the contract {contract.id} names") from error
    except (ValueError, TypeError) as error:
        raise ExportError(f"{path} does not take the inputs of the contract {contract.id}: {error}") from error
    for tensor in contract.outputs:
        _check(tensor, function.structured_outputs[tensor.name], contract)
    return servable


def save(servable: ServingModule, folder: Path) -> None:
    """Write `saved_model.pb`, `variables/`, `assets/` and `fingerprint.pb` into `folder`."""
    tf.saved_model.save(servable, str(folder), signatures={SIGNATURE: servable.serve})
    make_repeatable(folder)


def make_repeatable(folder: Path) -> None:
    """Give `fingerprint.pb` a uuid that comes from its sums of the other files; TensorFlow draws one at random."""
    path = folder / "fingerprint.pb"
    fingerprint = fingerprint_pb2.FingerprintDef.FromString(path.read_bytes())
    fingerprint.uuid = ""
    sums = fingerprint.SerializeToString(deterministic=True)
    fingerprint.uuid = str(int.from_bytes(hashlib.sha256(sums).digest()[:16]))
    path.write_bytes(fingerprint.SerializeToString(deterministic=True))


def _check(tensor: Tensor, made: Any, contract: Contract) -> None:
    shape = tuple(made.shape)
    same_rank = len(shape) == len(tensor.shape)
    if (
        made.dtype.name != tensor.dtype
        or not same_rank
        or any(wanted is not None and wanted != size for wanted, size in zip(tensor.shape, shape, strict=True))
    ):
        raise ExportError(
            f"the output '{tensor.name}' is {made.dtype.name} {list(shape)}, the contract {contract.id} has "
            f"{tensor.dtype} {list(tensor.shape)}"
        )
