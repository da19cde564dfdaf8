"""The one place that names each model's inputs, outputs, dtypes, shapes and labels.

Everything that must agree on a model's tensors reads it here: training writes them, export checks them, the gateway
refuses a version whose manifest names another contract. Imports nothing heavy.
"""

from dataclasses import dataclass

SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Tensor:
    """One named input or output.

    `dtype` is numpy's name of the type ("uint8", "float32", "int64"). `shape` is the full shape with None for the free
    dimensions; the first one is always the batch. `ranks` is set on an output of class numbers: it names the float
    output whose last axis the numbers point into, so that two engines may differ on them where that output is tied.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    ranks: str = ""


@dataclass(frozen=True)
class Contract:
    """The tensors of one model under the signature `serving_default`.

    `version` is the contract's own number: it grows when a tensor's name, type or meaning changes, and never otherwise.
    `labels` names the classes of the outputs in order, or is empty where the outputs are no classes.
    """

    model: str
    version: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    labels: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The name that a manifest carries, such as "mnist/1"."""
        return f"{self.model}/{self.version}"


MNIST = Contract(
    model="mnist",
    version=1,
    inputs=(Tensor("images", "uint8", (None, 28, 28)),),  # white digit on black, as the data set has it
    outputs=(
        Tensor("probabilities", "float32", (None, 10)),
        Tensor("classes", "int64", (None,), ranks="probabilities"),
    ),
    labels=tuple("0123456789"),
)

CONTRACTS: dict[str, Contract] = {contract.model: contract for contract in (MNIST,)}
