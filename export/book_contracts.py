"""The contracts of the book's models, which every run writes down and every version carries in its manifest.

A run writes what is here into its `config.json`, and export copies it from there. Imports nothing heavy.
"""

from bookserve.export.contracts import Contract, Fingerprint, Preprocessing, Tensor

LINEAR = Contract(
    model="linear",
    version=1,
    task="regression",
    inputs=(Tensor("x", "float32", (None, 1)),),
    outputs=(Tensor("y", "float32", (None,)),),
    columns=("x",),
)

LOGISTIC = Contract(
    model="logistic",
    version=1,
    task="tabular",
    inputs=(Tensor("x", "float32", (None, 2)),),
    outputs=(
        Tensor("probability", "float32", (None,), unit="probability"),  # of class "1"
        Tensor("class", "int64", (None,)),
    ),
    labels=("0", "1"),
    columns=("x1", "x2"),
)

TOX21 = Contract(
    model="tox21",
    version=1,
    task="molecules",
    inputs=(Tensor("fingerprint", "uint8", (None, 1024)),),  # as deepchem's CircularFingerprint
    outputs=(  # of activity in each assay, each on its own
        Tensor("probabilities", "float32", (None, 12), unit="probability"),
    ),
    labels=(
        *("NR-AR", "NR-AR-LBD", "NR-AhR", "NR-Aromatase", "NR-ER", "NR-ER-LBD", "NR-PPAR-gamma"),
        *("SR-ARE", "SR-ATAD5", "SR-HSE", "SR-MMP", "SR-p53"),
    ),
    preprocessing=Preprocessing("fingerprint", fingerprint=Fingerprint("morgan", radius=2, bits=1024)),
)

MNIST = Contract(
    model="mnist",
    version=1,
    task="image-classification",
    inputs=(Tensor("images", "uint8", (None, 28, 28), unit="grey level"),),  # white digit on black, as the data set
    outputs=(
        Tensor("probabilities", "float32", (None, 10), unit="probability"),
        Tensor("classes", "int64", (None,), ranks="probabilities"),
    ),
    labels=tuple("0123456789"),
    preprocessing=Preprocessing("images", size=(28, 28), colour="grey", resize="centred"),
)

PTB = Contract(
    model="ptb",
    version=1,
    task="text",
    inputs=(Tensor("tokens", "int32", (None, None), free=("batch", "words")),),  # rows of the vocabulary
    outputs=(
        Tensor(  # of every word of the vocabulary as the next one
            "probabilities", "float32", (None, None), free=("batch", "vocabulary"), unit="probability"
        ),
        Tensor("top_ids", "int32", (None, 10), ranks="probabilities"),
        Tensor("top_probabilities", "float32", (None, 10), unit="probability"),
    ),
    assets=("vocabulary.txt",),  # one word a line, UTF-8; line number from 0 = the word's number in `tokens`
    preprocessing=Preprocessing("tokens", vocabulary="vocabulary.txt"),
)

CIFAR10 = Contract(
    model="cifar10",
    version=1,
    task="image-classification",
    inputs=(Tensor("images", "uint8", (None, 32, 32, 3), unit="colour level"),),
    outputs=(
        Tensor("probabilities", "float32", (None, 10), unit="probability"),
        Tensor("classes", "int64", (None,), ranks="probabilities"),
    ),
    labels=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    preprocessing=Preprocessing("images", size=(32, 32), colour="rgb", resize="crop"),
)

TICTACTOE = Contract(
    model="tictactoe",
    version=1,
    task="board",
    inputs=(Tensor("board", "float32", (None, 3, 3, 2)),),  # plane 0: squares of the side to move, 1: the other's
    outputs=(
        Tensor(  # of each square as the next move, row by row; 0 where taken
            "probabilities", "float32", (None, 9), unit="probability"
        ),
        Tensor("value", "float32", (None,), unit="reward"),  # what the side to move may expect
    ),
)

CONTRACTS: dict[str, Contract] = {
    contract.model: contract for contract in (LINEAR, LOGISTIC, TOX21, MNIST, PTB, CIFAR10, TICTACTOE)
}
