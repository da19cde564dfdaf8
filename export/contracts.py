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
    `labels` names the classes of the outputs in order, or is empty where the outputs are no classes. `assets` are the
    files that a version carries in its folder `assets/`.
    """

    model: str
    version: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    labels: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The name that a manifest carries, such as "mnist/1"."""
        return f"{self.model}/{self.version}"


LINEAR = Contract(
    model="linear",
    version=1,
    inputs=(Tensor("x", "float32", (None, 1)),),
    outputs=(Tensor("y", "float32", (None,)),),
)

LOGISTIC = Contract(
    model="logistic",
    version=1,
    inputs=(Tensor("x", "float32", (None, 2)),),
    outputs=(Tensor("probability", "float32", (None,)), Tensor("class", "int64", (None,))),  # of class "1"
    labels=("0", "1"),
)

TOX21 = Contract(
    model="tox21",
    version=1,
    inputs=(Tensor("fingerprint", "uint8", (None, 1024)),),  # Morgan, radius 2, as deepchem's CircularFingerprint
    outputs=(Tensor("probabilities", "float32", (None, 12)),),  # of activity in each assay, each on its own
    labels=(
        *("NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD", "NR-PPAR-gamma"),
        *("SR-ARE", "SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53"),
    ),
)

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

PTB = Contract(
    model="ptb",
    version=1,
    inputs=(Tensor("tokens", "int32", (None, None)),),  # rows of `vocabulary.txt`, the version's asset
    outputs=(
        Tensor("probabilities", "float32", (None, None)),  # of every word of the vocabulary as the next one
        Tensor("top_ids", "int32", (None, 10), ranks="probabilities"),
        Tensor("top_probabilities", "float32", (None, 10)),
    ),
    assets=("vocabulary.txt",),  # one word a line, UTF-8; line number from 0 = the word's number in `tokens`
)

CIFAR10 = Contract(
    model="cifar10",
    version=1,
    inputs=(Tensor("images", "uint8", (None, 32, 32, 3)),),
    outputs=(
        Tensor("probabilities", "float32", (None, 10)),
        Tensor("classes", "int64", (None,), ranks="probabilities"),
    ),
    labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)

TICTACTOE = Contract(
    model="tictactoe",
    version=1,
    inputs=(Tensor("board", "float32", (None, 3, 3, 2)),),  # plane 0: squares of the side to move, 1: the other's
    outputs=(
        Tensor("probabilities", "float32", (None, 9)),  # of each square as the next move, row by row; 0 where taken
        Tensor("value", "float32", (None,)),  # what the side to move may expect
    ),
)

CONTRACTS: dict[str, Contract] = {
    contract.model: contract for contract in (LINEAR, LOGISTIC, TOX21, MNIST, PTB, CIFAR10, TICTACTOE)
}
