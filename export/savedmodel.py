"""The SavedModel of a version: the trained network under the signature that its contract names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from bookserve.export.contracts import SIGNATURE, Contract, Tensor
from bookserve.export.errors import ExportError


class ServingModule(tf.Module):  # type: ignore[misc]
    """A network and its one signature: the contract's inputs in order, the contract's outputs by name."""

    def __init__(self, network: keras.Model, contract: Contract, assets: Sequence[Path]) -> None:
        super().__init__(name=contract.model)
        self.kept = list(network.variables)  # what is written; the network itself would bring its optimizer along
        self.assets = [tf.saved_model.Asset(str(path)) for path in assets]
        self.specs = [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in contract.inputs]

        def serve(*inputs: Any) -> dict[str, Any]:
            arguments = dict(zip([tensor.name for tensor in contract.inputs], inputs, strict=True))
            outputs = network(arguments if len(arguments) > 1 else inputs[0], training=False)
            return {tensor.name: tf.identity(outputs[tensor.name], name=tensor.name) for tensor in contract.outputs}

        self.serve = tf.function(serve, input_signature=self.specs, autograph=False)


def load(path: Path, contract: Contract, assets: Sequence[Path] = ()) -> ServingModule:
    """The network of a run, checked against its contract; `assets` are the files that it carries along.

    Raises:
        ExportError: the file is damaged, or an input or output is missing or of another type or shape.
    """
    try:
        network = keras.models.load_model(path, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{path} cannot be loaded: {error}") from error
    servable = ServingModule(network, contract, assets)
    try:
        function = servable.serve.get_concrete_function()
    except KeyError as error:
        raise ExportError(f"{path} has no output {error}, which the contract {contract.id} names") from error
    except (ValueError, TypeError) as error:
        raise ExportError(f"{path} does not take the inputs of the contract {contract.id}: {error}") from error
    for tensor in contract.outputs:
        _check(tensor, function.structured_outputs[tensor.name], contract)
    return servable


def save(servable: ServingModule, folder: Path) -> None:
    """Write `saved_model.pb`, `variables/` and `assets/` into `folder`."""
    tf.saved_model.save(servable, str(folder), signatures={SIGNATURE: servable.serve})


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
